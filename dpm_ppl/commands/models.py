"""`dpm models`."""

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.find import known


def models() -> None:
    """List the programs that come with the package."""
    with clear_errors():
        summaries = known()
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            typer.echo(f"{name:<{width}}  {summary}")
