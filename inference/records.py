"""Records in ArviZ's format, of 0.23 and 1.x alike; netCDF; and files written whole or not at all."""

import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from jax.typing import ArrayLike


def is_arviz_1() -> bool:
    """Whether ArviZ is 1.x."""
    return int(arviz().__version__.split(".")[0]) >= 1


def arviz() -> Any:
    """ArviZ, which is slow to import, without the greeting by which 0.23 announces 1.x."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz as az
    return az


def record(groups: Mapping[str, Any], *, about: Mapping[str, str]) -> Any:
    """Data sets as `InferenceData` (0.23) or `xarray.DataTree` (1.x).

    Args:
        groups: `xarray.Dataset` of each group by name.
        about: Attributes of the whole.
    """
    import xarray as xr

    if not is_arviz_1():
        return arviz().InferenceData(attrs=dict(about), **groups)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(about)
    return tree


def write(path: str | os.PathLike[str], groups: Mapping[str, Any], *, about: Mapping[str, str]) -> Path:
    """Writes data sets as netCDF, all of them or nothing.

    Args:
        path: The file. One that is there is replaced when the new one is complete.
        groups: `xarray.Dataset` of each group by name.
        about: Attributes of the whole.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    path = Path(path)
    content = _netcdf(groups, about)
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise OSError(f"Expected to write {path}; got {error}. Make room, or choose another place.") from error
    return path


def _netcdf(groups: Mapping[str, Any], about: Mapping[str, str]) -> bytes:
    """Data sets as a netCDF file, made in memory: on a full disk, HDF5 itself loses data or ends the process."""
    import h5netcdf

    memory = io.BytesIO()
    with h5netcdf.File(memory, "w") as file:
        file.attrs.update(about)
        for name, data in groups.items():
            group = file.create_group(name)
            group.dimensions = dict(data.sizes)
            for variable_name, variable in data.variables.items():
                values, attrs = variable.values, dict(variable.attrs)
                if values.dtype == bool:  # netCDF has none: xarray reads it back by this attribute
                    values, attrs = values.astype(np.int8), {**attrs, "dtype": "bool"}
                stored = group.create_variable(variable_name, variable.dims, data=values)
                stored.attrs.update(attrs)
    return memory.getvalue()


def variable(dims: Any, value: ArrayLike, name: str, units: str) -> Any:
    """An `xarray.Variable` that says what it is and in which units."""
    import xarray as xr

    return xr.Variable(dims, np.array(value), {"long_name": name, "units": units})


def free_names(shapes: Mapping[str, int], *, taken: Iterable[str]) -> dict[str, str]:
    """Names under which variables can stand in one data set, each with dims `NAME_0`, `NAME_1`, ... of its own.

    A slash becomes a point, as a group may not look nested; and a name that is taken, or whose dims are, gets
    underscores behind it.

    Args:
        shapes: Number of dims of its own of each variable, by the name it has.
        taken: Names of the dims and variables that are there already.

    Returns:
        The name in the data set of each, by the name it has.
    """
    taken, names = set(taken), {}
    for name, num_dims in shapes.items():
        new = name.replace("/", ".")
        while taken & {new, *dims_of(new, num_dims)}:
            new += "_"
        taken |= {new, *dims_of(new, num_dims)}
        names[name] = new
    return names


def dims_of(name: str, num_dims: int) -> list[str]:
    """Dims of a variable's own, by its name: `NAME_0`, `NAME_1` and so on."""
    return [f"{name}_{i}" for i in range(num_dims)]


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside its place, to disk, and only then puts it there.

    Args:
        path: Where the file is to be.
        write: Writes its content to an open file.

    Raises:
        OSError: it cannot be written; a file that was there is as it was, and no part of the new one stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, all of it or nothing; OSError where that fails."""
    write_whole(path, lambda file: file.write(content))


def probe(directory: Path, *, num_bytes: int = 0) -> None:
    """Makes a directory if there is none, and sees that so much can be written into it; OSError where it cannot."""
    path = directory / f".probe-{os.getpid()}"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(bytes(num_bytes))
    finally:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON that people can read, whole or not at all; errors are those of `write_whole`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
