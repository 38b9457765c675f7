"""The figure of posteriors: what was observed, samples, their mean and spread; and how even the weights stayed.

It draws what `dpm_ppl.inference.smc` computes: the record `Posterior`, one for each datum.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from numpyro.distributions import constraints

from dpm_ppl.inference import Posterior
from dpm_ppl.inference.psis import GOOD_KHAT
from dpm_ppl.reports.panels import (
    LIMIT,
    MODEL,
    NUM_POINTS,
    QUIET,
    common_scale,
    draw_states,
    is_binary_vector,
    is_image,
    is_plane,
)

MOST_SHOWN = 6  # data in a figure

_NUM_SAMPLES = {"plane": 500, "sequence": 20, "image": 16, "other": 30}


def posterior_figure(
    posteriors: Sequence[Posterior],
    *,
    y: ArrayLike,
    known: ArrayLike,
    support: constraints.Constraint,
    noise: float | None = None,
    prior: ArrayLike | None = None,
    names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Posteriors, one panel or row each, and below them the weights of each step.

    Args:
        posteriors: `Posterior` of each datum; the first six are drawn.
        y: What was observed, shape (num_data, *event).
        known: Which coordinates were, boolean, shape (*event).
        support: Where data lie.
        noise: Standard deviation of the noise of real numbers, or None.
        prior: Samples without an observation, shape (num_samples, 2), to be drawn behind points of the plane.
        names: Title of each datum.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.
    """
    y, known = np.asarray(y, float), np.asarray(known, bool)
    shown, kind = list(posteriors)[:MOST_SHOWN], _kind(known.shape, support)
    labels = [f"datum {i}" for i in range(len(shown))]
    num_columns = {"image": 1, "other": 1, "plane": 3, "sequence": 3}[kind]
    num_columns = min(num_columns, len(shown))
    num_rows = math.ceil(len(shown) / num_columns)
    height = {"plane": 4.8, "sequence": 4.6, "image": 2.7, "other": 3.2}[kind]
    width = {"plane": 4.2, "sequence": 4.2, "image": 10.0, "other": 10.0}[kind] * num_columns
    figure = Figure(figsize=(max(width, 8.0), height * num_rows + 3.3), layout="constrained")
    hidden = len(posteriors) - len(shown)
    figure.suptitle(f"{title}; {len(shown)} of {len(posteriors)} data" if hidden else title)
    halves: Any = figure.subfigures(2, 1, height_ratios=[height * num_rows, 3.0])
    above, below = halves
    cells = np.ravel(above.subfigures(num_rows, num_columns, squeeze=False))
    for i, (posterior, datum, cell) in enumerate(zip(shown, y, cells, strict=False)):
        cell.suptitle(f"{labels[i]}: {names[i]}" if i < len(names) else labels[i], fontsize="medium")
        if kind == "plane":
            draw_plane(cell.subplots(), posterior, y=datum, known=known, noise=noise, prior=prior)
        elif kind == "sequence":
            top, bottom = cell.subplots(2, 1, height_ratios=[3, 8], sharex=True)
            draw_sequences(top, bottom, posterior, y=datum, known=known)
        elif kind == "image":
            _draw_images(cell.subplots(1, 4), posterior, y=datum, known=known, support=support)
        else:
            draw_coordinates(cell.subplots(), posterior, y=datum, known=known, noise=noise)
    left, right = below.subplots(1, 2)
    draw_weights(left, right, dict(zip(labels, shown, strict=True)))
    return figure


