"""Figures: of a fit, the paper's figure 1 and its curves; and of samples. They draw what is computed elsewhere."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.reports import drift
from dpm_ppl.reports.frequencies import draw_frequencies, sequences_of
from dpm_ppl.reports.pairs import HEIGHT, MOST_COORDINATES, pair_plot
from dpm_ppl.reports.panels import (
    DATA,
    LIMIT,
    MODEL,
    caption,
    common_scale,
    display_range,
    draw_states,
    hues,
    is_cloud,
    is_image,
    is_label,
    is_plane,
    is_sequence,
    legend_below,
)

_BITS = np.log(2.0)


def fit_figure(
    diffusion: Diffusion,
    *,
    forward: Mapping[int, ArrayLike],
    reverse: Mapping[int, ArrayLike],
    losses: ArrayLike,
    kl: ArrayLike,
    elbo: float,
    null: float,
    entropy_limit: float | None = None,
    data: Any = None,
    title: str = "",
) -> Figure:
    """The figure of a fit: both chains at a few times, what else their kind can show, the loss, the bound per step.

    Of points of the plane that is the learned drift; of three and more dimensions a pair plot of samples on data; of
    bits, letters and labels how often each sequence comes, where they are few.

    Args:
        diffusion: The diffusion, with its parameters in place.
        forward: States of forward trajectories by time t, each (num_states, *event), time 0 being data.
        reverse: States of the model's trajectories at the same times.
        losses: -ELBO of each iteration, nats per datum, shape (num_iterations,).
        kl: KL divergence of each reverse step t = 2..T, nats, shape (num_data, T - 1).
        elbo: Final ELBO, nats per datum.
        null: L_null, the bound of a model that has learned nothing, nats per datum.
        entropy_limit: Expected log density of the data, nats per datum, where known: no ELBO is above it.
        data: The data; where its law can list its sequences, their frequencies are drawn.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.

    Raises:
        ValueError: forward and reverse are not at the same times, time 0 among them.

    Source: Sohl-Dickstein et al. 2015, figure 1.
    """
    times = _times(forward, reverse)
    shape, support = diffusion.event_shape, diffusion.kernel.stationary().support
    discrete = is_sequence(shape, support) or is_label(shape, support)
    sequences = sequences_of(data, forward[0]) if discrete else None
    num_rows = 3 if is_plane(shape, support) and drift.has_drift(diffusion) else 2
    below = (
        [HEIGHT * min(MOST_COORDINATES, math.prod(shape))] if is_cloud(shape, support) else [2.6] if sequences else []
    )
    heights = [3.0 * num_rows + 0.3, *below, 3.9]
    figure = Figure(figsize=(9.5, sum(heights) + 0.3), layout="constrained")
    figure.suptitle(title)
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_chains(rows[0], diffusion, times, forward=forward, reverse=reverse, num_rows=num_rows)
    if is_cloud(shape, support):
        rows[1].suptitle("Samples on data")
        pair_plot(rows[1], {"data": (forward[0], DATA), "samples": (reverse[0], MODEL)})
    elif sequences is not None:
        draw_frequencies(rows[1].subplots(), reverse[0], sequences)
    loss_axes, step_axes = rows[-1].subplots(1, 2)
    draw_loss(loss_axes, losses, elbo=elbo, null=null, entropy_limit=entropy_limit)
    draw_step_bound(step_axes, kl)
    figure.draw_without_rendering()  # the constrained layout settles at the second drawing: the first may cut labels
    return figure


def _draw_chains(
    figure: Any,
    diffusion: Diffusion,
    times: list[int],
    *,
    forward: Mapping[int, ArrayLike],
    reverse: Mapping[int, ArrayLike],
    num_rows: int,
) -> None:
    """A row of panels for each chain and, of three rows, the drift: all of one size; below them what colours mean."""
    shape, support = diffusion.event_shape, diffusion.kernel.stationary().support
    plane = is_plane(shape, support)
    scale = common_scale([*forward.values(), *reverse.values()], symmetric=plane)
    if is_image(shape):
        scale = display_range(forward[0])
    grid = figure.subplots(num_rows, len(times), sharex=True, sharey=True, squeeze=False)
    for row, states, name, color in ((grid[0], forward, "Forward", DATA), (grid[1], reverse, "Reverse", MODEL)):
        hue = hues(states[0], forward[0]) if plane or is_cloud(shape, support) else None
        for axes, t in zip(row, times, strict=True):
            draw_states(axes, states[t], support=support, scale=scale, hue=hue, color=color)
            axes.set_title(_state_title(name, t, diffusion.num_steps))
    words = [caption(shape, support)]
    if num_rows == 3:
        words.append(drift.CAPTION)
        steps = [max(t, min(2, diffusion.num_steps)) for t in times]  # step 1 is the decoder's, of no interest here
        for column, (axes, t) in enumerate(zip(grid[2], steps, strict=True)):
            if t in steps[:column]:
                axes.remove()
            else:
                drift.draw_drift(axes, diffusion, t, scale=scale, behind=forward.get(t, forward[0]))
    for axes in grid.flat:
        axes.label_outer()
    figure.supxlabel(textwrap.fill(" ".join(words), 125), fontsize="small")


def draw_loss(
    axes: Axes,
    losses: ArrayLike,
    *,
    elbo: float | None = None,
    null: float | None = None,
    entropy_limit: float | None = None,
) -> None:
    """Draws the bound over the iterations in bits: means over windows that grow, and the range within each.

    Args:
        axes: Where to draw.
        losses: -ELBO of each iteration, nats per datum.
        elbo: Final ELBO, nats per datum, where known.
        null: L_null, what the bound is without learning, nats per datum, where known. It and the beginning of the
            curve may lie below the axis, which the legend says: the axis has room for the rest.
        entropy_limit: What no ELBO is above, nats per datum, where known.
    """
    iterations, mean, low, high = smoothed(-np.asarray(losses, float) / _BITS)
    lines = [
        (entropy_limit, LIMIT, ":", "entropy limit of the data"),
        (elbo, DATA, "--", "at the end"),
        (null, "black", "-.", "nothing learned (L_null)"),
    ]
    known = [(nats / _BITS, *look) for nats, *look in lines if nats is not None]
    bottom, top = _interesting(mean, [nats / _BITS for nats in (entropy_limit, elbo) if nats is not None])
    margin = 0.1 * (top - bottom)
    if null is not None and bottom - (top - bottom) < null / _BITS < bottom:
        bottom = null / _BITS
    bottom, top = bottom - margin, top + margin
    begins = iterations[np.argmax(mean >= bottom)]
    cut = f"; below the axis before iteration {begins:.0f}" if mean[0] < bottom else ""
    axes.fill_between(iterations, low, high, color=MODEL, alpha=0.2, linewidth=0, label="10% to 90% of estimates")
    axes.plot(iterations, mean, color=MODEL, label=f"training estimate, averaged{cut}")
    for value, color, style, name in known:
        if bottom <= value <= top:
            axes.axhline(value, color=color, linestyle=style, linewidth=1.2, label=f"{name}, {value:.3f}")
        else:  # L_null is -inf where the end of the chain lacks some of the data
            where: Any = {"transform": axes.transAxes, "marker": "v", "linestyle": "none", "clip_on": False}
            axes.plot([0.02], [0.0], color=color, label=f"{name}, {value:.3f}: below the axis", **where)
    axes.set(ylim=(bottom, top), xscale="log", xlim=(iterations[0], max(iterations[-1], 2)))
    axes.set(xlabel="iteration", ylabel="objective (bits per datum)", title="Training")
    legend_below(axes)


def _interesting(mean: np.ndarray, levels: list[float]) -> tuple[float, float]:
    """The range of a curve that is worth an axis: where it spends most of its iterations, and the levels.

    Args:
        mean: Means over windows evenly spaced in the logarithm of the iteration.
        levels: What the curve is compared with.
    """
    finite = mean[np.isfinite(mean)]
    late = finite[len(finite) // 2 :]
    shown = [*np.quantile(finite, [0.4] if len(finite) else []), *late, *(x for x in levels if np.isfinite(x))]
    bottom, top = min(shown, default=0.0), max(shown, default=1.0)
    return (bottom, top) if top > bottom else (bottom - 0.5, top + 0.5)


def smoothed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means and 10% and 90% quantiles of a series over windows evenly spaced in the logarithm of the iteration.

    Args:
        values: Shape (num_iterations,); iterations count from 1.

    Returns:
        Middle iteration, mean, low and high of each window, each of shape (num_windows,).
    """
    edges = np.unique(np.round(np.geomspace(1, len(values) + 1, 121)).astype(int))
    windows = [values[first - 1 : last - 1] for first, last in zip(edges[:-1], edges[1:], strict=True)]
    middle = np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, 1))
    low, high = (np.array([np.quantile(window, level) for window in windows]) for level in (0.1, 0.9))
    return middle, np.array([window.mean() for window in windows]), low, high


