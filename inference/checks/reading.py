"""Runs guide and model under a handler that reads their chain statements in place of running them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.primitives import Messenger

from dpm_ppl.diffusion import Diffusion

Sites = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Statement:
    """A chain as a program declares it.

    Args:
        where: "guide", "model", or "diffusion()".
        name: Name of the chain.
        diffusion: Its diffusion, with parameters in place.
        x0: Data it starts from or observes, shape (*batch, *event); None where it generates.
    """

    where: str
    name: str
    diffusion: Diffusion
    x0: Array | None


@dataclass(eq=False)
class _Reader(Messenger):
    """Reads chain statements instead of running them, and notes where parameters are declared."""

    where: str
    statements: list[Statement] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    looped: set[str] = field(default_factory=set)
    scans: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] in ("forward_chain", "reverse_chain"):
            name, diffusion, x0 = msg["args"]
            self.statements.append(Statement(self.where, name, diffusion, x0))
            msg["fn"] = _unread if msg["type"] == "forward_chain" else _stand_in
        elif msg["type"] == "param" and isinstance(jnp.zeros(()) + 0, jax.core.Tracer):
            self.looped.add(msg["name"])
        elif msg["type"] == "control_flow":
            self.scans = True


def _unread(name: str, diffusion: Diffusion, x0: Array) -> None:
    return None


def _stand_in(name: str, diffusion: Diffusion, obs: Array | None) -> Array:
    """A datum of the right shape where the reverse chain would generate one."""
    return numpyro.sample(name, diffusion.kernel.stationary(), obs=obs)


def read(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    definition: Callable[[], Diffusion] | None,
    x0: Array,
    params: Mapping[str, Any],
) -> tuple[list[Statement], dict[str, Any], set[str], bool]:
    """Runs a program under the reader.

    Args:
        model: The model.
        guide: The guide.
        definition: `diffusion()`, or None.
        x0: Data.
        params: Parameters to put in; those not among them start as the program says.

    Returns:
        The chain statements; every parameter site by name; which were declared in a traced body; whether NumPyro's scan
        is used.
    """
    statements: list[Statement] = []
    sites: dict[str, Any] = {}
    looped: set[str] = set()
    scans = False
    drawn: dict[str, Any] = {}
    runs: list[tuple[str, Callable[[], Any]]] = [("guide", lambda: guide(x0)), ("model", lambda: model(x0))]
    if definition is not None:
        runs.append(("diffusion()", definition))
    for i, (where, run) in enumerate(runs):
        values = {**params, **{name: site["value"] for name, site in sites.items()}}
        reader = _Reader(where)
        with handlers.block(), handlers.trace() as trace, reader:
            # The same names mean the same values, as in SVI.
            with handlers.substitute(data=values), handlers.seed(rng_seed=i), handlers.replay(trace=drawn):
                result = run()
        if where == "guide":
            drawn = {name: site for name, site in trace.items() if site["type"] == "sample"}
        if where == "diffusion()":
            reader.statements.append(Statement(where, where, result, None))
        statements += reader.statements
        sites |= {name: site for name, site in trace.items() if site["type"] == "param" and name not in sites}
        looped, scans = looped | reader.looped, scans or reader.scans
    return statements, sites, looped, scans


def plain_sites(model: Callable[..., Any], guide: Callable[..., Any], x0: Array, params: Mapping[str, Any]) -> Sites:
    """Sites of the plain guide and model by name, run on shapes alone; what they hold is known, but no values."""
    sites: Sites = {}

    def run(key: Array) -> None:
        with handlers.block(), handlers.substitute(data=dict(params)), handlers.seed(rng_seed=key):
            sites["guide"] = dict(handlers.trace(guide).get_trace(x0))
            sites["model"] = dict(handlers.trace(handlers.replay(model, trace=sites["guide"])).get_trace(x0))

    jax.eval_shape(run, jax.random.key(0))
    return sites