def draw_plane(
    axes: Axes,
    posterior: Posterior,
    *,
    y: ArrayLike,
    known: ArrayLike,
    noise: float | None = None,
    prior: ArrayLike | None = None,
) -> None:
    """Draws a posterior over points of the plane: samples over those of the prior, mean, spread and observation.

    Args:
        axes: Where to draw.
        posterior: `Posterior` of event shape (2,).
        y: What was observed, shape (2,): a cross, or where one coordinate was, a line; with twice the noise around.
            On the line of a coordinate that is known exactly, a histogram shows the other.
        known: Which coordinates were, shape (2,).
        noise: Standard deviation of the noise, or None.
        prior: Samples without an observation, shape (num_samples, 2).
    """
    y, known, samples = np.asarray(y, float), np.asarray(known, bool), _samples(posterior, _NUM_SAMPLES["plane"])
    behind = samples if prior is None else np.asarray(prior)[:NUM_POINTS]
    reach = np.abs(np.where(known, y, 0)).max() + (2 * noise if noise is not None and known.any() else 0)
    high = 1.05 * max(common_scale([behind, samples], symmetric=True)[1], reach)
    if prior is not None:
        axes.scatter(
            behind[:, 0], behind[:, 1], s=3, color=QUIET, alpha=0.5, linewidths=0, label="prior", rasterized=True
        )
    axes.scatter(
        samples[:, 0], samples[:, 1], s=6, color=MODEL, alpha=0.6, linewidths=0, label="posterior", rasterized=True
    )
    seen: Any = {"color": "black", "linewidth": 0.8, "label": "observation"}
    if known.all():
        axes.plot(*y, "+", markersize=11, markeredgewidth=1.8, color="black", label="observation")
        if noise is not None:
            around = np.linspace(0, 2 * math.pi, 100)
            circle = y[:, None] + 2 * noise * np.stack([np.cos(around), np.sin(around)])
            axes.plot(*circle, ":", color="black", linewidth=1.2, label="± 2 noise")
    elif known.any():
        (axes.axvline if known[0] else axes.axhline)(y[known][0], **seen)
        if noise is None:
            _draw_histogram(axes, samples[:, ~known][:, 0], beside=y[known][0], upright=bool(known[0]), high=high)
        if noise is not None:
            span = (y[known][0] - 2 * noise, y[known][0] + 2 * noise)
            (axes.axvspan if known[0] else axes.axhspan)(
                *span, color="black", alpha=0.1, linewidth=0, label="± 2 noise"
            )
    mean, (variance, vectors) = np.asarray(posterior.mean()), np.linalg.eigh(np.asarray(posterior.covariance()))
    if known.any() and noise is None:
        name = "mean"  # without spread in a direction there is no ellipse
    else:
        name, extent = "mean, 2 sd", 4 * np.sqrt(np.maximum(variance, 0))  # two standard deviations to either side
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        outline: Any = {"angle": angle, "fill": False, "color": LIMIT, "linewidth": 1.2}
        axes.add_patch(Ellipse((mean[0], mean[1]), extent[1], extent[0], **outline))
    axes.plot(*mean, "D", markersize=5, color=LIMIT, markeredgecolor="white", label=name)
    axes.set(xlim=(-high, high), ylim=(-high, high), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3}
    axes.legend(fontsize="x-small", frameon=False, markerscale=1.2, **place)


def _draw_histogram(axes: Axes, values: np.ndarray, *, beside: float, upright: bool, high: float) -> None:
    """Draws, on the line that all samples lie on, how many lie where."""
    counts, edges = np.histogram(values, np.linspace(-high, high, 61))
    outline = beside + 0.5 * high * np.repeat(counts, 2) / max(counts.max(), 1)
    fill = axes.fill_betweenx if upright else axes.fill_between
    fill(np.repeat(edges, 2)[1:-1], beside, outline, color=MODEL, alpha=0.3, linewidth=0)


def draw_sequences(top: Axes, bottom: Axes, posterior: Posterior, *, y: ArrayLike, known: ArrayLike) -> None:
    """Draws a posterior over binary sequences: observation, mean and spread as rows; below them samples.

    Args:
        top: Where the three rows go; bins that were not observed are hatched.
        bottom: Where samples go.
        posterior: `Posterior` of event shape (length,).
        y: What was observed, shape (length,).
        known: Which bins were, shape (length,).
    """
    mean, spread = _moments(posterior)
    rows = np.ma.array([np.asarray(y, float), mean, 2 * spread], mask=False)  # the widest spread of a bit is 1/2
    rows[0] = np.ma.masked_where(~np.asarray(known, bool), rows[0])
    _hatch(top)
    top.imshow(rows, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    top.hlines([0.5, 1.5], -0.5, mean.size - 0.5, color="white", linewidth=3)
    top.set_yticks(range(3), ["observation", "mean", "spread"])
    samples = _samples(posterior, _NUM_SAMPLES["sequence"])
    draw_states(bottom, samples, support=constraints.boolean, scale=(0.0, 1.0), origin=samples, color=MODEL)
    bottom.set(ylabel="samples", yticks=[])


def draw_coordinates(
    axes: Axes, posterior: Posterior, *, y: ArrayLike, known: ArrayLike, noise: float | None = None
) -> None:
    """Draws a posterior coordinate by coordinate: samples, mean and two standard deviations, and what was observed.

    Args:
        axes: Where to draw.
        posterior: `Posterior` of any event shape; coordinates are laid flat.
        y: What was observed, shape (*event).
        known: Which coordinates were, shape (*event).
        noise: Standard deviation of the noise, or None.
    """
    (mean, spread), samples = _moments(posterior), _samples(posterior, _NUM_SAMPLES["other"])
    place, seen = np.arange(mean.size), np.ravel(np.asarray(known, bool))
    lines = axes.plot(place, samples.reshape(len(samples), -1).T, ".-", color=MODEL, alpha=0.2, linewidth=0.8)
    lines[0].set_label("samples")
    error: Any = {"fmt": "D", "markersize": 4, "capsize": 3, "color": LIMIT, "label": "mean, 2 sd"}
    axes.errorbar(place, mean.ravel(), 2 * spread.ravel(), **error)
    observed: Any = {"fmt": "+", "markersize": 10, "markeredgewidth": 1.8, "color": "black", "label": "observation"}
    around = None if noise is None else np.full(int(seen.sum()), 2 * noise)
    axes.errorbar(place[seen] + 0.12, np.ravel(np.asarray(y, float))[seen], around, linewidth=0.8, **observed)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="coordinate", ylabel="value", xlim=(-0.6, mean.size - 0.4))
    axes.legend(fontsize="x-small", framealpha=0.8)


