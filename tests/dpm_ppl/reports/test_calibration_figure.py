"""The figure of a calibration: the lines are the ranks and the coverage, within a band where they are uniform."""

import io

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from dpm_ppl.inference import Calibration
from dpm_ppl.reports.calibration_figure import calibration_figure, draw_coverage, draw_ranks

RNG = np.random.default_rng(0)
NUM, NUM_DRAWS = 200, 19


def made(num_coordinates=2):
    """Uniform ranks, but for the first coordinate, whose posterior is too narrow, and too high."""
    x = RNG.integers(0, NUM_DRAWS + 1, (NUM, num_coordinates))
    x[:, 0] = np.where(RNG.random(NUM) < 0.4, x[:, 0] // 8, x[:, 0])
    return Calibration({"x": x, "TARP": RNG.integers(0, NUM_DRAWS + 1, NUM)}, NUM_DRAWS)


def line(axes, start):
    return next(line for line in axes.lines if line.get_label().startswith(start))


def test_lines_are_shares_of_ranks_less_uniform_ones_within_the_band_or_outside():
    found, axes = made(), Figure().subplots()
    draw_ranks(axes, found, level=0.95)
    z, lower, upper = found.band(0.95)
    for name, ranks, is_inside in (
        ("x[0]", found.ranks["x"][:, 0], False),
        ("x[1]", found.ranks["x"][:, 1], True),
        ("TARP", found.ranks["TARP"], True),
    ):
        x, y = line(axes, f"{name}, p = ").get_data()
        expected = [np.mean(ranks < k) - k / 20 for k in range(21)]
        np.testing.assert_allclose(x, np.arange(21) / 20)
        np.testing.assert_allclose(y, expected, atol=1e-12)
        share = np.interp(z, x, y) + z
        assert ((share > lower - 1e-9) & (share < upper + 1e-9)).all() == is_inside
    drawn = axes.collections[0].get_paths()[0].vertices
    assert np.isin(np.round(lower - z, 9), np.round(drawn[:, 1], 9)).all()
    assert np.isin(np.round(upper - z, 9), np.round(drawn[:, 1], 9)).all()


def test_coverage_is_that_of_the_record():
    found, axes = made(), Figure().subplots()
    draw_coverage(axes, found)
    for name, at in (("x[0]", 0), ("x[1]", 1)):
        levels, shares = line(axes, name).get_data()
        np.testing.assert_allclose(shares, [found.coverage(level)["x"][at] for level in levels])
    levels, shares = line(axes, "TARP").get_data()
    np.testing.assert_allclose(shares, [found.coverage(level)["TARP"] for level in levels])


def test_of_many_quantities_those_furthest_out_are_drawn():
    figure = calibration_figure(made(40), title="a title")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    file.seek(0)
    assert len(np.unique(matplotlib.image.imread(file).reshape(-1, 4), axis=0)) > 50
    left = figure.axes[0]
    labels = [drawn.get_label() for drawn in left.lines]
    assert len(labels) == 10
    assert labels[0].startswith("x[0], p = ")
