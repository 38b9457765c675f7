"""Reads a run: the program that it is of, its data, and its fitted parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from numpyro import handlers

from dpm_ppl.commands.copies import FOLDER, edited_since, kept_program, original
from dpm_ppl.commands.find import load
from dpm_ppl.commands.held_out import Evaluated, split
from dpm_ppl.data import fresh_data
from dpm_ppl.inference import load_params, read_run
from dpm_ppl.parts import Parts, parts_of
from dpm_ppl.programs import Program, called

RunDir = Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")]
Model = Annotated[
    str | None, typer.Option(help="A program to take in place of the one that the fit keeps.", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Go on though the program that the fit keeps was edited.")]


@dataclass(frozen=True, eq=False)
class Run:
    """What `dpm fit` left in a directory.

    Args:
        name: What its program was called.
        program: The program, as it was when it was fitted.
        data: All of its data, as the program has them.
        parts: Which of their parts is the datum, and what is given beside it.
        noted: What tells the run from others.
        params: Its parameters, averaged, as `dpm_ppl.inference.load_params` gives them.
    """

    name: str
    program: Program
    data: Any
    parts: Parts
    noted: dict[str, Any]
    params: dict[str, Any]

    @property
    def evaluated(self) -> Evaluated:
        """The data that it is evaluated on."""
        noted = self.noted
        return split(self.program, self.data, share=noted.get("held_out", 0.0), seed=noted.get("seed", 0))[1]


def open_run(run_dir: Path, *, model: str | None = None, force: bool = False) -> Run:
    """Reads a run.

    Args:
        run_dir: Directory of the fit.
        model: Name or path of a program to take in place of the one that the run keeps.
        force: Whether the kept one will do though it was edited.

    Raises:
        FileNotFoundError: the directory holds no run, or no finished checkpoint, or the program is gone.
        ValueError: it is no run of `dpm fit`, or is damaged, or of another program.
    """
    noted = read_run(run_dir)["settings"].get("fingerprint") or {}
    if not isinstance(noted.get("model"), str):
        raise ValueError(f"Expected the run in {run_dir} to be one of `dpm fit`, which notes its model; it has none.")
    kept = kept_program(run_dir, force=force) if model is None else None
    before = noted["model"]  # by name, or as runs without a copy have it by path
    if model is None and kept is None and before.endswith(".py") and not Path(before).is_file():
        raise FileNotFoundError(
            f"Expected the program of the run in {run_dir / FOLDER}; there is none, nor at {before}. --model FILE says "
            "where it is."
        )
    try:
        program = load(model or kept or before)
        data = program.data()
    except (OSError, ImportError) as error:
        if kept is None:
            raise
        if (there := original(run_dir)) is not None:  # beside which are the data that it reads
            return open_run(run_dir, model=str(there))
        raise FileNotFoundError(
            f"Expected the program in {run_dir / FOLDER} to find all that it reads; got: {error} --model FILE takes "
            "the program where its data are."
        ) from error
    if changed := edited_since(run_dir, None if model is None else program.path):
        used = "the program is as it was then; --model takes another" if model is None else "--model takes it as it is"
        typer.echo(f"Note: {', '.join(changed)} changed since the fit; {used}.", err=True)
    parts = parts_of(program, data)
    return Run(Path(before).name, program, data, parts, noted, fitted_params(run_dir, program, data, parts=parts))


def fitted_params(run_dir: Path, program: Program, data: Any, *, parts: Parts | None = None) -> dict[str, Any]:
    """Parameters of a run, averaged: of `diffusion` where the program has one, and else of model and guide together.

    Args:
        run_dir: Directory of the fit.
        program: The program that was fitted.
        data: Its data, of which one is enough to see what it declares.
        parts: Their parts, by default read off the program.

    Returns:
        Values by name, as `dpm_ppl.inference.load_params` gives them.
    """
    function, args = declaring(program, data, parts=parts)
    return load_params(run_dir, function, *args)


def declaring(program: Program, data: Any, *, parts: Parts | None = None) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What declares a program's parameters, and its arguments: `diffusion`, or model and guide together.

    Args:
        program: The program.
        data: Its data, of which one is enough to see what it declares.
        parts: Their parts, by default read off the program.
    """
    parts = parts_of(program, data) if parts is None else parts
    batch = jax.tree.map(lambda leaf: leaf[:1], fresh_data(data, key=jax.random.key(0), num_data=1))
    if parts.definition is not None:
        return parts.definition, tuple(parts.beside_batch(batch).values())

    def declarations() -> None:
        with handlers.block(hide_fn=lambda site: site["type"] != "param"), handlers.seed(rng_seed=0):
            called(program.model, batch)
            called(program.guide, batch)

    return declarations, ()
