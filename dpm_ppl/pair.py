"""The pair that a program is whose data are one chain: the reverse chain as model, the forward chain as guide."""

import inspect
from collections.abc import Callable
from typing import Any

import numpyro
from jax import Array

from dpm_ppl.diffusion import Definition
from dpm_ppl.statements import forward_chain, reverse_chain


def single_chain(definition: Definition) -> tuple[Callable[..., Array], Callable[[Any], None]]:
    """Model and guide of a program whose data are one chain, called "x", in one plate, called "data".

    They are the pair that `dpm_ppl/models/swiss_roll.py` writes out. Write it out for another: a chain beside other
    sites, several chains, a guide of its own.

    Args:
        definition: A program's `diffusion`: declares parameters and returns a `dpm_ppl.Diffusion`, whose event shape is
            that of one datum. Both programs run it, and it takes no arguments.

    Returns:
        `model(x0=None, size=1)`, the reverse chain: observes data x0 of shape (num_data, *event), or generates `size`
        of them; returns the data. And `guide(x0)`, the forward chain from the same data.

    Raises:
        TypeError: definition is no function, or cannot be called without arguments.
    """
    if not callable(definition):
        raise TypeError(
            "Expected `definition` to be the function that declares parameters and returns a dpm_ppl.Diffusion; got "
            f"{type(definition).__name__}."
        )
    try:
        inspect.signature(definition).bind()
    except TypeError as error:
        raise TypeError(
            f"Expected `definition` to be a function without arguments; got one with {error}. Where they are labels or "
            "other sites, write model and guide out."
        ) from error

    def model(x0: Any = None, size: int = 1) -> Array:
        """The reverse chain: generates `size` data, or observes x0 of shape (num_data, *event)."""
        diffusion = definition()
        with numpyro.plate("data", size if x0 is None else len(x0)):
            return reverse_chain("x", diffusion, obs=x0)

    def guide(x0: Any) -> None:
        """The forward chain from x0, shape (num_data, *event)."""
        diffusion = definition()
        with numpyro.plate("data", len(x0)):
            forward_chain("x", diffusion, x0)

    return model, guide
