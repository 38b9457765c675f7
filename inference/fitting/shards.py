"""Parameters of a fit in shards: split over the devices by a rule of the user's, and their optimiser's state alike."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dpm_ppl.inference.devices import Spread

Rule = Callable[[str, tuple[int, ...]], PartitionSpec | None]
"""How a parameter is split, by its name, such as `['net$params'].layers[0].weight`, and shape; None leaves it whole."""


def placement(spread: Spread, rule: Rule | None, tree: Any, params: Any) -> Any:
    """The sharding of each leaf of what a fit carries: parameters by the rule, and what is kept of each like it.

    Args:
        spread: The devices.
        rule: How parameters are split; None leaves all of them whole.
        tree: Arrays, or their shapes. One is kept of a parameter if its name ends with that one's, and its shape is
            the same, as the moments of Optax are.
        params: The unconstrained parameters, by name.

    Returns:
        A tree of shardings; None where nothing is placed.

    Raises:
        TypeError: the rule gives something else than a PartitionSpec or None.
        ValueError: it names an axis that the mesh lacks, or one that does not divide the parameter; or there is one
            device.
    """
    if spread.mesh is None:
        if rule is not None:
            raise ValueError("Expected several devices, to split parameters over by `shard`; JAX sees one.")
        return None
    ruled: dict[tuple[str, tuple[int, ...]], NamedSharding | None] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0] if rule is not None else []:
        name = jax.tree_util.keystr(path)
        spec = rule(name, leaf.shape) if rule is not None else None
        ruled[name, leaf.shape] = spread.whole if spec is None else _sharding(spread, spec, name, leaf.shape)

    def place(path: Any, leaf: Any) -> NamedSharding | None:
        at = jax.tree_util.keystr(path)
        names = [name for name, shape in ruled if at.endswith(name) and shape == leaf.shape]
        return ruled[max(names, key=len), leaf.shape] if names else spread.whole

    return jax.tree_util.tree_map_with_path(place, tree)


def _sharding(spread: Spread, spec: Any, name: str, shape: tuple[int, ...]) -> NamedSharding:
    assert spread.mesh is not None
    mesh = spread.mesh
    if not isinstance(spec, PartitionSpec):
        raise TypeError(
            "Expected `shard` to give a jax.sharding.PartitionSpec, or None for a parameter that stays whole; got "
            f"{type(spec).__name__} for {name}."
        )
    for axes in spec:
        for axis in () if axes is None else axes if isinstance(axes, tuple) else (axes,):
            if axis not in mesh.shape:
                raise ValueError(
                    f"Expected `shard` to name axes of the mesh, which are {', '.join(map(repr, mesh.shape))}; got "
                    f"{axis!r} for {name}."
                )
    sharding = NamedSharding(mesh, spec)
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(
            f"Expected `shard` to split {name}, of shape {shape}, into equal parts over the mesh "
            f"{dict(mesh.shape)}; {spec} does not: {error}"
        ) from error
    return sharding
