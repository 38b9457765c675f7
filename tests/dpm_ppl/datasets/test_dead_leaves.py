"""Dead leaves: how often two pixels lie on one disc is known in closed form, so are radii and greys."""

import jax
import numpy as np
import pytest
from scipy.stats import chi2

from dpm_ppl.datasets import DeadLeaves
from dpm_ppl.datasets.dead_leaves import _radii

ENDS = {"smallest": 1.5, "largest": 6.0}


@pytest.fixture(scope="module")
def images():
    return np.asarray(DeadLeaves(9, **ENDS).sample(jax.random.key(0), (1500,)))


def same_disc(distance):
    """P(two points lie on one disc) = g(d) / (2 g(0) - g(d)), g(d) the mean area common to a disc and it moved by d.

    Source: Bordenave, Gousseau and Roueff 2006, "The dead leaves model", proposition 3.
    """
    r = np.linspace(*ENDS.values(), 200_001)
    density = r**-3 / np.trapezoid(r**-3, r)
    half = np.clip(distance / (2 * r), 0, 1)
    common = 2 * r**2 * (np.arccos(half) - half * np.sqrt(1 - half**2))
    moved, whole = np.trapezoid(density * common, r), np.trapezoid(density * np.pi * r**2, r)
    return moved / (2 * whole - moved)


@pytest.mark.parametrize("apart", [(0, 1), (1, 0), (2, 1), (3, 4), (0, 8), (8, 2)])
def test_pixels_lie_on_one_disc_as_often_as_they_should(images, apart):
    """Then they have one grey; else by chance, once in 256. The standard error is that of independent images."""
    rows, columns = apart
    one, other = images[:, : 9 - rows, : 9 - columns], images[:, rows:, columns:]
    equal = (one == other).mean((1, 2))
    expected = same_disc(np.hypot(rows, columns)) * 255 / 256 + 1 / 256
    assert abs(equal.mean() - expected) < 4 * equal.std() / np.sqrt(len(equal))


def test_radii_have_their_distribution_function():
    """By quadrature of r^-3, at a few shares; and both ends."""
    r = np.linspace(*ENDS.values(), 100_001)
    below = np.cumsum(r**-3) - 0.5 * r**-3 - 0.5 * r[0] ** -3
    share = np.array([0, 0.1, 0.5, 0.9, 0.99, 1.0])
    np.testing.assert_allclose(_radii(share, tuple(ENDS.values())), np.interp(share, below / below[-1], r), rtol=1e-4)


def test_greys_are_uniform(images):
    """Chi-square of the 256 levels at one pixel, exceeded once in a thousand seeds; and at another all are used."""
    counts = np.bincount(images[:, 2, 7], minlength=256)
    assert np.sum((counts - len(images) / 256) ** 2) * 256 / len(images) < chi2.ppf(0.999, 255)
    assert np.sum((counts - len(images) / 256) ** 2) * 256 / len(images) > chi2.ppf(0.001, 255)
    law = DeadLeaves(9, **ENDS)
    np.testing.assert_allclose(
        images[:, 4, 4].mean(), law.mean[4, 4], atol=4 * np.sqrt(law.variance[4, 4] / len(images))
    )


def test_the_same_key_gives_the_same_images(images):
    again = np.asarray(DeadLeaves(9, **ENDS).sample(jax.random.key(0), (1500,)))
    np.testing.assert_array_equal(again, images)
    assert (images[1:] != images[:-1]).mean() > 0.9


@pytest.mark.parametrize("ends", [(0.0, 2.0), (3.0, 3.0), (4.0, 2.0), (1.0, np.inf)])
def test_radii_must_lie_in_order(ends):
    with pytest.raises(ValueError, match="Expected radii 0 < smallest < largest; got"):
        DeadLeaves(8, smallest=ends[0], largest=ends[1])


def test_sizes_are_numbers():
    with pytest.raises(TypeError, match="Expected `size` to be an integer"):
        DeadLeaves(8.0)
    with pytest.raises(TypeError, match="Expected `largest`, a radius in pixels, as a number; got '16'"):
        DeadLeaves(8, largest="16")
