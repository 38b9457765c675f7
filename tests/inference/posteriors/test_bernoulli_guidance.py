"""What r says of a factorised Bernoulli step, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference.posteriors import bernoulli_guidance
from dpm_ppl.inference.posteriors.conditioning import Target
from dpm_ppl.programs import instantiate
from tests.oracles import STATES, BernoulliOracle

ORACLE = BernoulliOracle()
P = dist.Bernoulli(logits=jnp.array([0.4, -1.1, 2.0])).to_event(1)
SLOPE = np.array([2.0, -1.0, 3.0])
PRIOR = np.exp(np.asarray(P.log_prob(STATES)))


def factorised(x):
    return jnp.sum(SLOPE * x)


def marginals(weight):
    return weight @ STATES / weight.sum()


def test_the_product_with_a_factorised_r_is_exact():
    log_mean, move = bernoulli_guidance.product(P, factorised, None)
    weight = PRIOR * np.exp(STATES @ SLOPE)
    np.testing.assert_allclose(log_mean, np.log(weight.sum()), rtol=1e-9)
    np.testing.assert_allclose(jax.nn.sigmoid(move.logits), marginals(weight), rtol=1e-9)


def test_many_bits_are_flipped_in_groups_and_none_is_left_out():
    slope = np.linspace(-2.0, 3.0, 39).reshape(13, 3)
    logits = np.cos(np.arange(39.0)).reshape(13, 3)
    p = dist.Bernoulli(logits=logits).to_event(2)
    log_mean, move = bernoulli_guidance.product(p, lambda x: jnp.sum(slope * x), None)
    rate = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(log_mean, np.log(1 - rate + rate * np.exp(slope)).sum(), rtol=1e-9)
    np.testing.assert_allclose(move.logits, logits + slope, rtol=1e-9)


def test_known_bits_are_kept_and_their_probability_counted():
    known = jnp.array([True, False, True]), jnp.array([0, 0, 1])
    log_mean, move = bernoulli_guidance.product(P, factorised, known)
    weight = PRIOR * np.exp(STATES @ SLOPE) * (STATES[:, 0] == 0) * (STATES[:, 2] == 1)
    np.testing.assert_allclose(log_mean, np.log(weight.sum()), rtol=1e-9)
    np.testing.assert_allclose(jax.nn.sigmoid(move.logits), marginals(weight), rtol=1e-9)


def test_an_impossible_likeliest_state_still_finds_possible_ones():
    log_mean, move = bernoulli_guidance.product(P, lambda x: jnp.where(x.sum() == 1, 0.0, -jnp.inf), None)
    assert np.isfinite(log_mean)
    assert np.isfinite(move.logits).all()
    # The mode 1, 0, 1 is forbidden; either flip to a single one gains, and 1, 1, 1 does not.
    assert (np.sign(move.logits - P.base_dist.logits) == [-1, -1, -1]).all()


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_step_is_guided_as_enumeration_over_the_datum_says(t):
    diffusion = instantiate(ORACLE.diffusion, ORACLE.params)
    kernel, x = diffusion.kernel, jnp.array([0, 1, 1])
    p = diffusion.reverse(x, jnp.asarray(t))
    # The reverse step undone: the rate of x^0 that gives p by Bayes' rule, kept off 0 and 1.
    one, zero = (jax.nn.sigmoid(kernel.posterior(jnp.full(3, b), x, t).base_dist.logits) for b in (1, 0))
    least = 0.01 * kernel.one_minus_alpha_bar[t]
    rate = np.clip((jax.nn.sigmoid(p.base_dist.logits) - zero) / (one - zero), least, 1 - least)
    weight = np.prod(np.where(STATES == 1, rate, 1 - rate), -1) * np.exp(STATES @ SLOPE)
    guided = marginals(weight)
    log_mean, move = bernoulli_guidance.posterior_step(Target(diffusion, factorised, None), x, jnp.asarray(t))
    np.testing.assert_allclose(log_mean, np.log(weight.sum()), rtol=1e-9)
    np.testing.assert_allclose(jax.nn.sigmoid(move.logits), guided * one + (1 - guided) * zero, rtol=1e-9)
    np.testing.assert_allclose(move.unguided, p.base_dist.logits)
