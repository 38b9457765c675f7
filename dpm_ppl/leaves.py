"""Objects as pytrees whose leaves are their arrays; what else they hold goes along as it is, and makes them differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

T = TypeVar("T")

_LAYOUT = "_leaves_layout"


def arrays_as_leaves(cls: type[T], parts: Callable[[T], Any], build: Callable[[Any], T]) -> None:
    """Registers a class as a pytree, so that its objects can be scanned, vmapped and jitted over.

    Args:
        cls: The class.
        parts: What an object is made of, as a pytree. Its arrays are the leaves; functions, strings, numbers and
            objects that are no pytrees stay as they are, compared by value where they are numbers and strings, and by
            identity where not.
        build: Makes an object of such parts, unchecked, as JAX puts other things than arrays where the arrays were.
    """

    def flatten(whole: T) -> tuple[list[Any], _Layout]:
        leaves, structure = jax.tree.flatten(parts(whole))
        layout = getattr(whole, _LAYOUT, None)  # JAX takes an object apart also while it holds no arrays
        if layout is None or not layout.fits(structure, leaves):
            layout = _Layout(structure, tuple(None if _is_array(leaf) else _Known(leaf) for leaf in leaves))
        return [leaf for leaf, known in zip(leaves, layout.known, strict=True) if known is None], layout

    def unflatten(layout: _Layout, arrays: Any) -> T:
        left = iter(arrays)
        leaves = [next(left) if known is None else known.value for known in layout.known]
        whole = build(jax.tree.unflatten(layout.structure, leaves))
        object.__setattr__(whole, _LAYOUT, layout)
        return whole

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)


def by_attributes(cls: type[T]) -> None:
    """Registers a class whose objects are all that their attributes say (see `arrays_as_leaves`)."""

    def attributes(whole: T) -> dict[str, Any]:
        return {name: value for name, value in vars(whole).items() if name != _LAYOUT}

    def build(attributes: dict[str, Any]) -> T:
        whole = object.__new__(cls)
        for name, value in attributes.items():
            object.__setattr__(whole, name, value)
        return whole

    arrays_as_leaves(cls, attributes, build)


@dataclass(frozen=True, eq=False)
class _Known:
    """A leaf that is no array."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Known):
            return NotImplemented
        plain = isinstance(self.value, bool | int | float | complex | str | np.generic) and type(self.value) is type(
            other.value
        )
        return self.value is other.value or (plain and bool(self.value == other.value))

    def __hash__(self) -> int:
        return hash(type(self.value))


@dataclass(frozen=True)
class _Layout:
    """How the parts of an object lie; None in `known` is an array."""

    structure: Any
    known: tuple[_Known | None, ...]

    def fits(self, structure: Any, leaves: list[Any]) -> bool:
        """Whether it is still that of an object, whose attributes may have been copied and changed since."""
        if self.structure != structure:
            return False
        return all(known is None or known == _Known(leaf) for leaf, known in zip(leaves, self.known, strict=True))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Array | np.ndarray)
