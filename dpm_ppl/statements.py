"""The two statements that diffusion adds to NumPyro: a chain run forward from data, and one run backward to it.

Each is a message that a handler may reinterpret (`dpm_ppl.subsample_steps` does). Plainly run, they are ordinary
sample sites: `{name}_chain` holds the trajectory x^(1..T), and `{name}` the data x^0.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.primitives import apply_stack

from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.diffusion import Diffusion, require_data


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
    _check(name, diffusion)
    _apply("forward_chain", forward_sites, name, diffusion, require_data(diffusion.kernel, x0))


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
    _check(name, diffusion)
    if obs is not None:
        obs = require_data(diffusion.kernel, obs)
    x0: Array = _apply("reverse_chain", reverse_sites, name, diffusion, obs)
    return x0


def forward_sites(name: str, diffusion: Diffusion, x0: Array) -> None:
    """The plain reading of `forward_chain`: one site with the whole trajectory."""
    numpyro.sample(f"{name}_chain", ForwardChain(diffusion, x0))


def reverse_sites(name: str, diffusion: Diffusion, obs: Array | None) -> Array:
    """The plain reading of `reverse_chain`: a site with the whole trajectory, and one with the datum."""
    trajectory = numpyro.sample(f"{name}_chain", ReverseChain(diffusion))
    return decode_first(name, diffusion, trajectory, obs)


def decode_first(name: str, diffusion: Diffusion, trajectory: Array, obs: Array | None) -> Array:
    """The last step of a reverse chain: the site `name` of x^0, given the trajectory x^(1..T)."""
    x1 = jnp.take(trajectory, 0, axis=jnp.ndim(trajectory) - len(diffusion.event_shape) - 1)
    return datum(name, diffusion.decode(x1), obs)


def datum(name: str, decoded: dist.Distribution, obs: Array | None) -> Array:
    """The site `name` of x^0, observed or latent, given p(x^0 | x^1)."""
    return numpyro.sample(name, LatentDatum(decoded) if obs is None else decoded, obs=obs)


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


def _apply(kind: str, sites: Callable[..., Any], *args: Any) -> Any:
    """Sends a statement through the handlers. It has no name, so stock handlers see only the sites it declares."""
    return apply_stack({"type": kind, "fn": sites, "args": args, "kwargs": {}, "value": None})["value"]


def _check(name: str, diffusion: Diffusion) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"Expected the name of a chain to be a string; got {name!r}.")
    if not isinstance(diffusion, Diffusion):
        raise TypeError(f"Expected a dpm_ppl.Diffusion; got {type(diffusion).__name__}.")
