"""`dpm models`."""

import textwrap
from typing import Annotated

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.find import known, path_of
from dpm_ppl.commands.terminal import width


def models(
    *, path: Annotated[bool, typer.Option("--path", help="The file of each in place of its summary.")] = False
) -> None:
    """List the programs that come with the package."""
    with clear_errors():
        programs = {name: str(path_of(name)) for name in known()} if path else known()
        indent = max(map(len, programs), default=0) + 2
        for name, words in programs.items():
            head, below = f"{name:<{indent}}", " " * indent
            typer.echo(
                head + words if path else textwrap.fill(words, width(), initial_indent=head, subsequent_indent=below)
            )
