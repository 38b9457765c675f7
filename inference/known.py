"""Coordinates of x^0 that a program knows exactly: those of an observed `Delta` at its value."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

Known = tuple[Array, Array] | None  # a mask and values, each of shape (*event)

_WRAPPERS = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution


def is_point(fn: Any) -> bool:
    """Whether a distribution is a `Delta`, under any events, expansions and masks."""
    return isinstance(_layers(fn)[-1], dist.Delta)


def clamps(site: Mapping[str, Any], x0: Array) -> bool:
    """Whether a site observes x^0 itself, coordinate by coordinate, without noise."""
    base = _layers(site["fn"])[-1]
    return isinstance(base, dist.Delta) and base.v is x0


def known_coordinates(
    sites: Iterable[Mapping[str, Any]], x0: Array, support: constraints.Constraint
) -> tuple[Known, Array]:
    """Which coordinates are known, and what they are; and whether that can be.

    Args:
        sites: Sites that clamp x^0.
        x0: The chain's value, shape (*event).
        support: Where a datum lies.

    Returns:
        A mask and values, or None without a site; False where two sites contradict each other, or a value is none
        that a datum can have, so that the evidence is zero.
    """
    mask, value, possible = jnp.zeros(x0.shape, bool), x0, jnp.ones((), bool)
    found = list(sites)
    each = getattr(support, "base_constraint", support)
    for site in found:
        here, given = _mask(site["fn"], x0.shape), jnp.asarray(site["value"])
        agrees = jnp.where(mask, given == value, each(given))
        possible = possible & jnp.all(agrees | ~here)
        value = jnp.where(here, given.astype(value.dtype), value)
        mask = mask | here
    return ((mask, value) if found else None), possible


def _mask(fn: dist.Distribution, shape: tuple[int, ...]) -> Array:
    """The coordinates that every mask leaves; a mask goes with the batch of what it masks, in front of its event."""
    left = jnp.ones(shape, bool)
    for layer in _layers(fn):
        if isinstance(layer, dist.MaskedDistribution):
            mask = jnp.asarray(layer._mask)
            left = left & mask.reshape(mask.shape + (1,) * layer.event_dim)
    return left


def _layers(fn: Any) -> list[Any]:
    """A distribution and what it wraps."""
    layers = [fn]
    while isinstance(layers[-1], _WRAPPERS):
        layers.append(layers[-1].base_dist)
    return layers
