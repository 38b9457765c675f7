"""The figure of an evaluation: whether to trust the weights, what they add up to, and where the model wastes work.

It draws what `dpm_ppl.inference` computes: the records `Likelihood`, `Sandwich`, `DissipatedWork` and `EntropyBounds`.
"""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpm_ppl.inference import DissipatedWork, EntropyBounds, Likelihood, Sandwich
from dpm_ppl.inference.psis import GOOD_KHAT
from dpm_ppl.reports.evaluation import LITTLE_OVERLAP, particle_counts, sandwich_at
from dpm_ppl.reports.panels import DATA, LIMIT, MODEL, QUIET, legend_below

BOUNDS = "true reverse step, between its bounds\n(Sohl-Dickstein et al. 2015, eq. 24)"

_BITS = np.log(2.0)


def evaluation_figure(
    likelihood: Likelihood,
    sandwich: Sandwich | None = None,
    work: DissipatedWork | None = None,
    *,
    entropy_bounds: EntropyBounds | None = None,
    entropy_limit: float | None = None,
    title: str = "",
) -> Figure:
    """The figure of an evaluation: k-hat, the estimate against particles, and of a chain work and entropy production.

    Args:
        likelihood: `Likelihood` of the data.
        sandwich: `Sandwich` on data simulated from the model; None for a program that is no single chain.
        work: `DissipatedWork` of the sandwich; None as well.
        entropy_bounds: `EntropyBounds` of the reverse steps, where the kernel's entropies are known.
        entropy_limit: Expected log density of the data, nats per datum, where known.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.
    """
    num_rows = 1 if sandwich is None else 2
    figure = Figure(figsize=(11, 4.5 * num_rows), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(num_rows, 2, squeeze=False)
    draw_khat(axes[0, 0], likelihood.khat)
    draw_estimates(axes[0, 1], likelihood, sandwich, entropy_limit=entropy_limit)
    if work is not None:
        draw_work(axes[1, 0], work)
        draw_entropy_production(axes[1, 1], likelihood.reverse_cross_entropy, bounds=entropy_bounds)
    return figure


def draw_khat(axes: Axes, khat: ArrayLike) -> None:
    """Draws the k-hat of each datum, with the lines above which its estimate is slow (0.5) and hopeless (0.7).

    Args:
        axes: Where to draw.
        khat: Shape (num_data,). Infinite ones are drawn at the upper edge, and unknown ones are counted in the legend.
    """
    khat = np.asarray(khat, float)
    finite = khat[np.isfinite(khat)]
    low, high = min([-0.1, *finite]), min(max([1.0, *finite]), 3.0)
    datum, above = np.arange(len(khat)), khat > high
    over = khat > GOOD_KHAT
    for chosen, color, name in (
        (khat <= GOOD_KHAT, DATA, f"{GOOD_KHAT} or less, {np.mean(khat <= GOOD_KHAT):.1%} of the data"),
        (over & ~above, MODEL, f"over {GOOD_KHAT}, {np.mean(over):.1%}"),
    ):
        axes.scatter(datum[chosen], khat[chosen], s=14, color=color, alpha=0.7, linewidths=0, label=name)
    if above.any():
        top = np.full(int(above.sum()), high)
        axes.scatter(datum[above], top, marker="^", s=22, color=MODEL, label=f"of these, {above.sum()} beyond the axis")
    if np.isnan(khat).any():
        axes.plot([], [], " ", label=f"not known, {np.mean(np.isnan(khat)):.1%}")
    for value, style in ((0.5, ":"), (GOOD_KHAT, "--")):
        axes.axhline(value, color="black", linestyle=style, linewidth=1)
        axes.annotate(
            f"{value}",
            (1, value),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    margin = 0.06 * (high - low)
    axes.set(ylim=(low - margin, high + margin), xlabel="datum", ylabel="Pareto k-hat", title="Tails of the weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(axes)


def draw_estimates(
    axes: Axes, likelihood: Likelihood, sandwich: Sandwich | None = None, *, entropy_limit: float | None = None
) -> None:
    """Draws the mean estimate in bits against the number of particles, with error bars, for given and simulated data.

    Args:
        axes: Where to draw.
        likelihood: `Likelihood` of the data.
        sandwich: `Sandwich` on simulated data: its bounds close as particles are added. None where there is none.
        entropy_limit: What no mean estimate is above, nats per datum.
    """
    counts = particle_counts(likelihood.num_particles)
    mean, error = _means([likelihood.estimate_at(num) for num in counts])
    axes.errorbar(counts, mean, error, color=DATA, marker="o", markersize=4, capsize=3, label="data: estimate")
    smoothed, error = _means([likelihood.psis_estimate])
    axes.errorbar(
        [counts[-1] * 1.15],
        smoothed,
        error,
        color=DATA,
        marker="D",
        markersize=4,
        capsize=3,
        markerfacecolor="white",
        linestyle="none",
        label="data: PSIS",
    )
    if entropy_limit is not None:
        axes.axhline(entropy_limit / _BITS, color=LIMIT, linestyle=":", label="data: entropy limit")
    if sandwich is not None:
        _draw_sandwich(axes, sandwich)
    axes.set(
        xscale="log",
        xlabel="particles S",
        ylabel="log p(x$^{(0)}$) (bits per datum)",
        title="Estimates, ± standard error",
    )
    legend_below(axes, num_columns=2)


def _draw_sandwich(axes: Axes, sandwich: Sandwich) -> None:
    counts = particle_counts(sandwich.forward.num_particles)
    bounds = [sandwich_at(sandwich, num) for num in counts]
    lower, lower_error = _means([bound.lower for bound in bounds])
    upper, upper_error = _means([bound.upper for bound in bounds])
    axes.fill_between(counts, lower, upper, color=MODEL, alpha=0.15, linewidth=0)
    style: Any = dict(color=MODEL, markersize=4, capsize=3, linewidth=1)
    axes.errorbar(
        np.multiply(counts, 0.93), upper, upper_error, marker="v", label="simulated data: upper bound", **style
    )
    axes.errorbar(
        np.multiply(counts, 0.93), lower, lower_error, marker="^", label="simulated data: lower bound", **style
    )


def draw_work(axes: Axes, work: DissipatedWork) -> None:
    """Draws the densities of the work dissipated forward and backward on one axis, and where they cross.

    Args:
        axes: Where to draw.
        work: `DissipatedWork` of simulated data.
    """
    forward, reverse = (np.asarray(sample, float) / _BITS for sample in (work.forward, work.reverse))
    num_all, forward = len(forward), forward[np.isfinite(forward)]
    ends = [np.quantile(sample, level) for sample in (forward, reverse) if len(sample) for level in (0.005, 0.995)]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    margin = 0.05 * (high - low) or 1.0
    for sample, color, name in ((forward, DATA, "forward"), (reverse, MODEL, "reverse")):
        shown = sample[(sample >= low) & (sample <= high)]
        style: Any = dict(bins=int(np.clip(2 * len(shown) ** 0.5, 8, 60)), density=True, color=color)
        axes.hist(shown, alpha=0.25, **style)
        label = f"{name}, mean {sample.mean():.3g} bits" if len(sample) else name
        axes.hist(shown, histtype="step", label=label, **style)
    if work.overlap >= LITTLE_OVERLAP:
        crossing, error = work.crossing / _BITS, work.crossing_error / _BITS
        label = f"crossing, {crossing:.3f} ± {error:.3f}; overlap {min(work.overlap, 1):.0%}"
        axes.axvline(crossing, color="black", linestyle="--", linewidth=1, label=label)
    else:
        axes.plot([], [], " ", label=f"overlap {work.overlap:.1%}: no crossing to see")
    if len(forward) < num_all:
        axes.plot([], [], " ", label=f"{1 - len(forward) / num_all:.1%} of forward work is infinite")
    axes.set(
        xlim=(low - margin, high + margin), xlabel="dissipated work, log p(x$^{(0)}$) − log w (bits)", ylabel="density"
    )
    axes.set_title("Work on simulated data (Crooks 1999)")
    legend_below(axes)


def draw_entropy_production(axes: Axes, cross_entropy: ArrayLike, *, bounds: EntropyBounds | None = None) -> None:
    """Draws the entropy production of each reverse step, -E log p(x^(t-1)|x^t) - H_q(X^t|X^(t-1)), in bits.

    The true reverse process lies between the bounds of eq. 24; the model above it by the KL divergence that it wastes.
    Beyond 100 steps, neighbours are averaged.

    Args:
        axes: Where to draw.
        cross_entropy: -E log p(x^(t-1)|x^t) for t = 2..T, nats, shape (T - 1,).
        bounds: `EntropyBounds`; without them the cross-entropy itself is drawn.
    """
    cross = np.asarray(cross_entropy, float) / _BITS
    axes.set(
        xlabel="step t", title="Entropy production, step by step" if bounds is not None else "Reverse cross-entropy"
    )
    axes.set_ylabel("entropy production (bits)" if bounds is not None else "-E log p(x$^{(t-1)}$|x$^{(t)}$) (bits)")
    if not len(cross):
        axes.annotate("T = 1: no reverse step is learned", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    t, marker = _averaged(np.arange(2.0, len(cross) + 2)), "." if len(cross) <= 100 else None
    if bounds is None:
        axes.plot(t, _averaged(cross), color=MODEL, marker=marker, linewidth=1)
        return
    lower, upper = (np.asarray(bound, float) / _BITS for bound in (bounds.lower, bounds.upper))
    produced, least = _averaged(cross - upper), _averaged(lower - upper)
    axes.fill_between(t, least, 0, color=QUIET, alpha=0.3, linewidth=0, label=BOUNDS)
    axes.plot(
        t,
        produced,
        color=MODEL,
        marker=marker,
        linewidth=1,
        label=f"model; the sum is {(cross - upper).sum():.3f} bits",
    )
    # The lower bound runs off to minus infinity where the data lie on a line or a surface: show what the model does.
    low, high = min(produced.min(), np.quantile(least, 0.25)), max(produced.max(), 0.0)
    axes.set_ylim(low - 0.15 * (high - low), high + 0.1 * (high - low))
    axes.axhline(0, color="black", linewidth=0.8)
    legend_below(axes)


def _means(nats: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means over the data in bits, and their standard errors, of each of several estimates."""
    values = np.asarray(nats, float) / _BITS
    values = np.where(np.isfinite(values), values, np.nan)
    num = values.shape[1]
    error = values.std(1, ddof=1) / num**0.5 if num > 1 else np.zeros(len(values))
    return values.mean(1), error


def _averaged(values: np.ndarray) -> np.ndarray:
    """Means over runs of neighbours, so that at most 100 are left."""
    starts = np.arange(0, len(values), -(-len(values) // 100))
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
