"""Panels show what they are given, where it is."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpyro.distributions import constraints

from dpm_ppl.reports.fit_figure import fit_figure
from dpm_ppl.reports.panels import common_scale, display_range, draw_states, hues, tiled
from dpm_ppl.reports.samples import samples_figure
from tests.dpm_ppl.reports.test_fit_figure import RNG, drawn, gaussian, titles

WHOLE = constraints.nonnegative_integer


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
    radius, array = np.linalg.norm(first.get_offsets(), axis=1), np.asarray(first.get_array())
    order = np.argsort(radius)
    assert np.all(np.diff(array[order]) >= 0)
    np.testing.assert_array_equal(last.get_array(), first.get_array())


def test_colours_spread_over_the_data():
    """Of points of the plane by their distance from the centre, of others by their third coordinate."""
    ring = RNG.normal(size=(2000, 2))
    ring *= np.linspace(0.7, 2.0, 2000)[:, None] / np.linalg.norm(ring, axis=1)[:, None]
    hue = hues(ring, ring)
    assert np.mean((hue == 0) | (hue == 1)) < 0.02
    np.testing.assert_allclose(np.quantile(hue, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.01)
    points = RNG.normal(size=(500, 3))
    assert np.corrcoef(hues(points, points), points[:, 2])[0, 1] > 0.98
    assert hues(np.array([[9.0, 0.0]]), ring)[0] == 1  # beyond all data


def test_labels_are_bars_and_no_density():
    axes = Figure().subplots()
    x = np.repeat([0, 2, 3], [5, 2, 3])
    draw_states(axes, x, support=WHOLE, scale=common_scale([x]), color="red")
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert bars == pytest.approx({0: 0.5, 2: 0.2, 3: 0.3})
    assert axes.get_xlim() == (-0.5, 3.5)


def test_letters_are_written_out():
    axes = Figure().subplots()
    x = RNG.integers(0, 5, size=(8, 4))
    x[0, 0] = 4
    draw_states(axes, x, support=WHOLE, scale=common_scale([x]), color="red")
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(place, row): str(x[row, place]) for row in range(8) for place in range(4)}
    image = axes.images[0]
    colors = image.cmap(image.norm(np.arange(5)))
    assert len({tuple(color) for color in colors}) == 5


def test_bits_are_black_and_white():
    axes = Figure().subplots()
    x = RNG.integers(0, 2, size=(50, 4))
    draw_states(axes, x, support=WHOLE, scale=common_scale([x]), color="red")
    assert not axes.texts
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), x[:30])
    np.testing.assert_allclose(image.cmap(image.norm([0, 1]))[:, :3], [[1, 1, 1], [0, 0, 0]])


def test_counts_have_shades_up_to_the_greatest():
    axes = Figure().subplots()
    x = RNG.poisson(20, size=(30, 6))
    draw_states(axes, x, support=WHOLE, scale=common_scale([x]), color="red")
    assert not axes.texts
    low, high = axes.images[0].get_clim()
    assert low < x.min()
    assert high > x.max()


def test_mosaic_shows_images_in_order():
    images = np.arange(5)[:, None, None] * np.ones((5, 2, 3))
    mosaic = tiled(images, scale=(0.0, 6.0))
    assert mosaic.shape == (3 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(mosaic[0:2, 4:7], 1)
    np.testing.assert_array_equal(mosaic[3:5, 0:3], 3)
    np.testing.assert_array_equal(mosaic[2], 6)  # white lines between


def test_colours_are_on_the_range_that_is_given_and_cut_off_there():
    """Stretched to their own range, samples of any range would look alike."""
    images = np.array([-0.5, 0.0, 1.0, 9.0])[:, None, None, None] * np.ones((4, 2, 2, 3))
    mosaic = tiled(images, scale=(-1.0, 1.0))
    found = [mosaic[0, 0, 0], mosaic[0, 3, 0], mosaic[3, 0, 0], mosaic[3, 3, 0]]
    np.testing.assert_allclose(found, [0.25, 0.5, 1, 1])
    np.testing.assert_array_equal(mosaic[2], 1)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_samples_are_shown_on_the_range_of_the_data(channels):
    """A model whose samples lie far out looks so, beside data, in a figure of samples and in that of a fit."""
    x0 = RNG.uniform(-1, 2, (20, 4, 4, *channels))
    low, high = display_range(x0)
    assert (low, high) == (x0.min(), x0.max())
    assert display_range(np.full((2, 3, 3), 0.5)) == (0.5, 1.5)
    far = x0 * 100
    alone = samples_figure(far, support=constraints.real, x0=x0).axes[0]
    diffusion = gaussian((4, 4, *channels))
    times = {0: x0, 3: x0, 6: x0}
    fit = fit_figure(
        diffusion,
        forward=times,
        reverse=dict.fromkeys(times, far),
        losses=np.ones(9),
        kl=np.ones((4, 5)),
        elbo=-1.0,
        null=-2.0,
    )
    for axes in (alone, *fit.axes[:6]):
        if channels == (3,):
            assert axes is not alone or np.isin(np.asarray(axes.images[0].get_array()), [0, 1]).mean() > 0.9
            assert np.asarray(axes.images[0].get_array()).max() == 1
        else:
            assert axes.images[0].get_clim() == (low, high)
