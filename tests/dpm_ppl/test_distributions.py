"""The small multivariate normal against NumPyro's own, and its solves against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.distributions import LARGEST_UNROLLED, FullNormal, lower_factor, solve_lower


def factor(size, batch=(3, 1)):
    raw = np.random.default_rng(size).normal(size=(*batch, size, size))
    return jnp.asarray(np.tril(raw, -1) + np.eye(size) * (0.3 + np.abs(raw)))


@pytest.mark.parametrize("size", [1, 2, 5, LARGEST_UNROLLED, LARGEST_UNROLLED + 1])
def test_solve_undoes_the_product(size):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, size, 3)))
    np.testing.assert_allclose(
        solve_lower(factor(size), factor(size) @ x), jnp.broadcast_to(x, (3, *x.shape)), rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 5, LARGEST_UNROLLED, LARGEST_UNROLLED + 1])
def test_the_lower_factor_is_that_of_cholesky(size):
    tril = factor(size)
    np.testing.assert_allclose(lower_factor(tril @ tril.mT), tril, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [4, LARGEST_UNROLLED + 1])
def test_a_singular_covariance_has_a_factor_too(size):
    half = np.random.default_rng(2).normal(size=(3, size, 2))
    half[:, 1] = 0.0  # a coordinate that is known
    matrix = half @ np.swapaxes(half, -1, -2)
    with jax.debug_nans(True):
        tril = lower_factor(jnp.asarray(matrix))
    assert (np.triu(tril, 1) == 0).all()
    assert (np.asarray(tril)[:, 1] == 0).all()
    np.testing.assert_allclose((tril @ tril.mT)[:, :3, :3], matrix[:, :3, :3], atol=1e-9)


def test_a_pivot_below_the_floor_is_raised_to_it():
    matrix = jnp.array([[4.0, 2.0, 0.0], [2.0, 1.5, -1.0], [0.0, -1.0, -3.0]])
    # The pivots are 4, then 1.5 - 1, raised to 1, then -3 - 1, raised to 1.
    np.testing.assert_allclose(
        lower_factor(matrix, floor=1.0), [[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, -1.0, 1.0]], rtol=1e-12
    )


def test_log_density_and_its_gradient_are_those_of_numpyro():
    loc, scale_tril = jnp.array([0.4, -1.2, 2.0]), factor(3, (5,))
    value = jax.random.normal(jax.random.key(0), (7, 5, 3))

    def total(cls):
        return lambda loc, tril, value: jnp.sum(cls(loc, scale_tril=tril).log_prob(value) * jnp.arange(1.0, 6.0))

    ours, theirs = (
        jax.value_and_grad(total(cls), argnums=(0, 1, 2))(loc, scale_tril, value)
        for cls in (FullNormal, dist.MultivariateNormal)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            np.tril(a) if a.ndim == 3 and a.shape[-1] == a.shape[-2] else a,
            np.tril(b) if b.ndim == 3 and b.shape[-1] == b.shape[-2] else b,
            rtol=1e-9,
        )


def test_a_large_batch_does_not_call_lapack():
    compiled = jax.jit(lambda tril, x: FullNormal(0.0, scale_tril=tril).log_prob(x)).lower(
        factor(2), jnp.ones((9, 3, 1, 2))
    )
    assert "lapack" not in compiled.as_text()
