"""What we know of a posterior in ArviZ's format, `InferenceData` (0.23) or `DataTree` (1.x), and on disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.inference.diagnostics import record, variable, write

if TYPE_CHECKING:
    from dpm_ppl.inference.posterior import Posterior

_ABOUT = {"title": "Posterior of a diffusion model by sequential Monte Carlo", "inference_library": "dpm_ppl"}
_OURS = ("x", "log_weight")


def to_arviz(
    posterior: "Posterior",
    *,
    key: Array | None = None,
    num: int | None = None,
    observed: Mapping[str, ArrayLike] | None = None,
) -> Any:
    """A posterior as ArviZ's `InferenceData` (0.23) or `xarray.DataTree` (1.x): the same groups, names and units.

    Args:
        posterior: The posterior; or several, one for each datum of a batch, as `jax.vmap` over one axis makes them.
        key: Random key of the draws; by default one and the same.
        num: Number of draws; by default that of the particles.
        observed: What was observed, to be kept beside: arrays by name, each of the shape (*event) of a datum, with the
            batch in front where there is one.

    Returns:
        Groups `posterior`, with `x` (the datum x^0) and the latent variables, of dims (chain, draw, ...): equally
        weighted, as ArviZ's functions expect, being particles resampled systematically. They are in the particles'
        order, so that a particle's copies stand together, as do its kin: ArviZ's effective sample sizes and standard
        errors, which go by autocorrelation, see them. `particles`, the weighted ones, of dims (particle, ...), with
        `log_weight`, which is in `sample_stats` too. `steps`, of dims (t,), t = 0..T, with `ess`, `khat`,
        `num_ancestors`, `num_nan` and `resampled`. `evidence`, with `log_evidence` and `log_evidence_se`. And
        `observed_data`, where it was given. Of a batch each variable has the dim `datum` (after `draw`, `particle` or
        `t`). Each says its units.

    Raises:
        ValueError: the posterior is of a batch of more than one axis; num is less than 1; a latent variable is called
            x or log_weight; something observed is of another shape.
    """
    return record(_groups(posterior, key, num, observed or {}), about=_ABOUT)


def save(
    posterior: "Posterior",
    path: str | os.PathLike[str],
    *,
    key: Array | None = None,
    num: int | None = None,
    observed: Mapping[str, ArrayLike] | None = None,
) -> Path:
    """Writes a posterior as netCDF, all of it or nothing; ArviZ of either version or xarray opens it, without dpm_ppl.

    Args:
        posterior: The posterior.
        path: The file. One that is there is replaced when the new one is complete.
        key: As in `to_arviz`, and so are the others.
        num: Number of draws.
        observed: What was observed.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
        ValueError: as in `to_arviz`.
    """
    return write(path, _groups(posterior, key, num, observed or {}), about=_ABOUT)


def _groups(
    posterior: "Posterior", key: Array | None, num: int | None, observed: Mapping[str, ArrayLike]
) -> dict[str, Any]:
    """The data sets of `to_arviz`, by group."""
    import xarray as xr

    batch = np.shape(posterior.log_evidence)
    if len(batch) > 1:
        raise ValueError(f"Expected one posterior, or a batch of one axis; got one of shape {batch}. Take them apart.")
    if clash := [name for name in posterior.latents if name in _OURS]:
        raise ValueError(f"Expected latent variables called neither x nor log_weight; got {', '.join(clash)}. Rename.")
    draws = _draws(
        posterior, jax.random.key(0) if key is None else key, posterior.num_particles if num is None else num
    )
    num_particles, num_steps = posterior.num_particles, posterior.ess.shape[-1]
    datum = {"datum": np.arange(batch[0])} if batch else {}

    def of(first: str, value: ArrayLike, name: str, units: str, *, event: str = "event") -> Any:
        """A variable whose first dim after the batch is `first`, or which has none; the batch is put behind it."""
        array = np.asarray(value)
        rest = [f"{event}_{i}" for i in range(array.ndim - len(batch) - bool(first))]
        array = np.moveaxis(array, 0, 1) if batch and first else array
        return variable((*([first] if first else []), *datum, *rest), array, name, units)

    def latents(first: str, values: Mapping[str, Array]) -> dict[str, Any]:
        named = {name.replace("/", "."): value for name, value in values.items()}  # a group may not look nested
        return {name: of(first, value, "a latent variable", "1", event=name) for name, value in named.items()}

    log_weight = of("particle", posterior.log_weight, "log weight, of any scale", "nats")
    x, drawn_latents = draws
    drawn = {"x": of("draw", x, "x^0, equally weighted", "1"), **latents("draw", drawn_latents)}
    weighted = {"x": of("particle", posterior.samples, "x^0, with weights", "1"), "log_weight": log_weight}
    steps = {
        "ess": of("t", posterior.ess, "effective sample size of the weights (Kish)", "particles"),
        "khat": of("t", posterior.khat, "shape of the weights' right tail (PSIS)", "1"),
        "num_ancestors": of("t", posterior.num_ancestors, "particles of the start that have descendants", "particles"),
        "num_nan": of("t", posterior.num_nan, "weights that are NaN and count as zero", "particles"),
        "resampled": of("t", posterior.resampled, "whether the particles were resampled", "1"),
    }
    evidence = {
        "log_evidence": of("", posterior.log_evidence, "log Z of p(x) r(x)", "nats"),
        "log_evidence_se": of("", posterior.log_evidence_se, "standard error of `log_evidence`", "nats"),
    }
    particle = {"particle": np.arange(num_particles), **datum}
    groups = {
        "posterior": xr.Dataset(drawn, {"draw": np.arange(x.shape[len(batch)]), **datum}).expand_dims(chain=[0]),
        "sample_stats": xr.Dataset({"log_weight": log_weight}, particle),
        "particles": xr.Dataset({**weighted, **latents("particle", posterior.latents)}, particle),
        "steps": xr.Dataset(steps, {"t": np.arange(num_steps), **datum}),
        "evidence": xr.Dataset(evidence, datum),
    }
    shape = (*batch, *posterior.samples.shape[len(batch) + 1 :])
    for name, value in observed.items():
        if np.shape(value) != shape:
            raise ValueError(f"Expected what was observed, {name!r}, of shape {shape}; got {np.shape(value)}.")
    if observed:
        kept = {name: of("", value, "what was observed of x^0", "1") for name, value in observed.items()}
        groups["observed_data"] = xr.Dataset(kept, datum)
    return groups


def _draws(posterior: "Posterior", key: Array, num: int) -> tuple[Array, dict[str, Array]]:
    """Data and latent variables with equal weights: particles resampled systematically, in their order."""
    from dpm_ppl.inference.particles import systematic

    if num < 1:
        raise ValueError(f"Expected `num` to be at least 1; got {num}.")

    def one(log_weight: Array, values: Any, key: Array) -> Any:
        rows = systematic(jax.nn.softmax(log_weight), key, num)
        return jax.tree.map(lambda leaf: leaf[rows], values)

    values = (posterior.samples, posterior.latents)
    if posterior.log_weight.ndim == 1:
        return one(posterior.log_weight, values, key)
    return jax.vmap(one)(posterior.log_weight, values, jax.random.split(key, len(posterior.log_weight)))
