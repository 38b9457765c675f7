"""A program taken apart at a chain: the diffusion, and r(x), which is simply the rest of the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.primitives import Messenger

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.conditionable import check_conditionable, is_latent, is_observed
from dpm_ppl.inference.known import Known, clamps, known_coordinates

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
        return {name: site["value"] for name, site in trace.items() if is_latent(site)}

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
            ValueError: as `check_conditionable` says.
        """
        check_conditionable(self.program, self.site, self.params)


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
        if msg["type"] == "reverse_chain" and msg["args"][0] == self.site:
            self.found = msg["args"][1]
            if self.x0 is None:
                self.x0 = jnp.zeros(self.found.event_shape, state_dtype(self.found))
            msg["fn"] = lambda *args: self.x0


def _log_prob(site: Mapping[str, Any]) -> Array:
    log_prob = site["fn"].log_prob(site["value"])
    return jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)


def state_dtype(diffusion: Diffusion) -> Any:
    """Type of the numbers in a state; nothing is drawn."""
    return jax.eval_shape(diffusion.kernel.stationary().sample, jax.random.key(0)).dtype
