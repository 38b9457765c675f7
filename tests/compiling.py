"""How tests compile: how much XLA optimises, and what JAX makes anew for each program."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count

import jax
from jax._src.interpreters import mlir


@contextmanager
def optimised() -> Iterator[None]:
    """For what runs longer than it takes to optimise, as a decorator or in a `with`; tests are compiled without."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def share_contexts(num_programs: int = 500) -> None:
    """Has one context of the compiler's serve many programs in turn.

    JAX makes one for each program that it lowers, which an eager operation on a new shape is too: 8 ms, and a megabyte
    that stays. On the tests of categorical kernels 57 s of processor time and 2.6 GB become 42 s and 0.7 GB. A context
    keeps the types and constants of all that it has seen, so it is not for ever.
    """
    context, programs = lru_cache(maxsize=1)(lambda number, make=mlir.make_ir_context: make()), count()
    mlir.make_ir_context = lambda: context(next(programs) // num_programs)
