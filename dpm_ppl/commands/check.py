"""`dpm check`."""

from typing import Annotated

import typer

from dpm_ppl import inference
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.find import load
from dpm_ppl.commands.terminal import width

_LONGEST_NAME = 25  # of a finding, "parameters in a loop body"


def check(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Check a program for the mistakes that fit happily and are wrong; exit status 1 if one is found."""
    with clear_errors():
        report = inference.check(
            load(model),
            seed=seed,
            tell=lambda finding: typer.echo(finding.lines(indent=_LONGEST_NAME, width=width())),
        )
        typer.echo(report.verdict)
        if not report.passed:
            raise typer.Exit(1)
