"""The numbers of a fit: what is reported, and the table that shows it."""

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from matplotlib.figure import Figure

from dpm_ppl.chains import forward_states, reverse_states
from dpm_ppl.data import entropy_limit, fresh_data, num_data_of, support_of
from dpm_ppl.inference import Fit, bound
from dpm_ppl.parts import Parts, parts_of, rows_of
from dpm_ppl.programs import Program
from dpm_ppl.reports.budget import affordable
from dpm_ppl.reports.fit_figure import fit_figure
from dpm_ppl.reports.floor import independent_floor
from dpm_ppl.reports.numbers import data_counted, explained, of_pixels
from dpm_ppl.reports.objective import objective
from dpm_ppl.reports.samples import draws, samples_figure

_MOST_OF_KL = 0.5  # in three steps, which then are what is wrong

_FLOOR_DATA = 2000  # of the independent floor, at least


def metrics(
    summary: Mapping[str, float], *, limit: float | None, about: Mapping[str, Any], floor: float | None = None
) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        summary: `dpm_ppl.inference.Bound.summary()`, or what is known of it.
        limit: Expected log density of the data, nats per datum, where known.
        about: What else to report of the fit, put first.
        floor: Log likelihood of the best law of independent coordinates, nats per datum, where there is one.

    Returns:
        `about`; of the bound in bits per datum what `summary` has, each figure with its standard error under `_se`;
        of `floor`, where it is known, `independent_bits` and `above_independent_bits`, ELBO minus that; of `limit`,
        where it is known, `entropy_limit_bits` and `gap_bits`, limit minus ELBO. A number that is not known is None.
    """
    names = [f"{name}_bits{suffix}" for name in ("elbo", "K", "L_null", "K_minus_L_null") for suffix in ("", "_se")]
    names += ["elbo_bits_per_dimension", "kl_bits", "prior_matching_bits", "reconstruction_bits"]
    names += ["objective_nats", "objective_nats_se", "num_data"]
    result = {**about, **{name: summary[name] for name in names if name in summary}}
    if floor is not None:
        result["independent_bits"] = floor / math.log(2)
        result["above_independent_bits"] = result["elbo_bits"] - result["independent_bits"]
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
        "independent floor": "independent_bits",
        "entropy limit": "entropy_limit_bits",
        "gap to the limit": "gap_bits",
        "ELBO per pixel": "elbo_bits_per_pixel",
        "K per pixel": "K_bits_per_pixel",
        "bits per dimension": "bits_per_dimension",
    }
    lines = [
        f"{figures['model']}: {figures['iterations']:,} iterations in {figures['seconds']:.0f} s; "
        f"bits per datum, on {data_counted(figures['num_data'], figures.get('data', 'data'))}"
    ]
    for label, name in rows.items():
        if figures.get(name) is not None:
            error = figures.get(f"{name}_se")
            lines.append(f"  {label:<21}{figures[name]:>10.4f}" + (f" ± {error:.4f}" if error is not None else ""))
    lines += explained(name for name in rows.values() if figures.get(name) is not None)
    lines += [textwrap.fill(f"Warning: {problem}", 110) for problem in figures.get("problems", [])]
    if "objective_nats" in figures:
        value, error = figures["objective_nats"], figures["objective_nats_se"]
        lines.append(f"  No likelihood. Objective {value:.4f} ± {error:.4f} nats.")
    return "\n".join(lines)


def problems(summary: Mapping[str, float], kl: ArrayLike, *, is_continuous: bool = True) -> list[str]:
    """What is wrong with a fit at sight, a sentence each: its bound is below what no learning gives.

    Args:
        summary: `dpm_ppl.inference.Bound.summary()`.
        kl: KL divergence of each reverse step t = 2..T, nats, shape (num_data, T - 1).
        is_continuous: Whether states are real numbers, so that steps have variances.
    """
    short = summary["L_null_nats"] - summary["elbo_nats"]
    if not short > 3 * summary["elbo_nats_se"]:
        return []
    lost = f"the ELBO is {short / math.log(2):.3f} bits below L_null, the bound of a model that has learned nothing"
    bits = np.asarray(kl, float).mean(0) / math.log(2)
    if len(bits) == 0:
        return [f"{lost}."]
    worst = np.sort(np.argsort(bits)[::-1][:3]) + 2
    why = ":"
    if is_continuous and bits[worst - 2].sum() > _MOST_OF_KL * bits.sum():
        why = (
            ": their variance cannot be right. A fixed one is too small or too large for so long a step: learn it, or "
            "take smaller rates there. Else"
        )
    return [
        f"{lost}. Of its KL, {bits.sum():.3f} bits, steps t = {', '.join(map(str, worst))} have "
        f"{bits[worst - 2].sum():.3f}{why} fit for longer."
    ]


def report(
    program: Program, data: Any, fitted: Fit, *, source: Any, about: Mapping[str, Any], key: Array
) -> tuple[dict[str, Any], Callable[[], Figure]]:
    """Evaluates a fit on fresh data.

    Args:
        program: The program.
        data: Its data, as `dpm_ppl.programs.Program` has them.
        fitted: The fit.
        source: All of the program's data, which the figure shows, and which know of levels where they are images.
        about: What else to report, put first.
        key: Random key.

    Returns:
        What `metrics.json` holds, and what draws the figure.
    """
    parts = parts_of(program, data)
    of = _of_chain if parts.definition is not None else _of_whole_program
    figures, draw = of(program, parts, data, fitted, source=source, about=about, key=key)
    return figures | of_pixels(figures, source), draw


def _of_chain(
    program: Program, parts: Parts, data: Any, fitted: Fit, *, source: Any, about: Mapping[str, Any], key: Array
) -> tuple[dict[str, Any], Callable[[], Figure]]:
    definition: Any = parts.definition
    keys = jax.random.split(key, 5)
    diffusion = parts.among(data, fitted.params)
    num_data = affordable(diffusion, seconds=15, least=16, most=40_000)
    batch = fresh_data(data, key=keys[0], num_data=num_data)
    x0 = parts.x0(batch)
    terms = bound(definition, x0, params=fitted.params, key=keys[1], **parts.beside_batch(batch))
    summary = terms.summary()
    alone = parts.alone(data)
    many = x0
    if len(x0) < _FLOOR_DATA:  # too few to choose the law of each coordinate by
        many = parts.x0(fresh_data(data, key=jax.random.fold_in(keys[0], 1), num_data=_FLOOR_DATA))
    limit, floor = entropy_limit(alone, x0), _floor(source, many, support_of(alone, x0))

    times = {0, diffusion.num_steps // 2, diffusion.num_steps}
    # Whole batches at once: several times cheaper a step than the bound, which is counted datum by datum.
    num_shown = affordable(diffusion, seconds=30, least=16, most=3000)

    on = data_counted(len(x0), about.get("data", "data"))
    title = (
        f"{program.path.stem}: ELBO {summary['elbo_bits']:.3f} ± {summary['elbo_bits_se']:.3f} bits per datum, on {on}"
        f"{_shown(source, num_shown)}"
    )

    @jax.jit
    def states(params: Any, batch: Any) -> Any:
        context = parts.context(batch)
        diffusion = parts.built(params, rows_of(context, np.arange(num_shown)))
        reverse = reverse_states(diffusion, key=keys[3], num_samples=num_shown, times=times)
        return forward_states(diffusion, parts.x0(batch), key=keys[4], times=times), reverse

    def draw() -> Figure:
        forward, reverse = states(fitted.params, fresh_data(source, key=keys[2], num_data=num_shown))
        return fit_figure(
            diffusion,
            forward=forward,
            reverse=reverse,
            losses=fitted.losses,
            kl=terms.kl,
            elbo=summary["elbo_nats"],
            null=summary["L_null_nats"],
            entropy_limit=limit,
            data=alone,
            title=title,
        )

    figures = metrics(summary, limit=limit, about=about, floor=floor)
    found = problems(summary, terms.kl, is_continuous=not diffusion.kernel.stationary().support.is_discrete)
    return figures | ({"problems": found} if found else {}), draw


def _shown(source: Any, num: int) -> str:
    """Which data a figure shows, where there is an end of them: of all, and not of those few that are evaluated."""
    num_all = num_data_of(source)
    if num_all is None:
        return ""
    return f"\nshown: {'all' if num_all <= num else f'{num:,} of the'} {num_all:,} data of the program"


def _floor(source: Any, x0: ArrayLike, support: Any) -> float | None:
    return independent_floor(x0, support, levels_of=getattr(source, "levels_of", None))


def _of_whole_program(
    program: Program, parts: Parts, data: Any, fitted: Fit, *, source: Any, about: Mapping[str, Any], key: Array
) -> tuple[dict[str, Any], Callable[[], Figure]]:
    """The same of a program that is no single chain."""
    keys = jax.random.split(key, 3)
    batch = fresh_data(data, key=keys[0], num_data=4000)
    x0 = parts.x0(batch)
    summary = objective(program, fitted.params, batch, key=keys[1])
    alone, limit, floor = parts.alone(data), None, None
    support = support_of(alone, x0)
    if "elbo_nats" in summary:
        limit, floor = entropy_limit(alone, x0), _floor(source, x0, support)
    figures = metrics(summary, limit=limit, about=about, floor=floor)

    def draw() -> Figure:
        shown = fresh_data(source, key=keys[0], num_data=2048)
        return samples_figure(
            draws(parts, fitted.params, key=keys[2], num_samples=2048, context=parts.context(shown)),
            support=support,
            data=alone,
            x0=parts.x0(shown),
            losses=fitted.losses,
            elbo=summary.get("elbo_nats", summary.get("objective_nats")),
            entropy_limit=limit,
            title=program.path.stem + _shown(source, 2048),
        )

    return figures, draw
