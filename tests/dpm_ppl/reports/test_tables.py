"""The tables of 2015: which number of a run stands in which row, in which unit, and what is said of it."""

import json
import math

import pytest

from dpm_ppl.reports.tables import as_markdown, as_text, read_runs, tables

ROLL = {"model": "swiss_roll_2015", "data": "fresh data", "num_data": 4000, "iterations": 70, "K_bits": 2.25}
ROLL |= {"K_bits_se": 0.125, "K_minus_L_null_bits": 6.5, "elbo_bits": -2.19, "elbo_bits_se": 0.01}
LEAVES = {"model": "dead_leaves", "data": "held-out data", "num_data": 16, "iterations": 9, "K_bits": 256.0}
LEAVES |= {"K_bits_per_pixel": 1.0, "K_minus_L_null_bits_per_pixel": 3.0, "elbo_bits_per_pixel": 0.75}
LEAVES |= {"bits_per_dimension": 5.4}
BITS = {"model": "mnist_binary", "data": "held-out data", "num_data": 500, "iterations": 3}
BITS |= {"elbo_bits": -86 / math.log(2), "elbo_bits_se": 1 / math.log(2)}
DIGITS = {"model": "mnist", "data": "held-out data", "num_data": 10, "iterations": 5}
PARZEN = {"parzen_bits": 320.0, "parzen_bits_se": 2.0, "parzen_bandwidth": 0.2, "parzen_num_samples": 10_000}
OWN = {"model": "my_roll.py", "elbo_bits": 1.0}


@pytest.fixture
def runs(tmp_path):
    """Directories as commands leave them, one in a folder of its own, among others that hold no finished fit."""
    folder = tmp_path / "runs"
    for name, metrics in {"a": ROLL, "b": LEAVES, "c": BITS, "d": DIGITS, "e": OWN}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text(json.dumps(metrics))
    (folder / "d" / "evaluation.json").write_text(json.dumps(PARZEN))
    (folder / "unfinished").mkdir()
    (folder / "note.txt").write_text("")
    return folder


def row(found, table, program):
    (one,) = [row for row in found[table] if row["program"] == program]
    return one


def test_numbers_stand_in_their_rows(runs):
    found = tables(read_runs([runs]))
    roll = row(found, "table 1", "swiss_roll_2015")
    assert (roll["K"], roll["K_se"], roll["K_minus_L_null"], roll["elbo"]) == (2.25, 0.125, 6.5, -2.19)
    assert (roll["published_K"], roll["published_K_minus_L_null"], roll["unit"]) == ("2.35", "6.45", "bits")
    assert roll["of"] == "4,000 fresh data, 70 iterations"
    assert roll["run"] == str(runs / "a")
    leaves = row(found, "table 1", "dead_leaves")  # a pixel, not an image
    assert (leaves["K"], leaves["K_minus_L_null"], leaves["elbo"]) == (1.0, 3.0, 0.75)
    assert (leaves["unit"], leaves["bits_per_dimension"]) == ("bits/pixel", 5.4)
    assert "not comparable" in leaves["note"]
    bits = row(found, "table 2", "mnist_binary")
    assert (bits["elbo"], bits["elbo_se"], bits["unit"]) == (pytest.approx(-86), pytest.approx(1), "nats")
    digits = row(found, "table 2", "mnist")
    assert (digits["parzen"], digits["parzen_se"]) == (320.0, 2.0)
    assert "10,000 samples, bandwidth 0.2" in digits["note"]


def test_an_error_that_is_not_known_is_not_nought():
    """Of a single image there is none."""
    found = tables([{**BITS, "elbo_bits_se": None, "run": "one", "evaluation": {}}])
    assert row(found, "table 2", "mnist_binary")["elbo_se"] is None
    assert "nats  -86.000\n" in as_text(found)


def test_what_was_not_run_says_how(runs):
    found = tables(read_runs([runs / "a"]))
    assert row(found, "table 1", "swiss_roll_2015")["run"]
    assert row(found, "table 1", "heartbeat_2015")["of"] == "not run: dpm fit heartbeat_2015"
    assert "dpm evaluate DIR --parzen" in row(found, "table 2", "mnist")["of"]
    assert all(row["of"].startswith(("not run", "published")) for row in tables([])["table 1"] + tables([])["table 2"])


def test_two_fits_of_a_program_are_two_rows(runs):
    again = runs.parent / "again"
    again.mkdir()
    (again / "metrics.json").write_text(json.dumps({**ROLL, "K_bits": 2.0}))
    found = [row["K"] for row in tables(read_runs([runs, again]))["table 1"] if row["program"] == "swiss_roll_2015"]
    assert found == [2.25, 2.0]
    assert len(read_runs([again, again])) == 1


def test_shown_as_text_and_markdown(runs):
    found = tables(read_runs([runs]))
    text = as_text(found, width=80)
    assert max(map(len, [line for line in text.splitlines() if line.startswith("  ")])) <= 80
    line = next(line for line in text.splitlines() if line.startswith("swiss roll        swiss_roll_2015"))
    assert line.split()[2:] == "swiss_roll_2015 bits 2.250 ± 0.125 6.500 -2.190 ± 0.010 2.35 6.45".split()
    assert "5.400 bits per dimension" in " ".join(text.split())
    markdown = as_markdown(found).splitlines()
    assert "| swiss roll | swiss_roll_2015 | bits | 2.250 ± 0.125 | 6.500 | -2.190 ± 0.010 | 2.35 | 6.45 |" in markdown
    heads = [line for line in markdown if line.startswith("| data")]
    rules = [line for line in markdown if line.startswith("|---")]
    assert [line.count("|") for line in heads] == [line.count("|") for line in rules]


def test_a_damaged_file_is_named(runs):
    (runs / "a" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"Expected JSON in .*a/metrics\.json"):
        read_runs([runs])
