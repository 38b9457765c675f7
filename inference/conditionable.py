"""Which programs can be conditioned on what they observe of a chain; every other is refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from dpm_ppl.inference.instantiate import check_params
from dpm_ppl.inference.known import clamps, is_point

Site = dict[str, Any]


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site draws a value."""
    return site["type"] == "sample" and not site["is_observed"]


def is_observed(site: Mapping[str, Any]) -> bool:
    """Whether a site observes one."""
    return site["type"] == "sample" and site["is_observed"]


def check_conditionable(program: Callable[[], Any], name: str, params: Mapping[str, Any]) -> None:
    """Runs a program on shapes alone and says what of it cannot be conditioned.

    Args:
        program: The program, its arguments given; it takes none.
        name: Name of the chain.
        params: Value of each parameter by name.

    Raises:
        ValueError: there is no such chain, it is observed, has its value from a handler, is scaled or masked, or stands
            in a plate; nothing is observed; a plate takes a subsample; an observation has another shape than its
            distribution, or fixes something else than coordinates of the chain's value; parameters are missing or of
            another shape, or a latent variable is among them; a latent variable is declared after the chain.
    """
    sites: dict[str, Site] = {}
    statements: list[tuple[str, bool]] = []

    def run() -> Any:
        with handlers.block(), handlers.trace() as trace, _Watch(statements), handlers.seed(rng_seed=0):
            program()
        sites.update(trace)
        return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}

    try:
        declared = jax.eval_shape(run)
    except ValueError as error:
        if "Incompatible shapes for broadcasting" not in str(error):
            raise
        raise ValueError(
            "Expected the shapes of masks, observations and distributions to broadcast against each other in the "
            f"program; got: {error}. A mask goes with the batch of what it masks: Delta(x0).mask(mask).to_event()."
        ) from error
    check_params({name: ("param", value) for name, value in declared.items()}, params)
    _check_statement(name, statements, sites)
    own = {f"{name}_chain", name}
    others = {other: site for other, site in sites.items() if other not in own}
    order = list(sites)
    late = [other for other in order[order.index(f"{name}_chain") :] if other in others and is_latent(sites[other])]
    _check_latents({other: site for other, site in others.items() if is_latent(site)}, params, late, name)
    _check_plates(others)
    observed = {other: site for other, site in others.items() if is_observed(site)}
    if not observed:
        raise ValueError(
            f"Expected a program that observes something of {name!r}, by numpyro.sample(..., obs=...) or "
            "numpyro.factor; it observes nothing, so its posterior is its prior: use Predictive."
        )
    for other, site in observed.items():
        _check_observation(other, site, name, sites[name])


@dataclass(eq=False)
class _Watch(Messenger):
    """Notes the chain statements of a model: name, and whether it is observed."""

    statements: list[tuple[str, bool]]

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "reverse_chain":
            self.statements.append((msg["args"][0], msg["args"][2] is not None))


def _check_statement(name: str, statements: list[tuple[str, bool]], sites: Mapping[str, Site]) -> None:
    names = [statement for statement, _ in statements]
    if name not in names:
        there = f"its chains are {', '.join(map(repr, names))}" if names else "it has no reverse_chain"
        what = " is a site, but no chain" if name in sites else ""
        raise ValueError(
            f"Expected `site` to name a reverse_chain statement of the program; got {name!r}{what}: {there}."
        )
    own = [sites.get(f"{name}_chain"), sites.get(name)]
    if None in own:
        raise ValueError(
            f"Expected the chain {name!r} under its own name; a handler around it, such as scope, block or lift, "
            "renames or hides its sites. Put the handler around the rest of the program."
        )
    if dict(statements)[name] or any(not is_latent(site) or _is_given(site) for site in own if site):
        raise ValueError(
            f"Expected the chain {name!r} to be latent; the program observes it (obs=...), or a handler gives it its "
            "value (condition, substitute). Leave that out, and observe what is known of it: a noisy copy, or "
            "numpyro.sample('y', Delta(x0).mask(mask).to_event(), obs=y)."
        )
    if any(_is_weighted(site) for site in own if site):
        raise ValueError(
            f"Expected the chain {name!r} neither scaled nor masked, as it is the prior p(x); a handler around it does "
            "either. Put handlers.scale and handlers.mask around what is observed alone."
        )
    plates = [frame.name for frame in sites[f"{name}_chain"]["cond_indep_stack"]]
    if plates:
        raise ValueError(
            f"Expected a program of one datum; its chain {name!r} stands in the plate {plates[0]!r}. Write the program "
            "without it, and use jax.vmap over keys and observations: each datum has particles and evidence of its own."
        )


def _check_latents(latents: Mapping[str, Site], params: Mapping[str, Any], late: list[str], name: str) -> None:
    if late:
        raise ValueError(
            f"Expected the latent variables beside the chain {name!r} to be declared before it, as they are "
            f"drawn from their prior when it starts; got {', '.join(late)} after it. Move them up, where they "
            f"do not depend on {name!r}, or sum over their values in the program."
        )
    if fixed := [latent for latent, site in latents.items() if latent in params or _is_given(site)]:
        raise ValueError(
            f"Expected latent variables to be drawn from their prior; {', '.join(fixed)} would be fixed, by `params` "
            "or by a handler, and its density be missing in the evidence. Leave the value out, or observe it."
        )
    if weighted := [latent for latent, site in latents.items() if _is_weighted(site)]:
        raise ValueError(
            f"Expected latent variables neither scaled nor masked, as they are drawn from their prior; a handler "
            f"around {', '.join(weighted)} does either. Put it around what is observed alone."
        )


def _check_plates(sites: Mapping[str, Site]) -> None:
    for name, site in sites.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(
                f"Expected the plate {name!r} to be whole; it takes {site['args'][1]} of {site['args'][0]}, and the "
                "posterior would be that of one arbitrary subsample. Leave subsample_size out."
            )


def _check_observation(name: str, site: Site, chain: str, datum: Site) -> None:
    shape, came = site["fn"].shape(), jnp.shape(site["value"])
    if shape != came and not isinstance(site["fn"], dist.Unit):
        raise ValueError(
            f"Expected the observation {name!r} of shape {shape}, that of its distribution; got {came}. For "
            "several observations of one datum put it in a plate, for several data use jax.vmap over them."
        )
    x0 = datum["value"]
    exactly = clamps(site, x0)
    if exactly and shape != x0.shape or is_point(site["fn"]) and not exactly and not datum["fn"].support.is_discrete:
        raise ValueError(
            f"Expected the observed Delta {name!r} to be of the chain's value {chain!r} itself, and whole, "
            f"as Delta({chain}).mask(mask).to_event(); it is of a part of it, a function of it, or something else, "
            "which no particle would ever meet. Mask what is not known, or observe with a little noise."
        )
    if exactly and site["scale"] is not None:
        raise ValueError(f"Expected the observed Delta {name!r} without a scale: what is known exactly has none.")


def _is_given(site: Site) -> bool:
    """Whether a latent site has its value from a handler: `seed` makes no key for it then."""
    return site["kwargs"].get("rng_key") is None


def _is_weighted(site: Site) -> bool:
    return site["scale"] is not None or isinstance(site["fn"], dist.MaskedDistribution)
