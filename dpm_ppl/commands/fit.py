"""`dpm fit`."""

import inspect
import shlex
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import numpyro.distributions as dist
import typer

from dpm_ppl import inference
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.figures import save_figure
from dpm_ppl.commands.find import load
from dpm_ppl.inference.records import write_json
from dpm_ppl.programs import Program
from dpm_ppl.tracing import trace_quietly


def fit(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of SVI; by default the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; by default runs/MODEL.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
) -> None:
    """Fit a program by SVI; then write metrics.json and figure.png, and print the bound."""
    from dpm_ppl.reports.fit import report, table

    with clear_errors():
        program = load(model)
        run_dir = run_dir or Path("runs") / program.path.stem
        key, evaluation_key = jax.random.split(jax.random.key(seed))
        data = program.data()
        recipe = _recipe(program, data)
        if iterations is not None:
            recipe["num_iterations"] = iterations
        noted = {"model": program.name, "seed": seed}
        programs_and_data = (program.model, program.guide, data)
        try:
            fitted = inference.fit(
                *programs_and_data, key=key, run_dir=run_dir, resume=resume, fingerprint=noted, **recipe
            )
            about = {
                "model": program.name,
                "iterations": fitted.num_iterations,
                "seconds": float(fitted.seconds),
                "num_parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fitted.params)),
                "seed": seed,
            }
            figures, draw = report(program, data, fitted, about=about, key=evaluation_key)
            write_json(run_dir / "metrics.json", figures)
            typer.echo(table(figures))
            written = [run_dir / "metrics.json", *save_figure(run_dir / "figure.png", draw)]
            typer.echo(", ".join(map(str, written)))
        except KeyboardInterrupt:
            again = ["dpm", "fit", model, "--run-dir", str(run_dir), "--seed", str(seed), "--resume"]
            again += [] if iterations is None else ["--iterations", str(iterations)]
            typer.echo(f"\nInterrupted. To carry on: {shlex.join(again)}", err=True)
            raise typer.Exit(130) from None


def _recipe(program: Program, data: Any) -> dict[str, Any]:
    """The program's recipe, all of it known to `fit`; what a program without one needs is chosen to suit its data."""
    ours = {"key", "run_dir", "resume", "progress", "fingerprint"}
    parameters = inspect.signature(inference.fit).parameters.items()
    known = [name for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in ours]
    unknown = [name for name in program.recipe if name not in known]
    if unknown:
        raise ValueError(
            f"Expected `recipe` in {program.path} to hold some of {', '.join(known)}; got {', '.join(unknown)}."
        )
    num_data = 256 if isinstance(data, dist.Distribution) or data.ndim == 0 else len(data)
    batch_size = max(1, min(256, num_data))  # of no data at all, `fit` says so
    chosen: dict[str, Any] = {"num_iterations": 5000, "batch_size": batch_size}
    if program.diffusion is not None:
        num_terms = trace_quietly(program.diffusion)[0].num_steps - 1
        chosen["num_steps_sampled"] = min(8, num_terms) or None
    return {**chosen, **program.recipe}
