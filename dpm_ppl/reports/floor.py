"""What a model that has found no structure reaches: the best law of independent coordinates."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from dpm_ppl.distributions import coordinate_support


def independent_floor(
    x0: ArrayLike, support: Any, *, levels_of: Callable[[np.ndarray], np.ndarray] | None = None
) -> float | None:
    """Log likelihood of data under the best law of independent coordinates, its parameters chosen on these very data.

    A fit that stays here has learned each coordinate by itself and nothing of what makes them belong together: the
    loss has fallen, samples have the right range, and yet it is no model of the data.

    Args:
        x0: Data, shape (num_data, *event).
        support: Their support. Real coordinates are taken to be normal, whole numbers to have any probabilities.
        levels_of: Where numbers stand for levels (`dpm_ppl.datasets.Centred.levels_of`), what gives these: the law is
            then one of whole numbers.

    Returns:
        Nats per datum, infinite where a real coordinate never changes; None on any other support.

    Source: the greatest likelihood of a normal is less its entropy at the data's variance, that of a discrete variable
        less the entropy of the data's frequencies.
    """
    values, each = np.asarray(x0), coordinate_support(support)
    if levels_of is not None:
        values, each = levels_of(values), constraints.nonnegative_integer
    values = values.reshape(len(values), -1)
    if each.is_discrete:
        return -sum(map(_entropy, values.T))
    if each != constraints.real:
        return None
    with np.errstate(divide="ignore"):
        return float(-0.5 * np.sum(np.log(2 * np.pi * np.e * values.astype(np.float64).var(0))))


def _entropy(states: np.ndarray) -> float:
    """Entropy in nats of how often each state occurs."""
    shares = np.unique(states, return_counts=True)[1] / len(states)
    return float(-np.sum(shares * np.log(shares)))
