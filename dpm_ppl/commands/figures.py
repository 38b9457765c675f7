"""Figures of a command: the numbers are written before them, and stand where one fails."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import typer

from dpm_ppl.inference.records import write_whole


def save_figure(path: Path, draw: Callable[[], Any]) -> list[Path]:
    """Draws a figure and writes it; one that cannot be drawn is a warning, as the numbers stand without it.

    Args:
        path: The file.
        draw: What makes the figure.

    Returns:
        The path, or nothing where there is no figure.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        drawn = BytesIO()
        draw().savefig(drawn, format="png", dpi=120)
    except Exception as error:  # whatever a program's own laws raise
        typer.echo(
            f"Warning: no {path.name}, as drawing it failed ({type(error).__name__}: {' '.join(str(error).split())}). "
            "The numbers are not touched by it.",
            err=True,
        )
        return []
    write_whole(path, lambda file: file.write(drawn.getbuffer()))
    return [path]
