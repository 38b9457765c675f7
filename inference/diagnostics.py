"""ArviZ's smoothing of importance weights, and what we know of a likelihood in ArviZ's format, for 0.23 and 1.x alike.

ArviZ 0.23 takes log weights and holds data as `InferenceData`; 1.x takes *negated* log weights and holds them as
`xarray.DataTree`. Nothing else in the package asks which one is installed.
"""

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from dpm_ppl.inference.whole_file import write_whole

if TYPE_CHECKING:
    from dpm_ppl.inference.likelihood import Likelihood

MIN_PARTICLES = 30  # fewer leave a tail of fewer than six weights, to which ArviZ fits nothing
GOOD_KHAT = 0.7  # above it, convergence in the number of particles is hopelessly slow (Vehtari et al. 2024)
_ABOUT = {"title": "Importance-weighted likelihood of a diffusion model", "inference_library": "dpm_ppl"}
_FLAT = 1e-3  # a tail whose log weights span fewer nats has no shape but rounding


def psis(log_weight: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    r"""Pareto-smoothed importance weights, and the shape of their right tail.

    Args:
        log_weight: Log weights in nats, shape (num_particles, num_data); -inf is a weight of zero.

    Returns:
        Smoothed log weights in nats, shape (num_particles, num_data), float64, on the scale of `log_weight`: their
        log-mean-exp is the smoothed estimate. And k-hat of each datum, shape (num_data,): below 0.5 the mean of the
        weights obeys a central limit theorem, above 0.7 it cannot be trusted. Where no tail can be fitted the weights
        stay as they are, and k-hat is 0 where the largest are all the same (with constant weights, a perfect fit),
        inf where so few dominate that there is no tail (or all are zero), and NaN where it is not known: with fewer
        than 30 particles, or a tail of few distinct values, as discrete states can make.

    Raises:
        ValueError: `log_weight` is not of that shape, is empty, or holds NaN or +inf.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, by way of ArviZ.
    """
    raw = np.array(log_weight, np.float64)  # a copy: ArviZ 0.23 refuses read-only arrays, such as JAX gives
    if raw.ndim != 2 or raw.size == 0:
        raise ValueError(f"Expected `log_weight` of shape (num_particles, num_data), neither 0; got {raw.shape}.")
    if (wrong := np.isnan(raw) | (raw == np.inf)).any():
        particle, datum = (int(index[0]) for index in np.nonzero(wrong))
        raise ValueError(
            f"Expected log weights without NaN or +inf; got {int(wrong.sum())} of them, the first "
            f"{raw[particle, datum]} for particle {particle} of datum {datum}."
        )
    smoothed = raw.copy()
    khat, fits = _without_fit(raw)
    if fits.any():
        tail, shape = _smooth(raw[:, fits])
        good = np.isfinite(shape)
        smoothed[:, fits] = np.where(good, tail, raw[:, fits])
        khat[fits] = np.where(good, shape, khat[fits])
    return smoothed, khat


def _without_fit(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What k-hat is where no tail is fitted, and whether one can be; both of shape (num_data,)."""
    num_particles, num_data = log_weight.shape
    top = log_weight.max(0)
    known = np.isfinite(top)
    ordered = np.sort(log_weight - np.where(known, top, 0.0), 0)
    if num_particles < MIN_PARTICLES:  # only whether they are constant can be seen
        constant = known & (ordered[0] > -_FLAT) & (num_particles > 1)
        return np.where(known, np.where(constant, 0.0, np.nan), np.inf), np.zeros(num_data, bool)
    size = tail_size(num_particles)
    cutoff, quartile = ordered[-size - 1], ordered[-size + int(size / 4 - 0.5)]
    weight = np.exp(ordered)
    tiny = np.finfo(float).tiny
    ess = weight.sum(0) ** 2 / np.maximum((weight**2).sum(0), tiny)
    khat = np.where(cutoff > -_FLAT, 0.0, np.where(known & (ess >= size), np.nan, np.inf))
    # ArviZ's fit needs a lower quartile of the tail above the cutoff, in weights rather than their logarithms.
    fits = np.isfinite(cutoff) & (np.exp(quartile) > np.maximum(np.exp(cutoff), tiny)) & (khat != 0)
    return khat, fits


def tail_size(num_particles: int) -> int:
    """How many of the largest weights are the tail (ArviZ 1.x may take one fewer)."""
    return int(np.ceil(min(num_particles / 5, 3 * num_particles**0.5)))


def _smooth(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed weights and k-hat by the ArviZ that is installed, of data whose tail can be fitted."""
    rows = np.ascontiguousarray(log_weight.T)
    with np.errstate(all="ignore"):
        if _is_one():
            from arviz_stats.base import array_stats

            smoothed, khat = array_stats.psislw(-rows)  # it takes likelihoods, whose inverses are the weights
        else:
            smoothed, khat = _arviz().psislw(rows.copy())
    # Normalised, and the weights below the tail are as they were: so the largest of these gives the scale back.
    below = np.argsort(rows, -1)[:, [-tail_size(len(log_weight)) - 1]]
    smoothed = smoothed + (np.take_along_axis(rows, below, -1) - np.take_along_axis(smoothed, below, -1))
    return smoothed.T, khat


def _is_one() -> bool:
    """Whether ArviZ is 1.x."""
    return int(_arviz().__version__.split(".")[0]) >= 1


def _arviz() -> Any:
    """ArviZ, which is slow to import, without the greeting by which 0.23 announces 1.x."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz as az
    return az


def to_arviz(likelihood: "Likelihood", *, K: ArrayLike | None = None) -> Any:  # noqa: N803 - the paper's name
    """A likelihood as ArviZ's `InferenceData` (0.23) or `xarray.DataTree` (1.x): the same groups, names and units.

    Args:
        likelihood: The likelihood.
        K: The paper's K of each datum in nats, shape (num_data,), as `bound` gives it, to be kept beside.

    Returns:
        Groups `sample_stats`, with `log_weight` of dims (particle, datum); `likelihood`, with `elbo`, `estimate`,
        `standard_error`, `psis_estimate`, `ess`, `khat` and `K` of dims (datum,); `steps`, with the
        `reverse_cross_entropy` of each reverse step, dims (t,), t = 2..T; and, where trajectories were kept,
        `trajectories`, with `x` of dims (particle, datum, t, event_0, ...), t = 1..T. Each variable says its units.
        Particles are independent, so there is no chain. ArviZ 1.x's functions take `sample_dims="particle"`
        (`summary` with `kind="stats"`); 0.23's take `sample_stats.rename(particle="draw").expand_dims("chain")`.

    Raises:
        ValueError: K is not of shape (num_data,).
    """
    return record(_groups(likelihood, K), about=_ABOUT)


def record(groups: Mapping[str, Any], *, about: Mapping[str, str]) -> Any:
    """Data sets as `InferenceData` (0.23) or `xarray.DataTree` (1.x).

    Args:
        groups: `xarray.Dataset` of each group by name.
        about: Attributes of the whole.
    """
    import xarray as xr

    if not _is_one():
        return _arviz().InferenceData(attrs=dict(about), **groups)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(about)
    return tree


def to_elpd(likelihood: "Likelihood") -> Any:
    """What `arviz.plot_khat` draws, in both versions: `ELPDData` with `pareto_k` of each datum.

    Its other fields, which ArviZ names after leave-one-out cross-validation, hold the smoothed estimates in nats
    (`elpd_i`, in 0.23 `loo_i`), their sum, and its standard error over the data; the number of parameters is NaN.
    """
    import xarray as xr

    az = _arviz()

    num_particles, num_data = likelihood.log_weight.shape
    khat, estimate = (
        xr.DataArray(np.array(values, np.float64), dims="datum", coords={"datum": np.arange(num_data)})
        for values in (likelihood.khat, likelihood.psis_estimate)
    )
    total, error = float(estimate.sum()), float(num_data**0.5 * np.std(estimate.values))
    counts = {
        "n_samples": num_particles,
        "n_data_points": num_data,
        "warning": bool((~(khat.values <= GOOD_KHAT)).any()),
    }
    about = {"pareto_k": khat, "scale": "log", "good_k": GOOD_KHAT}
    if _is_one():
        return az.ELPDData(elpd=total, se=error, p=np.nan, elpd_i=estimate, **counts, **about)
    # Its order and names are those that 0.23 can print.
    return az.ELPDData({"elpd_loo": total, "se": error, "p_loo": np.nan, **counts, "loo_i": estimate, **about})


def save(likelihood: "Likelihood", path: str | os.PathLike[str], *, K: ArrayLike | None = None) -> Path:  # noqa: N803
    """Writes a likelihood as netCDF, all of it or nothing; ArviZ of either version or xarray opens it, without dpm_ppl.

    Args:
        likelihood: The likelihood.
        path: The file. One that is there is replaced when the new one is complete.
        K: As in `to_arviz`.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
        ValueError: K is not of shape (num_data,).
    """
    return write(path, _groups(likelihood, K), about=_ABOUT)


def write(path: str | os.PathLike[str], groups: Mapping[str, Any], *, about: Mapping[str, str]) -> Path:
    """Writes data sets as netCDF, all of them or nothing.

    Args:
        path: The file. One that is there is replaced when the new one is complete.
        groups: `xarray.Dataset` of each group by name.
        about: Attributes of the whole.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    path = Path(path)
    content = _netcdf(groups, about)
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise OSError(f"Expected to write {path}; got {error}. Make room, or choose another place.") from error
    return path


def _netcdf(groups: Mapping[str, Any], about: Mapping[str, str]) -> bytes:
    """Data sets as a netCDF file, made in memory: on a full disk, HDF5 itself loses data or ends the process."""
    import h5netcdf

    memory = io.BytesIO()
    with h5netcdf.File(memory, "w") as file:
        file.attrs.update(about)
        for name, data in groups.items():
            group = file.create_group(name)
            group.dimensions = dict(data.sizes)
            for variable_name, variable in data.variables.items():
                values, attrs = variable.values, dict(variable.attrs)
                if values.dtype == bool:  # netCDF has none: xarray reads it back by this attribute
                    values, attrs = values.astype(np.int8), {**attrs, "dtype": "bool"}
                stored = group.create_variable(variable_name, variable.dims, data=values)
                stored.attrs.update(attrs)
    return memory.getvalue()


def variable(dims: Any, value: ArrayLike, name: str, units: str) -> Any:
    """An `xarray.Variable` that says what it is and in which units."""
    import xarray as xr

    return xr.Variable(dims, np.array(value), {"long_name": name, "units": units})


def _groups(likelihood: "Likelihood", K: ArrayLike | None) -> dict[str, Any]:  # noqa: N803
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
    if likelihood.trajectories is not None:
        num_kept, _, num_steps, *event = likelihood.trajectories.shape
        dims = ("particle", "datum", "t", *(f"event_{i}" for i in range(len(event))))
        x = variable(dims, likelihood.trajectories, "states x^t of forward trajectories", "1")
        at = {"particle": np.arange(num_kept), **datum, "t": np.arange(num_steps) + 1}
        groups["trajectories"] = xr.Dataset({"x": x}, at)
    return groups
