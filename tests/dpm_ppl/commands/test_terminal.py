"""How wide a command writes."""

import pytest

from dpm_ppl.commands.terminal import width


@pytest.mark.parametrize(("columns", "expected"), [("97", 97), ("20", 60), ("", 118)])
def test_lines_are_as_wide_as_the_terminal_but_not_narrower_than_words_take(monkeypatch, columns, expected):
    monkeypatch.setattr("sys.__stdout__", None)  # no terminal of the tests' own
    monkeypatch.setenv("COLUMNS", columns)
    assert width() == expected
