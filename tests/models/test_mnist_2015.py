"""The paper's chain of images: where its network says nothing it is the forward kernel; what it says without files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit

import dpm_ppl as dpm
from dpm_ppl.models import mnist_2015
from dpm_ppl.programs import instantiate
from tests.models.images import are_dequantised, asks_for, fits_on_a_screen, learns
from tests.models.test_swiss_roll import start

T, SHAPE = 6, (8, 4, 3)


def test_fits_on_a_screen():
    fits_on_a_screen("mnist_2015")


def test_reverse_steps_are_the_kernel_where_the_network_says_nothing(monkeypatch):
    monkeypatch.setattr(mnist_2015, "NUM_STEPS", T)
    definition = mnist_2015.of_images(*SHAPE)
    params = start(definition)
    diffusion = instantiate(definition, params)
    x, t = np.random.default_rng(0).normal(size=(T - 1, 2, *SHAPE)), jnp.arange(2, T + 1)[:, None]
    found, expected = diffusion.reverse(x, t), diffusion.kernel.step(x, t)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-6)
    assert params["beta"].shape == (T - 1,)
    # And what it says moves both: no output is dropped, nor taken for the other.
    moved = {**params, "reverse$params": jax.tree.map(lambda leaf: leaf + 0.05, params["reverse$params"])}
    other = instantiate(definition, moved).reverse(x, t)
    assert np.abs(other.mean - expected.mean).min() > 1e-4
    assert np.abs(other.variance - expected.variance).min() > 1e-4
    assert instantiate(definition, params).kernel.beta[0] == pytest.approx(mnist_2015.BETA_1)


def test_the_schedule_begins_even_in_log_snr(monkeypatch):
    """From beta_1 to what signal is left: no step costs far more than another before the schedule has been learned."""
    monkeypatch.setattr(mnist_2015, "NUM_STEPS", 50)
    definition = mnist_2015.of_images(*SHAPE)
    kernel = instantiate(definition, start(definition)).kernel
    log_snr = np.log(kernel.alpha_bar[1:]) - np.log(kernel.one_minus_alpha_bar[1:])
    np.testing.assert_allclose(log_snr, np.linspace(logit(1 - 1e-4), logit(1e-3), 50), rtol=1e-5)


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    asks_for(r"mnist/train-images-idx3-ubyte\.gz in ", mnist_2015.data, tmp_path, monkeypatch)


@pytest.mark.data
def test_held_out_images_are_the_test_images_on_the_scale_of_the_others():
    images = dpm.datasets.mnist()
    are_dequantised(mnist_2015.held_out(), images.test, images.scale)


@pytest.mark.data
def test_it_learns():
    learns("mnist_2015")
