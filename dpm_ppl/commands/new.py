"""`dpm new`."""

from pathlib import Path
from typing import Annotated

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.find import path_of
from dpm_ppl.inference.records import write_bytes


def new(
    *,
    file: Annotated[Path, typer.Argument(help="The file to write, which ends in .py.", metavar="FILE")],
    model: Annotated[str, typer.Option("--like", help="The program of `dpm models` to copy.")] = "swiss_roll",
) -> None:
    """Write a program of your own to start from, a copy of one that comes with the package."""
    with clear_errors():
        if file.suffix != ".py":
            raise ValueError(f"Expected a file that ends in .py; got {file}.")
        if file.exists():
            raise FileExistsError(f"Expected a file that is not there yet; {file} is.")
        content = path_of(model).read_bytes()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
        typer.echo(f"{file}, after {model}. Next: dpm check {file}, then dpm fit {file}")
