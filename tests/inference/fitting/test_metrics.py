"""The lines that a fit writes down."""

import csv
import math

import pytest

from dpm_ppl.inference.fitting.metrics import FILE, Line, Metrics


def lines(folder):
    with (folder / FILE).open() as file:
        return list(csv.DictReader(file))


def line(iteration, **values):
    rest = dict.fromkeys(("bound_bits", "validation_bits", "gradient_norm", "learning_rate"), math.nan)
    return Line(iteration=iteration, seconds=0.5 * iteration, **{**rest, **values})


def test_lines_of_a_session_that_died_are_done_again(tmp_path):
    first = Metrics(tmp_path, 0)
    for iteration in (1, 10, 20):
        first.add(line(iteration, bound_bits=-1.25 * iteration))
    with (tmp_path / FILE).open("a") as file:
        file.write("30,1")  # killed while it wrote
    second = Metrics(tmp_path, 10)
    assert second.newest == 10
    second.add(line(15, validation_bits=0.1))
    assert [row["iteration"] for row in lines(tmp_path)] == ["1", "10", "15"]
    assert [row["bound_bits"] for row in lines(tmp_path)] == ["-1.25", "-12.5", ""]
    assert lines(tmp_path)[-1] == {**dict.fromkeys(lines(tmp_path)[0], ""), "iteration": "15", "seconds": "7.5"} | {
        "validation_bits": "0.1"
    }


def test_a_line_that_cannot_be_written(tmp_path):
    metrics = Metrics(tmp_path, 0)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=r"Expected to write .*metrics.csv.*make room.*resume=True"):
        metrics.add(line(1))
