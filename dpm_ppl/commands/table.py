"""`dpm table`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.terminal import width


def table(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Directories of fits, or folders of such; by default runs.", metavar="DIR..."),
    ] = None,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, every number in full.")] = False,
) -> None:
    """Set what fits have reached beside the tables of 2015: which data were used, and what does not compare."""
    from dpm_ppl.reports.tables import as_markdown, as_text, read_runs, tables

    with clear_errors():
        if markdown and as_json:
            raise ValueError("Expected --markdown or --json, or neither; got both. Run the command twice.")
        given = directories or []
        for directory in given:
            if not directory.is_dir():
                raise FileNotFoundError(f"Expected a directory of fits at {directory}; there is none.")
        found = tables(read_runs(given or [Path("runs")]))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            typer.echo(as_markdown(found) if markdown else as_text(found, width=width()))
