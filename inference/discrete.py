"""Which parameters reach a law of discrete draws, through which no reparameterised gradient passes."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax

from dpm_ppl.tracing import trace_quietly


def learned_laws(
    guide: Callable[..., Any], params: Mapping[str, Any], *args: Any, besides: Collection[str] = ()
) -> dict[str, list[str]]:
    """Parameters by the discrete site whose law depends on them, in a guide.

    Stock ELBOs but `TraceGraph_ELBO` take the gradient of such a parameter through the terms of the bound alone, and
    not through what is drawn, which is another number: a fit goes wrong without a word.

    Args:
        guide: The guide.
        params: Parameters, constrained, by name.
        *args: Arguments of the guide.
        besides: Sites that are not looked at.

    Returns:
        Names of parameters for each such site; empty where all is well.
    """
    names: list[str] = []

    def log_densities(params: Mapping[str, Any]) -> Array:
        _, sites = trace_quietly(guide, *args, params=params)
        found = {
            name: site
            for name, site in sites.items()
            if site["type"] == "sample" and not site["is_observed"] and name not in besides
        }
        found = {name: site for name, site in found.items() if site["fn"].support.is_discrete}
        names[:] = found
        scores = [jnp.sum(_unmasked(site["fn"]).log_prob(lax.stop_gradient(site["value"]))) for site in found.values()]
        return jnp.stack(scores) if scores else jnp.zeros(0)

    jax.eval_shape(log_densities, params)
    if not names:
        return {}
    slopes = jax.jit(jax.jacrev(log_densities, allow_int=True))(params)
    depends: dict[str, list[str]] = {}
    for name, tree in slopes.items():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        for i, site in enumerate(names):
            if any((leaf[i] != 0).any() for leaf in leaves):
                depends.setdefault(site, []).append(name)
    return depends


def _unmasked(law: dist.Distribution) -> dist.Distribution:
    """A law without masks: points of evaluation, which have no density, are draws as well."""
    while isinstance(law, dist.MaskedDistribution):
        law = law.base_dist
    return law


def told(laws: Mapping[str, list[str]]) -> str:
    """What is wrong with them, and what to do, in words."""
    site, params = next(iter(laws.items()))
    return (
        f"the law of the discrete draws at {site!r} depends on {', '.join(params)}, whose gradient does not pass "
        "through them, so that it would silently follow a wrong one. Fix it (a constant, or lax.stop_gradient), or fit "
        "the plain program with numpyro.infer.SVI and TraceGraph_ELBO."
    )
