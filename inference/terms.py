"""The terms of the bound for a block of data: KLs at sampled states, or log densities along trajectories."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import kl_divergence

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.entropy import entropy
from dpm_ppl.inference.instantiate import instantiate
from dpm_ppl.kernels import has_closed_forms


@partial(jax.jit, static_argnames=("diffusion", "num_samples"))
def bound_terms(
    diffusion: Callable[[], Diffusion], params: dict[str, Any], x0: Array, keys: Array, *, num_samples: int
) -> dict[str, Array]:
    """Every array of `dpm_ppl.inference.Bound` that has a row for each datum, with one key for each.

    Args:
        diffusion: A program's definition.
        params: Parameters by name.
        x0: Data, shape (num_data, *event).
        keys: Random keys, shape (num_data,).
        num_samples: Samples of x^t for each datum and step.

    Returns:
        Terms by name, in nats per datum, each of shape (num_data,), `kl` of shape (num_data, T - 1).
    """
    built = instantiate(diffusion, params)
    of_samples = _closed_form if has_closed_forms(built.kernel) else _trajectory

    def of_datum(x0: Array, key: Array) -> dict[str, Array]:
        terms = of_samples(built, jnp.broadcast_to(x0, (num_samples, *x0.shape)), key)
        elbo = terms["reconstruction"] - terms.pop("kl_sum") - terms["prior_matching"]
        variance = jnp.var(elbo, ddof=1) if num_samples > 1 else jnp.full((), jnp.nan, elbo.dtype)
        means = {name: jnp.mean(values, -1) for name, values in terms.items()}
        L_null = built.kernel.stationary().log_prob(x0)  # noqa: N806 - the paper's name
        return means | {"L_null": jnp.where(_is_infinite(L_null), -jnp.inf, L_null), "elbo_variance": variance}

    return jax.vmap(of_datum)(x0, keys)


def _closed_form(diffusion: Diffusion, x0: Array, key: Array) -> dict[str, Array]:
    """Terms at samples of x^t drawn from the marginals, one for each row of x0, on the last axis."""
    kernel: Any = diffusion.kernel
    first_key, last_key, key, *entropy_keys = jax.random.split(key, 5)

    def at_step(kl_sum: Array, t: Array) -> tuple[Array, Array]:
        state_key, before_key = jax.random.split(jax.random.fold_in(key, t))
        xt = kernel.marginal(x0, t).sample(state_key)
        kl = divergence(kernel.posterior(x0, xt, t), diffusion.reverse(xt, t), before_key)
        return kl_sum + kl, jnp.mean(kl)

    stationary = kernel.stationary()
    first, last = kernel.marginal(x0, 1), kernel.marginal(x0, kernel.num_steps)
    reconstruction = controlled_reconstruction(diffusion, x0, first.sample(first_key), first_key)
    prior_matching = divergence(last, stationary, last_key)
    kl_sum, kl = _over_steps(at_step, jnp.zeros_like(reconstruction), diffusion)
    return {
        "kl": kl[:, None],
        "kl_sum": kl_sum,
        "prior_matching": prior_matching,
        "reconstruction": reconstruction,
        "entropy_first": entropy(first, entropy_keys[0]),
        "entropy_last": entropy(last, entropy_keys[1]),
    }


def _trajectory(diffusion: Diffusion, x0: Array, key: Array) -> dict[str, Array]:
    """Terms along trajectories, one for each row of x0, on the last axis."""
    kernel = diffusion.kernel
    first_key, entropy_key, key = jax.random.split(key, 3)

    def at_step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], Array]:
        before, kl_sum = carry
        step = kernel.step(before, t)
        xt = step.sample(jax.random.fold_in(key, t))
        kl = step.log_prob(xt) - diffusion.reverse(xt, t).log_prob(before)
        return (xt, kl_sum + kl), jnp.mean(kl)

    first = kernel.step(x0, 1)
    x1 = first.sample(first_key)
    reconstruction = diffusion.decode(x1).log_prob(x0)
    (xt, kl_sum), kl = _over_steps(at_step, (x1, jnp.zeros_like(reconstruction)), diffusion)
    return {
        "kl": kl[:, None],
        "kl_sum": kl_sum,
        "prior_matching": first.log_prob(x1) - kernel.stationary().log_prob(xt),
        "reconstruction": reconstruction,
        "entropy_first": entropy(first, entropy_key),
        "entropy_last": jnp.full_like(reconstruction, jnp.nan),
    }


def controlled_reconstruction(diffusion: Diffusion, x0: Array, x1: Array, key: Array) -> Array:
    """Estimates of E log p(x^0|x^1) in nats, shape (*batch), from draws x1 of `kernel.step(x0, 1)` by this very key.

    They are log p(x^0|x^1) less a control variate of known mean, log q(x^1|x^0) - log pi(x^1): by detailed balance the
    rest is log pi(x^0), whatever x^1, where p(x^0|x^1) is the paper's. (Without an analytic mean it cancels: one key.)
    """
    first, stationary = diffusion.kernel.step(x0, 1), diffusion.kernel.stationary()
    mean = divergence(first, stationary, key)
    control = first.log_prob(x1) - stationary.log_prob(x1) - mean
    control = jnp.where(_is_infinite(mean), 0.0, control)  # pi may lack states of the data: an absorbing kernel
    return diffusion.decode(x1).log_prob(x0) - control


def _over_steps(at_step: Callable[..., Any], start: Any, diffusion: Diffusion) -> tuple[Any, Array]:
    """Scans t = 2..T; with T = 1 there is no reverse step to run."""
    if diffusion.num_steps == 1:
        return start, jnp.zeros((0,))
    carry, kl = jax.lax.scan(at_step, start, jnp.arange(2, diffusion.num_steps + 1))
    return carry, kl


def divergence(q: dist.Distribution, p: dist.Distribution, key: Array) -> Array:
    """KL(q || p) in nats, shape (*batch), analytic where it is known and else at one sample."""
    try:
        return jnp.asarray(kl_divergence(q, p))
    except NotImplementedError:
        x = q.sample(key)
        return q.log_prob(x) - p.log_prob(x)


def _is_infinite(nats: Array) -> Array:
    """Whether a log probability is that of an event that cannot be, for which discrete kernels put a huge number."""
    return jnp.abs(nats) > jnp.sqrt(jnp.finfo(nats.dtype).max)
