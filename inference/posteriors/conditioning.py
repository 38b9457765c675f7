"""A program taken apart at a chain: the diffusion, and r(x), which is simply the rest of the program."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.distributions import coordinate_support, layers_of
from dpm_ppl.programs import require_params

Latents = dict[str, Array]


Site = dict[str, Any]


Known = tuple[Array, Array] | None  # a mask and values, each of shape (*event)

LogR = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A program with observations, seen from one of its chains.

    Args:
        program: The program, its arguments given; it takes none.
        site: Name of the chain.
        params: Value of each parameter by name.
    """

    program: Callable[[], Any]
    site: str
    params: Mapping[str, Any]

    def latents(self, key: Array) -> Latents:
        """The program's other latent variables, drawn from their prior."""
        trace, _ = self._run(key=key)
        return {name: site["value"] for name, site in trace.items() if is_latent(site)}

    def laws(self, latents: Latents) -> dict[str, dist.Distribution]:
        """The prior of each of them, those that it depends on being given."""
        trace, _ = self._run(latents=latents)
        return {name: trace[name]["fn"] for name in latents}

    def target(self, latents: Latents) -> "Target":
        """The diffusion and r, the other latent variables being given."""
        trace, chain = self._run(latents=latents)
        exact = [site for site in trace.values() if is_observed(site) and clamps(site, chain.x0)]
        known, possible = known_coordinates(exact, chain.x0, chain.found.kernel.stationary().support)

        def log_r(x0: Array) -> Array:
            trace, _ = self._run(x0=x0, latents=latents)
            terms = [_log_prob(site) for site in trace.values() if is_observed(site) and not clamps(site, x0)]
            total = sum(terms, start=jnp.zeros(()))
            return total if known is None else jnp.where(possible, total, -jnp.inf)

        return Target(chain.found, log_r, known)

    def _run(
        self, *, x0: Array | None = None, latents: Mapping[str, Array] | None = None, key: Array | int = 0
    ) -> tuple[dict[str, Any], "_Cut"]:
        """Runs the program with a datum in place of its chain, and nothing of it reaching the handlers around."""
        cut = _Cut(self.site, x0)
        values = {**self.params, **(latents or {})}
        with handlers.block(), handlers.trace() as trace, cut, handlers.seed(rng_seed=key):
            with handlers.substitute(data=values):
                self.program()
        return trace, cut

    def check(self) -> None:
        """Says what of the program cannot be conditioned, before any work.

        Raises:
            ValueError: as `require_conditionable` says.
        """
        require_conditionable(self.program, self.site, self.params)


@dataclass(frozen=True, eq=False)
class Target:
    """What one particle is weighed by.

    Attributes:
        diffusion: The chain's.
        log_r: log r of a datum of shape (*event), in nats, without what `known` says.
        known: A mask and values, each of shape (*event), where coordinates are known exactly; or None.
    """

    diffusion: Diffusion
    log_r: LogR
    known: Known


@dataclass(eq=False)
class _Cut(Messenger):
    """Puts a datum in place of a chain, zeros unless one is given, and keeps its diffusion."""

    site: str
    x0: Any
    found: Any = field(default=None)

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "reverse_chain" and msg["statement"].name == self.site:
            self.found = msg["statement"].diffusion
            if self.x0 is None:
                self.x0 = jnp.zeros(self.found.event_shape, state_dtype(self.found))
            msg["fn"] = lambda *args: self.x0


def _log_prob(site: Mapping[str, Any]) -> Array:
    log_prob = site["fn"].log_prob(site["value"])
    return jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)


def state_dtype(diffusion: Diffusion) -> Any:
    """Type of the numbers in a state; nothing is drawn."""
    return jax.eval_shape(diffusion.kernel.stationary().sample, jax.random.key(0)).dtype


