r"""Forward and reverse work of simulated data on one axis, and where their distributions cross: Crooks' theorem.

At fixed x^0 the work W = -log w has density P_F under forward trajectories and P_R under the posterior's, of which a
datum's own reverse trajectory is a draw, and w = exp(-W) is the ratio of the two laws of trajectories times p(x^0). So

    P_R(W) / P_F(W) = exp(-W) / p(x^0) = exp(-D),    D = W + log p(x^0),

D being the work dissipated, and the two densities of D cross at 0 for every datum, so for all together. The mean of D
is what the ELBO lacks under P_F, KL(q || p) >= 0, and -KL(p || q) <= 0 under P_R.
"""

import math
from dataclasses import dataclass

import numpy as np

from dpm_ppl.inference.sandwich import Sandwich


@dataclass(frozen=True, eq=False)
class DissipatedWork:
    """Work less the free energy -log p(x^0) of each datum, in nats.

    Attributes:
        forward: Under forward trajectories, shape (num_particles, num_data); inf where a weight is zero.
        reverse: Under the reverse trajectories that made the data, shape (num_data,).
        crossing: Where the two densities cross, from all draws together: 0 for a right calculation, up to its error.
        crossing_error: Its standard error, over the data.
        overlap: 2 int P_F P_R / (P_F + P_R) dD: 1 for a perfect model, 0 for densities that do not meet, of which
            crossing and sandwich say nothing.
    """

    forward: np.ndarray
    reverse: np.ndarray
    crossing: float
    crossing_error: float
    overlap: float


def dissipated_work(sandwich: Sandwich) -> DissipatedWork:
    """Work of simulated data, centred datum by datum at the sandwich's `estimate` of log p(x^0), and its crossing.

    The estimate uses the same trajectories, so that with few particles the centred works look nearer than they are;
    some tens or more are enough where the gap of the sandwich is small.

    Source: Crooks 1999; Bennett 1976 and Shirts et al. 2003 for the crossing, by maximum likelihood.
    """
    forward = sandwich.forward_work + sandwich.estimate
    reverse = sandwich.reverse_work + sandwich.estimate
    crossing = _crossing(forward, reverse)
    in_forward, in_reverse = _logistic(crossing - forward), _logistic(reverse - crossing)
    excess = np.mean(in_forward, 0) - in_reverse  # independent from datum to datum, and 0 on average
    slope = np.mean(in_forward * (1 - in_forward)) + np.mean(in_reverse * (1 - in_reverse))
    error = np.std(excess, ddof=1) / math.sqrt(len(excess)) / slope if len(excess) > 1 and slope > 0 else math.nan
    return DissipatedWork(forward, reverse, crossing, float(error), float(np.mean(in_forward) + np.mean(in_reverse)))


def _crossing(forward: np.ndarray, reverse: np.ndarray) -> float:
    """Bennett's c in P_R(D) / P_F(D) = exp(c - D), the two samples counting the same."""
    low, high = (f(np.concatenate([forward[np.isfinite(forward)], reverse])) for f in (np.min, np.max))
    for _ in range(100):  # bisection
        middle = 0.5 * (low + high)
        if np.mean(_logistic(middle - forward)) < np.mean(_logistic(reverse - middle)):
            low = middle
        else:
            high = middle
    return float(0.5 * (low + high))


def _logistic(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))
