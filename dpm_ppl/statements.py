"""The two statements that diffusion adds to NumPyro: a chain run forward from data, and one run backward to it.

Each is a message that a handler may reinterpret (`dpm_ppl.subsample_steps` does), and carries a `Statement`. Plainly
run, they are ordinary sample sites: `{name}_chain` holds the trajectory x^(1..T), and `{name}` the data x^0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.primitives import _PYRO_STACK, apply_stack

from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.diffusion import Diffusion, require_data, require_nothing_made_with
from dpm_ppl.kernels.kernel import is_concrete


@dataclass(frozen=True, eq=False)
class Statement:
    """A chain as a program states it: what the message of a statement carries, for handlers to read.

    The message has the type "forward_chain" or "reverse_chain", and no name, so that stock handlers see only the sites
    it declares. A handler of one's own is a `numpyro.primitives.Messenger` whose `process_message` replaces either of

    - `msg["statement"]`, what is stated: this record. Handlers further out read the new one;
    - `msg["fn"]`, how it is read: a function of the statement that declares sites, and returns x^0 of a reverse chain
      and nothing of a forward one. The outermost handler has the last word.

    One that takes a chain for another is as short as this, for SVI, Predictive and `dpm_ppl.subsample_steps` alike:

        class other(Messenger):
            def process_message(self, msg):
                if msg["type"] in ("forward_chain", "reverse_chain"):
                    statement = msg["statement"]
                    msg["statement"] = dataclasses.replace(statement, diffusion=another(statement.diffusion))

    Args:
        name: Name of the chain, and of the site that holds x^0.
        diffusion: The diffusion, its parameters in place.
        x0: Data that a forward chain starts from or a reverse chain observes, shape (*batch, *event); None where a
            reverse chain draws x^0.

    Raises:
        TypeError: name is no string, or diffusion no `Diffusion`; or as below.
        TypeError, ValueError: x0 is no data that the kernel can diffuse (see `dpm_ppl.diffusion.require_data`).
    """

    name: str
    diffusion: Diffusion
    x0: Array | None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"Expected the name of a chain to be a string; got {self.name!r}.")
        if not isinstance(self.diffusion, Diffusion):
            raise TypeError(f"Expected a dpm_ppl.Diffusion; got {type(self.diffusion).__name__}.")
        if self.x0 is not None:
            x0 = require_data(self.diffusion.kernel, self.x0)
            object.__setattr__(self, "x0", x0)
            object.__setattr__(self, "diffusion", self.diffusion.of_batch(self.batch_shape))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of data; () where there are none, and plates alone say how many are drawn."""
        return () if self.x0 is None else self.x0.shape[: self.x0.ndim - len(self.diffusion.event_shape)]


def forward_chain(name: str, diffusion: Diffusion, x0: ArrayLike) -> None:
    """The forward chain q(x^(1..T) | x^0), for a guide: it declares the latent trajectory of the chain called `name`.

    Args:
        name: Name of the chain, the same as in the model.
        diffusion: The diffusion.
        x0: Data, shape (*batch, *event), batch being the shape of the plates around the statement.

    Raises:
        TypeError, ValueError: x0 is no data that the kernel can diffuse (see `dpm_ppl.diffusion.require_data`).

    Source: Sohl-Dickstein et al. 2015, eq. 3.
    """
    if x0 is None:
        raise TypeError("Expected `x0`, data that the forward chain starts from, to be a numeric array; got NoneType.")
    _send("forward_chain", forward_sites, name, diffusion, x0)


def reverse_chain(name: str, diffusion: Diffusion, obs: ArrayLike | None = None) -> Array:
    """The reverse chain p(x^(0..T)), for a model: the generative distribution of the datum `name`.

    Args:
        name: Name of the chain, and of the site that holds x^0.
        diffusion: The diffusion.
        obs: Data to observe, shape (*batch, *event); by default x^0 is sampled.

    Returns:
        x^0, shape (*batch, *event).

    Raises:
        TypeError, ValueError: obs is no data that the kernel can diffuse (see `dpm_ppl.diffusion.require_data`).

    Source: Sohl-Dickstein et al. 2015, eqs. 4 to 6.
    """
    x0: Array = _send("reverse_chain", reverse_sites, name, diffusion, obs)
    return x0


def forward_sites(statement: Statement) -> None:
    """The plain reading of `forward_chain`: one site with the whole trajectory."""
    x0: Any = statement.x0  # which a forward chain has
    _sample_chain(statement, ForwardChain(statement.diffusion, x0))


def reverse_sites(statement: Statement) -> Array:
    """The plain reading of `reverse_chain`: a site with the whole trajectory, and one with the datum."""
    name = statement.name
    for handler in _PYRO_STACK:  # read as it is by SVI and its kin
        if isinstance(handler, handlers.replay) and f"{name}_last" in (handler.trace or ()):
            if f"{name}_chain" not in handler.trace:
                raise ValueError(
                    f"Expected model and guide to read the chain {name!r} alike; the guide's is under subsample_steps "
                    "and the model's is not. Wrap both: SVI(subsample_steps(model, size=m), "
                    "subsample_steps(guide, size=m), ...)."
                )
    # Of the data's batch also where no plate says so.
    chain = ReverseChain(statement.diffusion).expand(statement.batch_shape)
    return in_order(
        statement, f"{name}_chain", lambda: _sample_chain(statement, chain), partial(decode_first, statement)
    )


