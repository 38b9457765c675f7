"""Minibatches: the batch of an iteration, a function of a random key and the iteration."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax

from dpm_ppl.inference.devices import Spread
from dpm_ppl.inference.fitting.reading import Check, Feed, read_batches
from dpm_ppl.inference.sources import (
    Resident,
    Source,
    described,
    is_source,
    require_enough,
    require_numbers,
    require_one_length,
)

Data = Resident | Source | dist.Distribution
"""What a fit takes as data."""


class Batches(Protocol):
    """Where each iteration's batch comes from."""

    @property
    def batch_size(self) -> int:
        """Number of data in a batch."""

    @property
    def num_data(self) -> int | None:
        """Number of data in all; None where every batch is fresh."""

    @property
    def resident(self) -> bool:
        """Whether an iteration draws its batch itself, from a source that stays; if not, each is fed its own."""

    @property
    def source(self) -> Any:
        """What `draw` reads in the first iteration: an argument of compiled code, so that it is no constant there."""

    @property
    def description(self) -> str:
        """What the data are, in a line that tells them from others."""

    def over(self, spread: Spread) -> Self:
        """The same for devices: what an iteration reads is whole on each, or handed out in their parts."""

    def feed(self, stop: int) -> AbstractContextManager[Feed]:
        """What `draw` reads, by iteration, up to iteration `stop`."""

    def require(self, check: Check) -> None:
        """Checks the data as `check(batch)` does, now, or where they are not here yet, when they come."""

    def start(self, source: Any, iteration: Array) -> Any:
        """What `draw` carries from iteration to iteration, for a loop that begins at `iteration`."""

    def draw(self, source: Any, iteration: Array, carried: Any) -> tuple[Any, Array, Array]:
        """The carried value, the batch, leaves of (batch_size, *event), and the indices of its data, (batch_size,)."""


@dataclass(frozen=True, eq=False)
class ArrayBatches:
    """Batches of arrays, each datum at most once an epoch, in an order of its own.

    What does not fill a batch is left out until the next epoch. A batch of all the data keeps their order.

    Args:
        source: Data, shape (num_data, *event); or a tuple or dictionary of such.
        batch_size: Number of data in a batch, at most num_data.
        key: Random key.
    """

    source: Any
    batch_size: int
    key: Array

    @property
    def num_data(self) -> int:
        """Number of data in all."""
        return len(jax.tree.leaves(self.source)[0])

    @property
    def _per_epoch(self) -> int:
        return self.num_data // self.batch_size

    resident = True

    @property
    def description(self) -> str:
        """Dtype, shape and hash of each array."""
        return described(self.source)

    def over(self, spread: Spread) -> Self:
        """The arrays on every device."""
        return replace(self, source=spread.put(self.source))

    def feed(self, stop: int) -> AbstractContextManager[Feed]:
        """The arrays."""
        return nullcontext(lambda iteration: self.source)

    def require(self, check: Check) -> None:
        """Checks all of the data."""
        check(self.source)

    def start(self, source: Any, iteration: Array) -> Array:
        """The order of the epoch that `iteration` belongs to, shape (num_data,)."""
        if self.batch_size == self.num_data:
            return jnp.arange(self.num_data)
        return jax.random.permutation(jax.random.fold_in(self.key, iteration // self._per_epoch), self.num_data)

    def draw(self, source: Any, iteration: Array, carried: Array) -> tuple[Array, Any, Array]:
        """The batch of an iteration; `carried` is the order of its epoch, or of the one before at the first batch."""
        place = iteration % self._per_epoch
        order = lax.cond(place == 0, lambda: self.start(source, iteration), lambda: carried)
        indices = lax.dynamic_slice_in_dim(order, place * self.batch_size, self.batch_size)
        return order, jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=0), source), indices


@dataclass(frozen=True, eq=False)
class FreshBatches:
    """Batches drawn anew from a distribution at every iteration.

    Args:
        distribution: NumPyro distribution of batch shape ().
        batch_size: Number of data in a batch.
        key: Random key.
    """

    distribution: dist.Distribution
    batch_size: int
    key: Array
    num_data = None
    source = None
    resident = True

    @property
    def description(self) -> str:
        """The distribution's type and event shape."""
        return f"{type(self.distribution).__name__} of event shape {list(self.distribution.event_shape)}"

    def over(self, spread: Spread) -> Self:
        """Each device draws its part of a batch: nothing is to be put there."""
        return self

    def feed(self, stop: int) -> AbstractContextManager[Feed]:
        """Nothing is read."""
        return nullcontext(lambda iteration: None)

    def require(self, check: Check) -> None:
        """Nothing is checked: what a distribution draws is in its support."""

    def start(self, source: None, iteration: Array) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def draw(self, source: None, iteration: Array, carried: tuple[()]) -> tuple[tuple[()], Array, Array]:
        """The batch of an iteration; its indices count within the batch."""
        x0 = self.distribution.sample(jax.random.fold_in(self.key, iteration), (self.batch_size,))
        return (), x0, jnp.arange(self.batch_size)


def batches_of(data: Any, *, batch_size: int, key: Array) -> Batches:
    """Batches of data, or a clear error.

    Args:
        data: Array of shape (num_data, *event), a tuple or dictionary of such, a NumPyro distribution of batch shape
            (), or what is read as it is needed (see `dpm_ppl.inference.fitting.reading.read_batches`).
        batch_size: Number of data in a batch.
        key: Random key.

    Returns:
        The batches.

    Raises:
        TypeError: data is neither, or holds something else than numbers.
        ValueError: an array is empty, has fewer data than a batch, or holds NaN or infinity; arrays differ in length;
            the distribution has a batch shape.
    """
    if isinstance(data, dist.Distribution):
        if data.batch_shape:
            raise ValueError(
                f"Expected `data` to be one distribution, of batch shape (); got batch shape {data.batch_shape}. "
                f"`.to_event({len(data.batch_shape)})` makes a batch one event, dist.MixtureSameFamily an average of "
                "its members."
            )
        return FreshBatches(data, batch_size, key)
    data = dict(data) if isinstance(data, Mapping) else data
    several = isinstance(data, dict) or (isinstance(data, tuple) and any(map(_one_of_several, data)))
    parts: dict[Any, Any] = data if isinstance(data, dict) else dict(enumerate(data)) if several else {0: data}
    if any(map(is_source, parts.values())):
        return read_batches(data, batch_size=batch_size, key=key)
    if several:
        arrays = {name: _checked(part, batch_size) for name, part in parts.items()}
        require_one_length({name: len(array) for name, array in arrays.items()})
        return ArrayBatches(arrays if isinstance(data, dict) else tuple(arrays.values()), batch_size, key)
    return ArrayBatches(_checked(data, batch_size), batch_size, key)


def _one_of_several(part: Any) -> bool:
    return is_source(part) or np.ndim(part) > 0


def _checked(data: Any, batch_size: int) -> Array:
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected `data` to be an array or a NumPyro distribution; got {type(data).__name__}."
        ) from error
    rows = np.atleast_1d(array)
    require_numbers(rows, np.arange(len(rows)))
    if array.ndim < 1:
        raise ValueError("Expected `data` of shape (num_data, *event); got a single number.")
    if array.size == 0:
        raise ValueError(f"Expected at least one datum in `data`; got an empty array of shape {array.shape}.")
    require_enough(len(array), batch_size)
    return jnp.asarray(array)
