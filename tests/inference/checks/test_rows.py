"""What is observed beside another's datum, or laid along another axis, is found; what is a datum's own passes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.rows import rows
from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_laws import found

BETA = np.array([0.05, 0.1, 0.2, 0.3, 0.5])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
DATA = {"x0": X, "y": X @ [0.8, -0.5] + 0.3 * RNG.normal(size=200)}


def program(*, of=lambda x: x, encode=lambda x: x, full=None, dim=-1):
    """A chain, a latent and a measurement: what it is of, what the guide makes of a datum, and of how many data."""

    def diffusion():
        gain = numpyro.param("gain", jnp.array([0.4, -0.3]))
        law = lambda x, t: dist.Normal(0.8 * x + gain, 0.5 + 0.0 * x).to_event(1)  # noqa: E731
        return dpm.Diffusion(dpm.GaussianKernel(BETA, (2,)), law)

    def plate(x0):
        return numpyro.plate("data", full or len(x0), subsample_size=len(x0), dim=dim)

    def model(x0, y):
        chain = diffusion()
        level = numpyro.sample("level", dist.Normal(0, 1))
        with plate(x0):
            own = numpyro.sample("own", dist.Normal(0, 1))
            x = dpm.reverse_chain("x", chain, obs=x0)
            numpyro.sample("y", dist.Normal(of(x) @ jnp.array([0.8, -0.5]) + own + level, 0.3), obs=y)

    def guide(x0, y):
        mean = numpyro.param("mean", 0.1)
        numpyro.sample("level", dist.Normal(mean, 0.2))
        with plate(x0):
            numpyro.sample("own", dist.Normal(0.5 * encode(x0)[..., 0] + 0.1 * y, 0.5))
            dpm.forward_chain("x", diffusion(), x0)

    return SimpleNamespace(diffusion=diffusion, model=model, guide=guide, data=DATA)


def finding(broken):
    with jax.enable_x64(True):
        return found(rows(subject(broken)))["rows"]


@pytest.mark.parametrize("options", [{}, {"full": 200}], ids=["whole", "a part of the data"])
def test_each_reads_its_own(options):
    of = finding(program(**options))
    assert of.status == "passed", of
    assert "among 64 data as among 2: 'own', 'x', 'x_chain', 'y'" in of.words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": lambda x: jnp.roll(x, 1, 0)}, "the model's 'y' scores a datum otherwise among 64 data than among 2"),
        ({"of": lambda x: x[::-1]}, "the model's 'y'"),
        ({"of": lambda x: x - x.mean(0)}, "the model's 'y'"),
        ({"of": lambda x: x[jnp.argsort(x[:, 0])]}, "the model's 'y'"),
        ({"encode": lambda x: x / x.std(0)}, "the guide's 'own'"),
        ({"of": lambda x: jnp.roll(x, 1, 0), "full": 200}, "the model's 'y'"),
    ],
    ids=["rolled", "turned", "centred", "sorted", "scaled in the guide", "rolled, of a part"],
)
def test_what_reads_another(options, words):
    of = finding(program(**options))
    assert (of.status, words in of.words) == ("failed", True), of
    assert of.numbers["off"] > 1e-3


def test_a_reverse_step_that_mixes_the_batch():
    """Such as one whose network normalises over the data, or closes over something of another row."""

    def diffusion():
        gain = numpyro.param("gain", jnp.array([0.4, -0.3]))

        def reverse(x, t):
            mixed = x - 0.2 * jnp.mean(x, axis=tuple(range(x.ndim - 1)), keepdims=True)
            return dist.Normal(0.8 * mixed + gain, 0.5 + 0.0 * x).to_event(1)

        return dpm.Diffusion(dpm.GaussianKernel(BETA, (2,)), reverse)

    model, guide = dpm.single_chain(diffusion)
    of = finding(SimpleNamespace(diffusion=diffusion, model=model, guide=guide, data=X))
    assert (of.status, "the model's 'x_chain'" in of.words) == ("failed", True), of


def test_no_plate_is_no_claim():
    def model(x0):
        numpyro.sample("x", dist.Normal(numpyro.param("a", 0.0), 1).expand([2]).to_event(1), obs=x0.mean(0))

    of = finding(SimpleNamespace(model=model, guide=lambda x0: None, data=X))
    assert of.status == "skipped"
