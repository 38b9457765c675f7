"""Files that a command reads and writes: never over another unasked; numbers first, and a figure that fails is none."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dpm_ppl.inference.records import probe, write_bytes

Out = Annotated[Path | None, typer.Option(help="Directory to write into; by default that of the fit.", metavar="DIR2")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def free_directory(run_dir: Path, out: Path | None, names: list[str], *, overwrite: bool) -> Path:
    """The directory to write files into, made if there is none, where none of them is yet, or may be replaced.

    Args:
        run_dir: Directory of the run.
        out: Another directory to write into.
        names: Names of the files.
        overwrite: Whether they may be replaced.

    Raises:
        FileExistsError: one is there.
        OSError: the directory cannot be made or written.
    """
    directory = run_dir if out is None else out
    there = [name for name in names if (directory / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"Expected to write {', '.join(names)} into {directory}; {', '.join(there)} "
            f"{'are' if there[1:] else 'is'} there. --overwrite replaces, --out DIR writes elsewhere."
        )
    try:
        probe(directory)
    except OSError as error:
        raise PermissionError(
            f"Expected to write into {directory}; that fails: {error}. --out DIR writes elsewhere."
        ) from error
    return directory


def read_array(path: Path, option: str) -> np.ndarray:
    """The array in a .npy file.

    Args:
        path: The file.
        option: The option that named it, such as `--data`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no array, or several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected {option} to be a file with an array; there is none at {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"Expected {option} to be a .npy file, as numpy.save writes; {path} is none: {error}"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"Expected {option} to be a .npy file with one array; {path} is an archive of several.")
    return array


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
    write_bytes(path, drawn.getbuffer())
    return [path]
