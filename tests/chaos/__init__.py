"""What happens when things break? One harness: load, fault, heal, drain, judge.

`faults.py` says what breaks and what is promised then, `stage.py` is the cluster it happens to, `run.py` is the one
order of things, `verdict.py` judges from what the provider, the callers, the database and the workers saw.
"""
