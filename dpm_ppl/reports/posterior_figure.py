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

from dpm_ppl.distributions import coordinate_support
from dpm_ppl.inference import Posterior
from dpm_ppl.inference.psis import GOOD_KHAT
from dpm_ppl.reports.pairs import MOST_COORDINATES, pair_plot
from dpm_ppl.reports.panels import (
    LIMIT,
    MODEL,
    NUM_POINTS,
    QUIET,
    common_scale,
    draw_states,
    is_cloud,
    is_image,
    is_label,
    is_plane,
    is_sequence,
)

MOST_SHOWN = 6  # data in a figure

_NUM_SAMPLES = {"cloud": 500, "sequence": 20, "image": 16, "other": 30}

# Of each kind of datum: data beside one another, and the width and height of one, inches.
_LAYOUT = {
    "plane": (3, 4.2, 4.8),
    "cloud": (2, 5.6, 5.6),
    "bits": (3, 4.2, 4.6),
    "letters": (3, 4.2, 4.6),
    "label": (3, 3.4, 3.2),
    "image": (1, 10.0, 2.7),
    "other": (1, 10.0, 3.2),
}

_MOST_KHAT = 2.0  # on the axis

_WHOLE = constraints.nonnegative_integer


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
        prior: Samples without an observation, shape (num_samples, *event), to be drawn behind points.
        names: Title of each datum.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.
    """
    y, known = np.asarray(y, float), np.asarray(known, bool)
    shown, kind = list(posteriors)[:MOST_SHOWN], _kind(known.shape, support)
    labels = [f"datum {i}" for i in range(len(shown))]
    num_columns, width, height = _LAYOUT[kind]
    num_columns = min(num_columns, len(shown))
    num_rows, width = math.ceil(len(shown) / num_columns), width * num_columns
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
        elif kind == "cloud":
            draw_cloud(cell, posterior, y=datum, known=known, noise=noise, prior=prior)
        elif kind in ("bits", "letters"):
            top, bottom = cell.subplots(2, 1, height_ratios=[3, 8], sharex=True)
            draw = draw_sequences if kind == "bits" else draw_letters
            draw(top, bottom, posterior, y=datum, known=known)
        elif kind == "label":
            draw_label(cell.subplots(), posterior, y=datum, known=known)
        elif kind == "image":
            _draw_images(cell.subplots(1, 4), posterior, y=datum, known=known, support=support)
        else:
            draw_coordinates(cell.subplots(), posterior, y=datum, known=known, noise=noise)
    left, right = below.subplots(1, 2)
    draw_weights(left, right, dict(zip(labels, shown, strict=True)))
    return figure


def shows_prior(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether samples without an observation are drawn behind those of the posterior: where both are points."""
    return _kind(event_shape, support) in ("plane", "cloud")


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
    y, known, samples = np.asarray(y, float), np.asarray(known, bool), _samples(posterior, _NUM_SAMPLES["cloud"])
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


def draw_cloud(
    figure: Any,
    posterior: Posterior,
    *,
    y: ArrayLike,
    known: ArrayLike,
    noise: float | None = None,
    prior: ArrayLike | None = None,
) -> None:
    """Draws a posterior over points of three or four dimensions: a pair plot over the prior, and what was observed.

    Args:
        figure: Figure or subfigure, to be filled; its heading stays.
        posterior: `Posterior` of an event of three or four coordinates.
        y: What was observed, shape (*event): a line in each coordinate that was, with twice the noise around.
        known: Which coordinates were, shape (*event).
        noise: Standard deviation of the noise, or None.
        prior: Samples without an observation, shape (num_samples, *event).
    """
    y, known, mean = (np.ravel(np.asarray(x)) for x in (y, known, posterior.mean()))
    clouds = {} if prior is None else {"prior": (prior, QUIET)}
    clouds |= {"posterior": (_samples(posterior, _NUM_SAMPLES["cloud"]), MODEL)}
    for (row, column), axes in pair_plot(figure, clouds).items():
        lines: list[Any] = [(axes.axvline, axes.axvspan, column)]
        lines += [(axes.axhline, axes.axhspan, row)] * (row != column)
        for line, span, i in lines:
            if known[i]:
                line(y[i], color="black", linewidth=0.8)
                if noise is not None:
                    span(y[i] - 2 * noise, y[i] + 2 * noise, color="black", alpha=0.08, linewidth=0)
        if row != column:
            axes.plot(mean[column], mean[row], "D", markersize=4, color=LIMIT, markeredgecolor="white")
    words = "black: observation" if noise is None else "black: observation, ± 2 noise"
    figure.supxlabel(f"{words}; green: mean", fontsize="small")


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
    draw_states(bottom, samples, support=_WHOLE, scale=(0.0, 1.0), color=MODEL)
    bottom.set(ylabel="samples", yticks=[])


