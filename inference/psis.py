"""Pareto-smoothed importance weights and k-hat, by the ArviZ that is installed."""

import numpy as np
from jax.typing import ArrayLike

from dpm_ppl.inference.records import arviz, is_arviz_1

MIN_PARTICLES = 30  # fewer leave a tail of fewer than six weights, to which ArviZ fits nothing

FEW_PARTICLES = 10  # an effective sample size below it makes no estimate

GOOD_KHAT = 0.7  # above it, convergence in the number of particles is hopelessly slow (Vehtari et al. 2024)

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
        if is_arviz_1():
            from arviz_stats.base import array_stats

            smoothed, khat = array_stats.psislw(-rows)  # it takes likelihoods, whose inverses are the weights
        else:
            smoothed, khat = arviz().psislw(rows.copy())
    # Normalised, and the weights below the tail are as they were: so the largest of these gives the scale back.
    below = np.argsort(rows, -1)[:, [-tail_size(len(log_weight)) - 1]]
    smoothed = smoothed + (np.take_along_axis(rows, below, -1) - np.take_along_axis(smoothed, below, -1))
    return smoothed.T, khat
