"""The figure of posteriors: weighted clouds where they are, what was observed, every kind of datum."""

import io

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpyro.distributions import constraints

from dpm_ppl.inference import Posterior
from dpm_ppl.reports.posterior_figure import (
    draw_cloud,
    draw_coordinates,
    draw_label,
    draw_letters,
    draw_plane,
    draw_sequences,
    draw_weights,
    posterior_figure,
)

RNG = np.random.default_rng(0)
NUM = 300


def made(samples, *, log_weight=None, num_steps=6, ess=None, khat_of=None):
    num = len(samples)
    tail = np.zeros((num_steps + 1, 53)) if khat_of is None else khat_of
    whole = jnp.full((num_steps + 1,), num)
    log_weight = np.zeros(num) if log_weight is None else log_weight
    ess = np.linspace(num / 4, num, num_steps + 1) if ess is None else ess
    numbers = (jnp.asarray(log_weight), jnp.asarray(-1.5), jnp.asarray(0.2), {}, jnp.asarray(ess), jnp.asarray(tail))
    return Posterior(jnp.asarray(samples), *numbers, whole, 0 * whole, whole < 0)


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    file.seek(0)
    return matplotlib.image.imread(file)


def axes():
    return Figure().subplots()


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


@pytest.mark.parametrize(
    ("event_shape", "support"),
    [
        ((2,), constraints.real),
        ((3,), constraints.real),
        ((5,), constraints.boolean),
        ((), constraints.boolean),
        ((4, 6), constraints.real),
        ((4, 4, 3), constraints.real),
        ((3, 3, 1), constraints.boolean),
        ((7,), constraints.real),
        ((), constraints.real),
        ((2, 2, 2), constraints.real),
    ],
    ids=str,
)
def test_every_kind_of_datum_has_its_figure(event_shape, support):
    shape = (NUM, *event_shape)
    samples = RNG.integers(0, 2, shape) if support is constraints.boolean else RNG.normal(size=shape)
    known = np.ones(event_shape, bool)
    if event_shape:
        known.flat[1] = False
    y = np.where(known, np.asarray(samples[:2]), np.nan)
    given = {"y": y, "known": known, "support": support, "noise": 0.2, "title": "a title"}
    figure = posterior_figure([made(samples)] * 2, names=["one", "two"], **given)
    image = pixels(figure)
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    assert [cell.get_suptitle() for cell in figure.subfigs[0].subfigs] == ["datum 0: one", "datum 1: two"]
    assert {"Effective sample size", "Tails of the weights"} <= {axes.get_title() for axes in figure.axes}


def test_more_data_than_have_room_are_counted():
    samples = RNG.normal(size=(NUM, 2))
    given = {"y": np.zeros((9, 2)), "known": np.ones(2, bool), "support": constraints.real}
    figure = posterior_figure([made(samples)] * 9, title="mine", **given)
    assert figure.get_suptitle() == "mine; 6 of 9 data"
    assert len(figure.subfigs[0].subfigs) == 6


def test_the_cloud_mean_and_spread_are_those_of_the_weights():
    samples = RNG.normal(size=(2000, 2)) @ [[1.0, 0.8], [0.0, 0.3]]
    log_weight = 2.0 * samples[:, 0]
    posterior = made(samples, log_weight=log_weight)
    panel = axes()
    draw_plane(panel, posterior, y=[1.0, 9.0], known=[True, True], noise=0.5, prior=samples)
    mean, covariance = np.asarray(posterior.mean()), np.asarray(posterior.covariance())
    assert mean[0] > 1.5
    cloud = next(c for c in panel.collections if c.get_label() == "posterior").get_offsets()
    np.testing.assert_allclose(cloud.mean(0), mean, atol=0.03)
    np.testing.assert_array_equal(line(panel, "mean, 2 sd").get_xydata()[0], mean)
    np.testing.assert_array_equal(line(panel, "observation").get_xydata(), [[1.0, 9.0]])
    radius = np.linalg.norm(line(panel, "± 2 noise").get_xydata() - [1.0, 9.0], axis=1)
    np.testing.assert_allclose(radius, 1.0)
    assert panel.get_xlim()[1] > 10  # an observation far out is in the picture
    # Every point of the ellipse is two standard deviations from the mean.
    angle = np.linspace(0, 2 * np.pi, 20)
    ellipse = next(patch for patch in panel.patches if isinstance(patch, Ellipse))
    off = ellipse.get_patch_transform().transform(np.stack([np.cos(angle), np.sin(angle)], -1)) - mean
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off), 4, rtol=1e-6)


