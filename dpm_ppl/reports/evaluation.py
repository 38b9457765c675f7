"""The numbers of an evaluation: how likely data are under a fit, whether to trust that, and what to do where not."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.data import entropy_limit, fresh_data, log_density
from dpm_ppl.inference import (
    DissipatedWork,
    EntropyBounds,
    Likelihood,
    Sandwich,
    bound,
    dissipated_work,
    entropy_bounds,
    importance_weights,
    log_likelihood,
    sandwich,
)
from dpm_ppl.inference.psis import FEW_PARTICLES, GOOD_KHAT
from dpm_ppl.kernels.kernel import has_marginal
from dpm_ppl.parts import Parts, parts_of
from dpm_ppl.programs import Program, called
from dpm_ppl.reports.budget import affordable
from dpm_ppl.reports.numbers import counted, data_counted, explained, in_bits, known_or_none, of_pixels, with_error
from dpm_ppl.reports.objective import NO_LIKELIHOOD, has_likelihood


def particle_counts(num_particles: int) -> list[int]:
    """Counts to show an estimate at: 1, 10, 100 and so on, and all."""
    return [*(10**i for i in range(len(str(num_particles - 1)) if num_particles > 1 else 0)), num_particles]


def sandwich_at(sandwich: Sandwich, num_particles: int) -> Sandwich:
    """A sandwich with only its first particles.

    Args:
        sandwich: The sandwich.
        num_particles: How many of them.

    Returns:
        A record of the same kind.
    """
    forward = replace(sandwich.forward, log_weight=sandwich.forward.log_weight[:num_particles], trajectories=None)
    return replace(sandwich, forward=forward)


def evaluation(
    likelihood: Likelihood,
    sandwich: Sandwich | None = None,
    work: DissipatedWork | None = None,
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
    estimates = [{"num_particles": num, **in_bits("bits", likelihood.estimate_at(num))} for num in counts]
    error = np.asarray(likelihood.standard_error)
    result = {
        **about,
        "num_particles": likelihood.num_particles,
        "num_data": likelihood.num_data,
        **{name: bound[name] for name in ("elbo_bits", "elbo_bits_se", "K_bits", "K_bits_se") if name in bound},
        "estimates": estimates,
        **in_bits("estimate_bits", likelihood.estimate),
        "estimate_bits_mc_se": math.sqrt(np.sum(error**2)) / len(error) / math.log(2),
        **in_bits("psis_bits", likelihood.psis_estimate),
        **({} if sandwich is None or work is None else _simulated(sandwich, work)),
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
        result |= in_bits("gap_bits", np.asarray(data_log_density) - likelihood.estimate)
    found = problems(result)
    result = {name: known_or_none(value) for name, value in result.items()}
    result["estimates"] = [{name: known_or_none(value) for name, value in row.items()} for row in estimates]
    return {**result, "trusted": not found, "verdict": verdict(result, found)}


def headline(figures: Mapping[str, Any]) -> str:
    """The estimate and whether to trust it, for a title."""
    estimate = with_error(figures, "estimate_bits").strip()
    return f"log p(x0) = {estimate} bits per datum, {'to be trusted' if figures['trusted'] else 'NOT to be trusted'}"


def table(figures: Mapping[str, Any]) -> str:
    """The evaluation as lines to print, in bits per datum with standard errors, and the verdict below."""
    head = f"{figures['model']}: "
    if "estimates" in figures:
        head += f"{data_counted(figures['num_data'], figures.get('data', 'data'))}, "
        head += f"{counted(figures['num_particles'], 'particle', 'particles')} each, "
    rows = [*(_likelihood_rows(figures) if "estimates" in figures else []), *_comparison_rows(figures)]
    rows += _parzen_rows(figures)
    lines = [f"{head}in {figures['seconds']:.0f} s; bits per datum"]
    lines += [f"  {label:<24}{value}".rstrip() for label, value in rows]
    shown = ["elbo_bits", "K_bits", "entropy_limit_bits", "elbo_bits_per_pixel", "bits_per_dimension"]
    lines += explained(
        [name for name in shown if figures.get(name) is not None] + ["paired_gap_bits"] * ("gap_bits" in figures)
    )
    lines += explained(["parzen_bits"] * ("parzen_bits" in figures))
    return "\n".join([*lines, *(textwrap.fill(sentence, 110) for sentence in figures["verdict"])])


def _likelihood_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("ELBO", with_error(figures, "elbo_bits"))]
    if "K_bits" in figures:
        rows.append(("K (the paper's form)", with_error(figures, "K_bits")))
    rows += [(f"estimate, S = {row['num_particles']:,}", with_error(row, "bits")) for row in figures["estimates"]]
    rows.append(("PSIS", with_error(figures, "psis_bits")))
    if "bits_per_dimension" in figures:
        of_pixel = {"ELBO per pixel": "elbo_bits_per_pixel", "K per pixel": "K_bits_per_pixel"}
        of_pixel |= {"estimate per pixel": "estimate_bits_per_pixel", "bits per dimension": "bits_per_dimension"}
        rows += [(label, with_error(figures, name)) for label, name in of_pixel.items() if name in figures]
    if figures.get("entropy_limit_bits") is not None:
        rows.append(("entropy limit", with_error(figures, "entropy_limit_bits")))
    if figures.get("gap_bits") is not None:
        rows.append(("gap, datum by datum", with_error(figures, "gap_bits")))
    if "sandwich_num_data" in figures:
        rows.append((f"On {data_counted(figures['sandwich_num_data'], 'data')} simulated from the model", ""))
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
    js = {"js_bits": max(figures["js_bits"], 0.0), "js_bits_se": figures["js_bits_se"]}  # it is never negative
    return [
        (f"{figures['comparison_num_samples']:,} samples against data", ""),
        ("  JS divergence, at least", with_error(js, "js_bits")),
        ("  told apart (C2ST)", accuracy),
        ("  coverage of the data", expected),
    ]


def _parzen_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "parzen_bits" not in figures:
        return []
    width, nats = f"{figures['parzen_bandwidth']:>10.4g}", with_error(figures, "parzen_nats").strip()
    return [
        (f"Parzen, {figures['parzen_num_samples']:,} samples", with_error(figures, "parzen_bits")),
        ("  width of a window", f"{width}; {nats} nats; unit: {figures['parzen_unit']}"),
    ]


def _simulated(sandwich: Sandwich, work: DissipatedWork) -> dict[str, float]:
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


TOLERATED_SHARE = 0.05  # of the data beyond either: k-hat, being an estimate itself, exceeds 0.7 now and then

WIDE_GAP_BITS = 0.1  # of the sandwich

LITTLE_OVERLAP = 0.03  # of forward and reverse work

MOST_PARTICLES = 100_000  # that are worth advising


def problems(figures: Mapping[str, Any]) -> list[str]:
    """What speaks against an evaluation's estimate, a clause each; nothing where it can be trusted."""
    found = []
    if (share := figures["khat_over_share"]) > TOLERATED_SHARE:
        found.append(f"k-hat is over {GOOD_KHAT} for {share:.0%} of the data, so that rare trajectories decide")
    if (share := figures["khat_unknown_share"]) > TOLERATED_SHARE:
        found.append(f"k-hat is not known for {share:.0%} of the data")
    if (share := figures["ess_low_share"]) > TOLERATED_SHARE:
        found.append(f"fewer than {FEW_PARTICLES} particles are effective for {share:.0%} of the data")
    if not (gap := figures.get("sandwich_gap_bits", 0.0)) <= WIDE_GAP_BITS:
        found.append(f"on simulated data the bounds are {gap:.3g} bits apart")
    if not (overlap := figures.get("work_overlap", 1.0)) >= LITTLE_OVERLAP:
        found.append(f"forward and reverse work overlap by {overlap:.1%} only")
    if not math.isfinite(figures["estimate_bits_se"]):
        found.append("of a single datum the error of the mean is not known")
    if figures.get("gap_bits", 0.0) < -4 * math.hypot(figures.get("gap_bits_se", 0.0), figures["estimate_bits_mc_se"]):
        found.append("on average it exceeds the data's own log density, as no likelihood can")
    return found


