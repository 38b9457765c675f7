"""The pair that a program is whose data are one chain: the reverse chain as model, the forward chain as guide."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro
from jax import Array

from dpm_ppl.diffusion import Definition
from dpm_ppl.programs import takes
from dpm_ppl.statements import forward_chain, reverse_chain


def single_chain(definition: Definition) -> tuple[Callable[..., Array], Callable[..., None]]:
    """Model and guide of a program whose data are one chain, called "x", in one plate, called "data".

    They are the pair that `dpm_ppl/models/swiss_roll.py` writes out. Write it out for another: a chain beside other
    sites, several chains, a guide of its own.

    Args:
        definition: A program's `diffusion`: declares parameters and returns a `dpm_ppl.Diffusion`, whose event shape is
            that of one datum. Both programs run it. It takes no arguments, or one, the context of a batch.

    Returns:
        `model(x0=None, size=1)`, the reverse chain: observes data x0 of shape (num_data, *event), or generates `size`
        of them; returns the data. And `guide(x0)`, the forward chain from the same data. Of a definition of a context,
        `diffusion(c)`, they are `model(c, x0=None)`, which generates a datum for each row of c, and `guide(c, x0)`; the
        argument has the name that the definition gives it.

    Raises:
        TypeError: definition is no function, or cannot be called with no or one argument.
    """
    if not callable(definition):
        raise TypeError(
            "Expected `definition` to be the function that declares parameters and returns a dpm_ppl.Diffusion; got "
            f"{type(definition).__name__}."
        )
    if takes(definition):
        return _alone(definition)
    try:
        inspect.signature(definition).bind(None)
    except TypeError as error:
        raise TypeError(
            f"Expected `definition` to be a function without arguments, or of one, the context; got one with {error}. "
            "Where they are other sites, write model and guide out."
        ) from error
    return _beside(definition)


def _alone(definition: Definition) -> tuple[Callable[..., Array], Callable[..., None]]:
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


def _beside(definition: Definition) -> tuple[Callable[..., Array], Callable[..., None]]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    context = next(iter(inspect.signature(definition).parameters.values())).replace(kind=kind)
    if context.name == "x0":
        raise ValueError("Expected `definition` to call its context something else than x0, which is the datum.")
    observed, drawn = (inspect.Parameter("x0", kind, default=default) for default in (inspect.Parameter.empty, None))

    def plate(context: Any) -> numpyro.plate:
        return numpyro.plate("data", np.shape(jax.tree.leaves(context)[0])[0])

    def model(*args: Any, **kwargs: Any) -> Array:
        """The reverse chain: generates a datum for each row of the context, or observes x0."""
        given = model.__signature__.bind(*args, **kwargs)  # type: ignore[attr-defined]
        given.apply_defaults()
        context, x0 = given.args
        diffusion = definition(context)
        with plate(context):
            return reverse_chain("x", diffusion, obs=x0)

    def guide(*args: Any, **kwargs: Any) -> None:
        """The forward chain from x0, shape (num_data, *event)."""
        context, x0 = guide.__signature__.bind(*args, **kwargs).args  # type: ignore[attr-defined]
        diffusion = definition(context)
        with plate(context):
            forward_chain("x", diffusion, x0)

    model.__signature__ = inspect.Signature([context, drawn])  # type: ignore[attr-defined]
    guide.__signature__ = inspect.Signature([context, observed])  # type: ignore[attr-defined]
    return model, guide
