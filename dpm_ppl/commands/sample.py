"""`dpm sample`."""

from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import typer

from dpm_ppl.commands.devices import Devices, on
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.files import Context, Out, Overwrite, free_directory, read_context, save_figure
from dpm_ppl.commands.run import Force, Model, RunDir, open_run
from dpm_ppl.data import fresh_data, support_of
from dpm_ppl.inference.records import write_whole
from dpm_ppl.parts import rows_of


def sample(
    *,
    run_dir: RunDir,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="How many.")] = 1000,
    context: Context = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    model: Model = None,
    force: Force = False,
    devices: Devices = None,
) -> None:
    """Draw exact ancestral samples from a fit, beside held-out contexts or given ones: samples.npz and samples.png."""
    from dpm_ppl.reports.numbers import counted
    from dpm_ppl.reports.samples import draws, samples_figure

    with clear_errors(), on(devices):
        run = open_run(run_dir, model=model, force=force)
        parts, given = run.parts, read_context(context, run.parts)
        directory = free_directory(run_dir, out, ["samples.npz", "samples.png"], overwrite=overwrite)
        key, data_key = jax.random.split(jax.random.key(seed))
        if given is None and parts.beside:
            some = fresh_data(run.evaluated.data, key=jax.random.fold_in(data_key, 1), num_data=num_samples)
            given = parts.context(some)
        x0 = draws(parts, run.params, key=key, num_samples=num_samples, context=given)
        arrays: dict[str, Any] = {parts.datum_name: x0, **parts.by_name(rows_of(given, np.arange(num_samples)))}
        write_whole(directory / "samples.npz", lambda file: np.savez(file, **arrays))
        alone, title = parts.alone(run.data), run.program.path.stem
        shown = None
        if context is None:  # beside others than their own, data say nothing of samples
            shown = parts.x0(fresh_data(run.data, key=data_key, num_data=min(len(x0), 3000)))
        draw = partial(samples_figure, x0, support=support_of(alone, x0), data=alone, x0=shown, title=title)
        written = [directory / "samples.npz", *save_figure(directory / "samples.png", draw)]
        typer.echo(f"{counted(len(x0), 'sample', 'samples')} of shape {x0.shape[1:]}: {', '.join(map(str, written))}")
