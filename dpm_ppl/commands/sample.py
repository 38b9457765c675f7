"""`dpm sample`."""

from functools import partial
from typing import Annotated

import jax
import numpy as np
import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.files import Out, Overwrite, free_directory, save_figure
from dpm_ppl.commands.run import Force, Model, RunDir, open_run
from dpm_ppl.data import fresh_data, support_of
from dpm_ppl.inference.records import write_whole


def sample(
    *,
    run_dir: RunDir,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    model: Model = None,
    force: Force = False,
) -> None:
    """Draw exact ancestral samples from a fit: samples.npz (x0) and samples.png."""
    from dpm_ppl.reports.samples import draws, samples_figure

    with clear_errors():
        run = open_run(run_dir, model=model, force=force)
        directory = free_directory(run_dir, out, ["samples.npz", "samples.png"], overwrite=overwrite)
        key, data_key = jax.random.split(jax.random.key(seed))
        x0 = draws(run.program, run.params, key=key, num_samples=num_samples)
        write_whole(directory / "samples.npz", lambda file: np.savez(file, x0=x0))
        shown = fresh_data(run.data, key=data_key, num_data=min(len(x0), 3000))
        support, title = support_of(run.data, x0), run.program.path.stem
        draw = partial(samples_figure, x0, support=support, data=run.data, x0=shown, title=title)
        written = [directory / "samples.npz", *save_figure(directory / "samples.png", draw)]
        typer.echo(f"{len(x0):,} samples of shape {x0.shape[1:]}: {', '.join(map(str, written))}")
