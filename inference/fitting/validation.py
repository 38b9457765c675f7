"""Validation of a fit: the objective of the averaged parameters on data that it does not see, as it goes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from numpyro.infer import SVI

from dpm_ppl.inference.fitting.sources import Resident, Source, in_order


class Validated(NamedTuple):
    """What validation has said so far.

    Attributes:
        iterations: After how many iterations, ascending, shape (num,).
        losses: Loss in nats per datum, such as -ELBO, shape (num,).
        best: The averaged, unconstrained parameters of the lowest loss; before the first, those of the beginning.
    """

    iterations: np.ndarray
    losses: np.ndarray
    best: Any

    def then(self, iteration: int, loss: float, average: Any) -> "Validated":
        """What it says after one more."""
        best = average if loss <= min([math.inf, *self.losses]) else self.best
        return Validated(np.append(self.iterations, iteration), np.append(self.losses, loss), best)

    def is_over(self, patience: int | None) -> bool:
        """Whether the last `patience` validations were no better than one before them."""
        if patience is None or not len(self.losses):
            return False
        return len(self.losses) - 1 - int(np.argmin(self.losses)) >= patience


def nothing_validated(average: Any) -> Validated:
    """Before the first validation."""
    return Validated(np.zeros(0, int), np.zeros(0), average)


def validator(
    svi: SVI, data: Resident | Source, args: tuple[Any, ...], *, batch_size: int, key: Array, normaliser: int | None
) -> Callable[[Any], float]:
    """What a fit is validated by.

    Args:
        svi: SVI of the program, whose arguments are `((x0, indices), *args)`.
        data: The part that is kept out of the fit, in memory or read each time.
        args: Further arguments of the program.
        batch_size: How many data are evaluated at once; the rest together.
        key: Random key of the noise, the same each time.
        normaliser: Number of data that a loss adds up; None where it is those of its batch.

    Returns:
        The loss in nats per datum, averaged over the part, of unconstrained parameters; infinite where it is NaN.
    """

    @jax.jit
    def evaluate(average: Any, key: Array, batch: tuple[Any, Array]) -> Array:
        return svi.loss.loss(key, svi.constrain_fn(average), svi.model, svi.guide, batch, *args)

    def loss(average: Any) -> float:
        total, num_data = 0.0, 0
        for place, (x0, indices) in enumerate(in_order(data, batch_size)):
            size = len(indices)
            value = evaluate(average, jax.random.fold_in(key, place), (x0, indices))
            total, num_data = total + size * float(value) / (normaliser or size), num_data + size
        return math.inf if math.isnan(total) else total / num_data

    return loss
