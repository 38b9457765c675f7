"""`dpm models`."""

import typer

from dpm_ppl.commands.errors import clear_errors


def models() -> None:
    """List the programs that come with the package."""
    from dpm_ppl import programs

    with clear_errors():
        summaries = programs.known()
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            typer.echo(f"{name:<{width}}  {summary}")
