"""`dpm fit`."""

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from dpm_ppl import inference
from dpm_ppl.commands.copies import FOLDER, edited_since, files_of
from dpm_ppl.commands.devices import Devices, on
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.files import save_figure
from dpm_ppl.commands.find import load
from dpm_ppl.commands.held_out import Evaluated, split
from dpm_ppl.commands.hosts import Coordinator, NumProcesses, ProcessId, part, together
from dpm_ppl.commands.images import save_strips, with_grids
from dpm_ppl.commands.pretrained import how_made, require_fitted_here, take
from dpm_ppl.data import num_data_of
from dpm_ppl.inference.fitting import runs
from dpm_ppl.inference.records import write_json
from dpm_ppl.programs import Program


def fit(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of SVI; by default the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; by default runs/MODEL.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Carry on from the last checkpoint; with more --iterations, beyond the end."),
    ] = False,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of arrays of data that is kept back to evaluate on; by default a tenth, 0 for none."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Resume though the program was edited.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Take the parameters that come with the program, in place of a fit.")
    ] = False,
    devices: Devices = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
) -> None:
    """Fit a program by SVI; then write metrics.json, figure.png and of images strips.png, and print the bound."""
    here = (coordinator, num_processes, process_id)
    with clear_errors(), together(*here) as first, clear_errors(), on(devices):
        say = typer.echo if first else _silent
        program = load(model)
        made = how_made(program) if pretrained else None
        if made is not None:
            if resume or iterations is not None or held_out is not None:
                raise ValueError(
                    "Expected --pretrained alone, as nothing is fitted; got --resume, --iterations or --held-out too."
                )
            if coordinator is not None:
                raise ValueError("Expected one process with --pretrained, as nothing is fitted; got --coordinator.")
            held_out = 0.0  # what of an array the parameters have seen is not known: all of it is training data
            typer.echo(f"With {program.path.stem}: {'; '.join(f'{name} {value}' for name, value in made.items())}.")
        run_dir = run_dir or Path("runs") / program.path.stem
        files = files_of(program, run_dir)  # as they are now: they may be edited while the fit goes on
        there = inference.read_run(run_dir)["settings"] if resume and (run_dir / runs.FILE).exists() else {}
        noted = _noted(program, there, seed=seed, held_out=held_out)
        if there and not force:
            _require_unedited(program, run_dir)
        if resume:
            require_fitted_here(run_dir)
        key, evaluation_key = jax.random.split(jax.random.key(seed))
        all_data = program.data()
        data, evaluated = split(program, all_data, share=noted["held_out"], seed=seed)
        recipe = _recipe(program, data, there)
        if iterations is not None:
            recipe["num_iterations"] = iterations
        num_all, num_fitted, num_kept = (num_data_of(some) for some in (all_data, data, evaluated.data))
        if data is all_data:
            del noted["held_out"]
        else:
            recipe["batch_size"] = min(recipe["batch_size"], num_fitted)
            say(
                f"{num_kept:,} of {num_all:,} data are held out, drawn by the seed, to evaluate on; "
                "--held-out 0 fits all."
            )
        programs_and_data = (program.model, program.guide, data)
        try:
            if made is not None:
                fitted = take(program, made, data, run_dir, fingerprint=noted, files=files)
            else:
                fitted = inference.fit(
                    *programs_and_data,
                    key=key,
                    run_dir=run_dir,
                    resume=resume,
                    fingerprint=noted,
                    files=files,
                    **with_grids(
                        recipe, program, data, run_dir, key=jax.random.fold_in(evaluation_key, 1), draws=first
                    ),
                )
            part()
            if first:
                about = {"model": Path(noted["model"]).name, "seed": seed}
                _tell(program, evaluated, fitted, source=all_data, run_dir=run_dir, about=about, key=evaluation_key)
        except KeyboardInterrupt:
            again = ["dpm", "fit", model, "--run-dir", str(run_dir), "--seed", str(seed), "--resume"]
            again += [] if iterations is None else ["--iterations", str(iterations)]
            again += [] if devices is None else ["--devices", str(devices)]
            again += [] if coordinator is None else ["--coordinator", coordinator]
            together_again = "" if coordinator is None else ", in each process with the same --num-processes or fewer"
            say(f"\nInterrupted. To carry on: {shlex.join(again)}{together_again}", err=True)
            raise typer.Exit(130) from None
        except ValueError as error:
            if data is all_data or "to have the full size" not in str(error):
                raise
            raise ValueError(f"{error} With --held-out 0 all {num_all:,} data are fitted.") from error


def _silent(*_: Any, **__: Any) -> None:
    """What all but the first of several processes say."""


def _tell(
    program: Program, evaluated: Evaluated, fitted: inference.Fit, *, source: Any, run_dir: Path, about: Any, key: Any
) -> None:
    """Evaluates what was fitted, and writes and prints what there is to say of it."""
    from dpm_ppl.reports.fit import report, table

    of_fit = {
        "model": about["model"],
        "data": evaluated.called,
        "iterations": fitted.num_iterations,
        "seconds": float(fitted.seconds),
        "num_parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fitted.params)),
        "seed": about["seed"],
    }
    figures, draw = report(program, evaluated.data, fitted, source=source, about=of_fit, key=key)
    write_json(run_dir / "metrics.json", figures)
    typer.echo(table(figures))
    written = [run_dir / "metrics.json", *save_figure(run_dir / "figure.png", draw)]
    written += save_strips(run_dir, program, evaluated.data, fitted.params, key=jax.random.fold_in(key, 2))
    typer.echo(", ".join(map(str, written)))


def _noted(program: Program, there: Mapping[str, Any], *, seed: int, held_out: float | None) -> dict[str, Any]:
    """What tells this run from another; of one that is resumed, as it has it `there` where the command is silent."""
    name = Path(program.name).name
    if there:
        before: dict[str, Any] = there.get("fingerprint") or {}
        if Path(str(before.get("model"))).name == name:
            name = before["model"]  # runs without a copy have its path
        held_out = before.get("held_out", 0.0) if held_out is None else held_out
    return {"model": name, "seed": seed, "held_out": 0.1 if held_out is None else held_out}


def _require_unedited(program: Program, run_dir: Path) -> None:
    changed = edited_since(run_dir, program.path)
    if changed:
        raise ValueError(
            f"Expected the program as it was when the run in {run_dir} began; {', '.join(changed)} changed. Give back "
            f"what {run_dir / FOLDER} has, or use another --run-dir; --force goes on with it as it now is."
        )


def _recipe(program: Program, data: Any, there: Mapping[str, Any]) -> dict[str, Any]:
    """The program's recipe, all of it known to `fit`.

    What it does not say is chosen to suit its data, or is as the run that is resumed has it `there`.
    """
    ours = {"key", "num_starts", "run_dir", "resume", "progress", "fingerprint", "files", "mesh", "shard"}
    parameters = inspect.signature(inference.fit).parameters.items()
    options = [name for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in ours]
    unknown = [name for name in program.recipe if name not in options]
    if unknown:
        raise ValueError(
            f"Expected `recipe` in {program.path} to hold some of {', '.join(options)}; got {', '.join(unknown)}."
        )
    num_data = num_data_of(data)
    batch_size = max(1, min(256, 256 if num_data is None else num_data))  # of no data at all, `fit` says so
    before = {name: there[name] for name in ("num_steps_sampled",) if name in there}  # begun under another default
    return {"num_iterations": 5000, "batch_size": batch_size, **before, **program.recipe}
