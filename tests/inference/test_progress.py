"""Bars: a line every 10 s to a file, and in a terminal as wide as it is."""

import sys

import pytest
from tqdm import tqdm

from dpm_ppl.inference.progress import bar_options


def test_to_a_file_it_writes_the_first_and_the_last(capfd):
    for _ in tqdm(range(2000), desc="work", **bar_options()):
        pass
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("work")]
    assert len(lines) == 2
    assert "2000/2000" in lines[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_options_are_those_of_where_it_writes(terminal, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    options = bar_options(progress=False)
    assert options == {"disable": True, "dynamic_ncols": terminal, "mininterval": 0.1 if terminal else 10.0}
