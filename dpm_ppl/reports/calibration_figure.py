"""The figure of a calibration: how far ranks are from uniform, and what regions of each probability hold.

It draws what `dpm_ppl.inference.calibrate` computes: the record `Calibration`.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpm_ppl.inference import Calibration
from dpm_ppl.reports.panels import QUIET

MOST_LINES = 10  # quantities in a panel; of more, those that are furthest out


def calibration_figure(calibration: Calibration, *, level: float = 0.95, title: str = "") -> Figure:
    """Ranks and coverage, each with the band that exact posteriors leave with probability 1 - level.

    Args:
        calibration: What `calibrate` found.
        level: Probability of the band, for one quantity, everywhere at once.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    draw_ranks(left, calibration, level=level)
    draw_coverage(right, calibration, level=level)
    return figure


def draw_ranks(axes: Axes, calibration: Calibration, *, level: float = 0.95) -> None:
    """Draws the share of ranks below each place, less that of uniform ranks.

    A posterior that is too narrow goes up on the left and down on the right, one too wide the other way; one too low,
    whose draws lie below the simulated value, lies below zero, and one too high above.

    Args:
        axes: Where to draw.
        calibration: What `calibrate` found.
        level: Probability of the band.
    """
    _draw_band(axes, calibration, level, slope=1.0)
    places = np.arange(calibration.num_draws + 2)
    z = places / places[-1]
    for label, name, at, p, color in _quantities(calibration):
        counts = np.bincount(_flat(calibration.ranks[name])[:, at], minlength=len(z) - 1)
        below = np.append(0, np.cumsum(counts)) / calibration.num_simulations
        axes.plot(z, below - z, linewidth=1.2, color=color, label=f"{label}, p = {p:.2g}")
    what = f"{calibration.num_simulations:,} simulations, {calibration.num_draws:,} draws each"
    axes.set(xlabel="rank among draws, as a share", ylabel="share of ranks below, less uniform", xlim=(0, 1))
    axes.set_title(f"Ranks of simulated values\n{what}; all together p = {calibration.p_value:.2g}")
    axes.legend(fontsize="x-small", framealpha=0.8)


def draw_coverage(axes: Axes, calibration: Calibration, *, level: float = 0.95) -> None:
    """Draws how many simulated values lie in regions of each posterior probability; overconfident ones lie below.

    Args:
        axes: Where to draw.
        calibration: What `calibrate` found.
        level: Probability of the band.
    """
    _draw_band(axes, calibration, level, slope=0.0)
    axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
    levels = np.linspace(0, 1, 101)
    covered = [calibration.coverage(level) for level in levels]
    for label, name, at, _, color in _quantities(calibration):
        shares = [np.ravel(found[name])[at] for found in covered]
        axes.plot(levels, shares, linewidth=1.2, color=color, label=label)
    axes.set(xlabel="probability of the region", ylabel="share of values inside", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Coverage: central intervals, and balls around\nthe reference point (TARP)")
    axes.legend(fontsize="x-small", framealpha=0.8)


def _draw_band(axes: Axes, calibration: Calibration, level: float, *, slope: float) -> None:
    """The band of uniform values, less the line of this slope."""
    z, *band = calibration.band(level)
    z, lower, upper = (np.concatenate([[0.0], values, [1.0]]) for values in (z, *band))
    named: Any = {"color": QUIET, "alpha": 0.3, "linewidth": 0, "label": f"{level:.0%} of exact ones"}
    axes.fill_between(z, lower - slope * z, upper - slope * z, **named)


def _quantities(calibration: Calibration) -> list[tuple[str, str, int, float, Any]]:
    """Label, name, place in it, p-value and colour of each scalar, those furthest out first."""
    found = []
    for name, values in calibration.p_values.items():
        p = np.ravel(values)
        labels = [f"{name}[{at}]" if values.ndim else name for at in range(p.size)]
        found += [(label, name, at, float(p[at])) for at, label in enumerate(labels)]
    found = sorted(found, key=lambda row: row[3])[:MOST_LINES]
    return [(*row, color) for row, color in zip(found, matplotlib.color_sequences["tab10"], strict=False)]


def _flat(ranks: np.ndarray) -> np.ndarray:
    return ranks.reshape(len(ranks), -1)
