"""Binary MNIST: where its network says nothing it is the kernel; what it says without files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.commands import find
from dpm_ppl.inference import fit
from dpm_ppl.models import mnist_binary
from dpm_ppl.programs import instantiate
from tests.models.images import asks_for, fits_on_a_screen, learns
from tests.models.test_swiss_roll import start

T, SHAPE = 6, (4, 8)


@pytest.fixture(scope="module")
def small():
    """The page with six steps, small images and a thin network."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NUM_STEPS", T), ("SHAPE", SHAPE), ("WIDTHS", (8, 8))):
            patch.setattr(mnist_binary, name, value)
        yield mnist_binary


@pytest.fixture(scope="module")
def params(small):
    return start(small.diffusion)


def test_fits_on_a_screen():
    fits_on_a_screen("mnist_binary")


def test_reverse_steps_are_the_kernel_where_the_network_says_nothing(small, params):
    """At zero output pixels are independent of rate RATE, stationary: reversed, the chain is itself, at every t."""
    reverse = instantiate(small.diffusion, params).reverse
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(T), event_shape=SHAPE, rate=small.RATE)
    x, t = np.random.default_rng(0).binomial(1, 0.4, (T - 1, 2, *SHAPE)), jnp.arange(2, T + 1)[:, None]
    expected = kernel.step(x, t).mean
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(jax.jit(lambda: reverse(x, t).mean)(), expected, rtol=1e-9)


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    page = find.load("mnist_binary")
    for part in (page.data, page.held_out):
        asks_for(r"mnist/train-images-idx3-ubyte\.gz in ", part, tmp_path, monkeypatch)


def test_recipes_are_options_of_fit():
    assert set(mnist_binary.GPU) == set(mnist_binary.recipe) <= set(fit.__kwdefaults__ or {}) | {"num_iterations"}


@pytest.mark.data
def test_it_learns():
    learns("mnist_binary")
