"""Means over data with their standard errors, in nats and in bits, and how an error is written."""

import math
from typing import Any

import numpy as np


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean of independent values, and its standard error: NaN with a single one, or where a value is infinite."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):  # the mean of data that pi lacks is -inf, and its error unknown
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def error_text(error: float | None, digits: int) -> str:
    """A standard error to stand behind a number: one that is not known is never shown as 0."""
    return "± unknown" if error is None or math.isnan(error) else f"± {error:.{digits}f}"


def in_both_units(name: str, nats: float, *, suffix: str = "") -> dict[str, float]:
    """A number of nats as `{name}_nats{suffix}` and, in bits, as `{name}_bits{suffix}`."""
    return {f"{name}_nats{suffix}": nats, f"{name}_bits{suffix}": nats / math.log(2)}
