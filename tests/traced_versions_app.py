"""`tests/two_versions_app.py` in a process that is traced."""

from tests import spans_file

spans_file.set_up()

from tests.two_versions_app import app  # noqa: E402, F401 - the provider comes first
