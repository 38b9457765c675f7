"""Validation of a fit: the objective of the averaged parameters on data that it does not see, as it goes."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from dpm_ppl.inference.devices import Spread
from dpm_ppl.inference.fitting.prepare import Prepared
from dpm_ppl.inference.sources import Resident, Source, described, in_order, indexable, num_rows


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


def describe(data: Resident | Source, batch_size: int) -> str:
    """Validation data in a line: how many, and the first batch of them."""
    data = indexable(data)
    first, _ = next(in_order(data, batch_size))
    return f"{num_rows(data)} data, the first batch {described(first)}"


def validator(
    prepared: Prepared, data: Resident | Source, args: tuple[Any, ...], *, batch_size: int, key: Array, spread: Spread
) -> Callable[[Any, Any], float]:
    """What a fit is validated by.

    Args:
        prepared: The program, ready to fit.
        data: The part that is kept out of the fit, in memory or read each time.
        args: Further arguments of the program.
        batch_size: How many data are evaluated at once; the rest together.
        key: Random key of the noise, the same each time.
        spread: The devices.

    Returns:
        The loss in nats per datum, averaged over the part, of unconstrained parameters and NumPyro's mutable state, or
        None; infinite where it is NaN.
    """
    svi, data = prepared.svi, indexable(data)
    adds_up = cache(lambda size: prepared.adds_up(jax.device_put(next(in_order(data, size))), args))

    @jax.jit
    def evaluate(average: Any, mutable_state: Any, key: Array, batch: tuple[Any, Array]) -> Array:
        values = {**svi.constrain_fn(average), **(mutable_state or {})}
        return svi.loss.loss(key, values, svi.model, svi.guide, spread.constrained(batch), *args)

    def loss(average: Any, mutable_state: Any) -> float:
        total, num_data = 0.0, 0
        for place, (x0, indices) in enumerate(in_order(data, batch_size)):
            prepared.require_states(x0)
            size = len(indices)
            batch = spread.put_split((x0, indices))
            value = evaluate(average, mutable_state, jax.random.fold_in(key, place), batch)
            total, num_data = total + size * float(value) / adds_up(size), num_data + size
        return math.inf if math.isnan(total) else total / num_data

    return loss
