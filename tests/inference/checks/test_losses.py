"""A loss written by hand as one factor, a random step per datum: the smallest slip is seen, or said to be unseen."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks import losses
from dpm_ppl.inference.checks.bounds import bounds
from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_checklist_mistakes import program
from tests.inference.checks.test_laws import found

T = 40


def one_random_step(*, scale=T - 1, posterior=True):
    """The bound at one t of 2..T for each datum, and its slips."""
    kernel = dpm.GaussianKernel(np.linspace(0.03, 0.2, T), (2,))

    def diffusion():
        shift = numpyro.param("shift", jnp.array([0.1, -0.05]))
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(0.9 * x + shift, 0.45).to_event(1))

    def guide(x0):
        diffusion()

    def model(x0):
        chain = diffusion()
        keys = jax.random.split(numpyro.prng_key(), 3)
        t = jax.random.randint(keys[0], (len(x0),), 2, T + 1)
        xt = kernel.marginal(x0, t).sample(keys[1])
        q = kernel.posterior(x0, xt, t) if posterior else kernel.step(xt, t)
        kl = scale * dist.kl_divergence(q, chain.reverse(xt, t))
        prior = dist.kl_divergence(kernel.marginal(x0, T), kernel.stationary())
        first = chain.decode(kernel.step(x0, 1).sample(keys[2])).log_prob(x0)
        numpyro.factor("bound", jnp.sum(first - kl - prior))

    return program(diffusion, model=model, guide=guide)


def of_loss(written):
    return found(islice(bounds(subject(written)), 2))


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ({}, "standard errors apart."),
        ({"scale": T}, "the size of KLs scaled by T instead of T - 1."),
        ({"posterior": False}, "the size of q(x^t|x^(t-1)) in place of the posterior"),
    ],
    ids=["none", "T", "posterior"],
)
def test_slips_of_a_loss_at_one_random_step(slip, words):
    report = of_loss(one_random_step(**slip))
    assert report["loss"].status == ("failed" if slip else "passed"), report
    assert words in report["loss"].words, report


def test_what_too_few_draws_cannot_tell_is_said(monkeypatch):
    monkeypatch.setattr(losses, "_LONGER", 0.0)
    report = of_loss(one_random_step())
    assert report["loss"].status == "passed", report
    assert "A factor T / (T - 1) on its KLs would change it by" in report["loss"].words


def test_a_loss_without_a_diffusion_is_said_to_be_unchecked():
    written = one_random_step()
    del written.diffusion
    report = of_loss(written)
    assert report["loss"].status == "skipped"
    assert "give the file a `diffusion()`" in report["loss"].words
    assert "no mistake found, but the loss could not be checked" in str(report)
