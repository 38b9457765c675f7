"""`dpm evaluate`."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.figures import save_figure
from dpm_ppl.commands.run import open_run
from dpm_ppl.inference.records import write_json


def evaluate(
    *,
    run_dir: Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")],
    particles: Annotated[int, typer.Option(min=1, help="Trajectories of each datum.")] = 1000,
    num_data: Annotated[int | None, typer.Option(min=1, help="Data; by default what takes a minute or two.")] = None,
    discriminator: Annotated[
        bool, typer.Option("--discriminator", help="Also compare samples with data: JS divergence, C2ST, coverage.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Estimate the likelihood of data, and say whether to trust it: likelihood.nc, evaluation.json, evaluation.png."""
    from dpm_ppl.reports.evaluation import evaluate_program, headline, table
    from dpm_ppl.reports.evaluation_figure import evaluation_figure
    from dpm_ppl.reports.samples import compare

    with clear_errors():
        run, key = open_run(run_dir), jax.random.key(seed)
        started = time.monotonic()
        about = {"model": run.program.name, "seed": seed, "seconds": 0.0}
        evaluated = evaluate_program(
            run.program, run.params, run.data, num_particles=particles, num_data=num_data, about=about, key=key
        )
        figures = evaluated.figures
        if discriminator:
            figures |= compare(run.program, run.params, run.data, key=jax.random.fold_in(key, 1))
        figures["seconds"] = time.monotonic() - started
        written = ["evaluation.json"]
        if evaluated.likelihood is not None:
            evaluated.likelihood.save(run_dir / "likelihood.nc", K=evaluated.K)
            written.insert(0, "likelihood.nc")
        write_json(run_dir / "evaluation.json", figures)
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
            written += [path.name for path in save_figure(run_dir / "evaluation.png", draw)]
        typer.echo(table(figures))
        typer.echo(", ".join(str(run_dir / name) for name in written))
