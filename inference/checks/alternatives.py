"""The slips of a hand-written kernel, each undone: the one that restores a law is the mistake, and gives it a name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

Law = Callable[..., dist.Distribution]


@dataclass(frozen=True)
class Laws:
    """A kernel's laws, any of which may be replaced.

    Args:
        stationary: pi.
        step: q(x^t | x^(t-1)) of (x, t).
        marginal: q(x^t | x^0) of (x0, t).
        posterior: q(x^(t-1) | x^t, x^0) of (x0, xt, t).
    """

    stationary: Callable[[], dist.Distribution]
    step: Law
    marginal: Law | None
    posterior: Law | None

    @classmethod
    def of(cls, kernel: Any) -> "Laws":
        """Those of a kernel."""
        return cls(
            kernel.stationary, kernel.step, getattr(kernel, "marginal", None), getattr(kernel, "posterior", None)
        )

    def replaced(self, name: str, law: Law) -> "Laws":
        """The same with another law."""
        return Laws(**{**self.__dict__, name: law})


def shifts(laws: Laws) -> Iterator[tuple[str, str, Laws]]:
    """One law at a time moved by a step: its name, what that means if it restores the others, and the laws."""
    index = {"step": "beta", "marginal": "alpha_bar", "posterior": "beta or alpha_bar"}
    for name in ("step", "marginal", "posterior"):
        law = getattr(laws, name)
        if law is None:
            continue
        for by in (1, -1):
            moved = f"t {'+' if by > 0 else '-'} 1"
            words = f"With {moved} for t in `{name}` alone they agree: {index[name]} is off by one there"
            yield name, words, laws.replaced(name, _shifted(law, by))


def scales(laws: Laws) -> Iterator[tuple[str, str, Laws]]:
    """One normal law at a time with its scale, or the slope of its mean, under a root."""
    for name in ("step", "marginal", "posterior"):
        law = getattr(laws, name)
        if law is None:
            continue
        words = (
            f"With the root of its scale `{name}` is right: it gives Normal a variance where a standard deviation "
            "belongs"
        )
        yield name, words, laws.replaced(name, _rooted_scale(law))
        if name != "posterior":
            share = {"step": "1 - beta", "marginal": "alpha_bar"}[name]
            words = (
                f"With the root of its slope `{name}` is right: its mean is ({share}) x, and should be sqrt({share}) x"
            )
            yield name, words, laws.replaced(name, _rooted_slope(law))


def _shifted(law: Law, by: int) -> Law:
    def shifted(*args: Array) -> dist.Distribution:
        return law(*args[:-1], args[-1] + by)

    return shifted


def _rooted_scale(law: Law) -> Law:
    def rooted(*args: Array) -> dist.Distribution:
        loc, scale, event_dim = normal(law(*args))
        return dist.Normal(loc, jnp.sqrt(scale)).to_event(event_dim)

    return rooted


def _rooted_slope(law: Law) -> Law:
    def rooted(x: Array, t: Array) -> dist.Distribution:
        loc, scale, event_dim = normal(law(x, t))
        at_zero, at_one = (normal(law(jnp.full_like(x, value), t))[0] for value in (0, 1))
        slope = at_one - at_zero
        return dist.Normal(at_zero + (loc - at_zero) / jnp.sqrt(slope), scale).to_event(event_dim)

    return rooted


class NoNormalError(TypeError):
    """A law is no diagonal normal."""


def normal(law: Any) -> tuple[Array, Array, int]:
    """Mean, standard deviation and event dimensions of a diagonal normal."""
    event_dim = law.event_dim
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if not isinstance(law, dist.Normal):
        raise NoNormalError(f"Expected a diagonal normal; got {type(law).__name__}.")
    return law.loc, law.scale, event_dim
