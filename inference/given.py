"""Data to score and what is given beside each: in memory, or from sources, of which a part at a time is read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.diffusion import Definition, Diffusion
from dpm_ppl.inference.arguments import given_beside, require_batch
from dpm_ppl.inference.sources import Indexed, indexable, is_source, num_rows, rows_at

PART_BYTES = 2**27  # of data that are read at a time

FEW = 3  # data that tell what a source is of


@dataclass(frozen=True, eq=False)
class Given:
    """Data, checked; those of a source as they are read.

    Args:
        built: The program's diffusion, of all data; where they are read, of the first few.
        num_data: Number of data.
        x0: Data, shape (num_data, *event), or their source.
        context: What is given beside them, leaves of as many rows, or their sources; or None.
        part_size: How many data `parts` has at a time.
        is_read: Whether any of them is read.
    """

    built: Diffusion
    num_data: int
    x0: Any
    context: Any
    part_size: int
    is_read: bool

    def rows(self, indices: np.ndarray) -> tuple[Array, Any]:
        """Data and contexts at indices, leaves of shape (len(indices), ...)."""
        if self.is_read:
            x0, context = _rows(self.x0, self.context, indices, self.num_data)
            return require_batch(self.built.kernel, x0), jax.tree.map(jnp.asarray, context)
        return self.x0[indices], jax.tree.map(lambda leaf: leaf[indices], self.context)

    def parts(self) -> Iterator[tuple[int, Array, Any]]:
        """The number of the first datum, data and contexts of each part, in order; of what is in memory all at once."""
        if not self.is_read:
            yield 0, self.x0, self.context
            return
        for first in range(0, self.num_data, self.part_size):
            yield first, *self.rows(np.arange(first, min(first + self.part_size, self.num_data)))


def given(definition: Definition, params: Mapping[str, Any], x0: ArrayLike | Indexed, context: Any) -> Given:
    """Data that fit a program, or a clear error.

    Args:
        definition: A program's `diffusion`.
        params: Parameters by name.
        x0: Data, shape (num_data, *event), or a source of them: a memory-mapped array, or whatever has a length and
            an index.
        context: What a definition of one argument is of, leaves of shape (num_data, ...) or sources of them; None for
            one of none.

    Raises:
        TypeError, ValueError: as `dpm_ppl.inference.arguments.given_beside`; of a source once a part is read.
    """
    if not any(map(is_source, (x0, *jax.tree.leaves(context, is_leaf=is_source)))):
        in_memory: Any = x0
        built, array, context = given_beside(definition, params, in_memory, context)
        return Given(built, len(array), array, context, len(array), is_read=False)
    data, beside = jax.tree.map(indexable, (x0, context), is_leaf=is_source)
    num_data = num_rows(tuple(jax.tree.leaves((data, beside), is_leaf=is_source)))
    some = np.arange(min(FEW, num_data))
    few = _rows(data, beside, some, num_data)
    built, *_ = given_beside(definition, params, *few)
    row_bytes = max(1, sum(leaf.nbytes for leaf in jax.tree.leaves(few)) // len(some))
    num_parts = math.ceil(num_data / max(1, PART_BYTES // row_bytes))
    return Given(built, num_data, data, beside, math.ceil(num_data / num_parts), is_read=True)


def _rows(x0: Any, context: Any, indices: np.ndarray, num_data: int) -> tuple[Any, Any]:
    leaves, structure = jax.tree.flatten((x0, context), is_leaf=is_source)
    rows, beside = jax.tree.unflatten(structure, rows_at(tuple(leaves), indices, num_data))
    return rows, beside