def draw_weights(ess_axes: Axes, khat_axes: Axes, posteriors: Mapping[str, Posterior]) -> None:
    """Draws the effective share of the particles and k-hat against the step, from T on the right to 0.

    Args:
        ess_axes: Where the shares go.
        khat_axes: Where k-hat goes; values above 2 are drawn there, and infinite ones too.
        posteriors: `Posterior` by name.
    """
    colors = matplotlib.color_sequences["tab10"]
    for (name, posterior), color in zip(posteriors.items(), colors, strict=False):
        share, khat = np.asarray(posterior.ess) / posterior.num_particles, np.minimum(posterior.khat, 2.0)
        marker = "." if len(share) <= 100 else None
        ess_axes.plot(share, marker=marker, linewidth=1, color=color, label=name)
        khat_axes.plot(khat, marker=marker, linewidth=1 if marker else 0.6, color=color, label=name)
    khat_axes.axhline(GOOD_KHAT, color="black", linestyle="--", linewidth=1, label=f"{GOOD_KHAT}")
    ess_axes.set(xlabel="step t", ylabel="effective share of particles", title="Effective sample size")
    ess_axes.set(ylim=(0, 1.04))
    khat_axes.set(xlabel="step t", ylabel="k-hat", title="Tails of the weights", ylim=(-1.0, 2.1))
    khat_axes.legend(fontsize="x-small", framealpha=0.8)


def _draw_images(axes: Any, posterior: Posterior, *, y: np.ndarray, known: np.ndarray, support: Any) -> None:
    """Observation (the rest hatched), mean, spread and samples of an image."""
    mean, spread = _moments(posterior)
    samples = _samples(posterior, _NUM_SAMPLES["image"])
    low, high = common_scale([samples, y[known]], symmetric=False)
    flat = known if known.ndim == 2 else known.any(-1)
    panels = [(y, low, high), (mean, low, high), (spread, 0.0, float(spread.max()) or 1.0)]
    for place, (values, least, most), name in zip(axes, panels, ("observation", "mean", "spread"), strict=False):
        image = np.clip((values - least) / (most - least), 0, 1)
        image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        opaque = flat.astype(float) if name == "observation" else np.ones(flat.shape)
        colors = image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)
        _hatch(place)
        place.imshow(np.concatenate([colors, opaque[..., None]], -1), interpolation="nearest")
        place.set(xticks=[], yticks=[], title=name if name != "spread" else f"spread, up to {spread.max():.2g}")
    draw_states(axes[3], samples, support=support, scale=(low, high), origin=samples, color=MODEL)
    axes[3].set_title("samples")


def _hatch(axes: Axes) -> None:
    """Hatches what nothing is drawn on."""
    axes.patch.set(hatch="//////", facecolor="white", edgecolor=QUIET, linewidth=0)


def _kind(event_shape: tuple[int, ...], support: constraints.Constraint) -> str:
    if is_plane(event_shape, support):
        return "plane"
    if is_binary_vector(event_shape, support):
        return "sequence"
    return "image" if is_image(event_shape) else "other"


def _samples(posterior: Posterior, num: int) -> np.ndarray:
    """Particles in proportion to their weights, shape (num, *event)."""
    total = np.cumsum(np.asarray(posterior.weight, float))
    rows = np.searchsorted(total / total[-1], (np.arange(num) + 0.5) / num)
    return np.asarray(posterior.samples)[rows]


def _moments(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each coordinate, shape (*event)."""
    weight, samples = np.asarray(posterior.weight, float), np.asarray(posterior.samples, float)
    mean = np.tensordot(weight, samples, 1)
    return mean, np.sqrt(np.maximum(np.tensordot(weight, (samples - mean) ** 2, 1), 0))
