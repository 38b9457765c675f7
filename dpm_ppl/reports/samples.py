"""Samples of a fitted program: drawn in blocks, shown, and compared with data."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from numpyro import handlers
from numpyro.distributions import constraints
from tqdm import tqdm

from dpm_ppl.chains import reverse_states
from dpm_ppl.data import draw, fresh_data
from dpm_ppl.datasets import Scale
from dpm_ppl.inference import coverage, discriminate, parzen
from dpm_ppl.inference.devices import spread_over
from dpm_ppl.inference.progress import bar_options
from dpm_ppl.parts import Parts, parts_of, rows_of
from dpm_ppl.programs import Program
from dpm_ppl.reports.budget import affordable
from dpm_ppl.reports.fit_figure import draw_loss
from dpm_ppl.reports.frequencies import draw_frequencies, sequences_of
from dpm_ppl.reports.numbers import known_or_none
from dpm_ppl.reports.pairs import HEIGHT, MOST_COORDINATES, pair_plot
from dpm_ppl.reports.panels import (
    DATA,
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
)


def draws(parts: Parts, params: Any, *, key: Any, num_samples: int, context: Any = None) -> np.ndarray:
    """Samples x0 of a program, in blocks of one size, each from a key of its own and split over all devices.

    Args:
        parts: The program (see `dpm_ppl.parts.parts_of`).
        params: Its parameters.
        key: Random key.
        num_samples: How many; the first ones do not depend on it.
        context: What is given beside the data, leaves of any number of rows: sample i is beside row i, and after the
            last beside the first again.

    Returns:
        Samples, shape (num_samples, *event).
    """
    chain, size = parts.definition, 512
    if chain is not None:
        few = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:16], context)
        size = affordable(parts.built(params, few), seconds=10, least=16, most=4096)

    spread = spread_over(None)

    @jax.jit
    def draw(params: Any, key: Any, context: Any) -> Any:
        if chain is not None:
            return spread.constrained(reverse_states(parts.built(params, context), key=key, num_samples=size)[0])
        model = handlers.seed(handlers.substitute(parts.model, data=params), key)
        return spread.constrained(parts.generate(context, size, model=model))

    blocks = tqdm(range(-(-num_samples // size)), desc="sample", unit="block", delay=2, leave=False, **bar_options())
    given, drawn = spread.put(params), []
    for block in blocks:
        beside = spread.put_split(rows_of(context, block * size + np.arange(size)))
        drawn.append(np.asarray(draw(given, spread.put(jax.random.fold_in(key, block)), beside)))
    return np.concatenate(drawn)[:num_samples]


def compare(
    program: Program,
    params: Mapping[str, Any],
    data: Any,
    *,
    key: Array,
    num_samples: int = 20_000,
    num_covered: int = 4000,
) -> dict[str, Any]:
    """The discriminator's estimate, the two-sample test and the coverage, on fresh samples and data.

    Beside a context, pairs of datum and context are compared, the samples beside the contexts of the data.

    Args:
        program: The program.
        params: Its parameters.
        data: Its data.
        key: Random key.
        num_samples: Samples, and data, for the discriminator; fewer where they are slow to draw or data are few.
        num_covered: Of these, for the coverage, which takes all pairs.

    Returns:
        The numbers of both summaries; one that is not known is None.
    """
    parts = parts_of(program, data)
    if parts.definition is not None:
        num_samples = affordable(parts.among(data, params), seconds=60, least=1000, most=num_samples)
    keys = jax.random.split(key, 3)
    if isinstance(data, dist.Distribution):
        batch = data.sample(keys[0], (num_samples,))
    else:
        batch = fresh_data(data, key=keys[0], num_data=num_samples)
    x0, context = parts.x0(batch), parts.context(batch)
    samples = draws(parts, params, key=keys[1], num_samples=len(x0), context=context)
    if context is not None:
        x0, samples = (_flat(x, *jax.tree.leaves(context)) for x in (x0, samples))
    told = discriminate(x0, samples, key=keys[2])
    found = {**told.summary(), **coverage(x0[:num_covered], samples[:num_covered]).summary()}
    return {name: known_or_none(value) for name, value in found.items()}


def parzen_figures(
    program: Program,
    params: Mapping[str, Any],
    data: Any,
    *,
    num_samples: int,
    scale: Scale | None = None,
    key: Array,
    num_data: int = 10_000,
    num_validation: int = 1000,
) -> dict[str, Any]:
    """The Parzen-window log likelihood of fresh data, or of arrays, under a fitted program, as older tables have it.

    Beside a context the data alone are scored, the samples beside the contexts of the data that choose the width.

    Args:
        program: The program.
        params: Its parameters.
        data: Its data.
        num_samples: Samples, each under a window.
        scale: How levels of pixels became the numbers that x0 holds; then the result is of pixels in 0 to 1, as tables
            have them. By default it is of x0 as it is.
        key: Random key.
        num_data: Data to score; fewer where they are few.
        num_validation: Other data, to choose the width; at most a quarter of those in arrays.

    Returns:
        What `dpm_ppl.inference.samples.Parzen.summary` has, `parzen_num_data`, and `parzen_unit`, in words.

    Raises:
        ValueError: there are fewer than 4 data, or no width is the best (see `dpm_ppl.inference.parzen`).
    """
    keys = jax.random.split(key)
    parts, batch = parts_of(program, data), draw(data, key=keys[0], num_data=num_data + num_validation)
    x0 = parts.x0(batch)
    if len(x0) < 4:
        raise ValueError(f"Expected at least 4 data for Parzen windows, some to choose the width; got {len(x0)}.")
    num_chosen = min(num_validation, len(x0) // 4)
    context = jax.tree.map(lambda leaf: leaf[:num_chosen], parts.context(batch))
    samples = draws(parts, params, key=keys[1], num_samples=num_samples, context=context)
    if scale is not None:
        samples, x0 = ((np.asarray(x) * scale.width + scale.shift) / scale.levels for x in (samples, x0))
    found = parzen(samples, x0[num_chosen:], x0[:num_chosen])
    unit = "the data's own" if scale is None else "pixels 0 to 1"
    figures = {**found.summary(), "parzen_num_data": len(found.log_prob), "parzen_unit": unit}
    return {name: known_or_none(value) for name, value in figures.items()}


def _flat(*arrays: Any) -> np.ndarray:
    """The numbers of several arrays of one length, row by row."""
    return np.concatenate([np.asarray(array, float).reshape(len(array), -1) for array in arrays], -1)


def samples_figure(
    samples: ArrayLike,
    *,
    support: constraints.Constraint,
    data: Any = None,
    x0: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    elbo: float | None = None,
    entropy_limit: float | None = None,
    title: str = "",
) -> Figure:
    """Samples, beside data where there are any, how often each of a few sequences comes, and the loss.

    Points of three and more dimensions are a pair plot, samples on data.

    Args:
        samples: Samples x^0 of the model, shape (num_samples, *event).
        support: Support of a sample.
        data: The data, as in `fit_figure`.
        x0: Data to show beside the samples, shape (num_data, *event).
        losses: As in `fit_figure`; by default the loss is not drawn.
        elbo: Final ELBO, or what else the loss is an estimate of, nats per datum.
        entropy_limit: As in `fit_figure`.
        title: Heading.

    Returns:
        A figure that belongs to no window.
    """
    shape, num = np.shape(samples)[1:], f"{len(np.asarray(samples)):,} samples"
    shown = {num: (samples, MODEL), **({} if x0 is None else {"Data": (x0, DATA)})}
    cloud, discrete = is_cloud(shape, support), is_sequence(shape, support) or is_label(shape, support)
    sequences = sequences_of(data, x0) if discrete else None
    first = HEIGHT * min(MOST_COORDINATES, math.prod(shape)) if cloud else 4.0
    heights = [first, *([2.6] if sequences else []), *([] if losses is None else [3.9])]
    figure = Figure(figsize=(8.5 if cloud else 4 * len(shown) + 0.5, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title)
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if cloud:
        rows[0].suptitle(num if x0 is None else f"{num} on data")
        pair_plot(rows[0], dict(reversed(shown.items())))
    else:
        _draw_beside(rows[0], shown, support=support)
    if sequences:
        draw_frequencies(rows[1].subplots(), samples, sequences)
    if losses is not None:
        draw_loss(rows[-1].subplots(), losses, elbo=elbo, entropy_limit=entropy_limit)
    return figure


def _draw_beside(figure: Any, shown: Mapping[str, tuple[ArrayLike, str]], *, support: constraints.Constraint) -> None:
    """A panel for samples and one for data, on one scale; their colours are explained below."""
    states = [x for x, _ in shown.values()]
    shape = np.shape(states[0])[1:]
    plane = is_plane(shape, support)
    scale = common_scale(states, symmetric=plane)
    if is_image(shape) and len(states) == 2:
        scale = display_range(states[-1])
    grid = np.ravel(figure.subplots(1, len(shown), sharey=True))
    for axes, (name, (x, color)) in zip(grid, shown.items(), strict=True):
        hue = hues(x, states[-1]) if plane else None
        draw_states(axes, x, support=support, scale=scale, hue=hue, color=color)
        axes.set_title(name)
    figure.supxlabel(textwrap.fill(_caption(shape, support), 55 * len(shown)), fontsize="small")


def _caption(shape: tuple[int, ...], support: constraints.Constraint) -> str:
    return "Colour: how far a point is from the centre." if is_plane(shape, support) else caption(shape, support)
