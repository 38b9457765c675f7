"""The figure of the bound's forms draws the numbers it is given, in the units it names."""

import numpy as np
import pytest

from tests.benchmarks.bound_form_plots import bound_forms_figure

VARIANCES = {"exact": {"one": [3.0, 1.0], "other": [4.0, 9.0]}, "spoiled": {"one": [5.0, 2.0], "other": [6.0, 8.0]}}


def test_lines_are_the_numbers_in_their_units():
    figure = bound_forms_figure([4, 16], VARIANCES, {"exact": {"one": [-np.log(2), -2 * np.log(2)]}}, title="forms")
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == ["one, exact", "other, exact", "one, spoiled", "other, spoiled"]
    np.testing.assert_array_equal(lines["other, spoiled"].get_xydata(), [[4, 6], [16, 8]])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [-1, -2])
    assert "nats" in left.get_ylabel()
    assert "bits" in right.get_ylabel()
    assert lines["one, exact"].get_color() == lines["one, spoiled"].get_color() != lines["other, exact"].get_color()
    assert lines["one, exact"].get_linestyle() == lines["other, exact"].get_linestyle() == "-"
    assert lines["one, spoiled"].get_linestyle() == "--"


def test_a_line_of_another_length():
    with pytest.raises(
        ValueError, match=r"Expected 'one' of shape \(3,\), one value for each of num_steps; got \(2,\)"
    ):
        bound_forms_figure([4, 8, 16], VARIANCES, {})
