"""Importance weights of any model and guide, from the log densities of their sites."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.likelihoods.weights import run_in_blocks
from dpm_ppl.programs import require_params
from dpm_ppl.tracing import trace_quietly

Sites = dict[str, dict[str, Any]]


def importance_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    params: Mapping[str, Any],
    key: Array,
    num_particles: int,
    plate: str | None = "data",
    progress: bool = True,
) -> np.ndarray:
    """Log weights log p(x, z) - log q(z|x) of draws z of the guide, for each element of a plate.

    The densities are those of the whole program, every site of it. Nothing is streamed: a particle needs memory for all
    sites.

    Args:
        model: Any NumPyro model.
        guide: Its guide, which draws every latent site of the model.
        *args: Arguments of both, data among them.
        params: Parameters of both by name, as `SVI.get_params` gives them.
        key: Random key.
        num_particles: Draws of the guide.
        plate: The plate whose elements are data, by name; None for joint weights of everything.
        progress: Whether to show a progress bar, where it takes more than a second.

    Returns:
        Log weights in nats, shape (num_particles, num_data), or (num_particles, 1) where `plate` is None.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: num_particles < 1, a parameter is missing or of another shape, model and guide differ in their
            latent sites, a site has a density outside the plate, is scaled or is read by `subsample_steps` (then it is
            an estimate, and its exponential no weight), or a weight is NaN or +inf.

    Source: Rubin 1988; Burda, Grosse and Salakhutdinov 2016 for their use with guides.
    """
    require_key(key)
    num_particles = require_count("num_particles", num_particles)
    if plate is not None and not isinstance(plate, str):
        raise TypeError(f"Expected `plate` to be the name of a plate, or None for joint weights; got {plate!r}.")
    if not isinstance(params, Mapping):
        raise TypeError(f"Expected `params` to be a dictionary of parameters by name; got {type(params).__name__}.")
    given = jax.tree.map(jnp.asarray, dict(params))
    require_params(_declared(model, guide, args, key), given)
    one = partial(_log_weight, model, guide, args, given, plate)
    sizes: list[int] = []
    jax.eval_shape(partial(one, sizes=sizes), key)  # raises for all but values, before any work

    @jax.jit
    def block(index: Array, real: Array) -> dict[str, Array]:
        del real
        return {"log_weight": jax.vmap(lambda i: one(jax.random.fold_in(key, i)))(index)}

    def check(index: np.ndarray, results: dict[str, np.ndarray]) -> None:
        wrong = np.isnan(results["log_weight"]) | (results["log_weight"] == np.inf)
        if wrong.any():
            row, datum = np.argwhere(wrong)[0]
            raise ValueError(
                f"Expected log weights that are numbers; got NaN or +inf in {wrong.sum()} of {wrong.size}, first at "
                f"element {datum} of {'the joint weights' if plate is None else f'plate {plate!r}'}, particle "
                f"{index[row]}. Look for a scale of zero."
            )

    _, blocks = run_in_blocks(
        block,
        num_items=num_particles,
        block_size=None,
        numbers_per_item=max(sum(sizes), 1),
        num_steps=1,
        options={},
        description="importance weights",
        progress=progress,
        check=check,
    )
    return np.concatenate([b["log_weight"] for b in blocks])[:num_particles].astype(np.float64)


def _declared(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], key: Array
) -> dict[str, Any]:
    """Kind and abstract value of every parameter of model and guide, by name."""

    def run(key: Array) -> dict[str, Any]:
        with handlers.block(), handlers.seed(rng_seed=key):
            drawn = handlers.trace(guide).get_trace(*args)
            scored = handlers.trace(handlers.replay(model, trace=drawn)).get_trace(*args)
        return {name: site["value"] for name, site in {**drawn, **scored}.items() if site["type"] == "param"}

    return {name: ("param", value) for name, value in jax.eval_shape(run, key).items()}


def _log_weight(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    params: dict[str, Any],
    plate: str | None,
    key: Array,
    *,
    sizes: list[int] | None = None,
) -> Array:
    """Log weight of one draw of the guide, shape (num_data,), or (1,) without a plate."""
    guide_key, model_key = jax.random.split(key)
    drawn = _trace(guide, args, params, guide_key)
    scored = _trace(handlers.replay(model, trace=drawn), args, params, model_key)
    _check_latents(_samples(scored), _samples(drawn))
    if sizes is not None:
        sizes.extend(int(np.prod(jnp.shape(site["value"]))) for site in _samples(scored).values())
    terms = [*_densities(_samples(scored), plate), *(-term for term in _densities(_samples(drawn), plate))]
    return sum(terms, jnp.zeros(()))


def _trace(fn: Callable[..., Any], args: tuple[Any, ...], params: dict[str, Any], key: Array) -> Sites:
    """Every site of a run with the parameters put in; checked for what makes its density no weight."""
    _, sites = trace_quietly(fn, *args, params=params, seed=key)
    for name, site in _samples(sites).items():
        if "chain" in (site["infer"] or {}):
            raise ValueError(
                "Expected the plain program, whose chains are whole trajectories; got one under subsample_steps, with "
                f"site {name!r}. Terms at independently drawn steps estimate the bound, and their exponentials are not "
                "importance weights: take the handler off."
            )
        if site["scale"] is not None and not np.all(np.asarray(_known(site["scale"])) == 1):
            raise ValueError(
                "Expected sites without a scale, so that weights are those of the program's own density; got one at "
                f"site {name!r}. Give its plate the data that it is to score as its whole size, without a subsample, "
                "and take handlers.scale off."
            )
    return sites


def _check_latents(model: Sites, guide: Sites) -> None:
    latent = {name for name, site in model.items() if not site["is_observed"]}
    undrawn = sorted(latent - set(guide))
    if undrawn:
        raise ValueError(
            f"Expected the guide to draw every latent site of the model; it does not draw {', '.join(undrawn)}."
        )
    extra = sorted(name for name in set(guide) - latent if not guide[name]["infer"].get("is_auxiliary", False))
    if extra:
        raise ValueError(
            f"Expected the guide to draw latent sites of the model alone; it also draws {', '.join(extra)}."
        )


def _densities(sites: Sites, plate: str | None) -> list[Array]:
    """Log density of each site, summed over every dimension but the plate's."""
    outside, densities = [], []
    for name, site in sites.items():
        with_shortcut = (site["value"], site["intermediates"]) if site["intermediates"] else (site["value"],)
        density = jnp.asarray(site["fn"].log_prob(*with_shortcut))
        dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == plate]
        if plate is None:
            densities.append(jnp.sum(density)[None])
        elif dims and density.ndim >= -dims[0]:
            axis = density.ndim + dims[0]
            densities.append(jnp.sum(density, tuple(i for i in range(density.ndim) if i != axis)))
        else:
            outside.append(name)
    if outside:
        raise ValueError(
            f"Expected every site inside the plate {plate!r}, one density for each datum; got {', '.join(outside)} "
            "outside it. Where data share a latent they have no weights of their own: plate=None gives the joint "
            "weights, and another name another plate."
        )
    return densities


def _samples(sites: Sites) -> Sites:
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def _known(scale: Any) -> Any:
    """A scale's value, NaN where it is traced and so not known to be 1."""
    return np.nan if isinstance(scale, jax.core.Tracer) else scale
