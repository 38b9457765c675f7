"""The chain of images with a U-Net: what it is where its network says nothing, its last step over levels, its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import dpm_ppl as dpm
from dpm_ppl.datasets import Centred, Scale
from dpm_ppl.inference import bound
from dpm_ppl.models import mnist
from dpm_ppl.programs import instantiate
from tests.models.images import asks_for, fits_on_a_screen, learns
from tests.models.test_swiss_roll import start

T, SHAPE = 6, (4, 8)
LEVELS = Scale(3.3, 1.6, levels=8)


@pytest.fixture(scope="module")
def small():
    """Chains of small images in six steps, over real numbers and over levels, and their parameters."""
    options = {"first": 3.0, "num_steps": T, "widths": (8, 8)}
    definitions = [mnist.of_images(*SHAPE, scale=scale, **options) for scale in (None, LEVELS)]
    return [(definition, start(definition)) for definition in definitions]


def test_fits_on_a_screen():
    fits_on_a_screen("mnist")


def test_where_the_network_says_nothing_steps_are_bayes_rule_for_white_noise(small):
    """Of unit variance: the mean is sqrt(1 - beta) x^t and the variance beta, which is the forward step, at every t."""
    definition, params = small[0]
    x, t = np.random.default_rng(0).normal(size=(T - 1, 2, *SHAPE)), jnp.arange(2, T + 1)[:, None]
    diffusion = instantiate(definition, params)
    found = jax.jit(lambda: (lambda law: (law.mean, law.variance))(diffusion.reverse(x, t)))()
    snr = np.exp(np.linspace(3.0, mnist.LAST, T))
    signal = np.append(1, snr / (1 + snr))
    after, before = signal[2:, None, None, None], signal[1:-1, None, None, None]
    beta = 1 - after / before
    np.testing.assert_allclose(found[0], np.sqrt(1 - beta) * x, rtol=1e-5)
    np.testing.assert_allclose(found[1], np.broadcast_to(beta, x.shape), rtol=1e-5)


def test_where_the_network_says_nothing_pixels_are_independent_of_their_mixture():
    """The steps are then those of such pixels by themselves: the mean by Bayes' rule, its variance beside the noise."""
    options, pixels = {"first": 3.0, "num_steps": T, "widths": (8, 8)}, ((0.6, -0.4, 0.0), (0.4, 0.9, 0.3))
    definition = mnist.of_images(*SHAPE, scale=LEVELS, pixels=pixels, **options)
    diffusion = instantiate(definition, start(definition))
    x, t = jnp.asarray(np.random.default_rng(3).normal(size=(T - 1, 2, *SHAPE))), jnp.arange(2, T + 1)[:, None]
    x0, variance = dpm.outputs.mixture_moments(diffusion.kernel, x, t, pixels)
    expected = diffusion.kernel.posterior(x0, x, t)
    from_data, _, certain = diffusion.kernel.posterior_coefficients(t)
    found = diffusion.reverse(x, t)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.variance, certain + from_data**2 * variance, rtol=1e-5)


def test_the_last_step_is_a_law_of_levels(small):
    """Over the middles of all levels each pixel's probabilities sum to one, by the deviation of x^0 given x^1 alone."""
    definition, params = small[1]
    diffusion = instantiate(definition, params)
    x1 = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)))
    law = diffusion.decode(x1).base_dist
    middles = LEVELS.centre(np.arange(8).reshape(8, 1, 1, 1))
    np.testing.assert_allclose(logsumexp(law.log_prob(middles), 0), 0, atol=1e-6)
    np.testing.assert_allclose(law.loc, np.sqrt(1 / (1 + np.exp(-3.0))) * x1, rtol=1e-6)
    np.testing.assert_allclose(law.scale, np.exp(-1.5), rtol=1e-6)


def test_the_bound_is_one_of_levels(small):
    """Independent uniform levels have -log 8 nats a pixel, which no bound on their probability exceeds."""
    definition, params = small[1]
    levels = np.random.default_rng(2).integers(0, 8, (200, *SHAPE))
    elbo = np.asarray(bound(definition, LEVELS.centre(levels), params=params, key=jax.random.key(0)).elbo)
    data = Centred(levels.astype(np.uint8), LEVELS)
    assert data.bits_per_dimension(elbo.mean()) == pytest.approx(-elbo.mean() / np.prod(SHAPE) / np.log(2))
    assert data.bits_per_dimension(elbo.mean()) > 3


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    for part in (mnist.data, mnist.held_out):
        asks_for(r"mnist/train-images-idx3-ubyte\.gz in ", part, tmp_path, monkeypatch)


@pytest.mark.data
def test_the_scale_and_the_law_of_pixels_are_those_of_the_training_images():
    scale = dpm.datasets.mnist().scale
    assert (mnist.SCALE.shift, mnist.SCALE.width) == pytest.approx((scale.shift, scale.width), rel=1e-6)
    levels = dpm.datasets.mnist().train
    x, black, white = mnist.SCALE.centre(levels).astype(float), levels == 0, levels >= 252
    found = [(part.mean(), x[part].mean(), x[part].std()) for part in (black, white, ~black & ~white)]
    np.testing.assert_allclose(mnist.PIXELS, found, atol=1e-3)


@pytest.mark.data
def test_it_learns():
    learns("mnist")
