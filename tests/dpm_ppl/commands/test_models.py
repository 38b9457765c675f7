"""`dpm models`."""

from dpm_ppl.commands import find
from tests.command_line import dpm


def test_models_lists_the_programs():
    done = dpm("models")
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines == find.known()
