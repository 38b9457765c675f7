"""Data that stay where they are: memory-mapped arrays and other sources with an index, read where they are needed."""

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


class Indexed(Protocol):
    """Data with an index."""

    def __len__(self) -> int:
        """Number of data."""

    def __getitem__(self, indices: Any, /) -> Any:
        """Their rows at an array of indices, in ascending order: an array, or a tuple or dictionary of arrays."""


class Rows:
    """Some rows of data on disk, which stay there.

    Args:
        of: A memory-mapped array, or another with a shape and an index.
        rows: Which, ascending, shape (num_rows,).
    """

    def __init__(self, of: Any, rows: np.ndarray) -> None:
        self.of, self.rows = of, rows
        self.shape, self.dtype, self.ndim = (len(rows), *of.shape[1:]), of.dtype, of.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return self.of[(self.rows[first], *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001, as NumPy calls it
        return np.asarray(self.of[self.rows], dtype)


Resident = ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]
"""Data in memory."""

Source = Indexed | Iterable[Any] | Mapping[str, ArrayLike | Indexed] | tuple[ArrayLike | Indexed, ...]
"""What is read as it is needed: by index, or batch by batch."""


def is_source(data: Any) -> bool:
    """Whether data are to be read by index or batch by batch: not an array in memory, nor what becomes one."""
    if isinstance(data, np.memmap):
        return True
    if isinstance(data, np.ndarray | Array | list | tuple | str | bytes | Mapping) or np.isscalar(data):
        return False
    if hasattr(data, "__array__"):  # arrays on disk have a shape; a table or one of its columns is taken as an array
        return hasattr(data, "shape") and hasattr(data, "dtype") and not hasattr(data, "iloc")
    return has_index(data) or hasattr(data, "__iter__")


def has_index(data: Any) -> bool:
    """Whether data have a length and an index."""
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def in_order(data: Any, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Data once, in their order.

    Args:
        data: With an index (see `indexable`).
        batch_size: Number of data in a batch; the last has what is left.

    Yields:
        Each batch, leaves of (batch_size, *event), and the indices of its data.

    Raises:
        TypeError: the data have no index, or are no numbers.
        ValueError: there are none, or parts of different lengths, or NaN or infinity.
    """
    num_data = num_rows(data)
    for begin in range(0, num_data, batch_size):
        indices = np.arange(begin, min(begin + batch_size, num_data))
        yield rows_at(data, indices, num_data), indices


def indexable(data: Any) -> Any:
    """Data, or a tuple or dictionary of them, where what is not read from a source is a NumPy array."""
    if isinstance(data, Mapping):
        return {name: indexable(part) for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(map(indexable, data))
    return data if is_source(data) else np.asarray(data)


def _parts(data: Any) -> dict[Any, Any]:
    return data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, tuple) else {"data": data}


def num_rows(data: Any) -> int:
    """Number of data, of all parts alike; TypeError or ValueError where that is not known, or they are none."""
    parts = _parts(data)
    if not all(map(has_index, parts.values())):
        raise TypeError(f"Expected data with a length and an index; got {', '.join(map(name_of, parts.values()))}.")
    num_data = require_one_length({name: len(part) for name, part in parts.items()})
    if not num_data:
        raise ValueError(f"Expected at least one datum; {name_of(data)} has none.")
    return num_data


def require_one_length(lengths: Mapping[Any, int]) -> int:
    """The length that all parts of data have; ValueError where they differ."""
    if len(set(lengths.values())) != 1:
        raise ValueError(f"Expected arrays of one length, one entry for each datum, in `data`; got {dict(lengths)}.")
    return next(iter(lengths.values()))


def require_enough(num_data: int, batch_size: int) -> None:
    """Checks that there are data for a batch; ValueError where there are not."""
    if num_data < batch_size:
        raise ValueError(f"Expected `batch_size` to be at most the number of data, {num_data}; got {batch_size}.")


def rows_at(data: Any, indices: np.ndarray, num_data: int) -> Any:
    """Data at indices, asked for in ascending order and once, as files are read fastest, and some only."""
    ascending, back = np.unique(indices, return_inverse=True)
    rows = {name: _rows(part, num_data, ascending) for name, part in _parts(data).items()}
    rows = jax.tree.map(lambda leaf: leaf[back], rows)
    if isinstance(data, dict):
        return rows
    return tuple(rows.values()) if isinstance(data, tuple) else rows["data"]


def _rows(source: Any, num_data: int, indices: np.ndarray) -> Any:
    """Rows of a source, as arrays, or an error that says which."""
    if len(source) != num_data:
        raise ValueError(f"Expected a source of {num_data} data, as at first; {name_of(source)} now has {len(source)}.")
    try:
        rows = source[indices]
    except Exception as error:
        raise RuntimeError(
            f"Expected the rows of {name_of(source)} at an array of indices; got {type(error).__name__}: {error}, at "
            f"{indices.tolist()}."
        ) from error
    rows = as_arrays(rows)
    _give_back(source)
    for leaf in jax.tree.leaves(rows):
        if leaf.shape[:1] != indices.shape:
            raise ValueError(
                f"Expected a row of {name_of(source)} for each of {len(indices)} indices; got shape {leaf.shape}."
            )
        require_numbers(leaf, indices)
    return rows


def _give_back(source: Any) -> None:
    """Unmaps what was read of a file, which the system keeps as long as it likes: it would count as ours, page by page.

    A private mapping is left as it is: what was written into it is nowhere else.
    """
    source = source.of if isinstance(source, Rows) else source
    mapping = getattr(source, "_mmap", None)
    if isinstance(source, np.memmap) and source.mode != "c" and isinstance(mapping, mmap.mmap):
        if hasattr(mapping, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def as_arrays(batch: Any) -> Any:
    """A batch in arrays of its own: who gave it may use its memory again."""
    if isinstance(batch, Mapping):
        return {name: np.array(part) for name, part in batch.items()}
    return tuple(np.array(part) for part in batch) if isinstance(batch, tuple) else np.array(batch)


def described(batch: Any) -> str:
    """Dtype, shape and hash of each array of a batch, or of all data."""
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(batch)]
    hashes = [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in arrays]
    return ", ".join(f"{a.dtype}{list(a.shape)} sha256 {h}" for a, h in zip(arrays, hashes, strict=True))


def require_numbers(array: np.ndarray, indices: np.ndarray) -> None:
    """Checks that data are numbers, and finite.

    Args:
        array: Data, shape (num, *event).
        indices: What they are called by, shape (num,).

    Raises:
        TypeError: they are not numeric.
        ValueError: they hold NaN or infinity.
    """
    if not (np.issubdtype(array.dtype, np.bool_) or jnp.issubdtype(array.dtype, jnp.number)):
        raise TypeError(f"Expected `data` to be a numeric array or a NumPyro distribution; got {array.dtype}.")
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        raise ValueError(
            f"Expected `data` to be finite; got NaN or infinity in {bad.sum()} data, the first at "
            f"{int(indices[np.argmax(bad)])}."
        )


def name_of(data: Any) -> str:
    """What errors call data by: their type's name."""
    return type(data).__name__
