"""How much of where data lie is reached by samples, by nearest neighbours."""

import math
from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike
from scipy.spatial import cKDTree

from dpm_ppl.arguments import require_count
from dpm_ppl.inference.arguments import require_pair


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which data have a sample nearby.

    Attributes:
        covered: Whether a sample lies no farther from a datum than its k-th nearest other datum, shape (num_data,).
        num_samples: Number of samples.
        num_neighbours: k.
    """

    covered: np.ndarray
    num_samples: int
    num_neighbours: int

    @property
    def share(self) -> float:
        """Share of the data that are covered, 0 to 1; what a model leaves out of the data is left out of it."""
        return float(np.mean(self.covered))

    @property
    def share_error(self) -> float:
        """Standard error of `share`, were the data independent of each other; they share neighbours, so roughly."""
        return math.sqrt(self.share * (1 - self.share) / len(self.covered))

    @property
    def expected(self) -> float:
        """What `share` is on average for samples of the data's own continuous distribution, whatever it is.

        A datum is left out if of the other data and the samples, all alike, the k nearest are all data: 1 - 2^-k
        where both are many and as many.
        """
        num, k = len(self.covered), self.num_neighbours
        return 1 - math.prod((num - i) / (num + self.num_samples - i) for i in range(1, k + 1))

    def summary(self) -> dict[str, float]:
        """`coverage`, its standard error `coverage_se`, and `coverage_expected`."""
        return {"coverage": self.share, "coverage_se": self.share_error, "coverage_expected": self.expected}


def coverage(data: ArrayLike, samples: ArrayLike, *, num_neighbours: int = 5) -> Coverage:
    """Share of the data that have a sample among their nearest neighbours, by Euclidean distance.

    It sees what is missing, not what is too much: samples away from the data do not lower it. Discrete data that repeat
    are covered by a sample that is the same.

    Args:
        data: Data, shape (num_data, *event).
        samples: Samples of a model, shape (num_samples, *event).
        num_neighbours: k, the other data that a sample has to be as near as; fewer see finer gaps, with more noise.

    Returns:
        Which data are covered.

    Raises:
        TypeError: data, samples or num_neighbours are of the wrong kind.
        ValueError: event shapes differ, something is not finite, or there are not more than num_neighbours of either.

    Source: Naeem et al. 2020, section 3.2.
    """
    num_neighbours = require_count("num_neighbours", num_neighbours)
    both = require_pair(data, samples, at_least=num_neighbours + 1)
    points, others = (x.reshape(len(x), -1).astype(float) for x in both)
    radius = cKDTree(points).query(points, [num_neighbours + 1])[0][:, 0]  # a datum is its own nearest
    nearest = cKDTree(others).query(points, [1])[0][:, 0]
    return Coverage(nearest <= radius, len(others), num_neighbours)
