"""Likelihoods by importance weights of whole forward trajectories, with what tells whether to trust them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy.special import stdtrit

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference import diagnostics
from dpm_ppl.inference.blocks import run_in_blocks
from dpm_ppl.inference.entropy import check_batch
from dpm_ppl.inference.instantiate import instantiate
from dpm_ppl.inference.weights import check_terms, forward_weights


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Importance weights of forward trajectories and what follows from them, datum by datum, in nats; NumPy, float64.

    Attributes:
        log_weight: log w of each trajectory, shape (num_particles, num_data); -inf is a weight of zero.
        reverse_cross_entropy: Mean of -log p(x^(t-1)|x^t) over particles and data for t = 2..T, shape (T - 1,): at
            least H_q(X^(t-1)|X^t), of which `entropy_bounds` knows the bounds of eq. 24.
        trajectories: x^(1..T) of the first particles, shape (num_trajectories, num_data, T, *event), or None.
    """

    log_weight: np.ndarray
    reverse_cross_entropy: np.ndarray
    trajectories: np.ndarray | None = None

    @property
    def num_particles(self) -> int:
        """Number of trajectories of each datum."""
        return len(self.log_weight)

    @property
    def num_data(self) -> int:
        """Number of data."""
        return self.log_weight.shape[1]

    @cached_property
    def elbo(self) -> np.ndarray:
        """Mean of log w, shape (num_data,): in expectation the ELBO; -inf where a trajectory has no weight."""
        return np.mean(self.log_weight, 0)

    @cached_property
    def estimate(self) -> np.ndarray:
        """Log of the mean of w, shape (num_data,): log p(x^0), from below in expectation; -inf where all w are 0."""
        return log_mean_exp(self.log_weight)

    @cached_property
    def standard_error(self) -> np.ndarray:
        """Standard error of `estimate`, shape (num_data,): 1.96 of them on either side make a 95% interval.

        The delta method for the log of a mean, widened by Student's t with ESS - 1 degrees of freedom, as a few weights
        that dominate say little of their own spread. Worth what k-hat says: far above 0.5 the heavy part of the tail is
        likely to be missing from estimate and error alike. NaN with one particle, or where all weights are zero.
        """
        num, ess = self.num_particles, self.ess
        if num == 1:
            return np.full(self.num_data, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.maximum(1 / ess - 1 / num, 0) * num / (num - 1)  # of the mean, over its square
        widening = stdtrit(np.maximum(ess - 1, 1), 0.975) / stdtrit(np.inf, 0.975)
        return np.where(ess > 0, widening * np.sqrt(variance), np.nan)

    @cached_property
    def ess(self) -> np.ndarray:
        """Kish's effective sample size, (sum w)^2 / sum w^2, shape (num_data,); 0 where all weights are zero."""
        first, second = log_mean_exp(self.log_weight), log_mean_exp(2 * self.log_weight)
        with np.errstate(invalid="ignore"):
            return np.where(first > -np.inf, np.exp(2 * first - second) * self.num_particles, 0.0)

    @property
    def khat(self) -> np.ndarray:
        """Tail shape of the weights by `diagnostics.psis`, shape (num_data,): above 0.7 do not trust `estimate`."""
        return self._smoothed[1]

    @property
    def psis_estimate(self) -> np.ndarray:
        """Log of the mean of the Pareto-smoothed weights, shape (num_data,)."""
        return self._smoothed[0]

    def estimate_at(self, num_particles: int) -> np.ndarray:
        """What `estimate` would be with fewer particles, averaged over disjoint groups of them, shape (num_data,).

        Its expectation rises with num_particles from the ELBO's (1) to that of `estimate`.

        Raises:
            ValueError: num_particles lies outside 1..self.num_particles.
        """
        if not 1 <= num_particles <= self.num_particles:
            raise ValueError(f"Expected 1 <= num_particles <= {self.num_particles}; got {num_particles}.")
        num_groups = self.num_particles // num_particles
        groups = self.log_weight[: num_groups * num_particles].reshape(num_groups, num_particles, self.num_data)
        return np.mean(log_mean_exp(groups, axis=1), 0)

    def to_arviz(self, *, K: ArrayLike | None = None) -> Any:  # noqa: N803 - the paper's name
        """ArviZ's format, `InferenceData` (0.23) or `DataTree` (1.x), as `diagnostics.to_arviz` says."""
        return diagnostics.to_arviz(self, K=K)

    def save(self, path: str | Path, *, K: ArrayLike | None = None) -> Path:  # noqa: N803
        """Writes netCDF, that ArviZ and xarray open without this package, as `diagnostics.save` says."""
        return diagnostics.save(self, path, K=K)

    @cached_property
    def _smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        smoothed, khat = diagnostics.psis(self.log_weight)
        return log_mean_exp(smoothed), khat


def log_likelihood(
    diffusion: Callable[[], Diffusion],
    x0: ArrayLike,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_particles: int,
    block_size: int | None = None,
    num_trajectories: int = 0,
    progress: bool = True,
) -> Likelihood:
    """Log likelihood of each datum by importance sampling over forward trajectories.

    The weights are summed while the chain runs, with compensation for rounding, so that memory does not grow with T and
    float32 is good to 1e-2 nats at T = 10,000; rates beta_t under 1e-6 cost more, as a state's own rounding then shows.
    Each datum and particle has a random key of its own: blocks do not change the result.

    Args:
        diffusion: A program's definition: declares parameters and returns a Diffusion. Compiled once for each function
            given.
        x0: Data, shape (num_data, *event).
        params: Parameters by name, as `SVI.get_params` gives them.
        key: Random key.
        num_particles: Trajectories of each datum. k-hat needs 30 or more, and hundreds to mean much.
        block_size: Trajectories at a time, over data and particles, by default as many as fit in 1 GiB.
        num_trajectories: Particles of which the trajectories are kept, the first of each datum; they take memory for
            all T.
        progress: Whether to show a progress bar, where it takes more than a second.

    Returns:
        The weights, in nats.

    Raises:
        TypeError: x0 or an option is of the wrong kind.
        ValueError: x0 is no batch of data, a number is out of range, parameters are missing or of another model, or a
            term of a weight is NaN or +inf.

    Source: Sohl-Dickstein et al. 2015, eq. 9; Neal 2001.
    """
    built = instantiate(diffusion, params)
    x0 = check_batch(built.kernel, x0)
    check_count("num_particles", num_particles, at_least=1)
    check_count("num_trajectories", num_trajectories, at_least=0)
    if num_trajectories > num_particles:
        raise ValueError(f"Expected `num_trajectories` to be at most {num_particles=}; got {num_trajectories}.")
    num_data, num_numbers = len(x0), math.prod(built.event_shape)

    def run(num: int, *, keep: bool) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        return run_in_blocks(
            forward_weights,
            *(diffusion, dict(params), x0, key),
            num_items=num * num_data,
            block_size=block_size,
            numbers_per_item=num_numbers * (built.num_steps if keep else 1),
            num_steps=built.num_steps,
            options={"num_data": num_data, "keep": keep},
            description="trajectories" if keep else "log likelihood",
            progress=progress,
            check=check_terms(num_data, built.num_steps),
        )

    _, blocks = run(num_particles, keep=False)
    size = num_particles * num_data
    log_weight = np.concatenate([b["log_weight"].astype(np.float64) + b["lost"] for b in blocks])[:size]
    cross_entropy = np.sum([b["reverse_cross_entropy"].astype(np.float64) for b in blocks], 0) / size
    trajectories = None
    if num_trajectories:
        _, blocks = run(num_trajectories, keep=True)
        kept = np.concatenate([b["trajectory"] for b in blocks])[: num_trajectories * num_data]
        trajectories = kept.reshape(num_trajectories, num_data, *kept.shape[1:])
    return Likelihood(log_weight.reshape(num_particles, num_data), cross_entropy, trajectories)


def log_mean_exp(log_weight: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Log of the mean of exp(log_weight) over an axis; -inf where all are."""
    top = np.max(log_weight, axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.squeeze(top, axis) + np.log(np.mean(np.exp(log_weight - top), axis))


def check_count(name: str, value: int, *, at_least: int) -> None:
    """A number of things, or a clear error."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be an integer; got {value!r}.")
    if value < at_least:
        raise ValueError(f"Expected `{name}` to be at least {at_least}; got {value}.")
