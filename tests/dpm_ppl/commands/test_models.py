"""`dpm models`."""

import re

from dpm_ppl.commands import find
from tests.command_line import dpm


def test_models_lists_the_programs_in_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    done = dpm("models")
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in re.sub(r"\n +", " ", done.stdout).splitlines())
    assert lines == find.known()
    assert max(map(len, done.stdout.splitlines())) <= 60


def test_models_tells_their_files():
    for line in dpm("models", "--path").stdout.splitlines():
        name, path = line.split()
        assert find.load(path).summary == find.known()[name]
