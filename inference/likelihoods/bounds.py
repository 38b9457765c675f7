"""The bound K taken apart: what each step, the two ends, and the entropies contribute to the log likelihood."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from numpyro.distributions import kl_divergence
from tqdm import tqdm

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Definition, Diffusion
from dpm_ppl.inference.devices import spread_over
from dpm_ppl.inference.given import given
from dpm_ppl.inference.likelihoods.entropy import entropy
from dpm_ppl.inference.progress import bar_options
from dpm_ppl.inference.sources import Indexed
from dpm_ppl.inference.units import in_both_units, mean_and_error
from dpm_ppl.kernels.kernel import has_closed_forms, require_closed_forms, step_number
from dpm_ppl.programs import instantiate


@dataclass(frozen=True, eq=False)
class Bound:
    """Terms of the bound for each datum, in nats per datum.

    For a kernel without `marginal` and `posterior` the terms come from whole trajectories. `kl` is then
    E[log q(x^t|x^(t-1)) - log p(x^(t-1)|x^t)], which may be negative, `prior_matching` is
    E[log q(x^1|x^0) - log pi(x^T)], and `entropy_last` is NaN, not known; `elbo` and `K` mean the same as ever.

    Attributes:
        kl: E KL(q(x^(t-1)|x^t,x^0) || p(x^(t-1)|x^t)) for t = 2..T, shape (num_data, T - 1).
        prior_matching: KL(q(x^T|x^0) || pi), shape (num_data,).
        reconstruction: E log p(x^0|x^1), shape (num_data,).
        entropy_first: H_q(X^1|x^0), shape (num_data,).
        entropy_last: H_q(X^T|x^0), shape (num_data,).
        entropy_stationary: H_p(X^T), the entropy of pi, shape ().
        L_null: log pi(x^0), what the bound is without any learning, shape (num_data,).
        elbo_variance: Monte Carlo variance of one sample's `elbo`, shape (num_data,); NaN with num_samples = 1.
        num_samples: Samples drawn for each datum and step.
        num_dimensions: Dimensions of one datum.
        has_fixed_last_step: Whether p(x^0|x^1) is the paper's; `K` is NaN where it is not.
        is_trajectory: Whether the terms come from whole trajectories.
    """

    kl: Array
    prior_matching: Array
    reconstruction: Array
    entropy_first: Array
    entropy_last: Array
    entropy_stationary: Array
    L_null: Array
    elbo_variance: Array
    num_samples: int
    num_dimensions: int
    has_fixed_last_step: bool
    is_trajectory: bool

    @property
    def elbo(self) -> Array:
        """The exact lower bound on log p(x^0) of each datum, in nats, shape (num_data,)."""
        return self.reconstruction - jnp.sum(self.kl, -1) - self.prior_matching

    @property
    def K(self) -> Array:  # noqa: N802 - the paper's name
        """The paper's K of each datum, eq. 14, in nats, shape (num_data,): no bound for a single one.

        It puts H_p in place of three cross-entropies with pi, which is exact on average over data of unit second moment
        (Gaussian) or mean `rate` (Bernoulli). NaN for a `decode` of one's own, with which eq. 14 does not hold.
        """
        if not self.has_fixed_last_step:
            return unknown(self.prior_matching)
        # Along trajectories the sum of `kl` telescopes to hold the two entropies already.
        entropies = 0.0 if self.is_trajectory else self.entropy_last - self.entropy_first
        return entropies - jnp.sum(self.kl, -1) - self.entropy_stationary

    def summary(self) -> dict[str, float]:
        """Means over the data of `elbo`, `K`, `L_null`, `K_minus_L_null`, `kl`, `prior_matching` and `reconstruction`.

        Returns:
            Per datum, `elbo_nats` and `elbo_bits`, and so on; with `_se` after it (`elbo_bits_se`) the standard error
            of the mean as an estimate for all data like these, Monte Carlo error included (NaN with one datum);
            `elbo_nats_mc_se` and `elbo_bits_mc_se`, the Monte Carlo error alone (NaN with num_samples = 1);
            `elbo_bits_per_dimension` and `K_bits_per_dimension`; `num_data` and `num_samples`.
        """
        elbo, K = self.elbo, self.K  # noqa: N806
        per_datum = {
            "elbo": elbo,
            "K": K,
            "L_null": self.L_null,
            "K_minus_L_null": K - self.L_null,
            "kl": jnp.sum(self.kl, -1),
            "prior_matching": self.prior_matching,
            "reconstruction": self.reconstruction,
        }
        result: dict[str, float] = {"num_data": len(elbo), "num_samples": self.num_samples}
        for name, term in per_datum.items():
            mean, error = mean_and_error(term)
            result |= in_both_units(name, mean) | in_both_units(name, error, suffix="_se")
        variance = np.mean(np.asarray(self.elbo_variance, np.float64)) / (self.num_samples * len(elbo))
        result |= in_both_units("elbo", math.sqrt(variance), suffix="_mc_se")
        return result | {
            f"{name}_bits_per_dimension": result[f"{name}_bits"] / self.num_dimensions for name in ("elbo", "K")
        }


def bound(
    definition: Definition,
    x0: ArrayLike | Indexed,
    *,
    params: Mapping[str, Any],
    key: Array,
    num_samples: int = 1,
    block_size: int | None = None,
    context: Any = None,
    mesh: Mesh | None = None,
) -> Bound:
    """Lower bound on the log likelihood, term by term, every step of every datum evaluated.

    KLs are analytic wherever NumPyro or `dpm_ppl.divergences` knows them, and one-sample estimates log q - log p
    elsewhere; the states x^t at which they are taken are sampled. Memory does not grow with T beyond the result's.

    Args:
        definition: A program's `diffusion`: declares parameters and returns the record. Compiled once for each
            function given, so pass the same one, not a new lambda, to call this often.
        x0: Data, shape (num_data, *event); a memory-mapped array, or whatever has a length and an index, is read block
            by block.
        params: Parameters by name, as `SVI.get_params` gives them.
        key: Random key.
        num_samples: Samples of x^t for each datum and step.
        block_size: Data evaluated at a time, by default as many as fit comfortably; the draws do not depend on it.
        context: What a definition of one argument is of, one for each datum: an array or a pytree whose leaves begin
            with num_data; arrays or sources, as x0.
        mesh: Devices that data are split over, by default all that JAX sees.

    Returns:
        The terms, in nats per datum.

    Raises:
        TypeError: x0 or an option is of the wrong kind.
        ValueError: x0 is no batch of data, a number is below 1, or parameters are missing or of another model.

    Source: Sohl-Dickstein et al. 2015, eq. 14 and app. B, and the same without its replacement of cross-entropies.
    """
    require_key(key)
    spread = spread_over(mesh)
    data = given(definition, params, x0, context)
    num_samples = require_count("num_samples", num_samples)
    built, num_data = data.built, data.num_data
    num_dimensions = math.prod(built.event_shape)
    if block_size is None:
        width = num_samples * num_dimensions
        block_size = max(1, min(2**16 // width, 2**26 // (width * built.num_steps))) * spread.num
    num_blocks = math.ceil(num_data / require_count("block_size", block_size))
    block_size = spread.multiple(math.ceil(num_data / num_blocks))
    replicated = spread.put(dict(params))
    keys = jax.random.split(key, num_data)
    blocks = []
    options = bar_options(progress=num_blocks > 1)
    for start in tqdm(range(0, num_data, block_size), desc="bound", unit="block", delay=5, leave=False, **options):
        rows = np.minimum(
            np.arange(start, start + block_size), num_data - 1
        )  # the last block is filled up: one compilation
        x0, beside = data.rows(rows)
        block = spread.put_split((x0, keys[rows], beside))
        blocks.append(jax.device_get(bound_terms(definition, replicated, *block, num_samples=num_samples)))
    terms = {name: jnp.concatenate([block[name] for block in blocks])[:num_data] for name in blocks[0]}
    for name in ("elbo_variance", "entropy_last"):
        terms.setdefault(name, unknown(terms["L_null"]))
    return Bound(
        **terms,
        entropy_stationary=entropy(built.kernel.stationary(), key),
        num_samples=num_samples,
        num_dimensions=num_dimensions,
        has_fixed_last_step=built.has_fixed_last_step,
        is_trajectory=not has_closed_forms(built.kernel),
    )


@partial(jax.jit, static_argnames=("definition", "num_samples"))
def bound_terms(
    definition: Definition, params: dict[str, Any], x0: Array, keys: Array, context: Any = None, *, num_samples: int
) -> dict[str, Array]:
    """Every array of `dpm_ppl.inference.Bound` that has a row for each datum and is known, with one key for each.

    Args:
        definition: A program's definition.
        params: Parameters by name.
        x0: Data, shape (num_data, *event).
        keys: Random keys, shape (num_data,).
        context: Context of each datum, leaves of shape (num_data, ...); or None.
        num_samples: Samples of x^t for each datum and step.

    Returns:
        Terms by name, in nats per datum, each of shape (num_data,), `kl` of shape (num_data, T - 1).
    """
    built = instantiate(definition, params, context=context)
    of_samples = _closed_form if has_closed_forms(built.kernel) else _trajectory

    def of_datum(x0: Array, key: Array, context: Any) -> dict[str, Array]:
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_samples, *leaf.shape)), context)
        terms = of_samples(built.beside(repeated), jnp.broadcast_to(x0, (num_samples, *x0.shape)), key)
        elbo = terms["reconstruction"] - terms.pop("kl_sum") - terms["prior_matching"]
        means = {name: jnp.mean(values, -1) for name, values in terms.items()}
        if num_samples > 1:
            means["elbo_variance"] = jnp.var(elbo, ddof=1)
        L_null = built.kernel.stationary().log_prob(x0)  # noqa: N806 - the paper's name
        return means | {"L_null": jnp.where(_is_infinite(L_null), -jnp.inf, L_null)}

    return jax.vmap(of_datum)(x0, keys, context)


def _closed_form(diffusion: Diffusion, x0: Array, key: Array) -> dict[str, Array]:
    """Terms at samples of x^t drawn from the marginals, one for each row of x0, on the last axis."""
    kernel = require_closed_forms(diffusion.kernel)
    first_key, last_key, key, *entropy_keys = jax.random.split(key, 5)

    def at_step(kl_sum: Array, t: Array) -> tuple[Array, Array]:
        state_key, before_key = jax.random.split(jax.random.fold_in(key, t))
        xt = kernel.marginal(x0, t).sample(state_key)
        kl = divergence(kernel.posterior(x0, xt, t), diffusion.reverse(xt, t), before_key)
        return kl_sum + kl, jnp.mean(kl)

    stationary = kernel.stationary()
    first, last = kernel.marginal(x0, step_number(1)), kernel.marginal(x0, step_number(kernel.num_steps))
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

    first = kernel.step(x0, step_number(1))
    x1 = first.sample(first_key)
    reconstruction = diffusion.decode(x1).log_prob(x0)
    (xt, kl_sum), kl = _over_steps(at_step, (x1, jnp.zeros_like(reconstruction)), diffusion)
    return {
        "kl": kl[:, None],
        "kl_sum": kl_sum,
        "prior_matching": first.log_prob(x1) - kernel.stationary().log_prob(xt),
        "reconstruction": reconstruction,
        "entropy_first": entropy(first, entropy_key),
    }


def controlled_reconstruction(diffusion: Diffusion, x0: Array, x1: Array, key: Array) -> Array:
    """Estimates of E log p(x^0|x^1) in nats, shape (*batch), from draws x1 of `kernel.step(x0, 1)` by this very key.

    They are log p(x^0|x^1) less a control variate of known mean, log q(x^1|x^0) - log pi(x^1): by detailed balance the
    rest is log pi(x^0), whatever x^1, where p(x^0|x^1) is the paper's. (Without an analytic mean it cancels: one key.)
    """
    first, stationary = diffusion.kernel.step(x0, step_number(1)), diffusion.kernel.stationary()
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


def unknown(like: Array) -> Array:
    """NaN for every datum; from NumPy, as `jax_debug_nans` takes one that JAX computes for a mistake."""
    return jnp.asarray(np.full(like.shape, np.nan, like.dtype))


def _is_infinite(nats: Array) -> Array:
    """Whether a log probability is that of an event that cannot be, for which discrete kernels put a huge number."""
    return jnp.abs(nats) > jnp.sqrt(jnp.finfo(nats.dtype).max)
