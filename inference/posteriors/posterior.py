"""A posterior as weighted particles, with its evidence and what tells whether to trust them."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.arguments import require_flags
from dpm_ppl.inference.posteriors.verdict import cautions, problems, sentence
from dpm_ppl.inference.psis import GOOD_KHAT, psis
from dpm_ppl.inference.records import dims_of, free_names, record, variable, write
from dpm_ppl.inference.units import error_text
from dpm_ppl.kernels.kernel import is_concrete


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Posterior:
    """Weighted particles of p(x) r(x) / Z. Under `jax.vmap` every array has the axes of the batch in front.

    Attributes:
        samples: Data x^0, shape (num_particles, *event).
        log_weight: Log weights of `samples` in nats, shape (num_particles,); of any scale.
        log_evidence: log Z_hat in nats, scalar; exp of it is an unbiased estimate of Z.
        log_evidence_se: Its standard error by the delta method, from the particles' ancestry in this one run. It is
            never above 1, nor worth much above one half; and NaN, not known, where the estimated variance is below 0,
            as it can be when few ancestors are left. Source: Lee and Whiteley 2018, eq. 8.
        latents: The program's other latent variables, each of shape (num_particles, ...).
        ess: Kish's effective sample size of the weights of x^t before any resampling, t = 0..T, shape (T + 1,).
        tail: The largest log weights at each t, from which `khat` is taken, shape (T + 1, tail).
        num_ancestors: How many particles of the start have descendants with a weight at t, shape (T + 1,); where few
            are left, far-back states are known from few draws, and so are latent variables that are not moved.
        num_nan: Weights that were NaN or +inf at t, shape (T + 1,); they count as zero.
        resampled: Whether the particles were resampled at t, shape (T + 1,).
        acceptance: Share of the moves of latent variables that were taken, by kind: `last`, `each`, `paths`, as `Moves`
            names them; only those that there were.
        twist: Which of `twists` the particles were guided by.
        twists: Names of the twists that were tried.
    """

    samples: Array
    log_weight: Array
    log_evidence: Array
    log_evidence_se: Array
    latents: dict[str, Array]
    ess: Array
    tail: Array
    num_ancestors: Array
    num_nan: Array
    resampled: Array
    acceptance: dict[str, Array] = field(default_factory=dict)
    twist: Array | int = 0
    twists: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __repr__(self) -> str:
        if self.log_weight.ndim != 1 or not is_concrete(self.log_weight):
            batch = self.log_weight.shape[:-1]
            return f"Posterior of a batch {batch}, {self.num_particles:,} particles each"
        row = self.summary()
        error = error_text(row["log_evidence_nats_se"], 3)
        guided = f", guided by {self.twists[int(self.twist)]}" if self.twists else ""
        khat = f"k-hat {row['khat']:.2f}, largest {row['largest_khat']:.2f}"
        moved = "".join(f"; {share:.0%} of moves taken ({kind})" for kind, share in self.acceptance.items())
        return (
            f"Posterior: {self.num_particles:,} particles of shape {self.samples.shape[1:]}{guided}\n"
            f"  log evidence {row['log_evidence_nats']:.3f} {error} nats\n"
            f"  {row['ess']:,.0f} effective, least {row['least_ess']:,.0f}; {khat}; "
            f"{row['num_ancestors']:,} ancestors{moved}\n"
            f"  {self.verdict()}"
        )

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return self.log_weight.shape[-1]

    @property
    def weight(self) -> Array:
        """Normalised weights, shape (num_particles,)."""
        return jax.nn.softmax(self.log_weight)

    @property
    def khat(self) -> np.ndarray:
        """Tail shape of the weights of x^t by `psis`, t = 0..T, shape (T + 1,): above 0.7 trust nothing."""
        tail = np.asarray(self.tail, np.float64)
        rows = tail.reshape(-1, tail.shape[-1])
        # The fit reads the tail alone: the other weights may stand at its foot.
        filler = np.repeat(rows[:, -1:], self.num_particles - rows.shape[-1], -1)
        return psis(np.concatenate([rows, filler], -1).T)[1].reshape(tail.shape[:-1])

    def mean(self) -> Array:
        """Posterior mean of x^0, shape (*event)."""
        self._check_single()
        return jnp.tensordot(self.weight, self.samples, 1)

    def covariance(self) -> Array:
        """Posterior covariance of x^0 laid flat, shape (D, D)."""
        self._check_single()
        off = (self.samples - self.mean()).reshape(self.num_particles, -1)
        return jnp.einsum("n,ni,nj->ij", self.weight, off, off)

    def resample(self, key: Array, num: int) -> Array:
        """Draws from the posterior with equal weights, independent given the particles, shape (num, *event).

        Raises:
            ValueError: num is less than 1, or this is a batch of posteriors.
        """
        self._check_single()
        require_key(key)
        num = require_count("num", num)
        return self.samples[jax.random.categorical(key, self.log_weight, shape=(num,))]

    def check(self) -> None:
        """Says at which step the weights failed.

        Raises:
            ValueError: all weights are zero, or some NaN, at a step.
        """
        nan, ess = np.asarray(self.num_nan), np.asarray(self.ess)
        for t in range(ess.shape[-1] - 1, -1, -1):
            if (count := int(nan[..., t].max())) > 0:
                raise ValueError(
                    f"Expected finite log r and gradients; {count} of {self.num_particles} particles have NaN at "
                    f"t = {t} of {ess.shape[-1] - 1}. Look for a log or a root of 0, or 0 * inf, in the observations."
                )
            if (ess[..., t] == 0).any():
                raise ValueError(
                    f"Expected a particle with r > 0; all weights are zero at t = {t} of {ess.shape[-1] - 1}. Either "
                    "the observation is impossible, or r is zero at nearly all data: soften it (more noise), take more "
                    "particles, or a twist that does not look ahead (tempered())."
                )

    def summary(self) -> dict[str, float]:
        """The evidence and its error in nats and bits, the least ESS, the largest k-hat, the surviving ancestors.

        `khat_used` and `share_used` are k-hat and the effective share of the particles at the worst of the steps whose
        mean weight enters the evidence. An error that is not known is NaN.

        Raises:
            ValueError: this is a batch of posteriors.
        """
        self._check_single()
        khat, error = self.khat, float(self.log_evidence_se)
        # A mean weight enters the evidence at t = 0 and where the particles were resampled; else weights are carried.
        used = np.asarray(self.resampled, bool).copy()
        used[0] = True
        share = np.asarray(self.ess)[used] / self.num_particles
        heavy = khat[used] > GOOD_KHAT
        worst = int(np.argmin(np.where(heavy, share, np.inf))) if heavy.any() else 0  # heavy, and fewest count
        return {
            "num_particles": self.num_particles,
            "log_evidence_nats": float(self.log_evidence),
            "log_evidence_nats_se": error,
            "log_evidence_bits": float(self.log_evidence) / float(np.log(2)),
            "log_evidence_bits_se": error / float(np.log(2)),
            "ess": float(self.ess[0]),
            "least_ess": float(jnp.min(self.ess)),
            "khat": float(khat[0]),
            "largest_khat": float(np.nanmax(khat)) if np.isfinite(khat).any() else float("nan"),
            "num_ancestors": int(self.num_ancestors[0]),
            "num_resampled": int(jnp.sum(self.resampled)),
            "khat_used": float(khat[used][worst]),
            "share_used": float(share[worst]),
        }

    def verdict(self) -> str:
        """In words whether to trust the posterior and its evidence, and what speaks against them.

        Raises:
            ValueError: this is a batch of posteriors.
        """
        row = self.summary()
        return sentence("The posterior", problems(row), cautions(row))

    def _check_single(self) -> None:
        if self.log_weight.ndim != 1:
            raise ValueError(
                f"Expected the posterior of one observation; got a batch of {self.log_weight.shape[:-1]}. Take one, "
                "jax.tree.map(lambda leaf: leaf[i], posterior), or each, jax.vmap(lambda p: p.mean())(posterior)."
            )

    def to_arviz(
        self,
        *,
        key: Array | None = None,
        num: int | None = None,
        observed: Mapping[str, ArrayLike] | None = None,
        context: Mapping[str, ArrayLike] | None = None,
        chains: bool = False,
    ) -> Any:
        """A posterior as ArviZ's `InferenceData` (0.23) or `xarray.DataTree` (1.x): the same groups, names and units.

        Args:
            key: Random key of the draws; by default one and the same.
            num: Number of draws; by default that of the particles.
            observed: What was observed, to be kept beside: arrays by name, each of the shape (*event) of a datum, with
                the batch of data in front where there is one.
            context: What each datum was given beside, to be kept as well: arrays by name, of any shape, with the batch
                of data in front where there is one.
            chains: Whether the first axis of the batch is runs by keys of their own, as of `jax.vmap(run, (0, None))`:
                these are then chains, which ArviZ sets against each other (`r_hat`). Each counts the same.

        Returns:
            Groups `posterior`, with `x` (the datum x^0) and the latent variables, of dims (chain, draw, ...): equally
            weighted, as ArviZ's functions expect, being particles resampled systematically. They are in the particles'
            order, so that a particle's copies stand together, as do its kin: ArviZ's effective sample sizes and
            standard errors, which go by autocorrelation, see them. `particles`, the weighted ones, of dims (particle,
            ...), with `log_weight`, which is in `sample_stats` too, beside `acceptance_rate_` of each kind of move.
            `steps`, of dims (t,), t = 0..T, with `ess`, `khat`, `num_ancestors`, `num_nan` and `resampled`.
            `evidence`, with `log_evidence` and `log_evidence_se`. And `observed_data` and `constant_data`, the context,
            where they were given. Of a batch each variable has the dim `datum` (after `draw`, `particle` or `t`), and
            with `chains` all but these two have `chain` in front. Each says its units, and a latent variable the name
            that it has in the program: here a slash is a point, and one that is called as a dimension or as another
            variable has an underscore behind it, of which a warning tells.

        Raises:
            ValueError: the posterior is of a batch of more than one axis, beside that of `chains`; num is less than 1;
                something observed is of another shape, or a context not of each datum.
        """
        return record(_groups(self, key, num, observed or {}, context or {}, chains=chains), about=_ABOUT)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        key: Array | None = None,
        num: int | None = None,
        observed: Mapping[str, ArrayLike] | None = None,
        context: Mapping[str, ArrayLike] | None = None,
        chains: bool = False,
    ) -> Path:
        """Writes a posterior as netCDF, all of it or nothing; ArviZ of either version or xarray opens it.

        Args:
            path: The file. One that is there is replaced when the new one is complete.
            key: As in `to_arviz`, and so are the others.
            num: Number of draws.
            observed: What was observed.
            context: What was given.
            chains: Whether the first axis of the batch is runs.

        Returns:
            The path.

        Raises:
            OSError: it cannot be written; a file that was there is as it was.
            ValueError: as in `to_arviz`.
        """
        return write(path, _groups(self, key, num, observed or {}, context or {}, chains=chains), about=_ABOUT)


_ABOUT = {"title": "Posterior of a diffusion model by sequential Monte Carlo", "inference_library": "dpm_ppl"}

_OURS = ("x", "log_weight", "chain", "draw", "particle", "datum", "t")


def _groups(
    posterior: Posterior,
    key: Array | None,
    num: int | None,
    observed: Mapping[str, ArrayLike],
    context: Mapping[str, ArrayLike],
    *,
    chains: bool,
) -> dict[str, Any]:
    """The data sets of `to_arviz`, by group."""
    import xarray as xr

    require_flags(chains=chains)
    batch = np.shape(posterior.log_evidence)
    if chains and not batch:
        raise ValueError("Expected a batch of runs, as of jax.vmap over keys, to be chains; got one posterior.")
    if len(batch) > 1 + chains:
        which = "one axis" if not chains else "two axes, runs and data"
        raise ValueError(f"Expected one posterior, or a batch of {which}; got one of shape {batch}. Take them apart.")
    draws = _draws(
        posterior, jax.random.key(0) if key is None else key, posterior.num_particles if num is None else num
    )
    num_particles, num_steps, num_batch = posterior.num_particles, posterior.ess.shape[-1], len(batch)
    chain = {"chain": np.arange(batch[0])} if chains else {}
    datum = {"datum": np.arange(batch[-1])} if num_batch > chains else {}
    event = dims_of("event", posterior.samples.ndim - num_batch - 1)

    def of(first: str, value: ArrayLike, name: str, units: str, *, rest: Sequence[str] = ()) -> Any:
        """A variable: chain, then `first` if it is none of the empty, then datum, and what is its own."""
        array = np.asarray(value)
        if first == "draw" and array.dtype == bool:
            array = array.astype(int)  # ArviZ 1.x summarises no booleans
        if first and datum:
            array = np.moveaxis(array, num_batch, len(chain))
        return variable((*chain, *([first] if first else []), *datum, *rest), array, name, units)

    num_dims = {name: value.ndim - num_batch - 1 for name, value in posterior.latents.items()}
    names = free_names(num_dims, taken=[*_OURS, *event])
    if renamed := {name: new for name, new in names.items() if new != name.replace("/", ".")}:
        warnings.warn(
            "Latent variables that are called as a dimension or another variable of the record have other names in it: "
            f"{', '.join(f'{name} is {new}' for name, new in renamed.items())}.",
            stacklevel=3,
        )

    def latents(first: str, values: Mapping[str, Array]) -> dict[str, Any]:
        return {
            new: of(first, values[name], f"the latent variable {name}", "1", rest=dims_of(new, num_dims[name]))
            for name, new in names.items()
        }

    log_weight = of("particle", posterior.log_weight, "log weight, of any scale", "nats")
    x, drawn_latents = draws
    drawn = {"x": of("draw", x, "x^0, equally weighted", "1", rest=event), **latents("draw", drawn_latents)}
    weighted = {"x": of("particle", posterior.samples, "x^0, with weights", "1", rest=event), "log_weight": log_weight}
    steps = {
        "ess": of("t", posterior.ess, "effective sample size of the weights (Kish)", "particles"),
        "khat": of("t", posterior.khat, "shape of the weights' right tail (PSIS)", "1"),
        "num_ancestors": of("t", posterior.num_ancestors, "particles of the start that have descendants", "particles"),
        "num_nan": of("t", posterior.num_nan, "weights that are NaN and count as zero", "particles"),
        "resampled": of("t", posterior.resampled, "whether the particles were resampled", "1"),
    }
    rates = {
        f"acceptance_rate_{kind}": of("", share, f"share of moves of latent variables that were taken, {kind}", "1")
        for kind, share in posterior.acceptance.items()
    }
    evidence = {
        "log_evidence": of("", posterior.log_evidence, "log Z of p(x) r(x)", "nats"),
        "log_evidence_se": of("", posterior.log_evidence_se, "standard error of `log_evidence`", "nats"),
    }
    particle = {**chain, "particle": np.arange(num_particles), **datum}
    equal = xr.Dataset(drawn, {**chain, "draw": np.arange(x.shape[num_batch]), **datum})
    groups = {
        "posterior": equal if chains else equal.expand_dims(chain=[0]),
        "sample_stats": xr.Dataset({"log_weight": log_weight, **rates}, particle),
        "particles": xr.Dataset({**weighted, **latents("particle", posterior.latents)}, particle),
        "steps": xr.Dataset(steps, {**chain, "t": np.arange(num_steps), **datum}),
        "evidence": xr.Dataset(evidence, {**chain, **datum}),
    }
    if observed:
        groups["observed_data"] = xr.Dataset(
            _observed(observed, datum, posterior.samples.shape[num_batch + 1 :]), datum
        )
    if context:
        groups["constant_data"] = xr.Dataset(_given(context, datum), datum)
    return groups


def _given(context: Mapping[str, ArrayLike], datum: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A context as variables, of shape (*datum, ...)."""
    batch = tuple(map(len, datum.values()))
    for name, value in context.items():
        if np.shape(value)[: len(batch)] != batch:
            raise ValueError(f"Expected a context {name!r} for each of {batch} data; got shape {np.shape(value)}.")
    num_dims = {name: np.ndim(value) - len(batch) for name, value in context.items()}
    return {
        new: variable((*datum, *dims_of(new, num_dims[name])), context[name], f"the context {name}", "1")
        for name, new in free_names(num_dims, taken=["chain", "draw", "datum"]).items()
    }


