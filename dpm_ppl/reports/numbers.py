"""Numbers as reports show them: means with their errors, in bits; what is not known."""

import math
from collections.abc import Mapping
from typing import Any

from dpm_ppl.inference.units import mean_and_error


def in_bits(name: str, nats: Any) -> dict[str, float]:
    """Mean over the data in bits, and its standard error under `{name}_se`, of nats of shape (num_data,)."""
    mean, error = mean_and_error(nats)
    return {name: mean / math.log(2), f"{name}_se": error / math.log(2)}


def with_error(figures: Mapping[str, Any], name: str) -> str:
    """A number with its standard error, where it has one."""
    value, error = figures.get(name), figures.get(f"{name}_se")
    text = "      none" if value is None else f"{value:>10.4f}"
    return text + ("" if error is None else f" ± {error:.4f}")


def known_or_none(value: Any) -> Any:
    """A value for JSON, which has no NaN or infinity: None in their place."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