def verdict(figures: Mapping[str, Any], found: list[str]) -> list[str]:
    """Whether the likelihood can be trusted, and what to do if not, a sentence or two each.

    Args:
        figures: What `evaluation` returns.
        found: Its `problems`.
    """
    estimate, gap = with_error(figures, "estimate_bits").strip(), figures.get("sandwich_gap_bits")
    if not found:
        simulated = "" if gap is None else f", and on simulated data the bounds are {max(gap, 0):.2g} bits apart"
        return [
            f"The likelihood can be trusted: {estimate} bits per datum.",
            f"The weights have light tails{simulated}.",
        ]
    lines = [
        "The likelihood can NOT be trusted: " + "; ".join(found) + ".",
        f"Read {estimate} bits per datum as a lower bound, and do not compare models by it.",
    ]
    num_particles, khat = figures["num_particles"], figures["khat_90_percent"]
    # So many particles a tail of that shape needs (Vehtari et al. 2024, section 3.2.4).
    needed = math.inf if khat is None or not khat < 0.95 else 10 ** (1 / (1 - max(khat, 0)))
    needed = max(needed, 10 * num_particles)
    if figures["estimate_bits_se"] is None or not math.isfinite(figures["estimate_bits_se"]):
        lines.append("What to do: run again on more data, --num-data 20; an error needs two at least.")
        if len(found) == 1:
            return lines
    if figures["khat_unknown_share"] > TOLERATED_SHARE and num_particles < 100:
        lines.append("What to do: run again with --particles 1000; k-hat needs 30 at least, and hundreds to mean much.")
    elif needed <= MOST_PARTICLES:
        digits = 10 ** (len(str(int(needed))) - 1)
        lines.append(f"What to do: run again with --particles {math.ceil(needed / digits) * digits}.")
    elif gap is None:
        lines.append(
            "What to do: more particles will not help soon. The guide is far from the model's posterior: fit for "
            "longer, or give the guide more freedom."
        )
    else:
        lines.append(
            "What to do: more particles will not help soon. The reverse steps are far from the true ones, most often "
            "too narrow: fit for longer, give them more freedom (full covariance, a larger network), or take more "
            "steps. evaluation.png shows at which t the entropy production rises above its bounds."
        )
    return lines


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluated fit: the numbers, and the records that they are of.

    Args:
        figures: What `evaluation.json` holds.
        likelihood: Weights of the data; None of a program that scores none.
        sandwich: Bounds on data simulated from the model; None of a program that is no single chain.
        work: `dissipated_work` of it; None as well.
        entropy_bounds: Bounds on the reverse steps' entropies, where the kernel's are known.
        entropy_limit: Expected log density of the data, nats per datum, where known.
        K: The paper's K of each datum in nats, shape (num_data,), of a single chain.
    """

    figures: dict[str, Any]
    likelihood: Likelihood | None = None
    sandwich: Sandwich | None = None
    work: DissipatedWork | None = None
    entropy_bounds: EntropyBounds | None = None
    entropy_limit: float | None = None
    K: Array | None = None


def evaluate_program(
    program: Program,
    params: Mapping[str, Any],
    data: Any,
    *,
    num_particles: int,
    num_data: int | None,
    source: Any,
    about: Mapping[str, Any],
    key: Array,
) -> Evaluated:
    """Likelihoods of data under a fitted program, with what tells whether to trust them.

    Args:
        program: The program.
        params: Its parameters.
        data: Its data, as `dpm_ppl.programs.Program` has them; each datum is scored given its own context.
        num_particles: Trajectories, or draws of the guide, of each datum.
        num_data: How many data; None for what takes a minute or two.
        source: All of the program's data, which know of levels where they are images.
        about: What else to report, put first.
        key: Random key.

    Returns:
        The numbers and the records; of a program that scores no data, such as a GAN, the reason alone.
    """
    parts = parts_of(program, data)
    of = _of_chain if parts.definition is not None else _of_whole_program
    found = of(program, parts, params, data, num_particles=num_particles, num_data=num_data, about=about, key=key)
    return replace(found, figures=found.figures | of_pixels(found.figures, source))


def _of_chain(
    program: Program,
    parts: Parts,
    params: Mapping[str, Any],
    data: Any,
    *,
    num_particles: int,
    num_data: int | None,
    about: Mapping[str, Any],
    key: Array,
) -> Evaluated:
    definition: Any = parts.definition
    diffusion, keys = parts.among(data, params), jax.random.split(key, 5)
    if num_data is None:
        trajectories = affordable(diffusion, seconds=300, least=num_particles, most=10**9)
        num_data = max(10, min(500, trajectories // num_particles))
    batch = fresh_data(data, key=keys[0], num_data=num_data)
    x0, beside = parts.x0(batch), parts.beside_batch(batch)
    given: dict[str, Any] = {"params": params, "num_particles": num_particles, **beside}
    terms = bound(definition, x0, params=params, key=keys[1], num_samples=min(num_particles, 100), **beside)
    likelihood = log_likelihood(definition, x0, key=keys[2], **given)
    simulated = sandwich(definition, key=keys[3], num_data=len(x0), **given)
    work, entropies = dissipated_work(simulated), None
    if diffusion.num_steps > 1 and has_marginal(diffusion.kernel):
        num_states = max(1, min(num_particles, 20_000 // len(x0)))
        entropies = entropy_bounds(definition, x0, params=params, key=keys[4], num_samples=num_states, **beside)
    limit = entropy_limit(parts.alone(data), x0)
    figures = evaluation(
        *(likelihood, simulated, work),
        bound=terms.summary(),
        limit=limit,
        data_log_density=log_density(parts.alone(data), x0),
        about=about,
    )
    return Evaluated(figures, likelihood, simulated, work, entropies, limit, terms.K)


def _of_whole_program(
    program: Program,
    parts: Parts,
    params: Mapping[str, Any],
    data: Any,
    *,
    num_particles: int,
    num_data: int | None,
    about: Mapping[str, Any],
    key: Array,
) -> Evaluated:
    """The same of a program that is no single chain, from the weights of its guide; of a GAN, that it has none."""
    keys = jax.random.split(key, 2)
    batch = fresh_data(data, key=keys[0], num_data=num_data or 200)
    if not has_likelihood(program, batch):
        return Evaluated({**about, "trusted": None, "verdict": [NO_LIKELIHOOD]})
    given: dict[str, Any] = {"params": params, "key": keys[1], "num_particles": num_particles}
    programs = partial(called, program.model), partial(called, program.guide)
    likelihood = Likelihood(importance_weights(*programs, batch, **given), np.zeros(0))
    alone, x0 = parts.alone(data), parts.x0(batch)
    limit, log_densities = entropy_limit(alone, x0), log_density(alone, x0)
    elbo = in_bits("elbo_bits", likelihood.elbo)
    figures = evaluation(likelihood, bound=elbo, limit=limit, data_log_density=log_densities, about=about)
    return Evaluated(figures, likelihood, entropy_limit=limit)
