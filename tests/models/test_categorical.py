"""Masked and even diffusion of eight words: the best factorised bound and every likelihood, by enumeration."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.kl import kl_divergence

import dpm_ppl as dpm
from dpm_ppl.inference import bound, log_likelihood
from dpm_ppl.models import categorical as program
from dpm_ppl.schedules import constant_fraction
from tests.models.enumerated import best_diffusion, best_elbos

WORDS = np.array([[program.LETTERS.index(letter) for letter in word] for word in program.WORDS])
WEIGHTS = np.arange(8, 0, -1) / 36
SHORT = 5  # steps
STATES = np.array(list(product(range(5), repeat=4)))
KERNELS = pytest.mark.parametrize("probs", [program.MASKED, program.EVEN], ids=["masked", "even"])


@cache
def best(probs, num_steps=SHORT):
    return best_elbos(WORDS, WEIGHTS, probs, num_steps)


@cache
def short(probs):
    """The best diffusion of SHORT steps, as a definition."""
    kernel = dpm.CategoricalKernel(constant_fraction(SHORT), (4,), probs)
    built = best_diffusion(WORDS, WEIGHTS, kernel)
    return lambda: built


def test_data_are_the_words():
    log_prob = np.asarray(jax.jit(program.data().log_prob)(STATES))
    np.testing.assert_allclose(np.exp(log_prob[WORDS @ 5 ** np.arange(3, -1, -1)]), WEIGHTS, rtol=1e-12)
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-12)


@KERNELS
def test_bound_of_the_true_factorised_reverse(probs):
    """Every term by a sum over all states x^t, with the library's laws and divergences, against plain sums."""
    diffusion = short(probs)()
    kernel = diffusion.kernel

    @jax.jit
    def elbos(x0):
        def expected(t, terms):  # where x^t is not reached, 0 times -1e307
            log_reached = kernel.marginal(x0[:, None], t).log_prob(xt)
            return jnp.sum(jnp.where(log_reached > -1e30, jnp.exp(log_reached) * terms, 0.0), -1)

        xt, t = jnp.asarray(STATES), jnp.arange(2, SHORT + 1)[:, None, None]
        divergence = kl_divergence(kernel.posterior(x0[:, None], xt, t), diffusion.reverse(xt, t))
        reconstruction = expected(1, diffusion.decode(xt).log_prob(x0[:, None]))
        prior_matching = kl_divergence(kernel.marginal(x0, SHORT), kernel.stationary())
        return reconstruction - expected(t, divergence).sum(0) - prior_matching

    np.testing.assert_allclose(elbos(jnp.asarray(WORDS)), best(probs), rtol=1e-9)


@KERNELS
def test_reported_bound_is_the_enumerated_one(probs):
    """Also where pi lacks every letter, and the bound's control variate with it."""
    result = bound(short(probs), WORDS, params={}, key=jax.random.key(0), num_samples=100)
    error = np.sqrt(result.elbo_variance / 100)
    assert (np.abs(result.elbo - best(probs)) < 3.5 * error).all()
    assert (error < 0.25).all()
    np.testing.assert_allclose(result.prior_matching, 0.0, atol=1e-12)
    summary = result.summary()
    assert summary["elbo_nats"] == pytest.approx(np.mean(result.elbo))
    assert np.isinf(summary["L_null_nats"]) == (probs == program.MASKED)


@KERNELS
def test_importance_weights_are_the_enumerated_likelihood(probs):
    diffusion = short(probs)()
    prob = np.exp(diffusion.kernel.stationary().log_prob(STATES))
    laws = [lambda x, t=t: diffusion.reverse(x, jnp.asarray(t)) for t in range(SHORT, 1, -1)]
    for law in (*laws, diffusion.decode):
        prob = prob @ np.exp(jax.jit(lambda x, law=law: law(x[:, None]).log_prob(x))(jnp.asarray(STATES)))
    assert prob.sum() == pytest.approx(1, abs=1e-9)
    exact = np.log(prob[WORDS @ 5 ** np.arange(3, -1, -1)])
    result = log_likelihood(short(probs), WORDS, params={}, key=jax.random.key(1), num_particles=800, progress=False)
    assert (np.abs(result.estimate - exact) < 3.5 * result.standard_error).all()
    assert (result.standard_error < 0.15).all()
    assert (best(probs) < exact).all()
    assert WEIGHTS @ exact < WEIGHTS @ np.log(WEIGHTS)  # the data's own


def test_more_steps_lose_less_and_masks_lose_least():
    limit = WEIGHTS @ np.log2(WEIGHTS)
    gaps = {
        (name, steps): limit - WEIGHTS @ best(probs, steps) / np.log(2)
        for name, probs in (("masked", program.MASKED), ("even", program.EVEN))
        for steps in (6, 40)
    }
    expected = {("masked", 6): 0.4400, ("masked", 40): 0.0657, ("even", 6): 0.6808, ("even", 40): 0.1185}  # bits
    assert gaps == pytest.approx(expected, abs=1e-4)
