"""Levels, the scale, and bits per dimension: of a Gaussian they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import dpm_ppl as dpm
from dpm_ppl.datasets import Images, Scale
from dpm_ppl.inference import bound

RNG = np.random.default_rng(0)


def levels(num=6, shape=(4, 3)):
    return RNG.integers(0, 256, (num, *shape)).astype(np.uint8)


def test_the_scale_is_that_of_the_dequantised_training_images():
    train = (levels(500) // 3 + 20).astype(np.uint8)
    images = Images(train, levels(), levels())
    x = images.scale.dequantise(train, seed=0).astype(float)
    np.testing.assert_allclose([x.mean(), x.var()], [0, 1], atol=4 * np.sqrt(2 / x.size))
    exact = [train.mean() + 0.5, np.sqrt(train.var() + 1 / 12)]
    np.testing.assert_allclose([images.scale.shift, images.scale.width], exact, rtol=1e-12)


def test_dequantised_levels_fill_their_intervals_and_come_back():
    scale = Scale(shift=3.25, width=17.0)
    images = np.repeat(np.arange(256), 400).reshape(400, 256).astype(np.uint8)
    x = scale.dequantise(images, seed=1)
    np.testing.assert_array_equal(scale.quantise(x), images)
    share = np.sort((x.astype(float) * 17 + 3.25 - images).ravel())
    assert np.abs(share - (np.arange(share.size) + 0.5) / share.size).max() < 2 / np.sqrt(share.size)  # Kolmogorov
    np.testing.assert_array_equal(scale.quantise([-99.0, 99.0]), [0, 255])


def test_a_gaussian_has_its_bits_per_dimension():
    """Levels of a correlated Gaussian, dequantised, scaled, and the exact bound of its chain, against -log2 P(levels).

    P is by the distribution function: of one coordinate, and of the next given it, spread over its interval.
    """
    mean, deviation, correlation, num = np.array([120.0, 90.0]), np.array([9.0, 14.0]), 0.8, 4000
    factor = np.diag(deviation) @ [[1, 0], [correlation, np.sqrt(1 - correlation**2)]]
    images = np.floor(mean + RNG.normal(size=(num, 2)) @ factor.T).astype(int)
    scale = Scale.of(images)
    x0 = scale.dequantise(images, seed=2).astype(float)
    first = np.log2(np.diff(norm.cdf(images[:, :1] + [0, 1], mean[0], deviation[0])))[:, 0]
    given = mean[1] + correlation * deviation[1] * (images[:, 0] + 0.5 - mean[0]) / deviation[0]
    rest = norm.cdf(images[:, 1:] + [0, 1], given[:, None], deviation[1] * np.sqrt(1 - correlation**2))
    exact = -np.mean(first + np.log2(np.diff(rest)[:, 0])) / 2
    terms = bound(gaussian(mean, factor, scale), x0, params={}, key=jax.random.key(0), num_samples=25)
    elbo = float(jnp.mean(terms.elbo))
    np.testing.assert_allclose(scale.bits_per_dimension(elbo, 2), exact, atol=0.01)


def gaussian(mean, factor, scale):
    """The chain of a Gaussian, every reverse step and the last one exact, so that its bound is the log density."""
    loc, cov = (mean - scale.shift) / scale.width, factor @ factor.T / scale.width**2
    beta = np.linspace(0.1, 0.99, 8)
    kernel, signal = dpm.GaussianKernel(beta, event_shape=(2,)), np.cumprod(1 - beta) / (1 - beta)
    before = [s * cov + (1 - s) * np.eye(2) for s in signal]  # of x^(t-1), t = 1..T
    gain = [np.sqrt(1 - b) * c @ np.linalg.inv((1 - b) * c + b * np.eye(2)) for b, c in zip(beta, before, strict=True)]
    left = [c - np.sqrt(1 - b) * g @ c for b, c, g in zip(beta, before, gain, strict=True)]
    gains, factors = jnp.array(gain), jnp.array(np.linalg.cholesky(left))

    def reverse(x, t):
        centre = jnp.sqrt(jnp.array(signal)[t - 1])[..., None] * loc
        moved = x - jnp.sqrt(1 - kernel.beta[t - 1])[..., None] * centre
        return dpm.FullNormal(centre + jnp.einsum("...ij,...j->...i", gains[t - 1], moved), scale_tril=factors[t - 1])

    return lambda: dpm.Diffusion(kernel, reverse, decode=lambda x1: reverse(x1, jnp.asarray(1)))


def test_a_wrong_width_would_be_seen():
    """Half the width is half a bit off, a level that is not spread is one whose density says nothing."""
    scale = Scale(0.0, 8.0)
    assert scale.bits_per_dimension(-2.0, 1) - Scale(0.0, 4.0).bits_per_dimension(-2.0, 1) == 1.0


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_scaled_images_are_refused_by_name(part):
    parts = {name: levels() for name in ("train", "validation", "test")}
    parts[part] = parts[part] / 255
    message = rf"Expected `{part}` to be a NumPy array of integers 0\.\.255.*; got float64 from 0.*scaled already"
    with pytest.raises(TypeError, match=message):
        Images(**parts)


def test_scaled_images_are_not_dequantised():
    with pytest.raises(TypeError, match="Images that are scaled already cannot be dequantised"):
        Scale(0.0, 1.0).dequantise(levels() / 255, seed=0)


def test_integers_are_no_data_of_a_gaussian_chain():
    kernel = dpm.GaussianKernel(dpm.schedules.linear(3), event_shape=(4, 3))
    diffusion = dpm.Diffusion(kernel, lambda x, t: dist.Normal(x, 1.0).to_event(2))
    with pytest.raises(TypeError, match=r"floating-point numbers.* got uint8\. Convert it, and scale it"):
        bound(lambda: diffusion, levels(), params={}, key=jax.random.key(0))


def test_levels_out_of_range_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"`test` to hold levels 0\.\.1; got integers from 0 to 3"):
        Images(levels() % 2, levels() % 2, levels() % 4, levels=2)
    with pytest.raises(
        ValueError, match=r"`validation` to hold images of shape \(4, 3\), at least one; got .*\(6, 4\)"
    ):
        Images(levels(), levels(shape=(4,)), levels())
    with pytest.raises(ValueError, match="`test` to hold images .*at least one"):
        Images(levels(), levels(), levels(0))
