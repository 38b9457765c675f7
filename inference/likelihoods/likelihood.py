"""Likelihoods by importance weights of whole forward trajectories, with what tells whether to trust them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from scipy.special import log_softmax, softmax, stdtrit

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Definition
from dpm_ppl.inference.devices import spread_over
from dpm_ppl.inference.given import given
from dpm_ppl.inference.likelihoods.weights import forward_weights, raise_for_terms, run_in_blocks
from dpm_ppl.inference.psis import GOOD_KHAT, psis
from dpm_ppl.inference.records import arviz, dims_of, is_arviz_1, record, variable, write
from dpm_ppl.inference.sources import Indexed
from dpm_ppl.inference.units import error_text, mean_and_error


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

    def __repr__(self) -> str:
        mean, error = mean_and_error(self.estimate)
        elbo, ess, khat = float(np.mean(self.elbo)), float(np.min(self.ess)), self.khat
        bad = int((~(khat <= GOOD_KHAT)).sum())
        kept = "" if self.trajectories is None else f", {len(self.trajectories):,} trajectories kept"
        return (
            f"Likelihood of {self.num_data:,} data, {self.num_particles:,} particles each{kept}\n"
            f"  log p(x0) {mean:.3f} {error_text(error, 3)} nats a datum; ELBO {elbo:.3f}\n"
            f"  least effective {ess:,.0f}; k-hat over {GOOD_KHAT} or not known for {bad:,} of {self.num_data:,} data"
        )

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
        """Tail shape of the weights by `psis`, shape (num_data,): above 0.7 do not trust `estimate`."""
        return self._smoothed[1]

    @property
    def psis_estimate(self) -> np.ndarray:
        """Log of the mean of the Pareto-smoothed weights, shape (num_data,)."""
        return self._smoothed[0]

    def estimate_at(self, num_particles: int) -> np.ndarray:
        """What `estimate` would be with fewer particles, averaged over disjoint groups of them, shape (num_data,).

        Its expectation rises with num_particles from the ELBO's (1) to that of `estimate`.

        Raises:
            TypeError: num_particles is no integer.
            ValueError: num_particles lies outside 1..self.num_particles.
        """
        num_particles = require_count("num_particles", num_particles)
        if not 1 <= num_particles <= self.num_particles:
            raise ValueError(f"Expected 1 <= num_particles <= {self.num_particles}; got {num_particles}.")
        num_groups = self.num_particles // num_particles
        groups = self.log_weight[: num_groups * num_particles].reshape(num_groups, num_particles, self.num_data)
        return np.mean(log_mean_exp(groups, axis=1), 0)

    def to_arviz(self, *, K: ArrayLike | None = None) -> Any:  # noqa: N803 - the paper's name
        """A likelihood as ArviZ's `InferenceData` (0.23) or `xarray.DataTree` (1.x): the same groups, names and units.

        Args:
            K: The paper's K of each datum in nats, shape (num_data,), as `bound` gives it, to be kept beside.

        Returns:
            Groups `sample_stats`, with `log_weight` of dims (particle, datum); `likelihood`, with `elbo`, `estimate`,
            `standard_error`, `psis_estimate`, `ess`, `khat` and `K` of dims (datum,); `steps`, with the
            `reverse_cross_entropy` of each reverse step, dims (t,), t = 2..T; and, where trajectories were kept,
            `trajectories`, with `x` of dims (particle, datum, t, event_0, ...), t = 1..T, and `posterior`, with the
            same resampled by their weights: draws of p(x^(1..T)|x^0), dims (chain, draw, datum, t, event_0, ...), as
            `arviz.summary` and `arviz.plot_trace` expect; where none were kept, `log_likelihood`, with log p(x^0),
            `psis_estimate`, as `x` of dims (chain, draw, datum), of one draw, the parameters being fitted. Each
            variable says its units.
            Particles are independent, so `sample_stats` has no chain. ArviZ 1.x's functions take
            `sample_dims="particle"` (`summary` with `kind="stats"`); 0.23's take
            `sample_stats.rename(particle="draw").expand_dims("chain")`.

            `arviz.loo`, and `arviz.compare` of records, need a log likelihood and a posterior of many draws of the
            parameters, of which there is one; so a record has but one of the two, and they say that the other is
            missing. Draws of trajectories are no substitute: each tells of its own datum alone, so that leaving that
            out would be a harmonic mean of likelihoods, which does not converge. `to_elpd` is what `arviz.loo` would
            return, by the weights.

        Raises:
            ValueError: K is not of shape (num_data,).
        """
        return record(_groups(self, K), about=_ABOUT)

    def to_elpd(self) -> Any:
        """What `arviz.plot_khat` draws and `arviz.compare` compares, in both versions: `ELPDData` of each datum.

        `arviz.compare({"one": likelihood.to_elpd(), "other": other.to_elpd()})` gives the difference of two programs
        on the same data with the error that pairs have. `pareto_k` is k-hat of each datum's weights. The other fields,
        which ArviZ names after leave-one-out cross-validation, hold the smoothed estimates in nats (`elpd_i`, in 0.23
        `loo_i`), their sum, and its standard error over the data; the number of parameters is NaN. Nothing is left out
        here: on data that were not fitted the sum is the expected log predictive density that `arviz.loo` estimates.
        """
        import xarray as xr

        az = arviz()

        num_particles, num_data = self.log_weight.shape
        khat, estimate = (
            xr.DataArray(np.array(values, np.float64), dims="datum", coords={"datum": np.arange(num_data)})
            for values in (self.khat, self.psis_estimate)
        )
        total, error = float(estimate.sum()), float(num_data**0.5 * np.std(estimate.values))
        counts = {
            "n_samples": num_particles,
            "n_data_points": num_data,
            "warning": bool((~(khat.values <= GOOD_KHAT)).any()),
        }
        about = {"pareto_k": khat, "scale": "log", "good_k": GOOD_KHAT}
        if is_arviz_1():
            return az.ELPDData(elpd=total, se=error, p=np.nan, elpd_i=estimate, **counts, **about)
        # Its order and names are those that 0.23 can print.
        return az.ELPDData({"elpd_loo": total, "se": error, "p_loo": np.nan, **counts, "loo_i": estimate, **about})

    def save(self, path: str | os.PathLike[str], *, K: ArrayLike | None = None) -> Path:  # noqa: N803
        """Writes a likelihood as netCDF, all of it or nothing; ArviZ of either version or xarray opens it.

        Args:
            path: The file. One that is there is replaced when the new one is complete.
            K: As in `to_arviz`.

        Returns:
            The path.

        Raises:
            OSError: it cannot be written; a file that was there is as it was.
            ValueError: K is not of shape (num_data,).
        """
        return write(path, _groups(self, K), about=_ABOUT)

    @cached_property
    def _smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        smoothed, khat = psis(self.log_weight)
        return log_mean_exp(smoothed), khat


def log_likelihood(
    definition: Definition,
    x0: ArrayLike | Indexed,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_particles: int,
    block_size: int | None = None,
    num_trajectories: int = 0,
    context: Any = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Likelihood:
    """Log likelihood of each datum by importance sampling over forward trajectories.

    The weights are summed while the chain runs, with compensation for rounding, so that memory does not grow with T and
    float32 is good to 1e-2 nats at T = 10,000; rates beta_t under 1e-6 cost more, as a state's own rounding then shows.
    Each datum and particle has a random key of its own: blocks do not change the result, nor do devices, but for
    rounding.

    Args:
        definition: A program's `diffusion`: declares parameters and returns the record. Compiled once for each
            function given.
        x0: Data, shape (num_data, *event); a memory-mapped array, or whatever has a length and an index, is read a part
            at a time.
        params: Parameters by name, as `SVI.get_params` gives them.
        key: Random key.
        num_particles: Trajectories of each datum. k-hat needs 30 or more, and hundreds to mean much.
        block_size: Trajectories at a time, over data and particles, by default as many as fit in 1 GiB of each device.
        num_trajectories: Particles of which the trajectories are kept, the first of each datum; they take memory for
            all T.
        context: What a definition of one argument is of, one for each datum: an array or a pytree whose leaves begin
            with num_data; arrays or sources, as x0.
        mesh: Devices that trajectories are split over, by default all that JAX sees; data and parameters are on each.
        progress: Whether to show a progress bar, where it takes more than a second.

    Returns:
        The weights, in nats.

    Raises:
        TypeError: x0 or an option is of the wrong kind, or traced: it runs outside of jax.vmap, jit and grad.
        ValueError: x0 is no batch of data, a number is out of range, parameters are missing or of another model, or a
            term of a weight is NaN or +inf.

    Source: Sohl-Dickstein et al. 2015, eq. 9; Neal 2001.
    """
    require_key(key)
    spread = spread_over(mesh)
    data = given(definition, params, x0, context)
    num_particles = require_count("num_particles", num_particles)
    num_trajectories = require_count("num_trajectories", num_trajectories, at_least=0)
    if num_trajectories > num_particles:
        raise ValueError(f"Expected `num_trajectories` to be at most {num_particles=}; got {num_trajectories}.")
    replicated, replicated_key = spread.put((dict(params), key))

    def run(part: tuple[int, Array, Any], num: int, *, keep: bool) -> list[dict[str, np.ndarray]]:
        first, x0, context = part
        num_data, num_steps = len(x0), data.built.num_steps
        _, blocks = run_in_blocks(
            forward_weights,
            *(definition, replicated, *spread.put((x0, context)), replicated_key),
            num_items=num * num_data,
            block_size=block_size,
            numbers_per_item=math.prod(data.built.event_shape) * (num_steps if keep else 1),
            num_steps=num_steps,
            options={"num_data": num_data, "first": np.uint32(first), "keep": keep},
            description="trajectories" if keep else "log likelihood",
            progress=progress,
            check=raise_for_terms(num_data, num_steps, first=first),
            spread=spread,
        )
        return blocks

    log_weight, cross_entropy, trajectories = [], [], []
    for part in data.parts():
        num_data = len(part[1])
        blocks = run(part, num_particles, keep=False)
        weights = np.concatenate([b["log_weight"].astype(np.float64) + b["lost"] for b in blocks])
        log_weight.append(weights[: num_particles * num_data].reshape(num_particles, num_data))
        cross_entropy += [b["reverse_cross_entropy"].astype(np.float64) for b in blocks]
        if num_trajectories:
            blocks = run(part, num_trajectories, keep=True)
            kept = np.concatenate([b["trajectory"] for b in blocks])[: num_trajectories * num_data]
            trajectories.append(kept.reshape(num_trajectories, num_data, *kept.shape[1:]))
    return Likelihood(
        np.concatenate(log_weight, 1),
        np.sum(cross_entropy, 0) / (num_particles * data.num_data),
        np.concatenate(trajectories, 1) if trajectories else None,
    )


def log_mean_exp(log_weight: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Log of the mean of exp(log_weight) over an axis; -inf where all are."""
    top = np.max(log_weight, axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.squeeze(top, axis) + np.log(np.mean(np.exp(log_weight - top), axis))


_ABOUT = {"title": "Importance-weighted likelihood of a diffusion model", "inference_library": "dpm_ppl"}


def _groups(likelihood: Likelihood, K: ArrayLike | None) -> dict[str, Any]:  # noqa: N803
    """The data sets of `to_arviz`, by group."""
    import xarray as xr

    num_particles, num_data = likelihood.log_weight.shape
    particle, datum = {"particle": np.arange(num_particles)}, {"datum": np.arange(num_data)}

    log_weight = variable(("particle", "datum"), likelihood.log_weight, "log weight of a trajectory", "nats")
    per_datum = {
        "elbo": variable("datum", likelihood.elbo, "mean log weight, a lower bound on log p(x0)", "nats"),
        "estimate": variable("datum", likelihood.estimate, "log mean weight, log p(x0)", "nats"),
        "standard_error": variable("datum", likelihood.standard_error, "standard error of `estimate`", "nats"),
        "psis_estimate": variable("datum", likelihood.psis_estimate, "log mean smoothed weight", "nats"),
        "ess": variable("datum", likelihood.ess, "effective sample size of the weights (Kish)", "particles"),
        "khat": variable("datum", likelihood.khat, "shape of the weights' right tail (PSIS)", "1"),
    }
    if K is not None:
        if np.shape(K) != (num_data,):
            raise ValueError(f"Expected `K` of shape ({num_data},), one for each datum; got {np.shape(K)}.")
        per_datum["K"] = variable("datum", K, "K of Sohl-Dickstein et al. 2015, eq. 14", "nats")
    cross_entropy = variable("t", likelihood.reverse_cross_entropy, "mean of -log p(x^(t-1)|x^t)", "nats")
    groups = {
        "sample_stats": xr.Dataset({"log_weight": log_weight}, particle | datum),
        "likelihood": xr.Dataset(per_datum, datum),
        "steps": xr.Dataset({"reverse_cross_entropy": cross_entropy}, {"t": np.arange(cross_entropy.size) + 2}),
    }
    if likelihood.trajectories is None:
        at_fit, name = likelihood.psis_estimate[None, None], "log p(x0), log mean smoothed weight"
        log_prob = variable(("chain", "draw", "datum"), at_fit, name, "nats")
        groups["log_likelihood"] = xr.Dataset({"x": log_prob}, {"chain": [0], "draw": [0], **datum})
    else:  # whose draws have no log likelihood of a datum each: ArviZ would take the one for it
        num_kept, _, num_steps, *event = likelihood.trajectories.shape
        dims = ("datum", "t", *dims_of("event", len(event)))
        x = variable(("particle", *dims), likelihood.trajectories, "states x^t of forward trajectories", "1")
        drawn = _draws(likelihood.trajectories, likelihood.log_weight[:num_kept])
        latent = variable(("chain", "draw", *dims), drawn[None], "states x^t given x^0, equally weighted", "1")
        at = {**datum, "t": np.arange(num_steps) + 1}
        groups["trajectories"] = xr.Dataset({"x": x}, {"particle": np.arange(num_kept), **at})
        groups["posterior"] = xr.Dataset({"x": latent}, {"chain": [0], "draw": np.arange(num_kept), **at})
    return groups


def _draws(trajectories: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
    """Trajectories resampled systematically by their weights, datum by datum; NaN where none has a weight."""
    num, num_data = log_weight.shape
    alive = np.isfinite(log_weight.max(0))
    total = np.cumsum(softmax(np.where(alive, log_weight, 0.0), 0), 0)
    places = (np.arange(num) + 0.5) / num
    rows = np.stack([np.searchsorted(total[:, i] / total[-1, i], places) for i in range(num_data)], 1)
    drawn = trajectories[rows, np.arange(num_data)]
    return drawn if alive.all() else np.where(alive[(slice(None), *[None] * (drawn.ndim - 2))], drawn, np.nan)


def class_log_probs(
    diffusions: Sequence[Definition],
    x0: ArrayLike,
    *,
    log_prior: ArrayLike,
    contexts: Sequence[Any] | None = None,
    **options: Any,
) -> np.ndarray:
    """Log posterior probabilities of the classes of data, log p(y|x), from importance-weighted likelihoods.

    Args:
        diffusions: Definition of each class's diffusion, as `log_likelihood` takes them; one of a context may stand for
            several classes.
        x0: Data, shape (num_data, *event).
        log_prior: log p(y), shape (num_classes,); need not be normalised.
        contexts: For each class what is given beside the data, leaves that begin with num_data, such as its label
            again and again; by default nothing.
        **options: Of `log_likelihood`: `params`, `key`, `num_particles` and others.

    Returns:
        Nats, shape (num_data, num_classes); as good as the likelihoods, whose k-hat `log_likelihood` tells.

    Raises:
        ValueError: log_prior is of another shape, or what `log_likelihood` says.

    Source: Li, Prabhudesai, Duggal, Brown and Pathak 2023, with likelihoods in place of bounds.
    """
    if np.shape(log_prior) != (len(diffusions),):
        raise ValueError(
            f"Expected `log_prior` of shape ({len(diffusions)},), one for each diffusion; got {np.shape(log_prior)}."
        )
    beside = [None] * len(diffusions) if contexts is None else contexts
    if len(beside) != len(diffusions):
        raise ValueError(f"Expected `contexts` for {len(diffusions)} classes, one for each; got {len(beside)}.")
    pairs = zip(diffusions, beside, strict=True)
    log_prob = [log_likelihood(diffusion, x0, context=context, **options).estimate for diffusion, context in pairs]
    return np.asarray(log_softmax(np.stack(log_prob, -1) + np.asarray(log_prior, np.float64), -1))
