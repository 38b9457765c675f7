"""Counts that a user gives, checked before any work."""

from typing import Any

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
