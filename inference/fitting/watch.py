"""What is done beside the iterations of a fit: validation, lines of `metrics.csv`, and the user's callback."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpm_ppl.inference.fitting.loop import Done
from dpm_ppl.inference.fitting.metrics import Line, Metrics


@dataclass(frozen=True, eq=False)
class Watch:
    """Looks at a fit between its chunks.

    Args:
        every: Iterations between validations, and calls of the callback; they are at its multiples and at the end.
        validate: Loss in nats per datum, on the validation data, of averaged parameters and the mutable state; None
            where there are no such data.
        patience: How many validations in a row may be no better than the best before the fit ends; None never ends it.
        callback: Called with what is done.
        metrics: Where lines are written.
        rate: The learning rate, of the number of iterations done and the optimiser's state.
    """

    every: int
    validate: Callable[[Any, Any], float] | None
    patience: int | None
    callback: Callable[[Done], Any] | None
    metrics: Metrics | None
    rate: Callable[[int, Any], float]

    def stop(self, position: int) -> float:
        """The next iteration after which a chunk has to end."""
        return (
            math.inf if self.validate is None and self.callback is None else self.every * (position // self.every + 1)
        )

    def is_over(self, done: Done) -> bool:
        """Whether patience has run out."""
        return done.validated.is_over(self.patience)

    def after(self, done: Done, *, num_iterations: int) -> Done:
        """What is done, validated where it is time to; once only, for an iteration that is seen again."""
        due = done.position % self.every == 0 or done.position == num_iterations
        validated = done.validated
        if due and self.validate is not None and done.position not in validated.iterations:
            average = done.carry.average
            loss = self.validate(average, done.carry.mutable_state)
            done = replace(done, validated=validated.then(done.position, loss, average))
        if self.metrics is not None and done.position > self.metrics.newest and (due or self.metrics.due()):
            self.metrics.add(self._line(done, since=self.metrics.newest))
        if due and self.callback is not None:
            self.callback(done)
        return done

    def _line(self, done: Done, *, since: int) -> Line:
        optimizer_state = done.carry.optim_state[1][1]
        iterations, losses = done.validated.iterations, done.validated.losses
        here = len(iterations) and iterations[-1] == done.position
        return Line(
            iteration=done.position,
            seconds=done.seconds,
            bound_bits=-float(np.mean(done.losses[since:])) / math.log(2),
            validation_bits=-float(losses[-1]) / math.log(2) if here else math.nan,
            gradient_norm=float(optimizer_state[-1]),
            learning_rate=self.rate(done.position, optimizer_state),
        )
