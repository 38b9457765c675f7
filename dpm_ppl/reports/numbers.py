"""Numbers as reports show them: means with their errors, in bits; what is not known; how few particles are too few."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

FEW_PARTICLES = 10  # an effective sample size below it makes no estimate


def mean_and_error(name: str, nats: np.ndarray) -> dict[str, float]:
    """Mean over the data in bits, and its standard error under `{name}_se`, of nats of shape (num_data,)."""
    nats = np.asarray(nats, np.float64)
    error = float(np.std(nats, ddof=1)) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    return {name: float(np.mean(nats)) / math.log(2), f"{name}_se": error / math.log(2)}


def with_error(figures: Mapping[str, Any], name: str) -> str:
    """A number with its standard error, where it has one."""
    value, error = figures.get(name), figures.get(f"{name}_se")
    text = "      none" if value is None else f"{value:>10.4f}"
    return text + ("" if error is None else f" ± {error:.4f}")


def known_or_none(value: Any) -> Any:
    """A value for JSON, which has no NaN or infinity: None in their place."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
