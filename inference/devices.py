"""Devices: data and particles are split over a mesh of them, by JAX's own partitioner, and parameters are on each.

A program that is split computes what it computes on one device, but for the order in which sums over data are added:
random numbers are a function of key, datum and particle, under JAX's default generator (`jax_threefry_partitionable`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dpm_ppl.arguments import require_count

AXIS = "data"

T = TypeVar("T")


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, `data`, over devices that JAX sees: what functions here take as `mesh`.

    Args:
        num_devices: How many, the first of them; by default all.

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
    return Mesh(np.array(devices[:num]), (AXIS,), axis_types=(AxisType.Auto,))


@dataclass(frozen=True)
class Spread:
    """Where arrays go: leaves of a tree either whole to every device, or split along their first axis.

    Args:
        mesh: The devices; None leaves all where JAX puts it, on one.
        axis: The mesh's axis that data are split along.
    """

    mesh: Mesh | None = None
    axis: str = AXIS

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

    def put(self, tree: T) -> T:
        """The same on every device, whole."""
        return tree if self.whole is None else jax.device_put(tree, self.whole)

    def put_split(self, tree: T) -> T:
        """The same split along the first axis of each leaf; whole where the devices do not divide that."""
        if self.split is None:
            return tree

        def put(leaf: Any) -> Any:
            return jax.device_put(leaf, self.whole if leaf.shape[0] % self.num else self.split)

        return jax.tree.map(put, tree)

    def shapes(self, tree: Any) -> Any:
        """Shapes, as `jax.eval_shape` gives them, of arrays that are whole on every device."""
        sharding = self.whole
        if sharding is None:
            return tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

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


def spread_over(mesh: Mesh | None) -> Spread:
    """How data are split over a mesh, or a clear error.

    Args:
        mesh: Devices with one axis, or with one named `data` beside others, over which all is repeated. By default
            those of `using`, or else all that JAX sees; where that is one, or a default device is set, nothing is
            placed at all.

    Raises:
        TypeError: mesh is no mesh.
        ValueError: it has several axes and none is `data`.
    """
    mesh = _CHOSEN.get() if mesh is None else mesh
    if mesh is None:
        config: Any = jax.config
        return ALONE if config.jax_default_device is not None or len(jax.devices()) == 1 else Spread(make_mesh())
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
    axis = AXIS if AXIS in mesh.axis_names else mesh.axis_names[0]
    # Explicit axes, which are the default of JAX's own maker, want shardings in the types of all that NumPyro does.
    return Spread(Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim), axis)
