"""Which parameters reach a law while no gradient passes through its draws: discrete ones, choices, own samplers."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from numpyro.primitives import Messenger

from dpm_ppl.chains import ForwardChain
from dpm_ppl.distributions import innermost
from dpm_ppl.tracing import trace_quietly

_OWN = ("dpm_ppl.chains", "dpm_ppl.distributions")  # modules of laws

_SLIGHT = 1e-5  # nats for a unit of a parameter: as good as no dependence, which rounding leaves in either slope


class _Still(Messenger):
    """Lets no gradient through what is drawn: laws then depend on parameters of their own alone."""

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Stops it."""
        if msg["type"] == "sample":
            msg["value"] = jax.tree.map(lax.stop_gradient, msg["value"])


def learned_laws(
    guide: Callable[..., Any], params: Mapping[str, Any], *args: Any, besides: Collection[str] = ()
) -> dict[str, list[str]]:
    """Parameters by the site whose law depends on them while its draws do not, in a guide.

    Stock ELBOs but `TraceGraph_ELBO` take the gradient of such a parameter through the terms of the bound alone, and
    not through what is drawn, which is another number: a fit goes wrong without a word. Whether draws depend on a
    parameter is seen by their derivative, under one key: `has_rsample` does not tell, as it is True by default of a
    distribution without `arg_constraints`.

    Args:
        guide: The guide.
        params: Parameters, constrained, by name.
        *args: Arguments of the guide.
        besides: Sites that are not looked at.

    Returns:
        Names of parameters for each such site; empty where all is well.
    """
    names: list[str] = []

    def laws(params: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        _, sites = trace_quietly(guide, *args, params=params, within=_Still())
        found = {
            name: (_unmasked(site["fn"]), lax.stop_gradient(site["value"]))
            for name, site in sites.items()
            if site["type"] == "sample" and not site["is_observed"] and name not in besides
        }
        found = {name: site for name, site in found.items() if not _is_followed(site[0])}
        names[:] = found
        return found

    def densities(params: Mapping[str, Any]) -> Array:
        scores = [jnp.sum(law.log_prob(value)) for law, value in laws(params).values()]
        return jnp.stack(scores) if scores else jnp.zeros(0)

    def draws(params: Mapping[str, Any]) -> Array:
        found = []
        for i, (law, _) in enumerate(laws(params).values()):
            draw = jnp.zeros(()) if law.support.is_discrete else law.sample(jax.random.key(i))
            # In random proportions, so that no two of them cancel.
            found.append(jnp.sum(draw * jax.random.normal(jax.random.key(i + 1), jnp.shape(draw))))
        return jnp.stack(found) if found else jnp.zeros(0)

    jax.eval_shape(densities, params)
    if not names:
        return {}
    of_laws = jax.jit(jax.jacrev(densities, allow_int=True))(params)
    reached = {name: tree for name, tree in of_laws.items() if any(_reaches(leaf) for leaf in jax.tree.leaves(tree))}
    if not reached:
        return {}
    held = {name: value for name, value in params.items() if name not in reached}
    moved = {name: params[name] for name in reached}
    try:
        of_draws = jax.jit(jax.jacrev(lambda moved: draws({**held, **moved}), allow_int=True))(moved)
    except ValueError as error:
        if "Reverse-mode differentiation" not in str(error):
            raise
        of_draws = jax.tree.map(jnp.zeros_like, reached)  # a sampler that loops until it accepts has no gradient
    depends: dict[str, list[str]] = {}
    for name, tree in reached.items():
        pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(of_draws[name]), strict=True))
        for i, site in enumerate(names):
            if any(_reaches(law, i) and not np.any(np.asarray(draw)[i]) for law, draw in pairs if _is_real(law)):
                depends.setdefault(site, []).append(name)
    return depends


def _is_followed(law: dist.Distribution) -> bool:
    """Whether draws are known to follow every parameter: a reparameterised law of NumPyro's, or of this package's."""
    if isinstance(law, ForwardChain):
        law = law.kernel.step(law.x0, jnp.asarray(1))
    base = innermost(law)
    module = type(base).__module__
    is_known = module.startswith("numpyro.distributions.") or module in _OWN
    return is_known and bool(base.has_rsample)


def _is_real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _reaches(leaf: Any, at: int | slice = slice(None)) -> bool:
    """Whether a law depends on a leaf: by slopes of one site, or of any."""
    return _is_real(leaf) and bool((np.abs(np.asarray(leaf)[at]) > _SLIGHT).any())


def _unmasked(law: dist.Distribution) -> dist.Distribution:
    """A law without masks: points of evaluation, which have no density, are draws as well."""
    while isinstance(law, dist.MaskedDistribution):
        law = law.base_dist
    return law


def told(laws: Mapping[str, list[str]]) -> str:
    """What is wrong with them, and what to do, in words."""
    site, params = next(iter(laws.items()))
    return (
        f"the law of the draws at {site!r} depends on {', '.join(params)}, whose gradient does not pass through them, "
        "so that it would silently follow a wrong one. Fix it (a constant, or lax.stop_gradient), or fit the plain "
        "program with numpyro.infer.SVI and TraceGraph_ELBO, for which the law's `has_rsample` has to be False."
    )
