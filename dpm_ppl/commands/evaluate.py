"""`dpm evaluate`."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from dpm_ppl.commands.devices import Devices, on
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.files import Out, Overwrite, free_directory, read_array, read_arrays, save_figure
from dpm_ppl.commands.held_out import Evaluated
from dpm_ppl.commands.run import Force, Model, Run, RunDir, open_run
from dpm_ppl.data import num_data_of
from dpm_ppl.inference.records import write_json
from dpm_ppl.inference.samples.discriminator import FEWEST


def evaluate(
    *,
    run_dir: RunDir,
    particles: Annotated[int, typer.Option(min=1, help="Trajectories of each datum.")] = 1000,
    num_data: Annotated[int | None, typer.Option(min=1, help="Data; by default what takes a minute or two.")] = None,
    discriminator: Annotated[
        bool, typer.Option("--discriminator", help="Also compare samples with data: JS divergence, C2ST, coverage.")
    ] = False,
    parzen: Annotated[
        int | None,
        typer.Option(min=2, help="Also score data by windows around N samples, as older tables do.", metavar="N"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data to evaluate on, (num_data, *event), or a .npz of their parts; by default held out or fresh.",
            metavar="FILE.npy",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    model: Model = None,
    force: Force = False,
    devices: Devices = None,
) -> None:
    """Estimate the likelihood of data, and say whether to trust it: likelihood.nc, evaluation.json, evaluation.png."""
    from dpm_ppl.datasets import Centred, Dequantised
    from dpm_ppl.reports.evaluation import evaluate_program, headline, table
    from dpm_ppl.reports.evaluation_figure import evaluation_figure
    from dpm_ppl.reports.samples import compare, parzen_figures

    with clear_errors(), on(devices):
        run, key = open_run(run_dir, model=model, force=force), jax.random.key(seed)
        names = ["likelihood.nc", "evaluation.json", "evaluation.png"]
        directory = free_directory(run_dir, out, names, overwrite=overwrite)
        given = run.evaluated if data is None else Evaluated(_read(data, run), f"data of {data.name}")
        num_given = num_data_of(given.data)
        if discriminator and num_given is not None and num_given < FEWEST:
            raise ValueError(
                f"Expected at least {FEWEST} data for --discriminator; got {num_given} of {given.called}. --data "
                "FILE.npy takes others."
            )
        started = time.monotonic()
        about = {"model": run.name, "data": given.called, "seed": seed, "seconds": 0.0}
        windows: dict[str, Any] = {}
        if parzen is not None:  # before what takes longer: it may refuse the data
            scale = run.data.scale if isinstance(run.data, Dequantised | Centred) else None
            fold = jax.random.fold_in(key, 2)
            windows = parzen_figures(run.program, run.params, given.data, num_samples=parzen, scale=scale, key=fold)
        options: dict[str, Any] = {"num_particles": particles, "num_data": num_data, "source": run.data, "about": about}
        evaluated = evaluate_program(run.program, run.params, given.data, key=key, **options)
        figures = evaluated.figures | windows
        if discriminator:
            figures |= compare(run.program, run.params, given.data, key=jax.random.fold_in(key, 1))
        figures["seconds"] = time.monotonic() - started
        written = ["evaluation.json"]
        if evaluated.likelihood is not None:
            evaluated.likelihood.save(directory / "likelihood.nc", K=evaluated.K)
            written.insert(0, "likelihood.nc")
        write_json(directory / "evaluation.json", figures)
        if evaluated.likelihood is not None:
            draw = partial(
                evaluation_figure,
                evaluated.likelihood,
                evaluated.sandwich,
                evaluated.work,
                entropy_bounds=evaluated.entropy_bounds,
                entropy_limit=evaluated.entropy_limit,
                title=f"{run.program.path.stem}: {headline(figures)}",
            )
            written += [path.name for path in save_figure(directory / "evaluation.png", draw)]
        typer.echo(table(figures))
        typer.echo(", ".join(str(directory / name) for name in written))


def _read(path: Path, run: Run) -> Any:
    """The data in a file, in the parts that the program's have."""
    parts = run.parts
    if not parts.names:
        return read_array(path, "--data")
    arrays = read_arrays(path, "--data", [parts.datum_name, *parts.context_names])
    return parts.batch(arrays[parts.datum_name], parts.from_names(arrays))
