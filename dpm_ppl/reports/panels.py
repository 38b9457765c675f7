"""Panels of a figure that show states of a chain: points, sequences of bits or letters, labels, images, histograms."""

import math
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from numpyro.distributions import constraints

# Okabe and Ito's colours, told apart by every kind of colour vision.
DATA, MODEL, LIMIT, FAULT, QUIET = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"

NUM_ROWS = 30  # sequences in a panel

NUM_POINTS = 3000  # points in a panel

_MOST_LETTERS = 10  # states that have a colour and a digit of their own


def is_plane(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether states are points of the plane."""
    return event_shape == (2,) and not support.is_discrete


def is_cloud(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether states are points of three or more dimensions."""
    return math.prod(event_shape) > 2 and not support.is_discrete and not is_image(event_shape)


def is_label(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether a state is one whole number: a bit, a category or a count."""
    return math.prod(event_shape) == 1 and bool(support.is_discrete)


def is_sequence(event_shape: tuple[int, ...], support: constraints.Constraint) -> bool:
    """Whether states are sequences of whole numbers: bits, letters or counts."""
    return math.prod(event_shape) > 1 and bool(support.is_discrete) and not is_image(event_shape)


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether states are images, (H, W), (H, W, 1) or (H, W, 3)."""
    shaped = len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[-1] in (1, 3))
    return shaped and math.prod(event_shape) > 1


def caption(event_shape: tuple[int, ...], support: constraints.Constraint) -> str:
    """What `draw_states` does not say itself, in words; empty where nothing is left to say."""
    if is_plane(event_shape, support):
        return "Colour: how far a point is from the centre at t = 0; it keeps its colour along its trajectory."
    if is_cloud(event_shape, support):
        size = math.prod(event_shape)
        return (
            f"Coordinates 1 and 2 of {size}; colour: coordinate 3 at t = 0, which a point keeps along its trajectory."
        )
    if is_sequence(event_shape, support):
        return "A row is a sequence. Of bits, ones are black; other states are digits, each of its own colour."
    return ""


def hues(x0: ArrayLike, data: ArrayLike) -> np.ndarray:
    """Where points are among the data, from 0 to 1, for their colours: distance from the centre, or third coordinate.

    Args:
        x0: Points at t = 0, shape (num_points, *event) of two or more coordinates.
        data: What is 0 and 1: all but the outermost of these, shape (num_data, *event).

    Returns:
        Shape (num_points,).
    """

    def raw(x: ArrayLike) -> np.ndarray:
        flat = np.asarray(x, float).reshape(len(np.asarray(x)), -1)
        return np.linalg.norm(flat, axis=-1) if flat.shape[1] == 2 else flat[:, 2]

    low, high = np.quantile(raw(data), (0.005, 0.995))
    return np.clip((raw(x0) - low) / (high - low or 1.0), 0, 1)


def draw_states(
    axes: Axes,
    x: ArrayLike,
    *,
    support: constraints.Constraint,
    scale: tuple[float, float],
    hue: ArrayLike | None = None,
    color: str,
) -> None:
    """Draws states as what their shape and support say they are.

    Args:
        axes: Where to draw.
        x: States, shape (num_states, *event).
        support: Support of a state.
        scale: Least and greatest value on the axes or grey levels, common to panels that are compared.
        hue: `hues` of points, shape (num_states,); by default all have one colour.
        color: Colour of bars and histograms, and of points without a hue.
    """
    x = np.asarray(x)
    event_shape, flat = x.shape[1:], x.reshape(len(x), -1)
    if is_plane(event_shape, support) or is_cloud(event_shape, support):
        points = flat[:NUM_POINTS]
        colors: Any = {"color": color}
        if hue is not None:
            colors = {"c": np.asarray(hue)[:NUM_POINTS], "cmap": "viridis", "vmin": 0, "vmax": 1}
        axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.7, linewidths=0, rasterized=True, **colors)
        axes.set(xlim=scale, ylim=scale, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    elif is_sequence(event_shape, support):
        _draw_sequences(axes, flat[:NUM_ROWS], scale)
    elif is_image(event_shape):
        axes.imshow(tiled(x, scale=scale), cmap="gray", vmin=scale[0], vmax=scale[1], interpolation="nearest")
        axes.set_axis_off()
    elif is_label(event_shape, support):
        states, counts = np.unique(flat, return_counts=True)
        axes.bar(states, counts / len(flat), color=color, width=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlim=scale, xlabel="state", ylabel="share")
    else:
        axes.hist(flat[:, 0], np.linspace(*scale, 61).tolist(), density=True, histtype="step", color=color)
        axes.set(xlim=scale, xlabel="value", ylabel="density")


def _draw_sequences(axes: Axes, rows: np.ndarray, scale: tuple[float, float]) -> None:
    """Sequences as rows: bits black on white, a few letters as digits in colours, counts in shades."""
    levels: Any = {"cmap": "viridis", "vmin": scale[0], "vmax": scale[1]}
    letters = 1.5 < scale[1] < _MOST_LETTERS and scale[0] > -1
    if letters:
        pale = matplotlib.color_sequences["tab20"][1::2]
        levels = {"cmap": ListedColormap(pale), "vmin": -0.5, "vmax": _MOST_LETTERS - 0.5}
    elif scale[1] <= 1.5:
        levels = {"cmap": "Greys", "vmin": 0, "vmax": 1}
    axes.imshow(rows, aspect="auto", interpolation="nearest", **levels)
    axes.hlines(np.arange(len(rows) - 1) + 0.5, -0.5, rows.shape[1] - 0.5, color="white", linewidth=1.5)
    if letters and rows.shape[1] <= NUM_ROWS:
        for (row, place), state in np.ndenumerate(rows):
            axes.text(place, row, str(int(state)), ha="center", va="center", fontsize=6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="place", ylabel="sequence")


def tiled(images: np.ndarray, *, scale: tuple[float, float]) -> np.ndarray:
    """Up to 64 images of shape (num_images, H, W[, C]) as one square mosaic, with a white pixel between.

    Args:
        images: The images.
        scale: What is black and what is white. Of three channels the mosaic is in 0 to 1, cut off there, and else as
            the images are.
    """
    images = images[:64].astype(float)
    images = images[..., None] if images.ndim == 3 else images
    side, (low, high) = math.ceil(math.sqrt(len(images))), scale
    images = np.clip((images - low) / (high - low), 0, 1) if images.shape[-1] == 3 else images
    fill = 1.0 if images.shape[-1] == 3 else high
    images = np.pad(images, [(0, side**2 - len(images)), (0, 1), (0, 1), (0, 0)], constant_values=fill)
    height, width, channels = images.shape[1:]
    mosaic = images.reshape(side, side, height, width, channels).swapaxes(1, 2)
    mosaic = mosaic.reshape(side * height, side * width, channels)
    return mosaic[:-1, :-1].squeeze(-1) if channels == 1 else mosaic[:-1, :-1]


def display_range(x0: ArrayLike) -> tuple[float, float]:
    """What is black and what is white in panels of images: the least and greatest value of the data.

    Whatever a model makes is shown on the data's own range: one stretched to fit its samples makes any of them look
    like images.

    Args:
        x0: Data, shape (num_data, *event).
    """
    x0 = np.asarray(x0, float)
    low, high = float(x0.min()), float(x0.max())
    return low, high if high > low else low + 1.0


def common_scale(states: Iterable[ArrayLike], *, symmetric: bool = False) -> tuple[float, float]:
    """Least and greatest value to show in panels that are compared; of real numbers without the outermost.

    Args:
        states: States of each panel.
        symmetric: Whether the scale lies evenly about zero.

    Returns:
        The ends, with a margin.
    """
    arrays = [np.ravel(np.asarray(x)) for x in states]
    whole = all(x.dtype.kind in "biu" for x in arrays)
    values = np.concatenate([x.astype(float) for x in arrays])
    low, high = (float(bound) for bound in np.quantile(values, (0, 1) if whole else (0.0005, 0.9995)))
    if symmetric:
        high = max(-low, high)
        low = -high
    margin = 0.5 if whole else 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def legend_below(axes: Axes, *, num_columns: int = 1) -> None:
    """A legend under the axis, where it covers nothing.

    Args:
        axes: What it explains.
        num_columns: Number of columns.
    """
    place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": num_columns}
    axes.legend(fontsize="x-small", frameon=False, **place)
