"""Panels of a figure that show states of a chain: points of the plane, binary sequences, images, or histograms."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpyro.distributions import constraints

from dpm_ppl.diffusion import Diffusion

# Okabe and Ito's colours, told apart by every kind of colour vision.
DATA, MODEL, LIMIT, FAULT, QUIET = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"

NUM_ROWS = 30  # binary sequences in a panel

NUM_POINTS = 3000  # points of the plane in a panel


def is_plane(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether states are points of the plane."""
    return event_shape == (2,) and not support.is_discrete


def is_binary_vector(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether states are sequences of zeros and ones."""
    return len(event_shape) == 1 and bool(support.is_discrete)


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether states are images, (H, W), (H, W, 1) or (H, W, 3)."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[-1] in (1, 3))


def draw_states(
    axes: Axes,
    x: ArrayLike,
    *,
    support: constraints.Constraint,
    scale: tuple[float, float],
    origin: ArrayLike,
    color: str,
) -> None:
    """Draws states as what their shape and support say they are.

    Args:
        axes: Where to draw.
        x: States, shape (num_states, *event).
        support: Support of a state.
        scale: Least and greatest value on the axes or grey levels, common to panels that are compared.
        origin: Where the same trajectories are at t = 0, shape as x: points of the plane are coloured by its radius.
        color: Colour of histograms, and of the rest where there is one colour.
    """
    x, origin = np.asarray(x), np.asarray(origin)
    event_shape = x.shape[1:]
    if is_plane(event_shape, support):
        radius = np.linalg.norm(origin[:NUM_POINTS], axis=-1)
        points = x[:NUM_POINTS]
        colors: Any = {"c": radius, "cmap": "viridis", "vmin": 0, "vmax": 0.65 * scale[1]}
        axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.7, linewidths=0, rasterized=True, **colors)
        axes.set(xlim=scale, ylim=scale, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    elif is_binary_vector(event_shape, support):
        axes.imshow(x[:NUM_ROWS], cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.hlines(np.arange(min(len(x), NUM_ROWS) - 1) + 0.5, -0.5, x.shape[1] - 0.5, color="white", linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="bin", ylabel="sequence")
    elif is_image(event_shape):
        axes.imshow(tiled(x), cmap="gray", vmin=scale[0], vmax=scale[1], interpolation="nearest")
        axes.set_axis_off()
    else:
        _draw_histograms(axes, x.reshape(len(x), -1), scale, color)


def tiled(images: np.ndarray) -> np.ndarray:
    """Up to 64 images of shape (num_images, H, W[, C]) as one square mosaic, with a white pixel between."""
    images = images[:64].astype(float)
    images = images[..., None] if images.ndim == 3 else images
    side = math.ceil(math.sqrt(len(images)))
    low, high = images.min(), images.max()
    images = (images - low) / (high - low) if images.shape[-1] == 3 and high > low else images
    fill = 1.0 if images.shape[-1] == 3 else high
    images = np.pad(images, [(0, side**2 - len(images)), (0, 1), (0, 1), (0, 0)], constant_values=fill)
    height, width, channels = images.shape[1:]
    mosaic = images.reshape(side, side, height, width, channels).swapaxes(1, 2)
    mosaic = mosaic.reshape(side * height, side * width, channels)
    return mosaic[:-1, :-1].squeeze(-1) if channels == 1 else mosaic[:-1, :-1]


def _draw_histograms(axes: Axes, x: np.ndarray, scale: tuple[float, float], color: str) -> None:
    num_coordinates = min(x.shape[1], 4)
    bins = np.linspace(*scale, 61).tolist()
    for coordinate in range(num_coordinates):
        label = f"coordinate {coordinate + 1} of {x.shape[1]}" if x.shape[1] > 1 else None
        style = ("-", "--", ":", "-.")[coordinate]
        axes.hist(x[:, coordinate], bins, density=True, histtype="step", color=color, linestyle=style, label=label)
    axes.set(xlim=scale, xlabel="value", ylabel="density")
    if x.shape[1] > 1:
        axes.legend(fontsize="x-small", frameon=False)


def has_drift(diffusion: Diffusion) -> bool:
    """Whether steps have a mean that all data share: a wrapped normal has none, and beside a context each has its own.

    Nothing is computed.
    """
    if diffusion.context is not None:
        return False
    x = jax.ShapeDtypeStruct((1, *diffusion.event_shape), jnp.result_type(float))
    t = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        jax.eval_shape(lambda x, t: (diffusion.decode(x).mean, diffusion.reverse(x, t).mean), x, t)
    except NotImplementedError:
        return False
    return True


def draw_drift(axes: Axes, diffusion: Diffusion, t: int, *, scale: tuple[float, float], behind: ArrayLike) -> None:
    """Draws what a reverse step does on average, E[x^(t-1) | x^t] - x^t, as arrows over the plane.

    Arrows are strong where the forward chain comes, so that something was learned, and pale elsewhere; long ones are
    cut.

    Args:
        axes: Where to draw.
        diffusion: The diffusion, of event shape (2,).
        t: Step, 1 <= t <= T.
        scale: Least and greatest coordinate of the panel.
        behind: States x^t of forward trajectories, shape (num_states, 2), drawn in grey.
    """
    behind = np.asarray(behind)[:NUM_POINTS]
    line = np.linspace(*scale, 27)[1:-1]
    spacing = float(line[1] - line[0])
    at = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    mean = jax.jit(lambda x: (diffusion.reverse(x, jnp.asarray(t)) if t > 1 else diffusion.decode(x)).mean)
    arrow = np.asarray(mean(jnp.asarray(at))) - at
    length = np.maximum(np.linalg.norm(arrow, axis=-1), 1e-12)
    visited = (np.linalg.norm(at[:, None] - behind[None], axis=-1) < spacing).sum(-1) >= 3
    unit = float(np.quantile(length[visited] if visited.any() else length, 0.9))  # drawn as one and a half spacings
    arrow = arrow * np.minimum(1, 1.3 * unit / length)[:, None]
    axes.scatter(behind[:, 0], behind[:, 1], s=3, color=QUIET, alpha=0.35, linewidths=0, rasterized=True)
    for shown, alpha in ((~visited, 0.3), (visited, 1.0)):
        style: Any = {"angles": "xy", "scale_units": "xy", "scale": unit / (1.5 * spacing), "width": 0.004}
        if shown.any():
            axes.quiver(*at[shown].T, *arrow[shown].T, color=MODEL, alpha=alpha, **style)
    axes.set(xlim=scale, ylim=scale, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    axes.set_title(
        f"Drift E[x$^{{({t - 1})}}$|x$^{{({t})}}$] − x$^{{({t})}}$\nlongest arrows: {1.3 * unit:.2g} or more"
    )


def sequence_counts(x: ArrayLike, sequences: ArrayLike) -> tuple[np.ndarray, int]:
    """How often each sequence occurs among samples, shape (num_sequences,), and how many samples are none of them."""
    x, sequences = np.asarray(x), np.asarray(sequences)
    same = (x[:, None] == sequences[None]).all(-1)
    return same.sum(0), int((~same.any(-1)).sum())


def draw_frequencies(axes: Axes, x: ArrayLike, *, sequences: ArrayLike, probabilities: ArrayLike) -> None:
    """Draws how often each valid sequence is sampled, against its probability, and the share of invalid ones.

    Args:
        axes: Where to draw.
        x: Samples, shape (num_samples, length).
        sequences: Valid sequences, shape (num_sequences, length).
        probabilities: Their probabilities in the data, shape (num_sequences,).
    """
    x = np.asarray(x)
    counts, num_invalid = sequence_counts(x, sequences)
    share = np.append(counts, num_invalid) / len(x)
    error = np.sqrt(share * (1 - share) / len(x))
    place = np.arange(len(share))
    colors = [MODEL] * len(counts) + [FAULT]
    axes.bar(place, share, yerr=error, color=colors, width=0.7, capsize=3, label="samples, with standard error")
    axes.hlines(probabilities, place[:-1] - 0.45, place[:-1] + 0.45, color="black", linestyle="--", label="data")
    above = (place[-1], share[-1] + error[-1])
    axes.annotate(f"{share[-1]:.1%}", above, (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(place, [*_names(np.asarray(sequences)), "invalid"], fontsize="xx-small", family="monospace")
    axes.set(xlabel="sequence", ylabel=f"share of {len(x):,} samples", title="How often each valid sequence is sampled")
    axes.legend(fontsize="small", frameon=False, loc="upper right", ncols=2)
    axes.set_ylim(0, 1.3 * max((share + error).max(), float(np.max(probabilities))))


def _names(sequences: np.ndarray) -> list[str]:
    """A label for each sequence: itself, cut to the room there is, or its number where there are many."""
    room = 120 // len(sequences)
    if room < 10:
        return [str(i) for i in range(len(sequences))]
    text = ["".join(str(int(bit)) for bit in sequence) for sequence in sequences]
    return [name if len(name) <= room else f"{name[: room - 1]}…" for name in text]


def common_scale(states: Iterable[ArrayLike], *, symmetric: bool) -> tuple[float, float]:
    """Least and greatest value to show in panels that are compared, evenly about zero where asked."""
    values = np.concatenate([np.ravel(np.asarray(x, float)) for x in states])
    low, high = (float(bound) for bound in np.quantile(values, (0.0005, 0.9995)))
    if symmetric:
        high = max(-low, high)
        low = -high
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
