"""What `dpm fit` draws of images: now and then a grid of samples, and at its end a strip of each chain."""

import math
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import typer
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from tqdm import tqdm

from dpm_ppl.commands.files import save_figure
from dpm_ppl.data import draw, fresh_data
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference import Fit
from dpm_ppl.parts import Parts, parts_of, rows_of
from dpm_ppl.programs import Program
from dpm_ppl.tracing import trace_shapes

SHARE = 0.05
"""Of the time of a fit, what its grids may take."""

NUM_SHOWN = 16

_GROWTH = 1.4  # a grid comes after so many times the iterations of the one before

_COMPILING = 5.0  # seconds that are to be had before a sampler is compiled

_TRIED = 5  # steps by which it is told how long all will take


def with_grids(
    recipe: Mapping[str, Any], program: Program, data: Any, run_dir: Path, *, key: Array, draws: bool = True
) -> dict[str, Any]:
    """A recipe that draws samples as the fit goes on, where they are images; else the recipe as it is.

    Args:
        recipe: Options of `dpm_ppl.inference.fit`, `num_iterations` among them. A callback of its own is called too,
            and where it is looked at now and then already, it stays as often.
        program: The program.
        data: Its data.
        run_dir: Where grids go, `samples-000500.png` after 500 iterations.
        key: Random key: each grid starts from the same noise, beside the same data.
        draws: Whether this process draws; of several each looks at the fit as often as the one that does.
    """
    try:
        parts = parts_of(program, data)
        if not _is_of_images(parts, data):
            return dict(recipe)
    except Exception:  # which the fit will tell, of whatever it is
        return dict(recipe)
    try:
        grids, own = Grids(program, parts, data, run_dir, key=key), recipe.get("callback")
    except Exception as error:  # which the fit may do without
        _warn("no", error)
        return dict(recipe)

    def callback(fitted: Fit) -> None:
        if draws:
            grids(fitted)
        if own is not None:
            own(fitted)

    watched = {"validation", "callback"} & set(recipe)
    every = {} if watched else {"every": 10 ** max(0, int(math.log10(recipe["num_iterations"] / 10)))}
    return {**every, **recipe, "callback": callback}


def save_strips(run_dir: Path, program: Program, data: Any, params: Mapping[str, Any], *, key: Array) -> list[Path]:
    """Writes strips.png where data are images.

    Args:
        run_dir: Directory of the run.
        program: The program.
        data: Its data.
        params: Its parameters.
        key: Random key.

    Returns:
        The path, or nothing where there is no figure.
    """
    from dpm_ppl.reports.strips import strips

    if not _is_of_images(parts_of(program, data), data):
        return []
    return save_figure(run_dir / "strips.png", partial(strips, program, data, params, key=key))


def _is_of_images(parts: Parts, data: Any) -> bool:
    from dpm_ppl.reports.panels import is_image

    return parts.definition is not None and is_image(_chain(parts, data)[0])


def _chain(parts: Parts, data: Any) -> tuple[tuple[int, ...], int, constraints.Constraint]:
    """Event shape, number of steps and support of a program's chain, whatever its parameters."""

    def read(diffusion: Diffusion, _: Any) -> Any:
        return diffusion.event_shape, diffusion.num_steps, diffusion.kernel.stationary().support

    definition: Any = parts.definition
    given = parts.beside_batch(draw(data, key=jax.random.key(0), num_data=1) if parts.given else None)
    return trace_shapes(read, definition, *given.values())


class Grids:
    """Draws samples of a fit so far, and takes no more than a share of its time, compilation included.

    What fails is said once, and drawn no more: the fit goes on.

    Args:
        program: The program, a chain of images.
        parts: Its parts.
        data: Its data.
        run_dir: Where grids go.
        key: Random key.
    """

    def __init__(self, program: Program, parts: Parts, data: Any, run_dir: Path, *, key: Array) -> None:
        from dpm_ppl.reports.steps import reverse_steps

        data_key, key = jax.random.split(key)
        _, self.num_steps, self.support = _chain(parts, data)
        batch = fresh_data(data, key=data_key, num_data=NUM_SHOWN)
        self.x0, context = parts.x0(batch), rows_of(parts.context(batch), np.arange(NUM_SHOWN))
        self.walk = reverse_steps(parts, context, key=key, num_samples=NUM_SHOWN, num_steps=self.num_steps)
        self.run_dir, self.name = run_dir, program.path.stem
        self.spent, self.newest, self.compiled, self.failed = 0.0, 0, False, False

    def __call__(self, fitted: Fit) -> None:
        """Draws a grid where it is time for one and time to be had."""
        left = SHARE * fitted.seconds - self.spent
        if self.failed or fitted.num_iterations < _GROWTH * self.newest or left < (0 if self.compiled else _COMPILING):
            return
        began = time.perf_counter()
        try:
            samples = self._samples(fitted.params, until=began + left)
            if samples is not None:
                self.newest = fitted.num_iterations
                self._save(samples, fitted.num_iterations)
        except Exception as error:  # of the program's laws, the figure or the disk
            self.failed = True
            _warn("no more", error)
        self.spent += time.perf_counter() - began

    def _samples(self, params: Any, *, until: float) -> np.ndarray | None:
        """Samples, shape (num_samples, *event); None where they would take longer."""
        params = jax.device_put(params, jax.local_devices()[0])  # of a fit on several devices
        x: Any = None
        for count, (_, x) in enumerate(self.walk(params)):
            x.block_until_ready()
            now = time.perf_counter()
            if count == 1:  # the first step has been compiled
                self.compiled, began = True, now
            elif count == 1 + _TRIED and now + (now - began) / _TRIED * (self.num_steps - count) > until:
                return None
        return np.asarray(x)

    def _save(self, samples: ArrayLike, iteration: int) -> None:
        from dpm_ppl.reports.samples import samples_figure

        title = f"{self.name}, after {iteration:,} iterations"
        path = self.run_dir / f"samples-{iteration:06}.png"
        with tqdm.external_write_mode(file=sys.stderr):
            drawn = save_figure(path, partial(samples_figure, samples, support=self.support, x0=self.x0, title=title))
        self.failed = not drawn


def _warn(which: str, error: Exception) -> None:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    with tqdm.external_write_mode(file=sys.stderr):
        typer.echo(f"Warning: {which} grids of samples, as drawing one failed ({said}).", err=True)