def in_order(
    statement: Statement, site: str, declare_chain: Callable[[], Array], declare_datum: Callable[[Array], Array]
) -> Array:
    """Declares a reverse chain and then its datum; or where a guide drew a latent datum first, in that order.

    Such a guide draws the chain from the datum, and can't do otherwise. The model knows both then, and
    `TraceMeanField_ELBO`, which warns of another order than the guide's, has nothing to warn of.

    Args:
        statement: The statement.
        site: Name of the site that the datum depends on.
        declare_chain: Declares it, and returns its value.
        declare_datum: Declares the datum, given that value.

    Returns:
        The datum.

    Raises:
        ValueError: the guide's value of the site is not what the site has, as something between them puts another in.
    """
    for handler in reversed(_PYRO_STACK) if statement.x0 is None else ():
        if isinstance(handler, handlers.block) and handler.hide_fn({"type": "sample", "name": site}):
            break  # as around the body of NumPyro's scan
        drawn = list(handler.trace or ()) if isinstance(handler, handlers.replay) else []
        if {statement.name, site} <= {*drawn} and drawn.index(statement.name) < drawn.index(site):
            value = handler.trace[site]["value"]
            datum = declare_datum(value)
            if declare_chain() is not value:
                raise ValueError(
                    f"Expected the guide's draws at site {site!r}, from which it replays {statement.name!r} too; the "
                    "site has a value from elsewhere, such as `substitute` or `condition`. Put it around the guide."
                )
            return datum
    return declare_datum(declare_chain())


def _sample_chain(statement: Statement, chain: dist.Distribution) -> Array:
    infer: dict[str, Any] = {PLAIN: True}
    trajectory: Array = numpyro.sample(f"{statement.name}_chain", chain, infer=infer)
    if not is_concrete(index := infer.get("_scan_current_index", 0)):  # in the body of NumPyro's scan, which tells
        require_nothing_made_with(statement.diffusion, index)
    return trajectory


PLAIN = "a statement's plain reading"  # in a site's `infer`: a handler further out that reads statements was passed by


def decode_first(statement: Statement, trajectory: Array) -> Array:
    """The last step of a reverse chain: the site of x^0, given the trajectory x^(1..T)."""
    return decode(
        statement, jnp.take(trajectory, 0, axis=jnp.ndim(trajectory) - len(statement.diffusion.event_shape) - 1)
    )


def decode(statement: Statement, x1: Array) -> Array:
    """The site of x^0, observed or latent, given x^1."""
    decoded = statement.diffusion.decode(x1)
    law = LatentDatum(decoded) if statement.x0 is None else decoded
    return numpyro.sample(statement.name, law, obs=statement.x0)


class LatentDatum(dist.Distribution):
    """p(x^0 | x^1) of a datum that is latent: the same distribution, of which no KL divergence is known.

    Where a guide draws x^0 first and x^1 from it, as for a chain that is the prior of a latent, E log p(x^0 | x^1) is
    over both together, and a divergence of the guide's x^0 from p(x^0 | x^1) at the x^1 drawn would be another
    number. `TraceMeanField_ELBO` would take it in silence if it knew one; so it takes its sample, which is unbiased.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("decoded",)

    def __init__(self, decoded: dist.Distribution) -> None:
        self.decoded = decoded
        super().__init__(decoded.batch_shape, decoded.event_shape)

    @property
    def support(self) -> constraints.Constraint:
        """That of p(x^0 | x^1)."""
        return self.decoded.support

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through samples."""
        return bool(self.decoded.has_rsample)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape (*sample_shape, *batch, *event)."""
        return self.decoded.sample(key, sample_shape)

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats of values of shape (*batch, *event)."""
        return self.decoded.log_prob(value)


@promote_batch_shape.register
def _promote(datum: LatentDatum) -> LatentDatum:
    """NumPyro asks for the batch shape of what its scan, or a vmap, has stacked."""
    return LatentDatum(promote_batch_shape(datum.decoded))


class _Message(dict[str, Any]):
    """A message read with the statement that it carries by then: a handler may have put another in."""

    def __missing__(self, key: str) -> Any:
        if key == "args":
            return (self["statement"],)
        raise KeyError(key)


def _send(kind: str, sites: Callable[[Statement], Any], name: str, diffusion: Diffusion, x0: Any) -> Any:
    """Sends a statement through the handlers. It has no name, so stock handlers see only the sites it declares."""
    try:
        statement = Statement(name, diffusion, x0)
    except ValueError as error:
        if any(type(handler).__module__.startswith("numpyro.contrib.funsor") for handler in _PYRO_STACK):
            error.add_note(
                "TraceEnum_ELBO enumerates the values of a discrete site in a dimension of their own, which a context "
                "can't have. Draw the site in the guide, or sum over it by hand, as "
                "dpm_ppl.inference.class_log_probs does."
            )
        raise
    return apply_stack(_Message(type=kind, statement=statement, fn=sites, kwargs={}, value=None))["value"]
