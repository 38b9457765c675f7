"""Gaussian diffusion: gradients where no signal is left, and single precision over long chains.

The laws that every kernel keeps are in test_kernel.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.schedules import constant_fraction
from tests.dpm_ppl.kernels.test_kernel import draw
from tests.dpm_ppl.kernels.test_scheduled import LONG, both_precisions


def test_gradients_at_the_last_step_are_the_closed_forms():
    """d log q(x^T | x^0): no signal, so none in x0 and -x in x^T; the posterior pulls on x0 alone."""
    kernel = dpm.GaussianKernel(constant_fraction(4), (3,))
    x0, xt = draw(kernel, 11), draw(kernel, 12)
    in_x0, in_xt = jax.grad(lambda x0, xt: kernel.marginal(x0, 4).log_prob(xt), (0, 1))(x0, xt)
    np.testing.assert_allclose(in_x0, 0.0, atol=1e-14)
    np.testing.assert_allclose(in_xt, -xt, rtol=1e-12)
    in_x0, in_xt = jax.grad(lambda x0, xt: kernel.posterior(x0, xt, 4).mean.sum(), (0, 1))(x0, xt)
    np.testing.assert_allclose(in_x0, 0.5, rtol=1e-12)  # sqrt(alpha_bar_3), alpha_bar_3 = 1/4
    np.testing.assert_allclose(in_xt, 0.0, atol=1e-14)


def gaussian_coefficients(beta):
    """Means per unit of state, scales and posterior weights, at every step of a long chain."""
    kernel, t, one = dpm.GaussianKernel(beta, (1,)), np.arange(1, len(beta) + 1), jnp.ones((len(beta), 1))
    once, many = kernel.step(one, t).base_dist, kernel.marginal(one, t).base_dist
    return once.loc, once.scale, many.loc, many.scale, *kernel.posterior_coefficients(t)


@pytest.mark.parametrize("schedule", LONG)
def test_single_precision_holds_over_ten_thousand_steps(schedule):
    beta = schedule(10_000)

    def evaluate():
        fixed = jax.jit(lambda: gaussian_coefficients(beta))()
        return fixed, jax.jit(gaussian_coefficients)(beta)  # learned: summed in the precision of the moment

    exact, single = both_precisions(evaluate)
    with jax.enable_x64(False):
        assert dpm.GaussianKernel(beta, ()).beta.dtype == jnp.float32
    for rtol, expected, came in zip((2e-6, 1e-4), exact, single, strict=True):
        for a, b in zip(expected, came, strict=True):
            np.testing.assert_allclose(b, a, rtol=rtol, atol=0)
