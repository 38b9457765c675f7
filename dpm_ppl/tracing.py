"""Runs a program quietly: seeded, its sites kept, nothing reaching the handlers around; or on shapes alone."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax import Array
from numpyro import handlers

Sites = dict[str, dict[str, Any]]


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


def trace_shapes(program: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Sites]:
    """`trace_quietly` without computing anything: what it returns and its sites have shapes and types, but no values.

    Array arguments in `args` may be `jax.ShapeDtypeStruct`s; what is in `options` is taken as it is.
    """
    seen: list[tuple[Any, Sites]] = []

    def run(*args: Any) -> None:
        seen.append(trace_quietly(program, *args, **options))

    jax.eval_shape(run, *args)
    return seen[-1]
