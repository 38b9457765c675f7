"""The parameters that come with binary MNIST: of this page as it stands, and as good as is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.commands import find
from dpm_ppl.commands.pretrained import LOSSES, how_made
from dpm_ppl.inference.fitting import runs
from dpm_ppl.models import mnist_binary
from tests.compiling import optimised


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
    made, params = pretrained
    params, x0 = jax.tree.map(jnp.float32, params), jnp.asarray(mnist_binary.held_out()[:100])
    programs = [dpm.subsample_steps(program, size=4) for program in (mnist_binary.model, mnist_binary.guide)]
    loss = jax.jit(lambda x0: TraceMeanField_ELBO().loss(jax.random.key(0), params, *programs, x0))
    each = np.array([loss(x0[i : i + 20]) for i in range(0, 100, 20)]) / 20
    assert each.mean() == pytest.approx(-made["test_elbo_nats"], abs=4 * each.std(ddof=1) / np.sqrt(5))
    assert each.std(ddof=1) / np.sqrt(5) < 10
