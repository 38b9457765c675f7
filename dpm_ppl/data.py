"""What is known of data, given as a distribution or an array: fresh draws, support, density, entropy, sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints


def fresh_data(data: dist.Distribution | Array | np.ndarray, *, key: Array, num_data: int) -> Array:
    """Data to evaluate on.

    Args:
        data: A distribution, or an array of shape (num_all, *event).
        key: Random key.
        num_data: How many.

    Returns:
        Draws from a distribution, except that equally likely sequences it can list come equally often; from an array,
        all of it or a part drawn at random. Shape (about num_data, *event).
    """
    if not isinstance(data, dist.Distribution):
        data = jnp.asarray(data)
        return data if len(data) <= num_data else data[jax.random.permutation(key, len(data))[:num_data]]
    listed = valid_sequences(data)
    if listed is not None and np.ptp(listed[1]) < 1e-6:
        num_each = max(1, round(num_data / len(listed[0])))
        return jax.random.permutation(key, jnp.tile(jnp.asarray(listed[0]), (num_each, 1)))
    return data.sample(key, (num_data,))


def entropy_limit(data: dist.Distribution | Array | np.ndarray, x0: Array) -> float | None:
    """Expected log density of the data in nats per datum, which no ELBO exceeds on average; None where it is not known.

    Args:
        data: A distribution, or an array, whose density is not known.
        x0: Draws from it, shape (num_data, *event), for the mean log density where there is no `entropy`.

    Returns:
        Nats per datum.
    """
    if not isinstance(data, dist.Distribution):
        return None
    try:
        return -float(data.entropy())
    except NotImplementedError:
        pass
    try:
        return float(jnp.mean(data.log_prob(x0)))
    except NotImplementedError:
        return None


def support_of(data: dist.Distribution | Array | np.ndarray, x0: ArrayLike) -> constraints.Constraint:
    """Where data lie: the support of a distribution; of an array, whole or real numbers, by the type of x0."""
    if isinstance(data, dist.Distribution):
        return data.support
    return constraints.real if jnp.issubdtype(np.asarray(x0).dtype, jnp.floating) else constraints.nonnegative_integer


def log_density(data: Any, x0: Array) -> Array | None:
    """The data's own log density of each datum, nats, shape (num_data,); None where it is not known."""
    if not isinstance(data, dist.Distribution):
        return None
    try:
        return data.log_prob(x0)
    except NotImplementedError:
        return None


MOST_SEQUENCES = 64  # beyond these, bars are too thin to read


def valid_sequences(data: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The sequences of positive probability and their probabilities, where the data can list them."""
    try:
        sequences = data.enumerate_support()
        if sequences.ndim != 2 or len(sequences) > MOST_SEQUENCES:
            return None
        return np.asarray(sequences), np.exp(np.asarray(data.log_prob(sequences)))
    except (AttributeError, NotImplementedError):
        return None


def draw(data: Any, *, key: Array, num_data: int) -> Array:
    """Data, shape (about num_data, *event), in the precision that now holds."""
    if isinstance(data, dist.Distribution):
        return jax.jit(lambda key: data.sample(key, (num_data,)))(key)
    rows = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist()).permutation(len(data))
    return as_now(np.asarray(data)[rows[:num_data]])


def as_now(tree: Any) -> Any:
    """Floating-point arrays of a tree in the precision that now holds."""

    def cast(leaf: Any) -> Any:
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.result_type(float)) if inexact else jnp.asarray(leaf)

    return jax.tree.map(cast, tree)