@pytest.mark.parametrize("coordinate", [0, 1])
def test_a_known_coordinate_is_a_line(coordinate):
    panel, known = axes(), np.arange(2) == coordinate
    samples = np.where(known, [0.7, -0.4], RNG.normal(1.0, 0.5, size=(NUM, 2)))
    draw_plane(panel, made(samples), y=[0.7, -0.4], known=known)
    ends = np.asarray(line(panel, "observation").get_xydata())
    np.testing.assert_array_equal(ends[:, coordinate], [0.7, -0.4][coordinate])
    np.testing.assert_array_equal(ends[:, 1 - coordinate], [0, 1])  # across the panel
    (outline,) = (c for c in panel.collections if isinstance(c, PolyCollection))
    place, many = outline.get_paths()[0].vertices.T[:: 1 if coordinate else -1]
    middle = 0.5 * (place.min() + place.max())
    shown = samples[:, 1 - coordinate]
    assert np.average(place, weights=many - many.min()) == pytest.approx(shown.mean(), abs=0.15)
    assert abs(middle - shown.mean()) > 0.3


def test_sequences_show_what_was_seen_mean_and_spread():
    samples = RNG.random((NUM, 4)) < [0.1, 0.5, 0.9, 1.0]
    log_weight = np.where(samples[:, 1], 1.0, 0.0)
    top, bottom = Figure().subplots(2, 1)
    posterior = made(samples.astype(int), log_weight=log_weight)
    draw_sequences(top, bottom, posterior, y=[0, 1, 1, 1], known=[True, False, True, False])
    rows = top.images[0].get_array()
    np.testing.assert_array_equal(rows.mask[0], [False, True, False, True])
    np.testing.assert_array_equal(rows[0].compressed(), [0, 1])
    mean = np.average(samples, 0, weights=np.exp(log_weight))
    np.testing.assert_allclose(rows[1], mean, atol=1e-6)
    np.testing.assert_allclose(rows[2], 2 * np.sqrt(mean * np.maximum(1 - mean, 0)), atol=1e-6)
    shown = np.asarray(bottom.images[0].get_array())
    assert shown.shape == (20, 4)
    assert (shown[:, None] == samples).all(-1).any(-1).all()
    assert abs(shown[:, 1].mean() - mean[1]) < 0.15


def test_letters_show_how_probable_each_is_and_what_was_seen():
    samples = RNG.integers(0, 4, size=(NUM, 3))
    log_weight = np.where(samples[:, 1] == 2, 1.5, 0.0)
    top, bottom = Figure().subplots(2, 1)
    posterior = made(samples, log_weight=log_weight)
    draw_letters(top, bottom, posterior, y=[3, 0, 1], known=[True, False, True])
    weight = np.exp(log_weight) / np.exp(log_weight).sum()
    expected = [[weight[samples[:, place] == state].sum() for place in range(3)] for state in range(4)]
    np.testing.assert_allclose(top.images[0].get_array(), expected, atol=1e-6)
    np.testing.assert_array_equal(top.lines[0].get_xydata(), [[0, 3], [2, 1]])
    assert top.get_ylim()[0] < top.get_ylim()[1]  # states count upward
    shown = np.asarray(bottom.images[0].get_array())
    assert [text.get_text() for text in bottom.texts] == [str(state) for state in shown.ravel()]
    assert (shown[:, None] == samples).all(-1).any(-1).all()


def test_a_label_is_bars_of_the_weights():
    samples, panel = np.repeat([0, 2], [100, 200]), axes()
    draw_label(panel, made(samples, log_weight=np.where(samples == 0, np.log(6.0), 0.0)), y=0, known=False)
    assert [bar.get_height() for bar in panel.patches] == pytest.approx([0.75, 0.0, 0.25])


