"""Distributions: a multivariate normal for small events, whose triangular solves are plain arithmetic; unwrapping."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

LARGEST_UNROLLED = 16


class FullNormal(dist.MultivariateNormal):
    """NumPyro's multivariate normal, scored without LAPACK where the event has at most 16 coordinates.

    One LAPACK call per small matrix is slow, and on a machine of two cores a large batch of them can deadlock XLA's
    pool of threads for good (seen with jaxlib 0.10.2: 120,000 systems of two equations, within seconds).
    """

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density in nats of values of shape (*batch, D)."""
        white = solve_lower(self.scale_tril, (jnp.asarray(value) - self.loc)[..., None])[..., 0]
        half_log_det = jnp.sum(jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)), -1)
        return -0.5 * jnp.sum(white**2, -1) - half_log_det - 0.5 * white.shape[-1] * math.log(2 * math.pi)


@jax.jit
def solve_lower(factor: Array, right: Array) -> Array:
    """Solves factor @ x = right for lower-triangular factors, by forward substitution over the rows.

    Args:
        factor: Lower-triangular matrices, shape (*batch, D, D).
        right: Right-hand sides, shape (*batch, D, K); the batches broadcast.

    Returns:
        x, shape (*batch, D, K).
    """
    size = factor.shape[-1]
    if size > LARGEST_UNROLLED:
        batch = jnp.broadcast_shapes(factor.shape[:-2], right.shape[:-2])
        factor, right = (jnp.broadcast_to(m, batch + m.shape[-2:]) for m in (factor, right))
        return solve_triangular(factor, right, lower=True)
    rows: list[Array] = []
    for i in range(size):
        known = sum((factor[..., i, j, None] * rows[j] for j in range(i)), start=jnp.zeros((), right.dtype))
        rows.append((right[..., i, :] - known) / factor[..., i, i, None])
    return jnp.stack(rows, -2)


def inverse_lower(factor: Array) -> Array:
    """Inverses of lower-triangular matrices of shape (*batch, D, D)."""
    return solve_lower(factor, jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape))


@partial(jax.jit, static_argnames="floor")
def lower_factor(matrix: Array, *, floor: float = 0.0) -> Array:
    """Lower-triangular L with L L' = matrix, by plain arithmetic; a pivot below a floor is raised to it.

    Args:
        matrix: Symmetric matrices, shape (*batch, D, D); the lower triangle is read.
        floor: Least pivot. Where it is 0, a pivot that is not positive leaves a column of zeros, so that a singular
            covariance has a factor too.

    Returns:
        L, shape (*batch, D, D); the Cholesky factor where every pivot is above the floor.
    """
    size = matrix.shape[-1]

    def column(i: int | Array, rest: Array) -> tuple[Array, Array]:
        pivot = jnp.maximum(rest[..., i, i], floor)
        root = jnp.sqrt(jnp.where(pivot > 0, pivot, 1.0))[..., None]
        below = jnp.where((pivot > 0)[..., None] & (jnp.arange(size) > i), rest[..., :, i] / root, 0.0)
        diagonal = jnp.where((pivot > 0)[..., None] & (jnp.arange(size) == i), root, 0.0)
        return rest - below[..., :, None] * below[..., None, :], below + diagonal

    if size > LARGEST_UNROLLED:
        _, columns = jax.lax.scan(lambda rest, i: column(i, rest), matrix, jnp.arange(size))
        return jnp.moveaxis(columns, 0, -1)
    found, rest = [], matrix
    for i in range(size):
        rest, below = column(i, rest)
        found.append(below)
    return jnp.stack(found, -1)


def innermost(p: Any) -> Any:
    """The distribution of one coordinate of a step, or of the whole, under any events and expansions."""
    while isinstance(p, dist.Independent | dist.ExpandedDistribution):
        p = p.base_dist
    return p


def has_density(p: Any) -> bool:
    """Whether a law has a density over real numbers: a discrete one has not, nor has one of levels on the real line."""
    return not (p.support.is_discrete or getattr(innermost(p), "has_atoms", False))


def coordinate_support(support: Any) -> Any:
    """The support of one coordinate, under any event dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


_WRAPPERS = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution


def layers_of(fn: Any) -> list[Any]:
    """A distribution and what it wraps."""
    layers = [fn]
    while isinstance(layers[-1], _WRAPPERS):
        layers.append(layers[-1].base_dist)
    return layers
