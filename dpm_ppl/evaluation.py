"""The numbers of an evaluation: how likely data are under a fit, how sure that is, and what to do where it is not.

What is computed by `dpm_ppl.inference` comes in as its records: `Likelihood`, `Sandwich`, `DissipatedWork`.
"""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.verdict import FEW_PARTICLES, GOOD_KHAT, LITTLE_OVERLAP, problems, verdict, with_error


def particle_counts(num_particles: int) -> list[int]:
    """Counts to show an estimate at: 1, 10, 100 and so on, and all."""
    return [*(10**i for i in range(len(str(num_particles - 1)) if num_particles > 1 else 0)), num_particles]


def sandwich_at(sandwich: Any, num_particles: int) -> Any:
    """A sandwich with only its first particles.

    Args:
        sandwich: `dpm_ppl.inference.sandwich.Sandwich`.
        num_particles: How many of them.

    Returns:
        A record of the same kind.
    """
    forward = replace(sandwich.forward, log_weight=sandwich.forward.log_weight[:num_particles], trajectories=None)
    return replace(sandwich, forward=forward)


def log_density(data: Any, x0: Array) -> Array | None:
    """The data's own log density of each datum, nats, shape (num_data,); None where it is not known."""
    if not isinstance(data, dist.Distribution):
        return None
    try:
        return data.log_prob(x0)
    except NotImplementedError:
        return None


def evaluation(
    likelihood: Any,
    sandwich: Any = None,
    work: Any = None,
    *,
    bound: Mapping[str, float],
    limit: float | None = None,
    data_log_density: ArrayLike | None = None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What `evaluation.json` holds.

    Args:
        likelihood: `Likelihood` of the data.
        sandwich: `Sandwich` on data simulated from the model; None for a program that is no single chain.
        work: `DissipatedWork` of the sandwich; None as well.
        bound: `Bound.summary()` for the same data, or what is known of it.
        limit: Expected log density of the data, nats per datum, where known.
        data_log_density: The data's own log density of each datum, nats, shape (num_data,), where known.
        about: What else to report, put first.

    Returns:
        `about`; in bits per datum, each with the standard error of its mean over the data under `_se` (Monte Carlo
        error included, of the estimate also alone, under `_mc_se`): `elbo_bits`, `K_bits`, `estimate_bits`,
        `psis_bits`, and where there is a sandwich `sandwich_lower_bits`, `sandwich_upper_bits`, `sandwich_gap_bits` and
        `work_crossing_bits`; where known `entropy_limit_bits` and `gap_bits`, the data's own log density less the
        estimate, datum by datum; `estimates`, one for each number of particles; the shares of the data with k-hat over
        0.7, with k-hat unknown and with few effective particles; `trusted` and `verdict`. A number that is not known
        is None.
    """
    khat, ess = np.asarray(likelihood.khat), np.asarray(likelihood.ess)
    known = khat[~np.isnan(khat)]
    counts = particle_counts(likelihood.num_particles)
    estimates = [{"num_particles": num, **mean_and_error("bits", likelihood.estimate_at(num))} for num in counts]
    error = np.asarray(likelihood.standard_error)
    result = {
        **about,
        "num_particles": likelihood.num_particles,
        "num_data": likelihood.num_data,
        **{name: bound[name] for name in ("elbo_bits", "elbo_bits_se", "K_bits", "K_bits_se") if name in bound},
        "estimates": estimates,
        **mean_and_error("estimate_bits", likelihood.estimate),
        "estimate_bits_mc_se": math.sqrt(np.sum(error**2)) / len(error) / math.log(2),
        **mean_and_error("psis_bits", likelihood.psis_estimate),
        **({} if sandwich is None else _simulated(sandwich, work)),
        "khat_median": float(np.median(known)) if len(known) else math.nan,
        "khat_90_percent": float(np.quantile(known, 0.9, method="higher")) if len(known) else math.nan,
        "khat_over_share": float(np.mean(khat > GOOD_KHAT)),
        "khat_unknown_share": float(np.mean(np.isnan(khat))),
        "ess_median": float(np.median(ess)),
        "ess_min": float(np.min(ess)),
        "ess_low_share": float(np.mean(ess < FEW_PARTICLES)),
    }
    if limit is not None:
        result["entropy_limit_bits"] = limit / math.log(2)
    if data_log_density is not None:
        result |= mean_and_error("gap_bits", np.asarray(data_log_density) - likelihood.estimate)
    found = problems(result)
    result = {name: _known(value) for name, value in result.items()}
    result["estimates"] = [{name: _known(value) for name, value in row.items()} for row in estimates]
    return {**result, "trusted": not found, "verdict": verdict(result, found)}


def headline(figures: Mapping[str, Any]) -> str:
    """The estimate and whether to trust it, for a title."""
    estimate = with_error(figures, "estimate_bits").strip()
    return f"log p(x0) = {estimate} bits per datum, {'to be trusted' if figures['trusted'] else 'NOT to be trusted'}"


def no_likelihood(reason: str, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluation.json` holds of a program that scores no data: `about`, and the reason as its verdict."""
    return {**about, "trusted": None, "verdict": [reason]}


def compared(discriminator: Any, coverage: Any) -> dict[str, Any]:
    """What `evaluation.json` holds of a comparison of samples with data, which takes no likelihood.

    Args:
        discriminator: `Discriminator` between data and samples.
        coverage: `Coverage` of the data by samples.

    Returns:
        The numbers of both summaries; one that is not known is None.
    """
    found = {**discriminator.summary(), **coverage.summary()}
    return {name: _known(value) for name, value in found.items()}


def table(figures: Mapping[str, Any]) -> str:
    """The evaluation as lines to print, in bits per datum with standard errors, and the verdict below."""
    head = f"{figures['model']}: "
    if "estimates" in figures:
        head += f"{figures['num_data']:,} data, {figures['num_particles']:,} particles each, "
    rows = [*(_likelihood_rows(figures) if "estimates" in figures else []), *_comparison_rows(figures)]
    lines = [f"{head}in {figures['seconds']:.0f} s; bits per datum"]
    lines += [f"  {label:<24}{value}".rstrip() for label, value in rows]
    return "\n".join([*lines, *(textwrap.fill(sentence, 110) for sentence in figures["verdict"])])


def _likelihood_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("ELBO", with_error(figures, "elbo_bits"))]
    if "K_bits" in figures:
        rows.append(("K (the paper's form)", with_error(figures, "K_bits")))
    rows += [(f"estimate, S = {row['num_particles']:,}", with_error(row, "bits")) for row in figures["estimates"]]
    rows.append(("PSIS", with_error(figures, "psis_bits")))
    if figures.get("entropy_limit_bits") is not None:
        rows.append(("entropy limit", with_error(figures, "entropy_limit_bits")))
    if figures.get("gap_bits") is not None:
        rows.append(("gap, datum by datum", with_error(figures, "gap_bits")))
    if "sandwich_num_data" in figures:
        rows.append((f"On {figures['sandwich_num_data']:,} data simulated from the model", ""))
        bounds = [(f"  {n}", f"sandwich_{n.split()[0]}_bits") for n in ("lower bound", "upper bound", "gap")]
        rows += [(label, with_error(figures, name)) for label, name in bounds]
    rows.append(("Weights", ""))
    rows.append((f"  k-hat over {GOOD_KHAT}", f"{figures['khat_over_share']:>10.1%} of the data"))
    if figures["khat_unknown_share"]:
        rows.append(("  k-hat unknown", f"{figures['khat_unknown_share']:>10.1%} of the data"))
    effective = f"{figures['ess_median']:>10,.0f} of {figures['num_particles']:,} particles (median; "
    rows.append(("  effective", f"{effective}least {figures['ess_min']:,.0f})"))
    return rows