def test_a_cloud_is_points_over_the_prior_and_what_was_seen():
    samples = RNG.normal(size=(NUM, 3)) * [0.1, 0.3, 1.0] + [1.0, -2.0, 0.5]
    prior, figure = RNG.normal(size=(200, 3)), Figure()
    y, known = np.array([1.1, 0.0, 0.7]), np.array([True, False, True])
    draw_cloud(figure, made(samples), y=y, known=known, noise=0.25, prior=prior)
    panel = next(panel for panel in figure.axes if panel.get_xlabel() == "$x_1$" and panel.get_ylabel() == "$x_3$")
    behind, cloud = (c.get_offsets() for c in panel.collections[:2])
    np.testing.assert_allclose(behind, prior[:, [0, 2]])
    assert np.isclose(cloud[:, None], samples[:, [0, 2]]).all(-1).any(-1).all()
    upright, lying, mean = panel.lines
    np.testing.assert_array_equal(upright.get_xdata(), [1.1, 1.1])
    np.testing.assert_array_equal(lying.get_ydata(), [0.7, 0.7])
    np.testing.assert_allclose(mean.get_xydata()[0], samples[:, [0, 2]].mean(0), atol=1e-5)
    spans = [patch.get_bbox() for patch in panel.patches]
    np.testing.assert_allclose([spans[0].x0, spans[0].x1, spans[1].y0, spans[1].y1], [0.6, 1.6, 0.2, 1.2])
    (unseen,) = (panel for panel in figure.axes if panel.get_ylabel() == "$x_2$")
    assert len(unseen.lines) == 2  # the first coordinate alone was, and the mean


def test_coordinates_show_two_standard_deviations():
    samples, panel = RNG.normal([1.0, -2.0, 5.0], [0.1, 1.0, 2.0], (NUM, 3)), axes()
    draw_coordinates(panel, made(samples), y=[1.0, 0.0, 3.0], known=[True, False, True], noise=0.3)
    bars = {c.get_label(): c for c in panel.containers}
    (_, _, (spread,)), (points, _, (noise,)) = bars["mean, 2 sd"], bars["observation"]
    ends = np.asarray([segment[:, 1] for segment in spread.get_segments()])
    np.testing.assert_allclose(ends, samples.mean(0)[:, None] + 2 * samples.std(0)[:, None] * [-1, 1])
    np.testing.assert_array_equal(points.get_ydata(), [1.0, 3.0])
    np.testing.assert_allclose([segment[:, 1] for segment in noise.get_segments()], [[0.4, 1.6], [2.4, 3.6]])


def test_weights_are_drawn_step_by_step():
    shape = np.linspace(0.8, 3.5, 7)[:, None]  # of the tail at each step
    heavy = -np.sort(-np.log(RNG.pareto(1 / shape, size=(7, NUM))), -1)[:, :53]
    posteriors = {"even": made(np.zeros((NUM, 1))), "heavy": made(np.zeros((NUM, 1)), khat_of=heavy)}
    left, right = Figure().subplots(1, 2)
    draw_weights(left, right, posteriors)
    for name, posterior in posteriors.items():
        np.testing.assert_allclose(line(left, name).get_ydata(), np.asarray(posterior.ess) / NUM)
        np.testing.assert_array_equal(line(left, name).get_xdata(), np.arange(7))
    np.testing.assert_array_equal(line(right, "even").get_ydata(), 0)
    khat = np.asarray(posteriors["heavy"].khat)
    beyond = np.flatnonzero(khat > 2)
    assert 0 < len(beyond) < 7  # or this shows nothing
    within = line(right, f"heavy; {len(beyond)} of 7 steps beyond the axis").get_ydata()
    np.testing.assert_allclose(within, np.where(khat > 2, np.nan, khat))
    edge = [drawn for drawn in right.lines if drawn.get_marker() == "^"][1]
    np.testing.assert_array_equal(edge.get_xydata(), [[t, 2] for t in beyond])
    low, high = right.get_ylim()
    assert low < 0 < 2 < high
    assert right.get_xlim() == left.get_xlim()


def test_small_khats_are_on_the_axis():
    light = -np.sort(-np.log(1 - 0.9 * RNG.random((7, NUM)) ** 4), -1)[:, :53]  # most weights are near the greatest
    posterior = made(np.zeros((NUM, 1)), khat_of=light)
    left, right = Figure().subplots(1, 2)
    draw_weights(left, right, {"light": posterior})
    assert np.min(posterior.khat) < -1.1  # or this shows nothing
    assert right.get_ylim()[0] < np.min(posterior.khat)
