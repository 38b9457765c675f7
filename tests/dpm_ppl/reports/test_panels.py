"""Panels show what they are given, where it is."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import dpm_ppl as dpm
from dpm_ppl.reports.panels import draw_drift, sequence_counts, tiled
from tests.dpm_ppl.reports.test_fit_figure import RNG, drawn, gaussian, heartbeat_samples, titles


def test_points_of_the_plane_are_drawn_where_they_are():
    diffusion, x0 = gaussian((2,)), RNG.normal(size=(60, 2)) * [0.3, 1.0] + [2.0, 0.0]
    figure = drawn(diffusion, x0)
    assert [title for title in titles(figure)[:6]] == [
        *("Data, t = 0", "Forward, t = 3", "Forward, t = 6 = T"),
        *("Samples, t = 0", "Reverse, t = 3", "Reverse, t = 6 = T"),
    ]
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), x0)
    for axes in figure.axes[:9]:
        assert axes.get_aspect() == 1
        assert axes.get_xlim() == axes.get_ylim() == figure.axes[0].get_xlim()


def test_colour_follows_a_point_along_its_trajectory():
    figure = drawn(gaussian((2,)), RNG.normal(size=(60, 2)))
    first, last = (axes.collections[0] for axes in figure.axes[:3:2])
    np.testing.assert_allclose(first.get_array(), np.linalg.norm(first.get_offsets(), axis=1))
    np.testing.assert_array_equal(last.get_array(), first.get_array())


def test_drift_arrows_point_along_the_mean_step():
    """The reverse step x -> (0.9 x_1 + 0.2, 1.2 x_2), not symmetric in any way."""
    kernel = gaussian((2,)).kernel
    diffusion = dpm.Diffusion(
        kernel, lambda x, t: dist.Normal(x * jnp.array([0.9, 1.2]) + jnp.array([0.2, 0.0])).to_event(1)
    )
    axes = Figure().subplots()
    behind = RNG.normal(size=(200, 2))
    draw_drift(axes, diffusion, 4, scale=(-3.0, 3.0), behind=behind)
    arrows = [child for child in axes.get_children() if isinstance(child, Quiver)]
    assert len(arrows) == 2  # where something was learned, and elsewhere
    assert sum(len(quiver.U) for quiver in arrows) == 25**2
    full = 0.0
    for quiver in arrows:
        at, arrow = quiver.XY, np.stack([quiver.U, quiver.V], 1)
        step = at * [-0.1, 0.2] + [0.2, 0.0]
        share = np.linalg.norm(arrow, axis=1) / np.linalg.norm(step, axis=1)
        np.testing.assert_allclose(arrow, share[:, None] * step, atol=1e-6)
        assert share.max() <= 1 + 1e-6
        full += (share > 1 - 1e-6).sum()
    assert full > 200  # only long ones are cut
    strong = arrows[1].XY
    assert (np.linalg.norm(strong[:, None] - behind, axis=-1).min(1) < 0.25).all()


def test_sequence_counts():
    data, samples = heartbeat_samples()
    counts, num_invalid = sequence_counts(samples, data.enumerate_support())
    assert counts.tolist() == [5, 0, 12]
    assert num_invalid == 3


def test_mosaic_shows_images_in_order():
    images = np.arange(5)[:, None, None] * np.ones((5, 2, 3))
    mosaic = tiled(images)
    assert mosaic.shape == (3 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(mosaic[0:2, 4:7], 1)
    np.testing.assert_array_equal(mosaic[3:5, 0:3], 3)
    np.testing.assert_array_equal(mosaic[2], 4)  # white lines between
