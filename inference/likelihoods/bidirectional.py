"""Bounds on both sides of the log likelihood, for data simulated from the model, where exact posteriors are had."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Definition
from dpm_ppl.inference.devices import spread_over
from dpm_ppl.inference.likelihoods.likelihood import Likelihood, log_likelihood, log_mean_exp
from dpm_ppl.inference.likelihoods.weights import raise_for_terms, reverse_weights, run_in_blocks
from dpm_ppl.inference.units import in_both_units, mean_and_error
from dpm_ppl.programs import instantiate


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Lower and upper bounds on log p(x^0) of data simulated from the model, in nats; nothing is said of other data.

    The bounds hold in expectation over data and trajectories, not for each draw: compare their means with their errors.

    Attributes:
        x0: The simulated data, shape (num_data, *event).
        forward: Weights of their forward trajectories.
        own_log_weight: log w of the reverse trajectory that made each datum, an exact posterior draw, shape
            (num_data,).
    """

    x0: np.ndarray
    forward: Likelihood
    own_log_weight: np.ndarray

    @property
    def lower(self) -> np.ndarray:
        """Log of the mean weight of the forward trajectories, shape (num_data,): a lower bound in expectation."""
        return self.forward.estimate

    @cached_property
    def upper(self) -> np.ndarray:
        """The same with the datum's own trajectory in place of the last forward one, shape (num_data,): an upper bound.

        At least as large as what num_particles weights allow: own log weight - log(num_particles).
        """
        return log_mean_exp(np.concatenate([self.forward.log_weight[:-1], self.own_log_weight[None]]))

    @property
    def gap(self) -> np.ndarray:
        """Upper less lower bound, shape (num_data,): positive in expectation, about var(w) / (p^2 num_particles)."""
        return self.upper - self.lower

    @property
    def estimate(self) -> np.ndarray:
        """Half way between the bounds, whose errors of order 1 / num_particles cancel there, shape (num_data,)."""
        return 0.5 * (self.lower + self.upper)

    @property
    def forward_work(self) -> np.ndarray:
        """Work along forward trajectories, -log w, shape (num_particles, num_data); inf where a weight is zero."""
        return -self.forward.log_weight

    @property
    def reverse_work(self) -> np.ndarray:
        """The same quantity, -log w, along the reverse trajectories, shape (num_data,)."""
        return -self.own_log_weight

    def summary(self) -> dict[str, float]:
        """Means over the simulated data of `lower`, `upper`, `gap` and `estimate`.

        Returns:
            `lower_nats`, `lower_bits`, `lower_nats_se` and so on, per datum; the errors are of the means as estimates
            for all data that the model makes (NaN with one datum), `gap`'s over pairs and so much the smaller.
            `num_data`, `num_particles`.
        """
        result: dict[str, float] = {"num_data": len(self.x0), "num_particles": self.forward.num_particles}
        for name in ("lower", "upper", "gap", "estimate"):
            mean, error = mean_and_error(getattr(self, name))
            result |= in_both_units(name, mean) | in_both_units(name, error, suffix="_se")
        return result


def sandwich(
    definition: Definition,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_data: int,
    num_particles: int,
    block_size: int | None = None,
    context: Any = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Sandwich:
    """Two-sided bounds on the model's log likelihood of data simulated from it, never of data that are given.

    A reverse trajectory x^(0..T) is also an exact draw of x^(1..T) from the posterior given its x^0. Counted among the
    importance weights of x^0 it turns their lower bound into an upper one.

    Args:
        definition: A program's `diffusion`: declares parameters and returns the record. Compiled once for each
            function given.
        params: Parameters by name.
        key: Random key.
        num_data: Data to simulate.
        num_particles: Trajectories in each bound.
        block_size: Trajectories at a time, by default as many as fit in 1 GiB of each device.
        context: What a definition of one argument is of, one for each datum to simulate: an array or a pytree whose
            leaves begin with num_data.
        mesh: Devices that trajectories are split over, by default all that JAX sees.
        progress: Whether to show a progress bar, where it takes more than a second.

    Returns:
        The simulated data with their bounds, in nats.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: a number is below 1, parameters are missing or of another model, or a term of a weight is NaN or
            +inf.

    Source: Grosse, Ghahramani and Adams 2015 (bidirectional Monte Carlo); for several trajectories Sobolev and Vetrov
        2019.
    """
    require_key(key)
    spread = spread_over(mesh)
    context = jax.tree.map(jnp.asarray, context)
    built = instantiate(definition, params, context=context)
    num_data = require_count("num_data", num_data)
    num_particles = require_count("num_particles", num_particles)
    built = built.of_batch((num_data,))
    reverse_key, forward_key = jax.random.split(key)
    _, blocks = run_in_blocks(
        reverse_weights,
        *(definition, *spread.put((dict(params), context, reverse_key))),
        num_items=num_data,
        block_size=block_size,
        numbers_per_item=math.prod(built.event_shape),
        num_steps=built.num_steps,
        options={},
        description="simulated data",
        progress=progress,
        check=raise_for_terms(num_data, built.num_steps),
        spread=spread,
    )
    x0 = np.concatenate([b["x0"] for b in blocks])[:num_data]
    own = np.concatenate([b["log_weight"].astype(np.float64) + b["lost"] for b in blocks])[:num_data]
    forward = log_likelihood(
        definition,
        x0,
        params=params,
        key=forward_key,
        num_particles=num_particles,
        block_size=block_size,
        context=context,
        mesh=mesh,
        progress=progress,
    )
    return Sandwich(x0, forward, own)


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
