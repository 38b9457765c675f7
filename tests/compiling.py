"""How much XLA optimises what a test compiles."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def optimised() -> Iterator[None]:
    """For what runs longer than it takes to optimise, as a decorator or in a `with`; tests are compiled without."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
