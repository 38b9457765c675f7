"""`dpm check`."""

from typing import Annotated

import typer

from dpm_ppl import inference
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.find import load


def check(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Check a program for the mistakes that fit happily and are wrong; exit status 1 if one is found."""
    with clear_errors():
        report = inference.check(load(model), seed=seed)
        typer.echo(report)
        if not report.passed:
            raise typer.Exit(1)