def draw_letters(top: Axes, bottom: Axes, posterior: Posterior, *, y: ArrayLike, known: ArrayLike) -> None:
    """Draws a posterior over sequences of states that are no bits: how probable each is in each place, and samples.

    Args:
        top: Where the probabilities go, a row for each state; what was observed is crossed.
        bottom: Where samples go.
        posterior: `Posterior` of event shape (length,).
        y: What was observed, shape (length,).
        known: Which places were, shape (length,).
    """
    states, share = _state_probabilities(posterior)
    top.imshow(share, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower")
    places = np.flatnonzero(np.asarray(known, bool))
    style: Any = {"markersize": 8, "markeredgewidth": 1.8, "color": LIMIT}
    top.plot(places, np.searchsorted(states, np.asarray(y)[places]), "+", **style)
    top.set(ylabel="state", title="probability, black 1; + observed")
    top.set_yticks(range(len(states)), [str(state) for state in states])
    samples = _samples(posterior, _NUM_SAMPLES["sequence"])
    draw_states(bottom, samples, support=_WHOLE, scale=common_scale([states]), color=MODEL)
    bottom.set(ylabel="samples", yticks=[])


def draw_label(axes: Axes, posterior: Posterior, *, y: ArrayLike, known: ArrayLike) -> None:
    """Draws a posterior over one whole number as bars.

    Args:
        axes: Where to draw.
        posterior: `Posterior` of an event of one coordinate.
        y: What was observed.
        known: Whether it was.
    """
    states, share = _state_probabilities(posterior)
    axes.bar(states, share[:, 0], color=MODEL, width=0.8, label="posterior")
    if np.all(known):
        axes.axvline(float(np.ravel(np.asarray(y))[0]), color="black", linestyle=":", label="observation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="state", ylabel="probability", ylim=(0, 1.04))
    axes.legend(fontsize="x-small", framealpha=0.8)


def _state_probabilities(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """All states from the least to the greatest seen, and how probable each is in each place, (num_states, length)."""
    samples = np.asarray(posterior.samples).astype(int).reshape(posterior.num_particles, -1)
    states = np.arange(min(samples.min(), 0), samples.max() + 1)
    weight = np.asarray(posterior.weight, float)
    return states, np.stack([weight @ (samples == state) for state in states])


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
    lines[0].set_label("samples, a line each")
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
        khat_axes: Where k-hat goes; values above 2, infinite ones too, are triangles at the edge and counted.
        posteriors: `Posterior` by name.
    """
    colors, least = matplotlib.color_sequences["tab10"], -1.0
    for (name, posterior), color in zip(posteriors.items(), colors, strict=False):
        share, khat = np.asarray(posterior.ess) / posterior.num_particles, np.asarray(posterior.khat)
        marker, beyond = "." if len(share) <= 100 else None, np.flatnonzero(khat > _MOST_KHAT)
        ess_axes.plot(share, marker=marker, linewidth=1, color=color, label=name)
        within = np.where(khat > _MOST_KHAT, np.nan, khat)
        label = f"{name}; {len(beyond)} of {len(khat)} steps beyond the axis" if len(beyond) else name
        khat_axes.plot(within, marker=marker, linewidth=1 if marker else 0.6, color=color, label=label)
        khat_axes.plot(beyond, np.full(len(beyond), _MOST_KHAT), "^", markersize=5, color=color)
        least = min([least, *khat[np.isfinite(khat)]])
    khat_axes.axhline(GOOD_KHAT, color="black", linestyle="--", linewidth=1, label=f"{GOOD_KHAT}: trust what is below")
    ess_axes.set(xlabel="step t", ylabel="effective share of particles", title="Effective sample size")
    ess_axes.set(ylim=(0, 1.04))
    khat_axes.set(xlabel="step t", ylabel="Pareto k-hat", title="Tails of the weights")
    khat_axes.set(xlim=ess_axes.get_xlim(), ylim=(least - 0.1, _MOST_KHAT + 0.1))
    khat_axes.legend(fontsize="x-small", framealpha=0.8)


def _draw_images(axes: Any, posterior: Posterior, *, y: np.ndarray, known: np.ndarray, support: Any) -> None:
    """Observation (the rest hatched), mean, spread and samples of an image."""
    mean, spread = _moments(posterior)
    samples = _samples(posterior, _NUM_SAMPLES["image"])
    low, high = common_scale([samples, y[known]])
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
    draw_states(axes[3], samples, support=support, scale=(low, high), color=MODEL)
    axes[3].set_title("samples")


def _hatch(axes: Axes) -> None:
    """Hatches what nothing is drawn on."""
    axes.patch.set(hatch="//////", facecolor="white", edgecolor=QUIET, linewidth=0)


def _kind(event_shape: tuple[int, ...], support: constraints.Constraint) -> str:
    if is_plane(event_shape, support):
        return "plane"
    if is_cloud(event_shape, support) and math.prod(event_shape) <= MOST_COORDINATES:
        return "cloud"
    if is_label(event_shape, support):
        return "label"
    if is_sequence(event_shape, support):
        return "bits" if coordinate_support(support) is constraints.boolean else "letters"
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
