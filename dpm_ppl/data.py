"""What is known of data, a distribution, an array or parts of one length: fresh draws, support, density, sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints


def drawn_beside(data: Any, *, name: str = "data") -> Any:
    """Data in parts as arrays of one length; what has no parts is returned as it is.

    Args:
        data: A tuple or dictionary of arrays, an entry for each datum. A distribution may stand beside arrays: it is
            drawn once, by a seed that is always the same; one of batch shape () independently for each datum, one of
            batch shape (num_data,) as a law for each.
        name: What to call it in an error.

    Returns:
        The same with arrays in place of distributions.

    Raises:
        TypeError: a part is no array of numbers.
        ValueError: there is no array, arrays differ in length, or a distribution has another batch shape.
    """
    if not isinstance(data, dict | tuple):
        return data
    parts = data if isinstance(data, dict) else dict(enumerate(data))
    laws = {part: value for part, value in parts.items() if isinstance(value, dist.Distribution)}
    arrays = {part: _as_array(value) for part, value in parts.items() if part not in laws}
    for part, array in arrays.items():
        if array.dtype == object or array.ndim == 0:
            raise TypeError(
                f"Expected `{name}` to be made of arrays, or distributions beside them; got "
                f"{type(parts[part]).__name__} for {part!r}."
            )
    if not arrays:
        raise ValueError(f"Expected an array beside the distributions in `{name}`, which says how many data there are.")
    lengths = {part: len(array) for part, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"Expected arrays of one length, one entry for each datum, in `{name}`; got {lengths}.")
    (num,) = set(lengths.values())
    drawn: dict[Any, Any] = {}
    for i, part in enumerate(parts):
        if part in arrays:
            drawn[part] = arrays[part]
        elif laws[part].batch_shape in ((), (num,)):
            shape = () if laws[part].batch_shape else (num,)
            drawn[part] = np.asarray(laws[part].sample(jax.random.fold_in(jax.random.key(0), i), shape))
        else:
            raise ValueError(
                f"Expected the distribution for {part!r} in `{name}` to have batch shape () or ({num},), the number of "
                f"data beside it; got {laws[part].batch_shape}."
            )
    return drawn if isinstance(data, dict) else tuple(drawn.values())


def _as_array(value: Any) -> Any:
    return value if isinstance(value, np.memmap) else np.asarray(value)  # which would have it read as a whole


def num_data_of(data: Any) -> int | None:
    """Number of data in arrays; None of a distribution, of which there is no end."""
    if isinstance(data, dist.Distribution):
        return None
    first = jax.tree.leaves(data)[0]
    return len(first) if np.ndim(first) else 0


def fresh_data(data: Any, *, key: Array, num_data: int) -> Any:
    """Data to evaluate on.

    Args:
        data: A distribution, an array of shape (num_all, *event), or a tuple or dictionary of arrays of one length.
        key: Random key.
        num_data: How many.

    Returns:
        Draws from a distribution, except that equally likely sequences it can list come equally often; from arrays,
        all of it or a part drawn at random. Shape (about num_data, *event), in the parts that the data have.
    """
    num_all = num_data_of(data)
    if num_all is not None:
        if num_all <= num_data:
            return jax.tree.map(jnp.asarray, data)
        rows = np.asarray(jax.random.permutation(key, num_all)[:num_data])
        return jax.tree.map(lambda leaf: jnp.asarray(_taken(leaf, rows)), data)
    listed = valid_sequences(data)
    if listed is not None and np.ptp(listed[1]) < 1e-6:
        num_each = max(1, round(num_data / len(listed[0])))
        return jax.random.permutation(key, jnp.tile(jnp.asarray(listed[0]), (num_each, 1)))
    return data.sample(key, (num_data,))


def entropy_limit(data: Any, x0: Array) -> float | None:
    """Expected log density of the data in nats per datum, which no ELBO exceeds on average; None where it is not known.

    Args:
        data: A distribution; or else, and then their density is not known.
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


def support_of(data: Any, x0: ArrayLike) -> constraints.Constraint:
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


def draw(data: Any, *, key: Array, num_data: int) -> Any:
    """Data, shape (about num_data, *event) in the parts that they have, in the precision that now holds."""
    num_all = num_data_of(data)
    if num_all is None:
        return jax.jit(lambda key: data.sample(key, (num_data,)))(key)
    rows = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist()).permutation(num_all)
    return as_now(jax.tree.map(lambda leaf: _taken(leaf, rows[:num_data]), data))


def _taken(leaf: Any, rows: np.ndarray) -> Any:
    """Rows of an array; of a mapped file those alone."""
    return leaf[rows] if isinstance(leaf, np.ndarray | Array) or hasattr(leaf, "of") else np.asarray(leaf)[rows]


def as_now(tree: Any) -> Any:
    """Floating-point arrays of a tree in the precision that now holds."""

    def cast(leaf: Any) -> Any:
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.result_type(float)) if inexact else jnp.asarray(leaf)

    return jax.tree.map(cast, tree)
