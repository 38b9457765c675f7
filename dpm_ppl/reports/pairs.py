"""The pair plot: clouds of points of three or more dimensions over one another, by every two of their coordinates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from dpm_ppl.reports.panels import NUM_POINTS, common_scale

MOST_COORDINATES = 4

HEIGHT = 2.4  # of a coordinate, inches


def pair_plot(figure: Any, clouds: Mapping[str, tuple[ArrayLike, str]]) -> dict[tuple[int, int], Axes]:
    """Draws clouds over one another: below the diagonal every two coordinates, on it the density of each.

    Args:
        figure: Figure or subfigure, to be filled.
        clouds: By name, points of shape (num_points, *event) and their colour; the last lies on top. None is drawn with
            more points than one below it has, which it would hide; of more than four coordinates the first four are
            drawn. The legend says both. Densities are of all points.

    Returns:
        The axes by (row, column), column <= row: coordinate `column` is the abscissa, coordinate `row` the ordinate.
    """
    flat = {name: np.asarray(x).reshape(len(np.asarray(x)), -1) for name, (x, _) in clouds.items()}
    num_all = next(iter(flat.values())).shape[1]
    num = min(num_all, MOST_COORDINATES)
    most = np.minimum.accumulate([NUM_POINTS, *map(len, flat.values())])[1:]
    scales = [common_scale([x[:, i] for x in flat.values()]) for i in range(num)]
    grid = figure.subplots(num, num, sharex="col", squeeze=False)
    axes = {}
    for (row, column), place in np.ndenumerate(grid):
        if column > row:
            place.remove()
            continue
        axes[row, column] = place
        place.set_box_aspect(1)
        place.set(xlim=scales[column], xlabel=f"$x_{column + 1}$", ylabel=f"$x_{row + 1}$")
        for (name, x), (_, color), num_points in zip(flat.items(), clouds.values(), most, strict=True):
            if row == column:
                bins = np.linspace(*scales[row], 41).tolist()
                place.hist(x[:, row], bins, density=True, histtype="step", color=color, label=name)
            else:
                points = x[:num_points]
                style: Any = {"s": 3, "alpha": 0.5, "linewidths": 0, "rasterized": True}
                place.scatter(points[:, column], points[:, row], color=color, label=name, **style)
        if row == column:
            place.set(yticks=[], ylabel="" if row else "density")
        else:
            place.set_ylim(scales[row])
        if row < num - 1:
            place.tick_params(labelbottom=False)
            place.set_xlabel("")
        if 0 < column < row:
            place.tick_params(labelleft=False)
            place.set_ylabel("")
    handles, names = axes[0, 0].get_legend_handles_labels()
    which = [f"coordinates 1 to {num} of {num_all}"] if num < num_all else []
    for (name, x), num_points in zip(flat.items(), most, strict=True):
        which += [f"{num_points:,} points of {len(x):,} {name}"] if len(x) > num_points else []
    figure.legend(handles, names, loc="upper right", frameon=False, fontsize="small", title="\n".join(which) or None)
    return axes