def _comparison_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "js_bits" not in figures:
        return []
    accuracy = f"{figures['accuracy']:>10.4f} ± {figures['accuracy_se']:.4f}, p = {figures['p_value']:.2g} for 1/2"
    expected = f"{figures['coverage']:>10.4f} of {figures['coverage_expected']:.4f} for samples like the data"
    return [
        (f"{figures['comparison_num_samples']:,} samples against data", ""),
        ("  JS divergence, at least", with_error(figures, "js_bits")),
        ("  told apart (C2ST)", accuracy),
        ("  coverage of the data", expected),
    ]


def _simulated(sandwich: Any, work: Any) -> dict[str, float]:
    """What data simulated from the model say."""
    summary, crosses = sandwich.summary(), work.overlap >= LITTLE_OVERLAP
    bounds = [f"{name}_bits{suffix}" for name in ("lower", "upper", "gap") for suffix in ("", "_se")]
    return {
        **{f"sandwich_{name}": summary[name] for name in bounds},
        "sandwich_num_data": summary["num_data"],
        "work_crossing_bits": work.crossing / math.log(2) if crosses else math.nan,
        "work_crossing_bits_se": work.crossing_error / math.log(2) if crosses else math.nan,
        "work_overlap": work.overlap,
    }


def mean_and_error(name: str, nats: np.ndarray) -> dict[str, float]:
    """Mean over the data in bits, and its standard error."""
    nats = np.asarray(nats, np.float64)
    error = float(np.std(nats, ddof=1)) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    return {name: float(np.mean(nats)) / math.log(2), f"{name}_se": error / math.log(2)}


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
