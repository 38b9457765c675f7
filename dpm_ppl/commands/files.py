"""Files that a command reads and writes: never over another unasked; numbers first, and a figure that fails is none."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import typer

from dpm_ppl.inference.records import probe, write_bytes
from dpm_ppl.parts import Parts

Out = Annotated[Path | None, typer.Option(help="Directory to write into; by default that of the fit.", metavar="DIR2")]
Context = Annotated[
    Path | None,
    typer.Option(help="What is given beside each datum, arrays by the names of their parts.", metavar="FILE.npz"),
]
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


def read_arrays(path: Path, option: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by name, of one length.

    Args:
        path: A .npz file with arrays of these names, and others if it likes; where one name is asked for, a .npy file
            or an archive of one array will do.
        option: The option that named it, such as `--context`.
        names: The names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, lacks a name, or its arrays differ in length.
    """
    if len(names) == 1 and path.suffix != ".npz":
        found = {names[0]: read_array(path, option)}
    else:
        found = _read_archive(path, option, names)
    lengths = {name: len(array) if array.ndim else 0 for name, array in found.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ValueError(f"Expected arrays of one length, one entry for each datum, in {path}; got {lengths}.")
    return found


def _read_archive(path: Path, option: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    wanted = f"Expected {option} to be a .npz file with arrays {', '.join(names)}, as numpy.savez writes"
    if not path.is_file():
        raise FileNotFoundError(f"{wanted}; there is none at {path}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise ValueError(f"{wanted}; {path} is none: {error}") from None
    if len(names) == len(there) == 1:
        return dict(zip(names, there.values(), strict=True))
    if any(name not in there for name in names):
        raise ValueError(f"{wanted}; {path} has {', '.join(there) or 'none'}.")
    return {name: there[name] for name in names}


def read_context(path: Path | None, parts: Parts) -> Any:
    """The context that --context names; None where it names none.

    Args:
        path: A file (see `read_arrays`).
        parts: Parts of the program's data.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it does not hold the context; the program takes none.
    """
    if path is None:
        return None
    if not parts.beside:
        raise ValueError("Expected no --context, as the program's data have nothing beside them; got one.")
    return parts.from_names(read_arrays(path, "--context", parts.context_names))


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
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # which may be larger than memory
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
