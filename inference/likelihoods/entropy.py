"""What is known of the reverse process's entropy before anything is learned, eq. 24 of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Definition
from dpm_ppl.inference.arguments import given_beside
from dpm_ppl.kernels.kernel import has_marginal
from dpm_ppl.programs import instantiate


@dataclass(frozen=True, eq=False)
class EntropyBounds:
    """Bounds on H_q(X^(t-1) | X^t) for t = 2..T, in nats per datum.

    Attributes:
        lower: H_q(X^t|X^(t-1)) + H_q(X^(t-1)|X^0) - H_q(X^t|X^0), shape (T - 1,).
        upper: H_q(X^t|X^(t-1)), shape (T - 1,). A bound only where H_q(X^(t-1)) <= H_q(X^t): data of unit variance
            (Gaussian) or of mean `rate` (Bernoulli) are near enough to it, wider data need not be.
    """

    lower: Array
    upper: Array


def entropy_bounds(
    definition: Definition,
    x0: ArrayLike,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_samples: int = 1,
    context: Any = None,
) -> EntropyBounds:
    """Lower and upper bounds on the entropy of each reverse step of the true reverse process.

    Args:
        definition: A program's `diffusion`: declares parameters and returns the record. Only its kernel is used.
        x0: Data, shape (num_data, *event).
        params: Parameters by name.
        key: Random key.
        num_samples: States x^(t-1) drawn per datum and step; the Gaussian kernel's entropies need none.
        context: What a definition of one argument is of, one for each datum: an array or a pytree whose leaves begin
            with num_data.

    Returns:
        The bounds, averaged over the data, in nats per datum.

    Raises:
        TypeError: the kernel has no `marginal`, so that H_q(X^t|X^0) is not known; or x0 is of the wrong kind.
        ValueError: x0 is no batch of data, num_samples < 1, or parameters are missing or of another model.

    Source: Sohl-Dickstein et al. 2015, eq. 24 and app. A.
    """
    require_key(key)
    built, x0, context = given_beside(definition, params, x0, context)
    kernel = built.kernel
    num_samples = require_count("num_samples", num_samples)
    if not has_marginal(kernel):
        raise TypeError(
            f"Expected a kernel with `marginal`, whose entropy eq. 24 needs; {type(kernel).__name__} has none. Give it "
            "`marginal(x0, t)`, the distribution of x^t given x^0."
        )
    return EntropyBounds(*_bounds(definition, dict(params), x0, key, context, num_samples=num_samples))


@partial(jax.jit, static_argnames=("definition", "num_samples"))
def _bounds(
    definition: Definition, params: dict[str, Any], x0: Array, key: Array, context: Any, *, num_samples: int
) -> tuple[Array, Array]:
    kernel: Any = instantiate(definition, params, context=context).kernel  # has `marginal`, as was checked

    def at_step(t: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, t), 4)
        before = kernel.marginal(x0, t - 1)
        states = before.sample(keys[0], (num_samples,))
        step = jnp.mean(entropy(kernel.step(states, t), keys[1]))
        shrinks = entropy(before, keys[2]) - entropy(kernel.marginal(x0, t), keys[3])
        return step + jnp.mean(shrinks), step

    lower, upper = jax.lax.map(at_step, jnp.arange(2, kernel.num_steps + 1))
    return lower, upper


def entropy(distribution: dist.Distribution, key: Array) -> Array:
    """Entropy in nats, shape (*batch): in closed form where NumPyro has one, else -log density at one sample."""
    if isinstance(distribution, dist.Independent):
        within = entropy(distribution.base_dist, key)
        return jnp.sum(within, tuple(range(-distribution.reinterpreted_batch_ndims, 0)))
    if isinstance(distribution, dist.BernoulliLogits):  # NumPyro's formula overflows at negative logits; it is even
        distribution = dist.Bernoulli(logits=jnp.abs(distribution.logits))
    try:
        return jnp.broadcast_to(distribution.entropy(), distribution.batch_shape)  # some of NumPyro's leave that out
    except NotImplementedError:
        return -distribution.log_prob(distribution.sample(key))
