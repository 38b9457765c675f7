"""Runs a program quietly: seeded, its sites kept, nothing reaching the handlers around; or on shapes alone."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

Sites = dict[str, dict[str, Any]]
Read = TypeVar("Read")


def trace_quietly(
    program: Callable[..., Any],
    *args: Any,
    params: Mapping[str, Any] | None = None,
    seed: int | Array = 0,
    within: AbstractContextManager[Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Sites]:
    """Runs a program, blocked and seeded.

    Args:
        program: Any NumPyro program.
        *args: Its arguments, those by name in `**kwargs`.
        params: Values to put in by name.
        seed: Seed, or random key.
        within: A handler to run it in, inside the trace.
        **kwargs: Arguments by name.

    Returns:
        What it returns, and its sites by name.
    """
    with handlers.block(), handlers.trace() as trace, within or nullcontext():
        with handlers.seed(rng_seed=seed), handlers.substitute(data=dict(params or {})):
            result = program(*args, **kwargs)
    return result, dict(trace)


def trace_shapes(read: Callable[[Any, Sites], Read], program: Callable[..., Any], *args: Any, **options: Any) -> Read:
    """`trace_quietly` without computing anything: shapes and types are known, but no values.

    Args:
        read: What is to be known of `(result, sites)`, the two that `trace_quietly` returns; called while both live,
            so it keeps no array of theirs (`jax.check_tracer_leaks` would find it).
        program: Any NumPyro program.
        *args: Its arguments; arrays may be `jax.ShapeDtypeStruct`s.
        **options: Of `trace_quietly`; arrays among them are taken as they are.

    Returns:
        What `read` does.

    Raises:
        jax.errors.UnexpectedTracerError: the result depends on an array that an earlier run on shapes made and kept.
    """
    seen: list[tuple[Any, Read]] = []

    def run(*args: Any) -> list[Any]:
        result, sites = trace_quietly(program, *args, **options)
        seen.append((weakref.ref(trace_of(jnp.zeros(()) + 0)), read(result, sites)))
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, Array)]

    for const in jax.make_jaxpr(run)(*args).consts:
        if trace_of(const) in _ENDED:
            raise jax.errors.UnexpectedTracerError(f"An array that was kept of an earlier run on shapes: {const}.")
    ended, known = seen[-1]
    if (trace := ended()) is not None:  # something of it is kept
        _ENDED.add(trace)
    return known


_ENDED: weakref.WeakSet[Any] = weakref.WeakSet()  # traces of runs that are over: what they made means nothing any more


def trace_of(array: Any) -> Any:
    """The trace that an array is made in; the type alone where JAX does not say."""
    return getattr(array, "_trace", type(array))


def shapes_of(tree: Any) -> Any:
    """A pytree with the shape and type of every array in place of it."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
