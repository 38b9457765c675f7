"""`dpm check`."""

from typing import Annotated

import typer

from dpm_ppl.commands.errors import clear_errors


def check(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Check a program for the mistakes that fit happily and are wrong; exit status 1 if one is found."""
    from dpm_ppl import programs
    from dpm_ppl.inference import check as run

    with clear_errors():
        report = run(programs.load(model), seed=seed)
        typer.echo(report)
        if not report.passed:
            raise typer.Exit(1)
