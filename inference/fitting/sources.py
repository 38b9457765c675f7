"""Data that stay where they are: memory-mapped arrays, other sources with an index, and batches made elsewhere.

A batch is read in a background thread while the iterations before it run, and checked when it is handed out.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

AHEAD = 3
"""How many batches are read ahead."""


class Indexed(Protocol):
    """Data with an index."""

    def __len__(self) -> int:
        """Number of data."""

    def __getitem__(self, indices: Any, /) -> Any:
        """Their rows at an array of indices, in ascending order: an array, or a tuple or dictionary of arrays."""


Resident = ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]
"""Data in memory."""

Source = Indexed | Iterable[Any] | Mapping[str, ArrayLike | Indexed] | tuple[ArrayLike | Indexed, ...]
"""What is read as it is needed: by index, or batch by batch."""

Feed = Callable[[int], Any]
Check = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class ReadBatches:
    """Batches that are read, one for each iteration, and handed to it.

    Args:
        plan: What is to be read for an iteration.
        read: What was planned: leaves of (batch_size, *event), and the indices of its data, (batch_size,). It runs in a
            thread of its own, where JAX would be without the settings of the caller's.
        batch_size: Number of data in a batch.
        num_data: Number of data in all; None where that is not known.
        of: What they are read from, in words.
    """

    plan: Callable[[int], Any]
    read: Callable[[Any], tuple[Any, np.ndarray]]
    batch_size: int
    num_data: int | None
    of: str
    resident = False
    checks: list[Check] = field(default_factory=list)

    @cached_property
    def source(self) -> tuple[Any, Array]:
        """The first batch and the indices of its data."""
        return self._handed_out(self.read(self.plan(0)))

    @property
    def description(self) -> str:
        """What the data are, with the first batch."""
        return f"{self.of}, the first batch {described(self.source[0])}"

    def start(self, source: Any, iteration: Array) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def draw(self, source: tuple[Any, Array], iteration: Array, carried: tuple[()]) -> tuple[tuple[()], Any, Array]:
        """What was read for this iteration."""
        return (), *source

    def require(self, check: Check) -> None:
        """Has each batch checked, from now on, before it is handed out."""
        check(self.source[0])
        self.checks.append(check)

    @contextmanager
    def feed(self, stop: int) -> Iterator[Feed]:
        """What iterations below `stop` read, prefetched where they come in order."""
        with ThreadPoolExecutor(1, "dpm_ppl-data") as thread:
            pending: dict[int, Future[Any]] = {}

            def fed(iteration: int) -> Any:
                if iteration not in pending:
                    _drop(pending)
                for i in range(iteration, min(iteration + 1 + AHEAD, stop)):
                    if i not in pending:
                        pending[i] = thread.submit(self.read, self.plan(i))
                return self._handed_out(pending.pop(iteration).result())

            try:
                yield fed
            finally:
                _drop(pending)

    def _handed_out(self, batch: tuple[Any, np.ndarray]) -> tuple[Any, Array]:
        put: tuple[Any, Array] = jax.device_put(batch)
        for check in self.checks:
            check(put[0])
        return put


def _drop(pending: dict[int, Future[Any]]) -> None:
    for future in pending.values():
        future.cancel()
    pending.clear()


def is_source(data: Any) -> bool:
    """Whether data are to be read by index or batch by batch: not an array in memory, nor what becomes one."""
    if isinstance(data, np.memmap):
        return True
    if isinstance(data, np.ndarray | Array | list | tuple | str | bytes | Mapping) or np.isscalar(data):
        return False
    if hasattr(data, "__array__"):  # arrays on disk have a shape; a table or one of its columns is taken as an array
        return hasattr(data, "shape") and hasattr(data, "dtype") and not hasattr(data, "iloc")
    return _has_index(data) or hasattr(data, "__iter__")


def _has_index(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def read_batches(data: Any, *, batch_size: int, key: Array) -> ReadBatches:
    """Batches of a source.

    Args:
        data: With `__len__`, and `__getitem__` of an array of indices (in ascending order) that gives an array, or a
            tuple or dictionary of arrays, with one row for each; or a tuple or dictionary of such sources and arrays;
            or an iterable of whole batches, which gives the same ones each time that it is iterated over: shuffled
            once, that is, and not anew for each epoch.
        batch_size: Number of data in a batch.
        key: Random key of the order, which is that of an array in memory.

    Returns:
        The batches.

    Raises:
        TypeError: an iterable can be iterated over only once.
        ValueError: a source is empty or has fewer data than a batch; sources differ in length; the first batch is of
            another size or has NaN or infinity.
    """
    indexed = isinstance(data, tuple | dict) or _has_index(data)
    batches = _indexed(data, batch_size, key) if indexed else _iterated(data, batch_size)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batches.source[0])

    def same(batch: Any) -> None:
        kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
        if kinds != like:
            raise ValueError(f"Expected batches like the first, of (shape, dtype) {like}; got {kinds}.")

    batches.require(same)
    return batches


def _indexed(data: Any, batch_size: int, key: Array) -> ReadBatches:
    num_data = num_rows(data)
    require_enough(num_data, batch_size)
    per_epoch = num_data // batch_size

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), num_data))

    def plan(iteration: int) -> np.ndarray:
        epoch, place = divmod(iteration, per_epoch)
        return np.arange(num_data) if batch_size == num_data else order(epoch)[place * batch_size :][:batch_size]

    def read(indices: np.ndarray) -> tuple[Any, np.ndarray]:
        return _at(data, indices, num_data), indices

    return ReadBatches(plan, read, batch_size, num_data, f"{_name(data)} of {num_data} data")


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
        yield _at(data, indices, num_data), indices


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
    if not all(map(_has_index, parts.values())):
        raise TypeError(f"Expected data with a length and an index; got {', '.join(map(_name, parts.values()))}.")
    num_data = require_one_length({name: len(part) for name, part in parts.items()})
    if not num_data:
        raise ValueError(f"Expected at least one datum; {_name(data)} has none.")
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


def _at(data: Any, indices: np.ndarray, num_data: int) -> Any:
    """Data at indices, asked for in ascending order, in which files are read fastest, and some only."""
    ascending = np.argsort(indices)
    back = np.argsort(ascending)
    rows = {name: _rows(part, num_data, indices[ascending]) for name, part in _parts(data).items()}
    rows = jax.tree.map(lambda leaf: leaf[back], rows)
    if isinstance(data, dict):
        return rows
    return tuple(rows.values()) if isinstance(data, tuple) else rows["data"]


def _rows(source: Any, num_data: int, indices: np.ndarray) -> Any:
    """Rows of a source, as arrays, or an error that says which."""
    if len(source) != num_data:
        raise ValueError(
            f"Expected a source of {num_data} data, as when the fit began; {_name(source)} now has {len(source)}."
        )
    try:
        rows = source[indices]
    except Exception as error:
        raise RuntimeError(
            f"Expected the rows of {_name(source)} at an array of indices; got {type(error).__name__}: {error}, at "
            f"{indices.tolist()}."
        ) from error
    rows = _arrays(rows)
    for leaf in jax.tree.leaves(rows):
        if leaf.shape[:1] != indices.shape:
            raise ValueError(
                f"Expected a row of {_name(source)} for each of {len(indices)} indices; got shape {leaf.shape}."
            )
        require_numbers(leaf, indices)
    return rows


def _arrays(batch: Any) -> Any:
    """A batch in arrays of its own: who gave it may use its memory again."""
    if isinstance(batch, Mapping):
        return {name: np.array(part) for name, part in batch.items()}
    return tuple(np.array(part) for part in batch) if isinstance(batch, tuple) else np.array(batch)


def _iterated(data: Iterable[Any], batch_size: int) -> ReadBatches:
    if iter(data) is data:
        raise TypeError(
            f"Expected an iterable of batches that begins anew with each `iter`; got {_name(data)}, which can be "
            "iterated over only once. A class with __iter__ does."
        )
    at: list[Any] = [0, iter(data)]

    def read(iteration: int) -> tuple[Any, np.ndarray]:
        if iteration < at[0]:
            at[:] = 0, iter(data)
        while True:
            batch = next(at[1], None)
            if batch is None:
                at[1] = iter(data)
                batch = next(at[1], None)
            if batch is None:
                raise ValueError(f"Expected at least one batch; {_name(data)} has none.")
            at[0] += 1
            if at[0] > iteration:
                break
        batch = _arrays(tuple(batch) if isinstance(batch, list) else batch)
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[:1] != (batch_size,):
                raise ValueError(
                    f"Expected batches of {batch_size} data, as `batch_size` says; batch {iteration + 1} has shape "
                    f"{leaf.shape}. Leave out, or fill up, what is over at the end of an epoch."
                )
            require_numbers(leaf, np.arange(batch_size))
        return batch, np.arange(batch_size)

    return ReadBatches(lambda iteration: iteration, read, batch_size, None, _name(data))


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


def _name(data: Any) -> str:
    return type(data).__name__
