"""Panels of an evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from dpm_ppl.inference import dissipated_work
from dpm_ppl.reports.evaluation_figure import (
    BOUNDS,
    draw_entropy_production,
    draw_estimates,
    draw_khat,
    draw_work,
    evaluation_figure,
)


def lines(axes):
    """What is drawn, by the words of the legend up to a colon's or comma's detail."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_khat_panel():
    axes = Figure().subplots()
    draw_khat(axes, [0.2, 0.71, np.inf, np.nan, 5.0, -0.4, 0.7])
    drawn = lines(axes)
    below, over = drawn["0.7 or less, 42.9% of the data"], drawn["over 0.7, 42.9%"]
    np.testing.assert_allclose(below.get_offsets(), [[0, 0.2], [5, -0.4], [6, 0.7]])
    np.testing.assert_allclose(over.get_offsets(), [[1, 0.71]])
    np.testing.assert_allclose(drawn["of these, 2 beyond the axis"].get_offsets()[:, 0], [2, 4])
    assert "not known, 14.3%" in drawn
    low, high = axes.get_ylim()
    assert low < -0.4 < 3.0 < high
    assert sorted(line.get_ydata()[0] for line in axes.lines[-2:]) == [0.5, 0.7]


def test_estimates_panel(records):
    likelihood, simulated = records
    axes = Figure().subplots()
    draw_estimates(axes, likelihood, simulated, entropy_limit=-1.5)
    drawn = lines(axes)
    estimate = drawn["data: estimate"].lines[0]
    np.testing.assert_array_equal(estimate.get_xdata(), [1, 10, 50])
    expected = [likelihood.estimate_at(num) / np.log(2) for num in (1, 10, 50)]
    np.testing.assert_allclose(estimate.get_ydata(), np.mean(expected, 1))
    bars = np.array([bar[:, 1] for bar in drawn["data: estimate"].lines[2][0].get_segments()])
    np.testing.assert_allclose(np.diff(bars)[:, 0], 2 * np.std(expected, axis=1, ddof=1) / 20**0.5)
    for name in ("lower", "upper"):
        mean = getattr(simulated, name).mean() / np.log(2)
        assert drawn[f"simulated data: {name} bound"].lines[0].get_ydata()[-1] == pytest.approx(mean)
    assert drawn["data: entropy limit"].get_ydata()[0] == pytest.approx(-1.5 / np.log(2))


def test_work_panel(records):
    work = dissipated_work(records[1])
    axes = Figure().subplots()
    draw_work(axes, work)
    (crossing,) = (handle for label, handle in lines(axes).items() if label.startswith("crossing"))
    assert crossing.get_xdata()[0] == pytest.approx(work.crossing / np.log(2))
    for name in ("forward", "reverse"):
        assert any(label == f"{name}, mean {getattr(work, name).mean() / np.log(2):.3g} bits" for label in lines(axes))
    outlines = [patch.get_path().vertices for patch in axes.patches if len(patch.get_path().vertices) > 8]
    assert len(outlines) == 2
    for x, y in (outline.T for outline in outlines):  # each is a density
        assert abs(np.trapezoid(y, x)) == pytest.approx(1)


def test_work_that_does_not_overlap_has_no_crossing():
    axes = Figure().subplots()
    forward, reverse = np.array([5.0, 6.0, np.inf, 7.0]), np.array([-5.0, -6.0])
    work = SimpleNamespace(forward=forward, reverse=reverse, crossing=0.0, crossing_error=1.0, overlap=0.001)
    draw_work(axes, work)
    assert {"overlap 0.1%: no crossing to see", "25.0% of forward work is infinite"} <= set(lines(axes))
    assert not any(label.startswith("crossing") for label in lines(axes))


@pytest.mark.parametrize("num_steps", [7, 260])
def test_entropy_panel(num_steps):
    rng = np.random.default_rng(0)
    upper = rng.normal(size=num_steps - 1)
    lower, cross = upper - rng.random(num_steps - 1), upper + rng.normal(size=num_steps - 1)
    axes = Figure().subplots()
    draw_entropy_production(axes, cross, bounds=SimpleNamespace(lower=lower, upper=upper))
    total = (cross - upper).sum() / np.log(2)
    line = lines(axes)[f"model; the sum is {total:.3f} bits"]
    width = 1 if num_steps == 7 else 3
    starts = np.arange(0, num_steps - 1, width)
    expected = [(cross - upper)[i : i + width].mean() / np.log(2) for i in starts]
    np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_allclose(line.get_xdata(), [np.arange(2, num_steps + 1)[i : i + width].mean() for i in starts])
    band = lines(axes)[BOUNDS].get_paths()[0].vertices[:, 1]
    averaged = [(lower - upper)[i : i + width].mean() for i in starts]
    assert band.min() == pytest.approx(min(averaged) / np.log(2))
    assert band.max() == 0


def test_entropy_panel_without_bounds_or_steps():
    axes = Figure().subplots()
    draw_entropy_production(axes, np.array([1.0, 2.0]))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.array([1.0, 2.0]) / np.log(2))
    draw_entropy_production(Figure().subplots(), np.zeros(0))


@pytest.mark.parametrize("is_chain", [True, False])
def test_no_legend_covers_what_it_explains(records, is_chain):
    likelihood, simulated = records
    of_chain = (simulated, dissipated_work(simulated)) if is_chain else ()
    figure = evaluation_figure(likelihood, *of_chain, entropy_limit=-1.5)
    figure.draw_without_rendering()
    with_legend = [axes for axes in figure.axes if axes.get_legend()]
    assert len(with_legend) == (3 if is_chain else 2)
    for axes in with_legend:
        place = axes.get_legend().get_window_extent()
        assert 0 <= place.y0 < place.y1 < axes.bbox.y0
