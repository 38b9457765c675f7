"""The findings of a check as text."""

import pytest

from dpm_ppl.inference.checks.report import Report, failed, note, passed, skipped


def test_report_names_counts_and_shows_findings():
    report = Report("mine", (passed("a", "fine."), note("b", "so so.", nats=1.0), failed("a", "wrong at t = 3.")), 2.0)
    assert not report.passed
    assert report["a"].words == "wrong at t = 3."
    assert report["b"].numbers == {"nats": 1.0}
    lines = str(report).splitlines()
    assert lines[2].split(maxsplit=2) == ["FAILED", "a", "wrong at t = 3."]
    assert lines[-1] == "mine: 1 mistake found; 1 passed, 1 to note, 0 skipped; 2 s"
    with pytest.raises(KeyError, match="there are a, b"):
        report["c"]
    unseen = str(Report("mine", (passed("a", "fine."), skipped("loss", "it has no bound.")), 2.0))
    assert unseen.endswith(
        "mine: no mistake found, but the loss could not be checked; 1 passed, 0 to note, 1 skipped; 2 s"
    )
