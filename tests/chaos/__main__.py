"""`make chaos`: every fault, so many times, and a table of what was promised and what was measured.

python -m tests.chaos [--repeat 3] [--only NAME …] [--write docs/promises.md]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import run
from tests.chaos.table import BEGIN, END, Result, put_between, table


def main() -> int:
    """Exit code 0: every promise was kept each time; 1: one was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="names of faults")
    parser.add_argument("--write", type=Path, help=f"the page that has {BEGIN} and {END}")
    given = parser.parse_args()
    unknown = set(given.only) - {fault.name for fault in FAULTS}
    if unknown or given.repeat < 1:
        known = ", ".join(fault.name for fault in FAULTS)
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {known}" if unknown else "--repeat: from 1")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it ignored: servers and workers end with us
        signal.signal(number, signal.default_int_handler)
    wanted = [fault for fault in FAULTS if not given.only or fault.name in given.only]
    results = [_repeated(fault, given.repeat) for fault in wanted]
    text = table(results, os.getloadavg()[0])
    print(text)
    if given.write is not None:
        given.write.write_text(put_between(given.write.read_text("utf-8"), text), "utf-8")
    return 0 if all(result.kept for result in results) else 1


def _repeated(fault: Fault, times: int) -> Result:
    result = Result(fault=fault)
    if fault.skip:
        result.skipped = fault.skip
        print(f"{fault.name}: skipped, {fault.skip}", flush=True)
        return result
    for number in range(times):
        began_s = time.monotonic()
        try:
            verdict = run(fault)
        except (AssertionError, OSError, RuntimeError) as error:
            traceback.print_exc()
            result.failed.append(str(error).partition("\n")[0][:200] or type(error).__name__)
            said = f"could not be staged: {result.failed[-1]}"
        else:
            result.verdicts.append(verdict)
            said = "kept" if verdict.kept else "; ".join(verdict.broken)
        print(f"{fault.name} {number + 1}/{times}: {said} ({time.monotonic() - began_s:.0f} s)", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
