"""Eq. 24: bounds on the entropy of the reverse process, against closed forms and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import entropy_bounds
from dpm_ppl.inference.likelihoods.entropy import entropy
from tests.oracles import COV, STATES, BernoulliOracle, GaussianOracle, WithoutClosedForms, data

KEY = jax.random.key(0)
BITS = BernoulliOracle()


def test_gaussian_bounds_are_the_posterior_variance_and_beta():
    oracle = GaussianOracle.exact(6)
    beta, signal = map(np.asarray, oracle.schedule())
    bounds = entropy_bounds(oracle.diffusion, data(50), params=oracle.params, key=KEY)
    posterior = beta[1:] * (1 - signal[1:-1]) / (1 - signal[2:])
    np.testing.assert_allclose(bounds.lower, np.log(2 * np.pi * np.e * posterior), rtol=1e-9)  # two dimensions
    np.testing.assert_allclose(bounds.upper, np.log(2 * np.pi * np.e * beta[1:]), rtol=1e-9)
    # The exact reverse has at least the lower one, and at most the upper one where the forward process gains entropy.
    true = np.log(2 * np.pi * np.e) + np.asarray(jnp.linalg.slogdet(oracle.params["factor"])[1])
    assert (bounds.lower < true).all()
    entropies = [np.linalg.slogdet(a * COV + (1 - a) * np.eye(2))[1] for a in signal]
    gains = np.diff(entropies)[1:] > 0
    assert gains.any()
    assert not gains.all()
    np.testing.assert_array_equal(true < bounds.upper, gains)


def test_bernoulli_bounds_are_the_enumerated_ones():
    bounds = entropy_bounds(BITS.diffusion, STATES, params=BITS.params, key=KEY, num_samples=40_000)
    uniform = np.exp(BITS.log_joint) / 8  # the data: each of the 8 states once

    def total(*steps):
        p = uniform.sum(tuple(s for s in range(5) if s not in steps))
        return -np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)))

    for t in range(2, 5):
        forward = total(t - 1, t) - total(t - 1)
        lower = forward + total(0, t - 1) - total(0, t)
        true = total(t - 1, t) - total(t)
        np.testing.assert_allclose(bounds.upper[t - 2], forward, atol=0.002)
        np.testing.assert_allclose(bounds.lower[t - 2], lower, atol=0.002)
        assert lower < true


def test_a_kernel_of_ones_own_without_entropies_is_sampled():
    class Laplace(WithoutClosedForms):
        def step(self, x, t):
            return dist.Laplace(x, 0.5).mask(jnp.ones(x.shape, bool)).to_event(1)  # a wrapper that has no entropy

        def marginal(self, x0, t):
            return dist.Laplace(x0, 0.5 * jnp.sqrt(t)).to_event(1)

    oracle = GaussianOracle.exact(3)

    def diffusion():
        base = oracle.diffusion()
        return dpm.Diffusion(Laplace(base.kernel), base.reverse)

    bounds = entropy_bounds(diffusion, data(20_000), params=oracle.params, key=KEY)
    one = 2 * (1 + np.log(2 * 0.5))
    np.testing.assert_allclose(bounds.upper, [one, one], atol=3 * np.sqrt(2 / 20_000))  # Var of -log density is 1 each
    np.testing.assert_allclose(bounds.lower - bounds.upper, -np.log([2, 3 / 2]), rtol=1e-9)


def test_entropy_of_bits_is_even_in_the_logit_and_finite():
    logits = jnp.array([-1e4, -800.0, -3.0, 0.0, 3.0, 1e4])
    rate = 1 / (1 + np.exp(3))
    three = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    expected = [0, 0, three, np.log(2), three, 0]
    np.testing.assert_allclose(entropy(dist.Bernoulli(logits=logits), KEY), expected, atol=1e-12)
    np.testing.assert_allclose(entropy(dist.Bernoulli(logits=logits).to_event(1), KEY), sum(expected), rtol=1e-9)


def test_bad_input():
    oracle = GaussianOracle.exact(3)
    good = {"params": oracle.params, "key": KEY}
    with pytest.raises(ValueError, match="one batch dimension"):
        entropy_bounds(oracle.diffusion, data(3)[0], **good)
    with pytest.raises(ValueError, match="`num_samples` to be at least 1; got -1"):
        entropy_bounds(oracle.diffusion, data(3), num_samples=-1, **good)
    with pytest.raises(ValueError, match="got none for beta"):
        entropy_bounds(oracle.diffusion, data(3), params={}, key=KEY)

    def unknown():
        return oracle.with_kernel(WithoutClosedForms(oracle.diffusion().kernel))

    with pytest.raises(TypeError, match="a kernel with `marginal`"):
        entropy_bounds(unknown, data(3), **good)