def draw_step_bound(axes: Axes, kl: ArrayLike) -> None:
    """Draws what each reverse step costs, its mean KL over the data in bits, with a band of two standard errors.

    Beyond 250 steps, neighbours are averaged; where one step costs far more than most, the axis is logarithmic.

    Args:
        axes: Where to draw.
        kl: Nats, shape (num_data, T - 1), for t = 2..T.
    """
    kls = np.asarray(kl, float) / _BITS
    axes.set(xlabel="step t", ylabel="KL of a step (bits per datum)", title="The bound, step by step")
    if kls.shape[1] == 0:
        axes.text(0.5, 0.5, "T = 1: no step is learned", ha="center", transform=axes.transAxes)
        return
    starts = np.arange(0, kls.shape[1], -(-kls.shape[1] // 250) or 1)
    sizes = np.diff(np.append(starts, kls.shape[1]))
    t = 2 + starts + (sizes - 1) / 2
    total, kls = kls.sum(1).mean(), np.add.reduceat(kls, starts, axis=1) / sizes
    mean, error = kls.mean(0), kls.std(0) / np.sqrt(max(len(kls) - 1, 1))
    steep = mean.min() > 0 and mean.max() > 20 * np.median(mean)
    low, high = mean - 2 * error, mean + 2 * error
    if steep:  # on a logarithmic axis, which has no place for what is not positive
        axes.set(yscale="log", ylim=(0.5 * mean.min(), 1.5 * high.max()))
        low = np.maximum(low, axes.get_ylim()[0])
    elif mean.min() >= 0:
        axes.set_ylim(0, 1.05 * high.max() or 1.0)
    axes.fill_between(
        t,
        low,
        high,
        color=MODEL,
        alpha=0.35,
        linewidth=0.8,
        label=f"± 2 standard errors, at most {2 * error.max():.2g}",
    )
    marker = "." if len(t) < 100 else None
    axes.plot(t, mean, color=MODEL, marker=marker, linewidth=1, label=f"mean; the sum is {total:.3f} bits")
    legend_below(axes)


def _state_title(name: str, t: int, num_steps: int) -> str:
    if t == 0:
        return "Data, t = 0" if name == "Forward" else "Samples, t = 0"
    return f"{name}, t = {t}{' = T' if t == num_steps else ''}"


def _times(forward: Mapping[int, ArrayLike], reverse: Mapping[int, ArrayLike]) -> list[int]:
    if set(forward) != set(reverse) or 0 not in forward:
        raise ValueError(
            f"Expected forward and reverse states at the same times, 0 among them; got {sorted(forward)} "
            f"and {sorted(reverse)}."
        )
    return sorted(forward)
