"""Statistics of a check: how far two computations are apart, and whether rounding or chance explains it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDING = 1e-6  # largest difference of log densities, over their size, that rounding makes in double precision

SINGLE = 1e-3  # and that it makes in single precision

LARGE = 0.05  # nats per datum, summed over the steps, which no one is to lose by rounding


@dataclass(frozen=True)
class Difference:
    """The difference of log densities, over their size.

    Args:
        off: The largest, over the size of both; infinite where one is NaN.
        at: The row that it is in.
        nats: Sum over the rows of the difference itself, averaged over the data.
    """

    off: float
    at: int
    nats: float

    @classmethod
    def of(cls, one: Any, other: Any) -> "Difference":
        """Of two arrays of shape (num_rows, *batch); 0 where both are the same infinity."""
        one, other = (np.asarray(a, np.float64) for a in (one, other))
        with np.errstate(invalid="ignore", over="ignore"):  # log densities of -1e308 say "never" in discrete kernels
            nats = np.where(one == other, 0.0, one - other).reshape(len(one), -1)
            sizes = np.abs(nats) / (1 + np.abs(one) + np.abs(other)).reshape(nats.shape)
            total = float(np.abs(nats.sum(0).mean()))
        largest = np.where(np.isnan(sizes), np.inf, sizes).max(1)
        return cls(float(largest.max()), int(largest.argmax()), total)

    @property
    def is_none(self) -> bool:
        """Whether rounding in double precision explains it."""
        return self.off < ROUNDING

    @property
    def is_single(self) -> bool:
        """Whether constants in single precision explain it, and nobody loses by it."""
        return not self.is_none and self.off < SINGLE and self.nats < LARGE

    @property
    def words(self) -> str:
        """What to say of one that single precision explains."""
        return (
            f"agree to {self.off:.1g}, as far as float32 constants allow: make the schedule with NumPy, or in the "
            "program."
        )


@dataclass(frozen=True)
class Estimate:
    """A mean of draws.

    Args:
        mean: The mean, in nats per datum.
        error: Its standard error.
        deviation: Standard deviation of one draw.
        num: Number of draws; infinite where the error is known.
    """

    mean: float
    error: float = 0.0
    deviation: float = 0.0
    num: float = math.inf

    @classmethod
    def of(cls, values: Any) -> "Estimate":
        """That of independent draws."""
        values = np.asarray(values, np.float64)
        deviation = float(values.std(ddof=1))
        return cls(float(values.mean()), deviation / np.sqrt(len(values)), deviation, len(values))

    def excess(self, other: "Estimate") -> float:
        """Standard errors by which it exceeds another; differences that rounding explains count as none.

        Few draws know their error badly: Student's t is turned into the normal score of the same probability.

        Source: Wallace 1959, Ann. Math. Statist. 30, 1124.
        """
        rounding = 1e-9 * (1 + abs(self.mean) + abs(other.mean))
        score = (self.mean - other.mean) / max(float(np.hypot(self.error, other.error)), rounding)
        free = min(self.num, other.num) - 1
        if math.isinf(free):
            return score
        return math.copysign((8 * free + 1) / (8 * free + 3) * math.sqrt(free * math.log1p(score**2 / free)), score)

    def score(self, other: "Estimate") -> float:
        """Distance from another in standard errors."""
        return abs(self.excess(other))


STANDARD_ERRORS = 5.5  # a true kernel exceeds them once in 30 million statistics
