"""Binary MNIST: where its network says nothing it is the kernel; what it says without files."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.commands import find
from dpm_ppl.commands.pretrained import LOSSES, how_made
from dpm_ppl.datasets import files
from dpm_ppl.inference import fit
from dpm_ppl.inference.fitting import runs
from dpm_ppl.models import mnist_binary
from dpm_ppl.programs import instantiate
from tests.compiling import optimised
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
    page = find.load("mnist_binary")
    assert len(page.path.read_text().splitlines()) <= 60
    assert page.summary.endswith(".")


def test_reverse_steps_are_the_kernel_where_the_network_says_nothing(small, params):
    """At zero output pixels are independent of rate RATE, stationary: reversed, the chain is itself, at every t."""
    reverse = instantiate(small.diffusion, params).reverse
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(T), event_shape=SHAPE, rate=small.RATE)
    x, t = np.random.default_rng(0).binomial(1, 0.4, (T - 1, 2, *SHAPE)), jnp.arange(2, T + 1)[:, None]
    expected = kernel.step(x, t).mean
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(jax.jit(lambda: reverse(x, t).mean)(), expected, rtol=1e-9)


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    page = find.load("mnist_binary")
    for part in (page.data, page.held_out):
        with pytest.raises(FileNotFoundError, match=r"mnist/train-images-idx3-ubyte\.gz in .*DPM_DATA"):
            part()


def test_recipes_are_options_of_fit():
    assert set(mnist_binary.GPU) == set(mnist_binary.recipe) <= set(fit.__kwdefaults__ or {}) | {"num_iterations"}


@pytest.fixture(scope="module")
def pretrained():
    """How the parameters were made that come with the page, and the parameters."""
    page = find.load("mnist_binary")
    with np.load(page.path.with_suffix(".npz"), allow_pickle=False) as archive:
        leaves = {name: archive[name] for name in archive.files if name != LOSSES}
    return how_made(page), runs.named(leaves, page.diffusion, where="the package")


def test_its_parameters_are_those_of_the_page(pretrained):
    made, params = pretrained
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == made["num_parameters"]
    assert all(np.isfinite(leaf).all() and np.ptp(leaf) > 0 for leaf in leaves)
    assert find.load("mnist_binary").path.with_suffix(".npz").stat().st_size < 2_000_000


@pytest.mark.data
@optimised()
def test_its_parameters_have_the_bound_that_is_stated(pretrained):
    """On 100 test images, 4 steps each: within the errors of both."""
    if files.VARIABLE not in os.environ:
        pytest.skip(f"{files.VARIABLE} names no folder with MNIST")
    made, params = pretrained
    params, x0 = jax.tree.map(jnp.float32, params), jnp.asarray(mnist_binary.held_out()[:100])
    programs = [dpm.subsample_steps(program, size=4) for program in (mnist_binary.model, mnist_binary.guide)]
    loss = jax.jit(lambda x0: TraceMeanField_ELBO().loss(jax.random.key(0), params, *programs, x0))
    each = np.array([loss(x0[i : i + 20]) for i in range(0, 100, 20)]) / 20
    assert each.mean() == pytest.approx(-made["test_elbo_nats"], abs=4 * each.std(ddof=1) / np.sqrt(5))
    assert each.std(ddof=1) / np.sqrt(5) < 10
