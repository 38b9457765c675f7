"""A program taken apart at a chain: the diffusion, and r(x), which is simply the rest of the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.primitives import Messenger

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.instantiate import check_params

Latents = dict[str, Array]


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
        return {name: site["value"] for name, site in trace.items() if _is_latent(site)}

    def target(self, latents: Latents) -> "Target":
        """The diffusion and r, the other latent variables being given."""

        def log_r(x0: Array) -> Array:
            trace, _ = self._run(x0=x0, latents=latents)
            terms = [_log_prob(site) for site in trace.values() if _is_observed(site) and not _clamps(site, x0)]
            return sum(terms, start=jnp.zeros(()))

        trace, chain = self._run(latents=latents)
        return Target(chain.found, log_r, _known(trace, chain.x0))

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
        """Says what of the program cannot be conditioned, before any work. It is run on shapes alone.

        Raises:
            ValueError: there is no such chain, it is observed, or stands in a plate; nothing is observed; an
                observation has another shape than its distribution; parameters are missing or of another shape; a
                latent variable is declared after the chain.
        """
        sites: dict[str, dict[str, Any]] = {}
        statements: list[tuple[str, bool]] = []

        def run() -> Any:
            watch = _Watch(statements)
            with handlers.block(), handlers.trace() as trace, watch, handlers.seed(rng_seed=0):
                self.program()
            sites.update(trace)
            return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}

        declared = jax.eval_shape(run)
        check_params({name: ("param", value) for name, value in declared.items()}, self.params)
        _check_statement(self.site, statements, sites)
        order = list(sites)
        chain = order.index(f"{self.site}_chain")
        own = {f"{self.site}_chain", self.site}
        late = [name for name in order[chain:] if name not in own and _is_latent(sites[name])]
        if late:
            raise ValueError(
                f"Expected the latent variables beside the chain {self.site!r} to be declared before it, as they are "
                f"drawn from their prior when it starts; got {', '.join(late)} after it. Move them up, where they "
                f"do not depend on {self.site!r}, or sum over their values in the program."
            )
        observed = {name: site for name, site in sites.items() if _is_observed(site) and name not in own}
        if not observed:
            raise ValueError(
                f"Expected a program that observes something of {self.site!r}, by numpyro.sample(..., obs=...) or "
                "numpyro.factor; it observes nothing, so its posterior is its prior: use Predictive."
            )
        for name, site in observed.items():
            shape, came = site["fn"].shape(), jnp.shape(site["value"])
            if shape != came and not isinstance(site["fn"], dist.Unit):
                raise ValueError(
                    f"Expected the observation {name!r} of shape {shape}, that of its distribution; got {came}. For "
                    "several observations of one datum put it in a plate, for several data use jax.vmap over them."
                )


@dataclass(frozen=True, eq=False)
class Target:
    """What one particle is weighed by.

    Attributes:
        diffusion: The chain's.
        log_r: log r of a datum of shape (*event), in nats, without what `known` says.
        known: A mask and values, each of shape (*event), where coordinates are known exactly; or None.
    """

    diffusion: Diffusion
    log_r: Callable[[Array], Array]
    known: tuple[Array, Array] | None


@dataclass(eq=False)
class _Cut(Messenger):
    """Puts a datum in place of a chain, zeros unless one is given, and keeps its diffusion."""

    site: str
    x0: Any
    found: Any = field(default=None)

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "reverse_chain" and msg["args"][0] == self.site:
            self.found = msg["args"][1]
            if self.x0 is None:
                self.x0 = jnp.zeros(self.found.event_shape, state_dtype(self.found))
            msg["fn"] = lambda *args: self.x0


@dataclass(eq=False)
class _Watch(Messenger):
    """Notes the chain statements of a model: name, and whether it is observed."""

    statements: list[tuple[str, bool]]

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "reverse_chain":
            self.statements.append((msg["args"][0], msg["args"][2] is not None))


def _check_statement(site: str, statements: list[tuple[str, bool]], sites: Mapping[str, dict[str, Any]]) -> None:
    names = [name for name, _ in statements]
    if site not in names:
        there = f"its chains are {', '.join(map(repr, names))}" if names else "it has no reverse_chain"
        what = " is a site, but no chain" if site in sites else ""
        raise ValueError(
            f"Expected `site` to name a reverse_chain statement of the program; got {site!r}{what}: {there}."
        )
    if dict(statements)[site]:
        raise ValueError(
            f"Expected the chain {site!r} to be latent; the program observes it (obs=...). Leave its obs out, and "
            "observe what is known of it: a noisy copy, or numpyro.sample('y', Delta(x0).mask(mask).to_event(), obs=y)."
        )
    plates = [frame.name for frame in sites[f"{site}_chain"]["cond_indep_stack"]]
    if plates:
        raise ValueError(
            f"Expected a program of one datum; its chain {site!r} stands in the plate {plates[0]!r}. Write the program "
            "without it, and use jax.vmap over keys and observations: each datum has particles and evidence of its own."
        )


def _is_latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _is_observed(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and site["is_observed"]


def _log_prob(site: Mapping[str, Any]) -> Array:
    log_prob = site["fn"].log_prob(site["value"])
    return jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)


def _layers(fn: dist.Distribution) -> list[dist.Distribution]:
    """A distribution and what it wraps: events, expansions and masks."""
    layers = [fn]
    while hasattr(layers[-1], "base_dist"):
        layers.append(layers[-1].base_dist)
    return layers


def _clamps(site: Mapping[str, Any], x0: Array) -> bool:
    """Whether a site observes x^0 itself, coordinate by coordinate, without noise."""
    base = _layers(site["fn"])[-1]
    return isinstance(base, dist.Delta) and base.v is x0


def _known(trace: Mapping[str, dict[str, Any]], x0: Array) -> tuple[Array, Array] | None:
    """Which coordinates are known exactly, and what they are: those of a `Delta` at x^0 that is observed."""
    mask, value = jnp.zeros(x0.shape, bool), x0
    found = [site for site in trace.values() if _is_observed(site) and _clamps(site, x0)]
    for site in found:
        known = jnp.ones(x0.shape, bool)
        for layer in _layers(site["fn"]):
            known = known & layer._mask if isinstance(layer, dist.MaskedDistribution) else known
        value = jnp.where(known, jnp.asarray(site["value"], value.dtype), value)
        mask = mask | known
    return (mask, value) if found else None


def state_dtype(diffusion: Diffusion) -> Any:
    """Type of the numbers in a state; nothing is drawn."""
    return jax.eval_shape(diffusion.kernel.stationary().sample, jax.random.key(0)).dtype
