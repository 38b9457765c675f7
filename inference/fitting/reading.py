"""Batches that are read: by index or one after another, in a background thread while the iterations before them run.

Each is checked when it is handed out.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Self

import jax
import numpy as np
from jax import Array

from dpm_ppl.inference.devices import ALONE, Spread
from dpm_ppl.inference.sources import (
    as_arrays,
    described,
    has_index,
    name_of,
    num_rows,
    require_enough,
    require_numbers,
    rows_at,
)

AHEAD = 3
"""How many batches are read ahead."""


Feed = Callable[[int], Any]
Check = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class ReadBatches:
    """Batches that are read, one for each iteration, and handed to it.

    Args:
        plan: What is to be read for an iteration.
        read: What was planned, or rows of it alone: leaves of (batch_size, *event), and the indices of its data,
            (batch_size,). It runs in a thread of its own, where JAX would be without the settings of the caller's.
        batch_size: Number of data in a batch.
        num_data: Number of data in all; None where that is not known.
        of: What they are read from, in words.
        spread: The devices that a batch is handed out to, in parts; of other processes' parts nothing is read.
    """

    plan: Callable[[int], Any]
    read: Callable[[Any, np.ndarray], tuple[Any, np.ndarray]]
    batch_size: int
    num_data: int | None
    of: str
    resident = False
    checks: list[Check] = field(default_factory=list)
    spread: Spread = ALONE

    @cached_property
    def first(self) -> tuple[Any, np.ndarray]:
        """The first batch and the indices of its data, whole in every process."""
        return self.read(self.plan(0), np.arange(self.batch_size))

    @cached_property
    def source(self) -> tuple[Any, Array]:
        """The first batch and the indices of its data, on their devices."""
        return self._put(self.first)

    @property
    def description(self) -> str:
        """What the data are, with the first batch."""
        return f"{self.of}, the first batch {described(jax.device_put(self.first[0]))}"

    def start(self, source: Any, iteration: Array) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def draw(self, source: tuple[Any, Array], iteration: Array, carried: tuple[()]) -> tuple[tuple[()], Any, Array]:
        """What was read for this iteration."""
        return (), *source

    def require(self, check: Check) -> None:
        """Has each batch checked, from now on, before it is handed out."""
        check(self.first[0])
        self.checks.append(check)

    def over(self, spread: Spread) -> Self:
        """Batches whose parts are put on those devices as they are read."""
        return self if spread == self.spread else replace(self, spread=spread)

    @contextmanager
    def feed(self, stop: int) -> Iterator[Feed]:
        """What iterations below `stop` read, prefetched where they come in order."""
        rows = self.spread.rows_here(self.batch_size)
        with ThreadPoolExecutor(1, "dpm_ppl-data") as thread:
            pending: dict[int, Future[Any]] = {}

            def fed(iteration: int) -> Any:
                if iteration not in pending:
                    _drop(pending)
                for i in range(iteration, min(iteration + 1 + AHEAD, stop)):
                    if i not in pending:
                        pending[i] = thread.submit(self.read, self.plan(i), rows)
                return self._handed_out(pending.pop(iteration).result())

            try:
                yield fed
            finally:
                _drop(pending)

    def _handed_out(self, batch: tuple[Any, np.ndarray]) -> tuple[Any, Array]:
        for check in self.checks:
            check(batch[0])
        return self._put(batch, num_rows=self.batch_size)

    def _put(self, batch: tuple[Any, np.ndarray], **of: int) -> tuple[Any, Array]:
        put: Any = jax.device_put(batch) if self.spread.mesh is None else self.spread.put_split(batch, **of)
        x0, indices = put
        return x0, indices


def _drop(pending: dict[int, Future[Any]]) -> None:
    for future in pending.values():
        future.cancel()
    pending.clear()


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
    indexed = isinstance(data, tuple | dict) or has_index(data)
    batches = _indexed(data, batch_size, key) if indexed else _iterated(data, batch_size)
    like = _kinds(batches.first[0])

    def same(batch: Any) -> None:
        kinds = _kinds(batch)
        if kinds != like:
            raise ValueError(f"Expected batches like the first, of data of (shape, dtype) {like}; got {kinds}.")

    batches.require(same)
    return batches


def _kinds(batch: Any) -> Any:
    """Shape of a datum and dtype, as JAX has it, of each leaf."""
    return jax.tree.map(lambda leaf: (leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype)), batch)


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

    def read(indices: np.ndarray, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        return rows_at(data, indices[rows], num_data), indices[rows]

    return ReadBatches(plan, read, batch_size, num_data, f"{name_of(data)} of {num_data} data")


def _iterated(data: Iterable[Any], batch_size: int) -> ReadBatches:
    if iter(data) is data:
        raise TypeError(
            f"Expected an iterable of batches that begins anew with each `iter`; got {name_of(data)}, which can be "
            "iterated over only once. A class with __iter__ does."
        )
    at: list[Any] = [0, iter(data)]

    def read(iteration: int, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        if iteration < at[0]:
            at[:] = 0, iter(data)
        while True:
            batch = next(at[1], None)
            if batch is None:
                at[1] = iter(data)
                batch = next(at[1], None)
            if batch is None:
                raise ValueError(f"Expected at least one batch; {name_of(data)} has none.")
            at[0] += 1
            if at[0] > iteration:
                break
        batch = as_arrays(tuple(batch) if isinstance(batch, list) else batch)
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[:1] != (batch_size,):
                raise ValueError(
                    f"Expected batches of {batch_size} data, as `batch_size` says; batch {iteration + 1} has shape "
                    f"{leaf.shape}. Leave out, or fill up, what is over at the end of an epoch."
                )
            require_numbers(leaf, np.arange(batch_size))
        return batch if len(rows) == batch_size else jax.tree.map(lambda leaf: leaf[rows], batch), rows

    return ReadBatches(lambda iteration: iteration, read, batch_size, None, name_of(data))