def _observed(
    observed: Mapping[str, ArrayLike], datum: Mapping[str, np.ndarray], event_shape: tuple[int, ...]
) -> dict[str, Any]:
    """What was observed as variables, of shape (*datum, *event)."""
    shape, event = (*map(len, datum.values()), *event_shape), dims_of("event", len(event_shape))
    names = free_names(dict.fromkeys(observed, 0), taken=["chain", "draw", "datum", *event])
    for name, value in observed.items():
        if np.shape(value) != shape:
            raise ValueError(f"Expected what was observed, {name!r}, of shape {shape}; got {np.shape(value)}.")
    return {
        names[name]: variable((*datum, *event), value, f"what was observed of x^0, {name}", "1")
        for name, value in observed.items()
    }


def _draws(posterior: Posterior, key: Array, num: int) -> tuple[Array, dict[str, Array]]:
    """Data and latent variables with equal weights: particles resampled systematically, in their order."""
    from dpm_ppl.inference.posteriors.resampling import systematic

    require_key(key)
    num = require_count("num", num)

    def one(log_weight: Array, values: Any, key: Array) -> Any:
        rows = systematic(jax.nn.softmax(log_weight), key, num)
        return jax.tree.map(lambda leaf: leaf[rows], values)

    batch = posterior.log_weight.shape[:-1]
    keys = jax.random.split(key, batch) if batch else key
    for _ in batch:
        one = jax.vmap(one)
    return one(posterior.log_weight, (posterior.samples, posterior.latents), keys)
