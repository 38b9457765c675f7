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


def require_numbers(name: str, value: ArrayLike, *, at_least: int) -> np.ndarray:
    """A batch of shape (number, *event), numeric, finite and large enough, or a clear error."""
    x = np.asarray(value)
    if not (np.issubdtype(x.dtype, np.bool_) or jnp.issubdtype(x.dtype, jnp.number)):
        raise TypeError(f"Expected `{name}` to be a numeric array; got {x.dtype}.")
    if x.ndim < 1 or len(x) < at_least or x.size == 0:
        raise ValueError(
            f"Expected `{name}` of shape (number, *event), at least {at_least} of them; got shape {x.shape}."
        )
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        raise ValueError(f"Expected `{name}` to be finite; got NaN or infinity in {bad.sum()} of {len(x)}.")
    return x


def require_alike(**batches: np.ndarray) -> None:
    """Checks that batches, by their names, are of one event shape."""
    shapes = [x.shape[1:] for x in batches.values()]
    if len(set(shapes)) > 1:
        names, came = ([*map(str, each)] for each in ([f"`{name}`" for name in batches], shapes))
        raise ValueError(
            f"Expected {', '.join(names[:-1])} and {names[-1]} of one event shape; got {', '.join(came[:-1])} and "
            f"{came[-1]}."
        )


def require_pair(data: ArrayLike, samples: ArrayLike, *, at_least: int) -> list[np.ndarray]:
    """Two batches of one event shape, numeric, finite and large enough, or a clear error."""
    both = {name: require_numbers(name, x, at_least=at_least) for name, x in (("data", data), ("samples", samples))}
    require_alike(**both)
    return list(both.values())


def require_flags(**flags: Any) -> None:
    """Checks that each is a bool, by its name."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"Expected `{name}` to be True or False; got {value!r}.")
