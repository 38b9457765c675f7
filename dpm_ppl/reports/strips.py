"""Strips: one datum on its way up the forward chain, and one sample on its way down the reverse chain."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from numpyro.distributions import constraints

from dpm_ppl.chains import forward_states
from dpm_ppl.data import fresh_data
from dpm_ppl.parts import parts_of, rows_of
from dpm_ppl.programs import Program
from dpm_ppl.reports.panels import DATA, MODEL, display_range, draw_states
from dpm_ppl.reports.steps import reverse_steps

NUM_TIMES = 11

_NUM_SEEN = 256  # data, for their range


def strips(program: Program, data: Any, params: Mapping[str, Any], *, key: Array) -> Figure:
    """The strips of a program whose data are images, at times from 0 to T that are evenly spaced.

    Args:
        program: The program, a single chain.
        data: Its data.
        params: Its parameters.
        key: Random key.

    Returns:
        A figure that belongs to no window.
    """
    parts, keys = parts_of(program, data), jax.random.split(key, 3)
    batch = fresh_data(data, key=keys[0], num_data=_NUM_SEEN)
    x0, context = parts.x0(batch), rows_of(parts.context(batch), np.arange(1))
    diffusion = parts.built(params, context)
    times = {round(t) for t in np.linspace(0, diffusion.num_steps, NUM_TIMES)}

    @jax.jit
    def up(params: Any, x0: Array) -> Any:
        return forward_states(parts.built(params, context), x0, key=keys[1], times=times)

    down = reverse_steps(parts, context, key=keys[2], num_samples=1, num_steps=diffusion.num_steps)
    return strips_figure(
        {t: x[0] for t, x in up(params, x0[:1]).items()},
        {t: x[0] for t, x in down(params) if t in times},
        support=diffusion.kernel.stationary().support,
        scale=display_range(x0),
        title=program.path.stem,
    )


def strips_figure(
    forward: Mapping[int, ArrayLike],
    reverse: Mapping[int, ArrayLike],
    *,
    support: constraints.Constraint,
    scale: tuple[float, float],
    title: str = "",
) -> Figure:
    """A row of images for each chain, a time above the other.

    Args:
        forward: States of one forward trajectory by time t, each an image; that of time 0 is a datum.
        reverse: States of one trajectory of the model at the same times.
        support: Support of a state.
        scale: What is black and what is white (see `dpm_ppl.reports.panels.display_range`).
        title: Heading.

    Returns:
        A figure that belongs to no window.

    Raises:
        ValueError: the two are not at the same times.
    """
    if set(forward) != set(reverse):
        raise ValueError(f"Expected both strips at the same times; got {sorted(forward)} and {sorted(reverse)}.")
    times = sorted(forward)
    figure = Figure(figsize=(1.1 * len(times) + 0.6, 3.2), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(2, len(times), squeeze=False)
    named = (("Forward \N{RIGHTWARDS ARROW}", forward, DATA), ("\N{LEFTWARDS ARROW} Reverse", reverse, MODEL))
    for row, (name, states, color) in zip(grid, named, strict=True):
        for axes, t in zip(row, times, strict=True):
            draw_states(axes, np.asarray(states[t])[None], support=support, scale=scale, color=color)
        row[0].set_axis_on()
        row[0].set(xticks=[], yticks=[], ylabel=name)
    for axes, t in zip(grid[0], times, strict=True):
        axes.set_title(f"t = {t}", fontsize="small")
    grid[0, 0].set_title("data", fontsize="small")
    grid[1, 0].set_title("sample", fontsize="small")
    return figure
