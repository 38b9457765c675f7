"""The numbers of a fit: on what data, and how many, they are taken; what is reported; the table that shows it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.panels import valid_sequences


def affordable(diffusion: Diffusion, *, seconds: float, least: int, most: int) -> int:
    """How many data can be taken through every step in about `seconds` on a core or two.

    It counts operations and takes no time, so that the same program is always evaluated on as many data.

    Args:
        diffusion: The diffusion.
        seconds: What to spend.
        least: Result at least.
        most: Result at most.

    Returns:
        Number of data.
    """
    if diffusion.num_steps == 1:
        return most
    batch = 16
    dtype = diffusion.kernel.stationary().sample(jax.random.key(0)).dtype
    x = jax.ShapeDtypeStruct((batch, *diffusion.event_shape), dtype)
    lowered = jax.jit(lambda x, t: diffusion.reverse(x, t).log_prob(x)).lower(x, jax.ShapeDtypeStruct((), jnp.int32))
    flops = float((lowered.cost_analysis() or {}).get("flops", 0.0)) / batch
    # Measured on two cores, swiss rolls and heartbeats: matrix products, and drawing and scoring each coordinate.
    seconds_per_step = 3e-11 * flops + 4.5e-7 * math.prod(diffusion.event_shape)
    return max(least, min(most, int(seconds / (seconds_per_step * diffusion.num_steps))))


def fresh_data(data: dist.Distribution | Array | np.ndarray, *, key: Array, num_data: int) -> Array:
    """Data to evaluate on.

    Args:
        data: A distribution, or an array of shape (num_all, *event).
        key: Random key.
        num_data: How many.

    Returns:
        Draws from a distribution, except that equally likely sequences it can list come equally often; from an array,
        all of it or a part drawn at random. Shape (about num_data, *event).
    """
    if not isinstance(data, dist.Distribution):
        data = jnp.asarray(data)
        return data if len(data) <= num_data else data[jax.random.permutation(key, len(data))[:num_data]]
    listed = valid_sequences(data)
    if listed is not None and np.ptp(listed[1]) < 1e-6:
        num_each = max(1, round(num_data / len(listed[0])))
        return jax.random.permutation(key, jnp.tile(jnp.asarray(listed[0]), (num_each, 1)))
    return data.sample(key, (num_data,))


def entropy_limit(data: dist.Distribution | Array | np.ndarray, x0: Array) -> float | None:
    """Expected log density of the data in nats per datum, which no ELBO exceeds on average; None where it is not known.

    Args:
        data: A distribution, or an array, whose density is not known.
        x0: Draws from it, shape (num_data, *event), for the mean log density where there is no `entropy`.

    Returns:
        Nats per datum.
    """
    if not isinstance(data, dist.Distribution):
        return None
    try:
        return -float(data.entropy())
    except NotImplementedError:
        pass
    try:
        return float(jnp.mean(data.log_prob(x0)))
    except NotImplementedError:
        return None


def support(data: dist.Distribution | Array | np.ndarray, x0: ArrayLike) -> constraints.Constraint:
    """Where data lie: the support of a distribution; of an array, whole or real numbers, by the type of x0."""
    if isinstance(data, dist.Distribution):
        return data.support
    return constraints.real if jnp.issubdtype(np.asarray(x0).dtype, jnp.floating) else constraints.nonnegative_integer


def metrics(summary: Mapping[str, float], *, limit: float | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        summary: `dpm_ppl.inference.Bound.summary()`, or what is known of it.
        limit: Expected log density of the data, nats per datum, where known.
        about: What else to report of the fit, put first.

    Returns:
        `about`; of the bound in bits per datum what `summary` has, each figure with its standard error under `_se`;
        where `limit` is known, `entropy_limit_bits` and `gap_bits`, limit minus ELBO. A number that is not known is
        None.
    """
    names = [f"{name}_bits{suffix}" for name in ("elbo", "K", "L_null", "K_minus_L_null") for suffix in ("", "_se")]
    names += ["elbo_bits_per_dimension", "kl_bits", "prior_matching_bits", "reconstruction_bits"]
    names += ["objective_nats", "objective_nats_se", "num_data"]
    result = {**about, **{name: summary[name] for name in names if name in summary}}
    if limit is not None:
        result["entropy_limit_bits"] = limit / math.log(2)
        result["gap_bits"] = result["entropy_limit_bits"] - result["elbo_bits"]
        result["gap_bits_se"] = result["elbo_bits_se"]
    unknown = [name for name, value in result.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**result, **dict.fromkeys(unknown)}


def table(figures: Mapping[str, Any]) -> str:
    """The metrics as lines to print, in bits per datum, with standard errors."""
    rows = {
        "ELBO": "elbo_bits",
        "K (the paper's form)": "K_bits",
        "L_null": "L_null_bits",
        "K - L_null": "K_minus_L_null_bits",
        "entropy limit": "entropy_limit_bits",
        "gap to the limit": "gap_bits",
    }
    lines = [
        f"{figures['model']}: {figures['iterations']:,} iterations in {figures['seconds']:.0f} s; "
        f"bits per datum, on {figures['num_data']:,} data"
    ]
    for label, name in rows.items():
        if figures.get(name) is not None:
            error = figures.get(f"{name}_se")
            lines.append(f"  {label:<21}{figures[name]:>10.4f}" + (f" ± {error:.4f}" if error is not None else ""))
    if "objective_nats" in figures:
        value, error = figures["objective_nats"], figures["objective_nats_se"]
        lines.append(f"  No likelihood. Objective {value:.4f} ± {error:.4f} nats.")
    return "\n".join(lines)
