"""Binomial diffusion: its base rate, and single precision over long chains.

The laws that every kernel keeps are in test_kernel.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.schedules import constant_fraction
from tests.dpm_ppl.kernels.test_scheduled import LONG, both_precisions


def bernoulli_logits(beta):
    """Logits of the three laws for all values of the bits; of the posterior from step 2, as step 1 is certain."""
    kernel, t = dpm.BernoulliKernel(beta, (1,), 0.2), np.arange(1, len(beta) + 1)
    zero, one = jnp.zeros((len(beta), 1)), jnp.ones((len(beta), 1))
    laws = [law(x, t) for law in (kernel.step, kernel.marginal) for x in (zero, one)]
    laws += [kernel.posterior(x0[1:], xt[1:], t[1:]) for x0 in (zero, one) for xt in (zero, one)]
    return [law.base_dist.logits for law in laws]


@pytest.mark.parametrize("schedule", LONG)
def test_single_precision_holds_over_ten_thousand_steps(schedule):
    beta = schedule(10_000)
    exact, single = both_precisions(lambda: jax.jit(lambda: bernoulli_logits(beta))())
    for a, b in zip(exact, single, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.2, 1.2, np.nan, np.array([0.2, 0.3])])
def test_base_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=r"Expected `rate` to be one number in \(0, 1\)"):
        dpm.BernoulliKernel(constant_fraction(3), (2,), rate)
