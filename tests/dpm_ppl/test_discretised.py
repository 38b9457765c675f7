"""The discretised normal: masses of intervals, far into the tails; and the bits of integers that its bound has."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import dpm_ppl as dpm
from dpm_ppl.datasets import Scale
from dpm_ppl.discretised import DiscretisedNormal
from dpm_ppl.inference import bound

LEVELS = Scale(shift=101.25, width=37.0)
LOC, SCALE = np.array([-2.5, 0.3, 1.1, 9.0]), np.array([0.4, 2e-3, 1.0, 0.7])


def centres(level):
    return (level + 0.5 - LEVELS.shift) / LEVELS.width


def exact(level, loc, scale):
    """Log mass of a level's interval, from the tail on its own side."""
    low, high = ((level + end - LEVELS.shift) / LEVELS.width for end in (0, 1))
    low, high = np.where(level == 0, -np.inf, low), np.where(level == LEVELS.levels - 1, np.inf, high)
    above = (low > loc)[..., None]
    pair = np.stack([norm.logcdf(high, loc, scale), norm.logcdf(low, loc, scale)], -1)
    mirrored = np.stack([norm.logsf(low, loc, scale), norm.logsf(high, loc, scale)], -1)
    return logsumexp(np.where(above, mirrored, pair), -1, b=[1, -1])


@pytest.fixture(scope="module")
def log_prob():
    return jax.jit(lambda loc, scale, x: DiscretisedNormal(loc, scale, levels=LEVELS).log_prob(x))


def test_probabilities_of_all_levels_sum_to_one(log_prob):
    found = np.asarray(log_prob(LOC, SCALE, centres(np.arange(256))[:, None]))
    np.testing.assert_allclose(np.exp(found).sum(0), 1, rtol=1e-9)


def test_each_is_the_mass_of_its_interval(log_prob):
    """To 1e-8 of the log, where it is no less than e^-700, in every level: also between mean and tail."""
    level = np.arange(256)[:, None]
    found, expected = np.asarray(log_prob(LOC, SCALE, centres(level))), exact(level, LOC, SCALE)
    seen = expected > -700
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-8, atol=1e-9)
    assert np.isfinite(found).all()


def test_moments_are_those_of_the_levels(log_prob):
    """Also where most of the mass is beyond the last level."""
    x = centres(np.arange(256))[:, None]
    probs = np.exp(np.asarray(log_prob(LOC, SCALE, x)))
    mean = (probs * x).sum(0)
    law = DiscretisedNormal(LOC, SCALE, levels=LEVELS)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(law.variance, (probs * (x - mean) ** 2).sum(0), rtol=1e-7, atol=1e-15)
    assert law.mean[-1] < LOC[-1] - 1


def test_narrow_intervals_are_no_zeros(log_prob):
    """A level of a thousandth of the deviation, in single precision, beside the density times its width."""
    scale = np.float32(90.0)
    found = log_prob(np.float32(1.0), scale, np.float32([-2.0, 1.0, 3.0]))
    expected = norm.logpdf(centres(np.floor(np.array([-2.0, 1.0, 3.0]) * 37 + 101.25)), 1.0, 90.0) - np.log(37)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_number_of_an_interval_stands_for_its_level(log_prob):
    x = centres(np.array([0, 17, 255])) + np.array([0.49, -0.49, 0.3]) / LEVELS.width
    np.testing.assert_array_equal(log_prob(0.2, 1.3, x), log_prob(0.2, 1.3, centres(np.array([0, 17, 255]))))


def test_gradients_are_finite_everywhere():
    """Also in branches that are not taken: at the ends, far out, and where intervals are narrow."""
    x = centres(np.array([0, 1, 128, 254, 255]))[:, None]
    gradient = jax.grad(lambda p: DiscretisedNormal(p[0], p[1], levels=LEVELS).log_prob(x).sum())
    found = jax.jit(gradient)((jnp.asarray(LOC), jnp.asarray(SCALE)))
    step, total = 1e-6, lambda loc, scale: exact(np.array([[0], [1], [128], [254], [255]]), loc, scale).sum()
    assert all(np.isfinite(leaf).all() for leaf in found)
    slope = (total(LOC[2:3] + step, SCALE[2:3]) - total(LOC[2:3] - step, SCALE[2:3])) / (2 * step)
    np.testing.assert_allclose(found[0][2], slope, rtol=1e-5)


def test_samples_have_the_probabilities():
    """Every level, within five standard errors of 20,000."""
    law = DiscretisedNormal(-2.4, 0.05, levels=LEVELS)
    x = law.sample(jax.random.key(0), (20_000,))
    level = LEVELS.quantise(x)
    np.testing.assert_allclose(x, centres(level), rtol=1e-12)
    expected = np.exp(exact(np.arange(256), -2.4, 0.05))
    found = np.bincount(level, minlength=256) / 20_000
    assert (np.abs(found - expected) <= 5 * np.sqrt((expected + 1e-4) / 20_000)).all()


def test_the_bound_gives_the_bits_of_the_integers():
    """Levels of a Gaussian: the chain's exact reverse steps, and the discretised last one, against -log2 P(level)."""
    mean, deviation, num = 90.0, 14.0, 500
    image = np.floor(mean + deviation * np.random.default_rng(0).normal(size=(num, 1)))
    scale = Scale(shift=mean - 9.0, width=11.0)  # neither standardised nor centred
    x0 = (image + 0.5 - scale.shift) / scale.width
    loc, variance = (mean - scale.shift) / scale.width, (deviation / scale.width) ** 2
    exact_bits = -np.mean(np.log2(np.diff(norm.cdf(image + [0, 1], mean, deviation))))
    kernel = dpm.GaussianKernel(np.linspace(0.1, 0.99, 8), event_shape=(1,))

    def before(x, t):
        """Mean and deviation of x^(t-1) given x^t."""
        signal, beta = kernel.alpha_bar[t - 1][..., None], kernel.beta[t - 1][..., None]
        prior = signal * variance + 1 - signal
        gain = jnp.sqrt(1 - beta) * prior / ((1 - beta) * prior + beta)
        centre = jnp.sqrt(signal) * loc
        return centre + gain * (x - jnp.sqrt(1 - beta) * centre), jnp.sqrt(prior * (1 - jnp.sqrt(1 - beta) * gain))

    def reverse(x, t):
        return dist.Normal(*before(x, t)).to_event(1)

    def decode(x1):
        return DiscretisedNormal(*before(x1, jnp.asarray(1)), levels=scale).to_event(1)

    diffusion = dpm.Diffusion(kernel, reverse, decode=decode)
    terms = bound(lambda: diffusion, x0, params={}, key=jax.random.key(0), num_samples=200)
    np.testing.assert_allclose(-np.mean(terms.elbo) / np.log(2), exact_bits, atol=0.01)
