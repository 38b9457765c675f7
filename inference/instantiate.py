"""From a program's definition and its parameters to the diffusion that they make."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro import handlers

from dpm_ppl.diffusion import Diffusion


def instantiate(diffusion: Callable[[], Diffusion], params: Mapping[str, Any]) -> Diffusion:
    """Runs a program's definition with its parameters put in.

    Works inside `jax.jit` with traced parameters; no message reaches the handlers around it.

    Args:
        diffusion: The definition: declares parameters and modules, and returns a `dpm_ppl.Diffusion`.
        params: Value of each parameter by name, as `SVI.get_params` gives them; other names are ignored.

    Returns:
        The diffusion with these parameters.

    Raises:
        TypeError: `diffusion` is no function, or returns something else; `params` is no mapping.
        ValueError: a parameter is missing or of another structure or shape, or the definition samples a latent that has
            no value.
    """
    if not callable(diffusion):
        raise TypeError(
            f"Expected `diffusion` to be the function that declares parameters and returns a dpm_ppl.Diffusion; "
            f"got {type(diffusion).__name__}."
        )
    if not isinstance(params, Mapping):
        raise TypeError(f"Expected `params` to be a dictionary of parameters by name; got {type(params).__name__}.")
    check_params(_declared(diffusion), params)
    with handlers.block(), handlers.seed(rng_seed=0), handlers.substitute(data=dict(params)):
        return _checked(diffusion())


def _declared(diffusion: Callable[[], Diffusion]) -> dict[str, tuple[str, Any]]:
    """Kind and abstract value of every parameter and latent that a definition declares, by name."""
    kinds: dict[str, str] = {}

    def run() -> dict[str, Any]:
        with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=0):
            _checked(diffusion())
        sites = {name: site for name, site in trace.items() if site["type"] in ("param", "sample")}
        kinds.update({name: site["type"] for name, site in sites.items() if not site.get("is_observed")})
        return {name: site["value"] for name, site in sites.items()}

    declared = jax.eval_shape(run)
    return {name: (kind, declared[name]) for name, kind in kinds.items()}


def _checked(result: Any) -> Diffusion:
    if not isinstance(result, Diffusion):
        raise TypeError(f"Expected `diffusion` to return a dpm_ppl.Diffusion; got {type(result).__name__}.")
    return result


def check_params(declared: dict[str, tuple[str, Any]], params: Mapping[str, Any]) -> None:
    """Checks that parameters are those that a program declares, by name and shape.

    Args:
        declared: For every site that needs a value its kind, "param" or "sample", and a value of its shape.
        params: Values by name; others may be among them.

    Raises:
        ValueError: one is missing, or of another shape; it is named.
    """
    missing = [name for name in declared if name not in params]
    if any(declared[name][0] == "sample" for name in missing):
        latents = [name for name in missing if declared[name][0] == "sample"]
        raise ValueError(
            f"Expected values for the latent variables that `diffusion` samples; got none for {', '.join(latents)}. "
            "Give each in `params`, for instance its posterior mean."
        )
    if missing:
        raise ValueError(
            f"Expected a value for every parameter of the model; got none for {', '.join(missing)}. "
            f"`params` holds {', '.join(map(str, params)) or 'nothing'}: is it of another model?"
        )
    for name, (_, expected) in declared.items():
        shapes, came = _shapes(expected), _shapes(params[name])
        for part in [*shapes, *(part for part in came if part not in shapes)]:
            if shapes.get(part) != came.get(part):
                where = f"{name!r} at {part}" if part else repr(name)
                raise ValueError(
                    f"Expected parameter {where} of shape {shapes.get(part, 'none there')}; "
                    f"got {came.get(part, 'none there')}. Are these the parameters of another model?"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array in a parameter, by its path within: static fields may hold a new function each time."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
