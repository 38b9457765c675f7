"""Counts and random keys that a user gives, checked before any work."""

import operator
from typing import Any

import numpy as np
from numpyro.util import is_prng_key


def require_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """A number of things, an integer of Python, NumPy or JAX, as one of Python.

    Args:
        name: What the argument is called.
        value: What came.
        at_least: The least that makes sense.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.
    """
    try:
        if np.issubdtype(getattr(value, "dtype", type(value)), np.bool_):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"Expected `{name}` to be an integer; got {value!r}.") from None
    if count < at_least:
        raise ValueError(f"Expected `{name}` to be at least {at_least}; got {count}.")
    return count


def require_key(key: Any) -> Any:
    """One random key, new or old in style, or a TypeError."""
    if not is_prng_key(key):
        came = f"an array of shape {key.shape}" if hasattr(key, "shape") else repr(key)
        raise TypeError(f"Expected `key` to be one random key, such as jax.random.key(0); got {came}.")
    return key
