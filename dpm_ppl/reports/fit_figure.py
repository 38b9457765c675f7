"""Figures: of a fit, the paper's figure 1 and its curves; and of samples. They draw what is computed elsewhere."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpm_ppl.data import valid_sequences
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.reports.panels import (
    DATA,
    LIMIT,
    MODEL,
    common_scale,
    draw_drift,
    draw_frequencies,
    draw_states,
    has_drift,
    is_binary_vector,
    is_plane,
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
    """The figure of a fit: both chains at a few times, the learned drift or frequencies, the loss, the bound per step.

    Args:
        diffusion: The diffusion, with its parameters in place.
        forward: States of forward trajectories by time t, each (num_states, *event), time 0 being data.
        reverse: States of the model's trajectories at the same times.
        losses: -ELBO of each iteration, nats per datum, shape (num_iterations,).
        kl: KL divergence of each reverse step t = 2..T, nats, shape (num_data, T - 1).
        elbo: Final ELBO, nats per datum.
        null: L_null, the bound of a model that has learned nothing, nats per datum.
        entropy_limit: Expected log density of the data, nats per datum, where known: no ELBO is above it.
        data: The data; where it can list its sequences, their frequencies are drawn.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.

    Raises:
        ValueError: forward and reverse are not at the same times, time 0 among them.

    Source: Sohl-Dickstein et al. 2015, figure 1.
    """
    times = _times(forward, reverse)
    support = diffusion.kernel.stationary().support
    plane, binary = is_plane(diffusion.event_shape, support), is_binary_vector(diffusion.event_shape, support)
    sequences = valid_sequences(data) if binary else None
    drift = plane and has_drift(diffusion)
    heights = [3.0, 3.0, *([3.4] if drift else [2.4] if sequences else []), 3.3]
    width = 9.5
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(title)
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    scale = common_scale([*forward.values(), *reverse.values()], symmetric=plane)
    for row, states, name, color in ((rows[0], forward, "Forward", DATA), (rows[1], reverse, "Reverse", MODEL)):
        for axes, t in zip(np.ravel(row.subplots(1, len(times), sharey=True)), times, strict=True):
            draw_states(axes, states[t], support=support, scale=scale, origin=states[0], color=color)
            axes.set_title(_state_title(name, t, diffusion.num_steps))
            axes.label_outer()
    if drift:
        steps = sorted({max(t, min(2, diffusion.num_steps)) for t in times})
        for axes, t in zip(np.ravel(rows[2].subplots(1, len(steps), sharey=True)), steps, strict=True):
            draw_drift(axes, diffusion, t, scale=scale, behind=forward.get(t, forward[0]))
            axes.label_outer()
    elif sequences is not None:
        draw_frequencies(rows[2].subplots(), reverse[0], sequences=sequences[0], probabilities=sequences[1])
    loss_axes, step_axes = rows[-1].subplots(1, 2)
    draw_loss(loss_axes, losses, elbo=elbo, null=null, entropy_limit=entropy_limit)
    draw_step_bound(step_axes, kl)
    return figure


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
        null: L_null, what the bound is without learning, nats per datum, where known; the axis ends a little below it.
        entropy_limit: What no ELBO is above, nats per datum, where known.
    """
    iterations, mean, low, high = smoothed(-np.asarray(losses, float) / _BITS)
    axes.fill_between(iterations, low, high, color=MODEL, alpha=0.2, linewidth=0, label="10% to 90% of estimates")
    axes.plot(iterations, mean, color=MODEL, label="training estimate, averaged")
    lines = [
        (entropy_limit, LIMIT, ":", "entropy limit"),
        (elbo, DATA, "--", "at the end"),
        (null, "black", "-.", "nothing learned, L_null"),
    ]
    known = [(nats / _BITS, *look) for nats, *look in lines if nats is not None]
    for value, color, style, name in known:
        if np.isfinite(value):
            axes.axhline(value, color=color, linestyle=style, linewidth=1.2, label=f"{name}, {value:.3f}")
        else:  # L_null is -inf where the end of the chain lacks some of the data
            axes.plot([], [], color=color, linestyle=style, label=f"{name}, {value}")
    ends = [value for value, *_ in known if np.isfinite(value)]
    shown = ends + ([] if null is not None and np.isfinite(null) else [*mean[np.isfinite(mean)]])
    top, bottom = max(shown, default=1.0), min(shown, default=0.0)
    height = top - bottom or 1.0
    axes.set(ylim=(bottom - 0.2 * height, top + 0.1 * height), xscale="log")
    axes.set(xlabel="iteration", ylabel="objective (bits per datum)", title="Training")
    _legend_below(axes)


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
    axes.set(xlabel="step t", ylabel="KL of one step (bits per datum)", title="The bound, step by step")
    if kls.shape[1] == 0:
        axes.text(0.5, 0.5, "T = 1: no step is learned", ha="center", transform=axes.transAxes)
        return
    starts = np.arange(0, kls.shape[1], -(-kls.shape[1] // 250) or 1)
    sizes = np.diff(np.append(starts, kls.shape[1]))
    t = 2 + starts + (sizes - 1) / 2
    total, kls = kls.sum(1).mean(), np.add.reduceat(kls, starts, axis=1) / sizes
    mean, error = kls.mean(0), kls.std(0) / np.sqrt(max(len(kls) - 1, 1))
    band = (mean - 2 * error, mean + 2 * error)
    axes.fill_between(t, *band, color=MODEL, alpha=0.3, linewidth=0, label="± 2 standard errors")
    marker = "." if len(t) < 100 else None
    axes.plot(t, mean, color=MODEL, marker=marker, linewidth=1, label=f"mean; the sum is {total:.3f} bits")
    if mean.min() > 0 and mean.max() > 20 * np.median(mean):
        axes.set_yscale("log")
    elif mean.min() >= 0:
        axes.set_ylim(bottom=0)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize="x-small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


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
