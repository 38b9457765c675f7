"""Arguments checked before any work: flags, batches, pairs, each check written once."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.diffusion import Definition, Diffusion, require_data
from dpm_ppl.kernels.kernel import Kernel
from dpm_ppl.programs import instantiate


def require_batch(kernel: Kernel, x0: ArrayLike) -> Array:
    """Data of shape (num_data, *event), or a clear error."""
    x0 = require_data(kernel, x0)
    if x0.ndim != 1 + len(kernel.event_shape):
        raise ValueError(
            f"Expected `x0` of shape (num_data, *event), one batch dimension before the event shape "
            f"{kernel.event_shape}; got {x0.shape}. Use x0[None] for a single datum, x0.reshape(-1, *event) for more."
        )
    return x0


def given_beside(
    definition: Definition, params: Mapping[str, Any], x0: ArrayLike, context: Any
) -> tuple[Diffusion, Array, Any]:
    """A program's diffusion, its data, and what is given beside them, as arrays that fit together; or a clear error.

    Args:
        definition: A program's `diffusion`.
        params: Parameters by name.
        x0: Data, shape (num_data, *event).
        context: What a definition of one argument is of, leaves of shape (num_data, ...); None for one of none.
    """
    context = jax.tree.map(jnp.asarray, context)
    built = instantiate(definition, params, context=context)
    x0 = require_batch(built.kernel, x0)
    return built.of_batch(x0.shape[:1]), x0, context


def require_pair(data: ArrayLike, samples: ArrayLike, *, at_least: int) -> list[np.ndarray]:
    """Two batches of one event shape, numeric, finite and large enough, or a clear error."""
    both = [np.asarray(x) for x in (data, samples)]
    for name, x in zip(("data", "samples"), both, strict=True):
        if not (np.issubdtype(x.dtype, np.bool_) or jnp.issubdtype(x.dtype, jnp.number)):
            raise TypeError(f"Expected `{name}` to be a numeric array; got {x.dtype}.")
        if x.ndim < 1 or len(x) < at_least or x.size == 0:
            raise ValueError(
                f"Expected `{name}` of shape (number, *event), at least {at_least} of them; got shape {x.shape}."
            )
        if not np.isfinite(x).all():
            bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
            raise ValueError(f"Expected `{name}` to be finite; got NaN or infinity in {bad.sum()} of {len(x)}.")
    if both[0].shape[1:] != both[1].shape[1:]:
        raise ValueError(
            f"Expected `data` and `samples` of one event shape; got {both[0].shape[1:]} and {both[1].shape[1:]}."
        )
    return both


def require_flags(**flags: Any) -> None:
    """Checks that each is a bool, by its name."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"Expected `{name}` to be True or False; got {value!r}.")
