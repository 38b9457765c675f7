r"""The bound in its other form: consistency of each forward step with the reverse step that ends where it does.

Taken in the order of the forward steps, the same log weight of a trajectory has the expectation

    ELBO(x^0) = E log p(x^0|x^1) - E KL(q(x^T|x^(T-1)) || pi)
                - sum_{t=1..T-1} E [log q(x^t|x^(t-1)) - log p(x^t|x^(t+1))].

**Trap.** The terms of the sum are often printed as E_{q(x^(t-1),x^(t+1)|x^0)} KL(q(x^t|x^(t-1)) || p(x^t|x^(t+1))).
That draws x^t without regard to the x^(t+1) that follows it, and is no form of the bound: for small steps and the very
reverse of the chain each term is too large by one nat per dimension. Given both neighbours x^t is drawn from a bridge,
b = q(x^t|x^(t-1),x^(t+1)), and the term is

    E [KL(b || p(x^t|x^(t+1))) - KL(b || q(x^t|x^(t-1)))],

a function of two random states, where that of `bound` is one of a single state.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Definition
from dpm_ppl.inference.arguments import given_beside
from dpm_ppl.inference.likelihoods.bounds import controlled_reconstruction, divergence, unknown
from dpm_ppl.kernels.kernel import Kernel, step_number
from dpm_ppl.kernels.scheduled import ScheduledKernel
from dpm_ppl.programs import instantiate


@dataclass(frozen=True, eq=False)
class ConsistencyBound:
    """Terms of the bound in its consistency form for each datum, in nats per datum.

    Attributes:
        consistency: E [log q(x^t|x^(t-1)) - log p(x^t|x^(t+1))] for t = 1..T-1, shape (num_data, T - 1).
        as_printed: E KL(q(x^t|x^(t-1)) || p(x^t|x^(t+1))), what is often printed in its place, shape (num_data, T - 1);
            the module says what is wrong with it.
        prior_matching: E KL(q(x^T|x^(T-1)) || pi), shape (num_data,).
        reconstruction: E log p(x^0|x^1), shape (num_data,).
        elbo_variance: Monte Carlo variance of one trajectory's `elbo`, shape (num_data,); NaN with num_samples = 1.
        consistency_variance: That of each term of `consistency`, shape (num_data, T - 1).
        num_samples: Trajectories of each datum.
    """

    consistency: Array
    as_printed: Array
    prior_matching: Array
    reconstruction: Array
    elbo_variance: Array
    consistency_variance: Array
    num_samples: int

    @property
    def elbo(self) -> Array:
        """The lower bound on log p(x^0) of each datum, in nats, shape (num_data,): that of `bound`, estimated anew."""
        return self.reconstruction - jnp.sum(self.consistency, -1) - self.prior_matching


def consistency_bound(
    definition: Definition,
    x0: ArrayLike,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_samples: int = 1,
    context: Any = None,
) -> ConsistencyBound:
    """Lower bound on the log likelihood by consistency terms, along forward trajectories of every datum.

    Under the kernels of this package x^t is averaged over analytically, given its neighbours; under any other it is the
    trajectory's own, and for reverse steps of which no KL is known one draw of it. Memory does not grow with T beyond
    the result's.

    Args:
        definition: A program's `diffusion`: declares parameters and returns the record. Compiled once for each
            function given.
        x0: Data, shape (num_data, *event).
        params: Parameters by name, as `SVI.get_params` gives them.
        key: Random key.
        num_samples: Trajectories of each datum.
        context: What a definition of one argument is of, one for each datum: an array or a pytree whose leaves begin
            with num_data.

    Returns:
        The terms, in nats per datum.

    Raises:
        TypeError: x0 or an option is of the wrong kind.
        ValueError: x0 is no batch of data, num_samples < 1, or parameters are missing or of another model.

    Source: Luo 2022, eq. 45, with its expectations over x^t put right.
    """
    require_key(key)
    _, x0, context = given_beside(definition, params, x0, context)
    num_samples = require_count("num_samples", num_samples)
    keys = jax.random.split(key, len(x0))
    terms = _terms(definition, dict(params), x0, keys, context, num_samples=num_samples)
    if num_samples == 1:
        terms |= {name: unknown(terms[name]) for name in ("elbo_variance", "consistency_variance")}
    return ConsistencyBound(**terms, num_samples=num_samples)


@partial(jax.jit, static_argnames=("definition", "num_samples"))
def _terms(
    definition: Definition, params: dict[str, Any], x0: Array, keys: Array, context: Any, *, num_samples: int
) -> dict[str, Array]:
    of_all = instantiate(definition, params, context=context)

    def variance(values: Array) -> Array:
        return jnp.var(values, ddof=min(1, num_samples - 1))

    def of_datum(x0: Array, key: Array, context: Any) -> dict[str, Array]:
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_samples, *leaf.shape)), context)
        built = of_all.beside(repeated)
        start = jnp.broadcast_to(x0, (num_samples, *x0.shape))
        first_key = jax.random.fold_in(key, 1)
        x1 = built.kernel.step(start, step_number(1)).sample(first_key)
        reconstruction = controlled_reconstruction(built, start, x1, first_key)

        def at_step(carry: tuple[Array, Array, Array], t: Array) -> tuple[Any, tuple[Array, Array, Array]]:
            """The term of step t, once x^(t+1) is known."""
            before, xt, elbo = carry
            step_key, kl_key = jax.random.split(jax.random.fold_in(key, t + 1))
            after = built.kernel.step(xt, t + 1).sample(step_key)
            forward, reverse = built.kernel.step(before, t), built.reverse(after, t + 1)
            bridge = _bridge(built.kernel, before, after, t)
            if bridge is None:
                term = forward.log_prob(xt) - reverse.log_prob(xt)
            else:
                term = divergence(bridge, reverse, kl_key) - divergence(bridge, forward, kl_key)
            printed = jnp.mean(divergence(forward, reverse, kl_key))
            return (xt, after, elbo - term), (jnp.mean(term), variance(term), printed)

        carry, terms = (start, x1, reconstruction), (jnp.zeros(0),) * 3
        if built.num_steps > 1:
            carry, terms = jax.lax.scan(at_step, carry, jnp.arange(1, built.num_steps))
        before, _, elbo = carry
        last = built.kernel.step(before, step_number(built.num_steps))
        prior_matching = divergence(last, built.kernel.stationary(), jax.random.fold_in(key, 0))
        return {
            "consistency": terms[0],
            "consistency_variance": terms[1],
            "as_printed": terms[2],
            "prior_matching": jnp.mean(prior_matching),
            "reconstruction": jnp.mean(reconstruction),
            "elbo_variance": variance(elbo - prior_matching),
        }

    return jax.vmap(of_datum)(x0, keys, context)


def _bridge(kernel: Kernel, before: Array, after: Array, t: Array) -> Any:
    """q(x^t | x^(t-1), x^(t+1)), the posterior of a chain of the two steps t and t + 1; None where it is not known."""
    if not isinstance(kernel, ScheduledKernel):
        return None
    two_steps: Any = dataclasses.replace(kernel, beta=kernel.beta[jnp.stack([t - 1, t])])
    return two_steps.posterior(before, after, step_number(2))
