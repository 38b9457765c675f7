"""Seeded mistakes, each as a user would make it: `check` finds it, under the right name; the unspoiled one passes.

Mistakes of a kernel's laws are in test_laws.py.
"""

from itertools import islice
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference.checks.agreement import sites
from dpm_ppl.inference.checks.bounds import bounds
from dpm_ppl.inference.checks.data import data
from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_laws import OwnKernel, T, chain_of, found
from tests.oracles import COV, MEAN, GaussianOracle


@pytest.mark.parametrize(("rate", "status"), [(0.2, "passed"), (0.5, "failed")])
def test_the_rate_of_a_binomial_kernel(rate, status):
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(5), (20,), rate=rate)
    law = dpm.Heartbeat()
    x0 = law.sample(jax.random.key(0), (8,))
    report = found(data(SimpleNamespace(x0=x0, data=law, key=jax.random.key(1)), chain_of(kernel, x0)))
    assert report["data's moments"].status == status
    if status == "failed":
        assert "rate of pi is 0.5 and the mean of the data 0.2" in report["data's moments"].words
        # E log pi(x0) and so on are -20 log 2 whatever the data, so K itself is not off.
        assert report["K"].status == "passed"


@pytest.mark.parametrize(
    ("probs", "status", "words"),
    [
        ((0.8, 0.2), "passed", "0.8 in pi"),
        ((0.5, 0.5), "failed", "State 0 has a frequency of 0.8 in the data and 0.5 in pi"),
        ((0.0, 0.0, 1.0), "note", "absorbing"),
    ],
)
def test_the_frequencies_of_a_categorical_kernel(probs, status, words):
    kernel = dpm.CategoricalKernel(dpm.schedules.constant_fraction(5), (20,), probs)
    law = dpm.Heartbeat()
    x0 = law.sample(jax.random.key(0), (8,))
    chain = chain_of(kernel, x0)
    report = found(data(SimpleNamespace(x0=x0, data=law, key=jax.random.key(1)), chain))
    assert report["data's moments"].status == status, report
    assert words in report["data's moments"].words, report


# Programs. Data N(MEAN, COV), whose reverse is known; then one slip of guide or model each.

ORACLE = GaussianOracle.exact(5).spoiled()


def program(diffusion=ORACLE.diffusion, **parts):
    model, guide = (None, None) if diffusion is None else dpm.single_chain(diffusion)
    law = dist.MultivariateNormal(MEAN, COV)
    return SimpleNamespace(**{"diffusion": diffusion, "model": model, "guide": guide, "data": law, **parts})


def of_chains(broken):
    return found(sites(subject(broken)))


def flipped():
    """The oracle's diffusion with its schedule turned round."""
    beta = dpm.schedules.learned("beta", 5, beta_1=0.08, alpha_bar_T=0.05)
    return ORACLE.with_kernel(dpm.GaussianKernel(beta[::-1], (2,)))


def by_hand(*, up=lambda t: t, entropy=True, prior=True, scale=T - 1, reconstruction=True):
    """The bound written out as sites, as a user would without this package's statements; and its usual slips."""
    kernel = OwnKernel([0.05, 0.08, 0.1, 0.15, 0.2, 0.2, 0.25])  # which leaves a prior term worth forgetting
    maps = np.linspace(0.9, 0.4, T - 1)

    def diffusion():
        shift = numpyro.param("shift", jnp.full((T - 1, 2), 0.1))

        def back(x, t):
            return dist.Normal(jnp.asarray(maps)[t - 2][..., None] * x + shift[t - 2], 0.7).to_event(1)

        return dpm.Diffusion(kernel, back)

    def points(x0, law=None):
        """x^1 and one x^t for every t: drawn by the guide, without a density."""
        given = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
        t = jnp.arange(2, T + 1)[:, None]
        with handlers.mask(mask=False):
            x1 = numpyro.sample("x1", kernel.marginal(x0, jnp.asarray(1)) if law else given)
        with numpyro.plate("terms", T - 1, dim=-2), handlers.mask(mask=False):
            xt = numpyro.sample("xt", kernel.marginal(x0, t) if law else given)
        return x1, xt, t

    def guide(x0):
        diffusion()
        with numpyro.plate("data", len(x0)):
            _, xt, t = points(x0, law=True)
            with handlers.mask(mask=entropy):
                numpyro.sample("last", kernel.marginal(x0, jnp.asarray(T)))
            with numpyro.plate("terms", T - 1, dim=-2), handlers.scale(scale=scale / (T - 1)):
                numpyro.sample("before", kernel.posterior(x0, xt, t))

    def model(x0=None, size=1):
        built = diffusion()
        with numpyro.plate("data", size if x0 is None else len(x0)):
            x1, xt, t = points(x0)
            with handlers.mask(mask=prior):
                numpyro.sample("last", kernel.stationary())
            with numpyro.plate("terms", T - 1, dim=-2), handlers.scale(scale=scale / (T - 1)):
                numpyro.sample("before", built.reverse(xt, t))
            with handlers.mask(mask=reconstruction):
                numpyro.sample("x", built.decode(x1), obs=x0)

    return program(diffusion, model=model, guide=guide)


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ({}, ""),
        ({"entropy": False}, "a forgotten entropy of q(x^T|x^0)"),
        ({"prior": False}, "a forgotten log pi(x^T)"),
        ({"entropy": False, "prior": False}, "a forgotten prior, KL(q(x^T|x^0) || pi)"),
        ({"scale": T}, "KLs scaled by T instead of T - 1"),
        ({"reconstruction": False}, "a forgotten E log p(x^0|x^1)"),
    ],
    ids=["none", "entropy", "log pi", "prior", "T", "reconstruction"],
)
def test_forgotten_and_scaled_terms_of_a_loss_written_by_hand(slip, words):
    report = found(islice(bounds(subject(by_hand(**slip))), 2))
    assert report["loss"].status == ("failed" if slip else "passed"), report
    assert words in report["loss"].words, report


def frozen(name):
    """The oracle with a stop_gradient on one parameter."""

    def diffusion():
        fixed = jax.lax.stop_gradient(numpyro.param(name, ORACLE.params[name]))
        with handlers.block(hide=[name]), handlers.substitute(data={name: fixed}):
            return ORACLE.diffusion()

    return program(diffusion)