def all_laws(diffusion: Diffusion, holds: Callable[[dist.Distribution], bool]) -> bool:
    """Whether something holds of each of a chain's distributions, by their families alone: nothing is computed."""
    kernel: Any = diffusion.kernel
    found = [holds(kernel.stationary())]

    def run(x: Array, t: Array) -> None:
        found.extend(holds(law) for law in (diffusion.decode(x), kernel.step(x, t)))
        found.extend(holds(kernel.marginal(x, t)) for _ in range(hasattr(kernel, "marginal")))
        found.extend(holds(diffusion.reverse(x, t)) for _ in range(diffusion.num_steps > 1))

    x = jax.ShapeDtypeStruct(diffusion.event_shape, state_dtype(diffusion))
    jax.eval_shape(run, x, jax.ShapeDtypeStruct((), jnp.int32))
    return all(found)


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site draws a value."""
    return site["type"] == "sample" and not site["is_observed"]


def is_observed(site: Mapping[str, Any]) -> bool:
    """Whether a site observes one."""
    return site["type"] == "sample" and site["is_observed"]


def require_conditionable(program: Callable[[], Any], name: str, params: Mapping[str, Any]) -> None:
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

    def run() -> None:
        statements: list[tuple[str, bool]] = []
        with handlers.block(), handlers.trace() as trace, _Watch(statements), handlers.seed(rng_seed=0):
            program()
        _check_sites(name, statements, dict(trace), params)

    try:
        jax.eval_shape(run)
    except ValueError as error:
        if "Incompatible shapes for broadcasting" not in str(error):
            raise
        raise ValueError(
            "Expected the shapes of masks, observations and distributions to broadcast against each other in the "
            f"program; got: {error}. A mask goes with the batch of what it masks: Delta(x0).mask(mask).to_event()."
        ) from error


def _check_sites(
    name: str, statements: list[tuple[str, bool]], sites: Mapping[str, Site], params: Mapping[str, Any]
) -> None:
    declared = {other: ("param", site["value"]) for other, site in sites.items() if site["type"] == "param"}
    require_params(declared, params)
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
            self.statements.append((msg["statement"].name, msg["statement"].x0 is not None))


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


def is_point(fn: Any) -> bool:
    """Whether a distribution is a `Delta`, under any events, expansions and masks."""
    return isinstance(layers_of(fn)[-1], dist.Delta)


def clamps(site: Mapping[str, Any], x0: Array) -> bool:
    """Whether a site observes x^0 itself, coordinate by coordinate, without noise."""
    base = layers_of(site["fn"])[-1]
    return isinstance(base, dist.Delta) and base.v is x0


def known_coordinates(
    sites: Iterable[Mapping[str, Any]], x0: Array, support: constraints.Constraint
) -> tuple[Known, Array]:
    """Which coordinates are known, and what they are; and whether that can be.

    Args:
        sites: Sites that clamp x^0.
        x0: The chain's value, shape (*event).
        support: Where a datum lies.

    Returns:
        A mask and values, or None without a site; False where two sites contradict each other, or a value is none
        that a datum can have, so that the evidence is zero.
    """
    mask, value, possible = jnp.zeros(x0.shape, bool), x0, jnp.ones((), bool)
    found = list(sites)
    each = coordinate_support(support)
    for site in found:
        here, given = _mask(site["fn"], x0.shape), jnp.asarray(site["value"])
        agrees = jnp.where(mask, given == value, each(given))
        possible = possible & jnp.all(agrees | ~here)
        value = jnp.where(here, given.astype(value.dtype), value)
        mask = mask | here
    return ((mask, value) if found else None), possible


def _mask(fn: dist.Distribution, shape: tuple[int, ...]) -> Array:
    """The coordinates that every mask leaves; a mask goes with the batch of what it masks, in front of its event."""
    left = jnp.ones(shape, bool)
    for layer in layers_of(fn):
        if isinstance(layer, dist.MaskedDistribution):
            mask = jnp.asarray(layer._mask)
            left = left & mask.reshape(mask.shape + (1,) * layer.event_dim)
    return left
