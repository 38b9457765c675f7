"""Counts and random keys that a user gives, checked before any work."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """A number of things, an integer of Python or NumPy, as one of Python.

    Args:
        name: What the argument is called.
        value: What came.
        at_least: The least that makes sense.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"Expected `{name}` to be an integer; got {value!r}.")
    if value < at_least:
        raise ValueError(f"Expected `{name}` to be at least {at_least}; got {value}.")
    return int(value)


def require_key(key: Any) -> Any:
    """A random key, new or old in style, or a TypeError."""
    dtype = getattr(key, "dtype", None)
    old = dtype == np.uint32 and key.ndim > 0
    if dtype is None or not (old or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TypeError(f"Expected `key` to be a random key, such as jax.random.key(0); got {key!r}.")
    return key
