"""Devices: data and particles are split over a mesh of them, by JAX's own partitioner, and parameters are on each.

A program that is split computes what it computes on one device, but for the order in which sums over data are added:
random numbers are a function of key, datum and particle, under JAX's default generator (`jax_threefry_partitionable`).
The devices may be of several processes, once each has called `jax.distributed.initialize`; all of them then run the
same program.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dpm_ppl.arguments import require_count

AXIS = "data"

T = TypeVar("T")


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, `data`, over devices that JAX sees: what functions here take as `mesh`.

    Args:
        num_devices: How many, the first of them; by default all, those of other processes too.

    Raises:
        TypeError: num_devices is no integer.
        ValueError: JAX sees fewer.
    """
    devices = jax.devices()
    num = len(devices) if num_devices is None else require_count("num_devices", num_devices)
    if num > len(devices):
        raise ValueError(
            f"Expected `num_devices` to be at most {len(devices)}, which JAX sees here ({jax.default_backend()}); got "
            f"{num}. Is JAX installed for the accelerator? On a CPU the environment variable "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={num} makes as many, to try things out."
        )
    return _mesh_of(devices[:num])


def _mesh_of(devices: list[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@dataclass(frozen=True)
class Spread:
    """Where arrays go: leaves of a tree either whole to every device, or split along their first axis.

    Args:
        mesh: The devices; None leaves all where JAX puts it, on one.
        axis: The mesh's axis that data are split along.
    """

    mesh: Mesh | None = None
    axis: str = AXIS

    @cached_property
    def hosts(self) -> bool:
        """Whether some of the devices are of other processes."""
        return self.whole is not None and not self.whole.is_fully_addressable

    @property
    def num(self) -> int:
        """Into how many parts data are split."""
        return 1 if self.mesh is None else int(self.mesh.shape[self.axis])

    @cached_property
    def whole(self) -> NamedSharding | None:
        """The sharding of what is on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def split(self) -> NamedSharding | None:
        """The sharding of what is split along its first axis."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(self.axis))

    def multiple(self, size: int) -> int:
        """The least multiple of `num` that holds `size`."""
        return -(-size // self.num) * self.num

    def put(self, tree: T, placement: Any = None) -> T:
        """The same on every device, whole, or as `placement` says, but for what lies on this mesh already."""
        if self.whole is None:
            return tree
        if self.hosts:
            shardings = self.whole if placement is None else placement
            placed: T = jax.jit(lambda tree: tree, out_shardings=shardings)(tree)  # which sends nothing to compare
            return placed
        if placement is not None:
            return jax.device_put(tree, placement)

        def put(leaf: Any) -> Any:
            sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
            there = isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh
            return leaf if there else jax.device_put(leaf, self.whole)

        return jax.tree.map(put, tree)

    def put_split(self, tree: T, *, num_rows: int | None = None) -> T:
        """The same split along the first axis of each leaf; whole where the devices do not divide that.

        Args:
            tree: Leaves of so many rows, all of which this process has.
            num_rows: How many there are, where the leaves have `rows_here` of them alone.
        """
        if self.split is None:
            return tree

        def put(leaf: Any) -> Any:
            if not self.hosts:
                return jax.device_put(leaf, self._of_rows(len(leaf)))
            num = len(leaf) if num_rows is None else num_rows
            here = np.arange(num) if num_rows is None else self.rows_here(num)
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(
                (num, *leaf.shape[1:]),
                self._of_rows(num),
                lambda index: leaf[np.searchsorted(here, np.arange(num)[index[0]])],  # type: ignore[index]
            )

        return jax.tree.map(put, tree)

    def _of_rows(self, num_rows: int) -> NamedSharding:
        sharding = self.whole if num_rows % self.num else self.split
        assert sharding is not None
        return sharding

    def rows_here(self, num_rows: int) -> np.ndarray:
        """Which rows of so many this process has devices for, ascending: all of them, where there is no other."""
        if not self.hosts:
            return np.arange(num_rows)
        parts = self._of_rows(num_rows).addressable_devices_indices_map((num_rows,)).values()
        return np.unique(np.concatenate([np.arange(num_rows)[part] for part in parts]))

    def here(self, tree: T) -> T:
        """The same, whole, for this process alone, where the devices are of several."""
        return jax.tree.map(lambda leaf: jnp.asarray(whole(leaf)), tree) if self.hosts else tree

    def shapes(self, tree: Any, placement: Any = None) -> Any:
        """Shapes, as `jax.eval_shape` gives them, of arrays that are whole on every device, or as `placement` says."""
        if self.whole is None:
            return tree
        placement = jax.tree.map(lambda leaf: self.whole, tree) if placement is None else placement
        return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, placement)

    def constrained(self, tree: T) -> T:
        """In compiled code: has each leaf split along its first axis; XLA fills up what the devices do not divide."""
        return tree if self.split is None else jax.lax.with_sharding_constraint(tree, self.split)

    def gathered(self, tree: T) -> T:
        """In compiled code: has each leaf whole on every device."""
        return tree if self.whole is None else jax.lax.with_sharding_constraint(tree, self.whole)

    def taken(self, rows: Array, tree: T, *, where: Array) -> T:
        """In compiled code: rows of each leaf; over devices they travel only `where` they are not all in their place.

        Args:
            rows: Which, shape (num,); over devices the same on each.
            tree: Leaves of shape (num, ...).
            where: Whether rows differ from 0, ..., num - 1, scalar; over devices the same on each.
        """

        def take(tree: T) -> T:
            return jax.tree.map(lambda leaf: leaf[rows], tree)

        return take(tree) if self.mesh is None else self.constrained(jax.lax.cond(where, take, lambda tree: tree, tree))


def whole(leaf: Any) -> np.ndarray:
    """An array in whole, which may be in parts on devices of other processes: all of them are to call this."""
    if not isinstance(leaf, Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


ALONE = Spread()
"""One device, the one where JAX puts what nobody places."""


_CHOSEN: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextmanager
def using(mesh: Mesh | None) -> Iterator[None]:
    """Within, whatever is given no mesh takes this one; None leaves it to that."""
    before = _CHOSEN.set(_CHOSEN.get() if mesh is None else mesh)
    try:
        yield
    finally:
        _CHOSEN.reset(before)


def spread_over(mesh: Mesh | None, *, everywhere: bool = False) -> Spread:
    """How data are split over a mesh, or a clear error.

    Args:
        mesh: Devices with one axis, or with one named `data` beside others, over which all is repeated. By default
            those of `using`, or else all that JAX sees; where that is one, or a default device is set, nothing is
            placed at all.
        everywhere: Whether devices of other processes are taken as well, all of which then call the same; if not, the
            default is those of this process.

    Raises:
        TypeError: mesh is no mesh.
        ValueError: it has several axes and none is `data`; or has devices of other processes, where they are not taken,
            or only some of the processes'.
    """
    chosen = _CHOSEN.get()
    if chosen is not None and not everywhere and _processes(chosen) != {jax.process_index()}:
        chosen = None
    mesh = chosen if mesh is None else mesh
    if mesh is None:
        config: Any = jax.config
        devices = jax.devices() if everywhere else jax.local_devices()
        alone = config.jax_default_device is not None or len(devices) == 1
        return ALONE if alone else Spread(_mesh_of(devices))
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"Expected `mesh` to be a jax.sharding.Mesh, such as dpm_ppl.inference.make_mesh(8); got "
            f"{type(mesh).__name__}."
        )
    if len(mesh.axis_names) != 1 and AXIS not in mesh.axis_names:
        raise ValueError(
            f"Expected `mesh` to have the axis {AXIS!r}, along which data and particles are split, or one axis alone; "
            f"got the axes {', '.join(map(repr, mesh.axis_names))}."
        )
    processes, here = _processes(mesh), jax.process_index()
    if processes != {here} and not (everywhere and processes == set(range(jax.process_count()))):
        wanted = "this process's devices, or some of every process" if everywhere else "this process's devices"
        raise ValueError(
            f"Expected `mesh` to have {wanted}; got devices of processes {', '.join(map(str, sorted(processes)))}, "
            f"and this is process {here}. jax.local_devices() are its own."
        )
    axis = AXIS if AXIS in mesh.axis_names else mesh.axis_names[0]
    # Explicit axes, which are the default of JAX's own maker, want shardings in the types of all that NumPyro does.
    return Spread(Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim), axis)


def _processes(mesh: Mesh) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}
