"""Can fixed variances of the reverse steps be right: what bound is left to them under the best mean there is?"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.data import draw
from dpm_ppl.inference.checks.laws import NoNormalError, normal
from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped
from dpm_ppl.inference.checks.statistics import STANDARD_ERRORS, Estimate
from dpm_ppl.inference.checks.subject import Chain, Subject
from dpm_ppl.inference.likelihoods.bounds import divergence
from dpm_ppl.kernels.kernel import has_closed_forms, has_marginal, step_number

_NAME = "reverse variance"

MOST_COORDINATES = 16  # of a datum: in more, a thousand data say nothing of the best mean

_FEWEST, _NUM_DATA, _NUM_REFERENCE, _NUM_STEPS = 40, 200, 1000, 40


def variance(subject: Subject, chain: Chain) -> Iterator[Finding]:
    """A finding "reverse variance": fixed ones under which the bound stays below L_null, whatever the mean.

    The best mean of a step is E[x^(t-1) | x^t], by data weighed as q(x^t | x^0) has them, or linear in x^t, whichever
    leaves less; either leaves at least what is to be left, so that the bound it has is a little below the best.
    """
    try:
        if (why := _unsuited(subject, chain)) is not None:
            yield skipped(_NAME, why)
            return
        costs = _costs(subject, chain)
    except NoNormalError:
        yield skipped(_NAME, "it takes normal reverse steps, without correlations.")
        return
    fixed, free, null = (float(jnp.mean(a)) for a in (costs.fixed, costs.free, costs.null))
    short = Estimate.of(np.asarray(costs.null - costs.fixed))  # of the same data
    numbers = {"elbo_at_best_mean": fixed, "elbo_at_best_variance": free, "L_null": null}
    words = (
        f"Under these fixed variances and the best mean the bound is about {fixed:.4g} nats per datum, and {free:.4g} "
        f"under the best variances; L_null, that of a model that has learned nothing, is {null:.4g}"
    )
    if not (fixed < null < free and short.excess(Estimate(0.0)) > STANDARD_ERRORS):
        yield passed(_NAME, f"{words}.", **numbers)
        return
    worst = np.sort(np.argsort(costs.over)[::-1][:3]) + 2
    steps = ", ".join(map(str, worst))
    words += (
        f". No fit brings it above: the variance of steps t = {steps} alone costs {costs.over[worst - 2].sum():.4g}. "
        "Learn the variances, or take beta_t in place of the posterior's, which is right only where x^t all but tells "
        "the datum; or make the first steps smaller."
    )
    yield failed(_NAME, words, **numbers)


def _unsuited(subject: Subject, chain: Chain) -> str | None:
    """Why a chain has no such finding, in words."""
    kernel, size = chain.kernel, math.prod(chain.forward.event_shape)
    if not (has_closed_forms(kernel) and has_marginal(kernel)):
        return "it takes a kernel with `marginal` and `posterior`."
    if not isinstance(subject.data, dist.Distribution) and len(subject.data) < _FEWEST:
        return f"it takes {_FEWEST} data at least; these are {len(subject.data)}."
    if size > MOST_COORDINATES:
        return f"it takes data of at most {MOST_COORDINATES} numbers; these have {size}."
    if chain.x0 is not subject.x0 or chain.model.context is not None or chain.batch_dim != 1:
        return "it takes a chain of the data alone."
    now, elsewhere = (_scales(other, chain) for other in (chain, _elsewhere(subject, chain)))
    if not np.allclose(now, elsewhere, rtol=1e-9):
        return "the variances are learned."
    return None


def _scales(of: Chain, chain: Chain) -> np.ndarray:
    t = chain.steps(*range(2, chain.num_steps + 1))
    steps = jax.jit(lambda states: jnp.broadcast_to(normal(of.model.reverse(states, t))[1], states.shape))
    last = jax.jit(lambda x1: jnp.broadcast_to(normal(of.model.decode(x1))[1], x1.shape))
    found = [np.asarray(last(chain.states[1]))[None]]
    if chain.num_steps > 1:
        found.append(np.asarray(steps(chain.states[2:])))
    return np.concatenate(found)


def _elsewhere(subject: Subject, chain: Chain) -> Chain:
    """The same chain at other parameters."""
    return next(other for other in subject.elsewhere if other.name == chain.name)


class _Costs(NamedTuple):
    """Bounds at the best mean in nats.

    Attributes:
        fixed: Under the variances as they are, shape (num_data,).
        free: Under the best ones, shape (num_data,).
        null: L_null of the same data, shape (num_data,).
        over: What the variance of each step t = 2..T costs, on average over the data, shape (T - 1,).
    """

    fixed: Array
    free: Array
    null: Array
    over: np.ndarray


def _costs(subject: Subject, chain: Chain) -> _Costs:
    kernel: Any = chain.kernel  # with closed forms
    num_steps, event_dim = chain.num_steps, len(chain.forward.event_shape)
    data = _data(subject, chain)
    split = min(_NUM_DATA, len(data) // 2)
    x0, reference = data[:split], data[split:]

    def total(values: Array) -> Array:
        return jnp.sum(values, tuple(range(-event_dim, 0)))

    def states(t: Array, key: Array) -> tuple[Array, Array]:
        """States x^t, and the log probabilities with which they tell their data."""
        xt = kernel.marginal(x0, t).sample(key)
        return xt, kernel.marginal(reference[None], t[..., None]).log_prob(xt[:, None])

    def step(at: tuple[Array, Array]) -> tuple[Array, ...]:
        t, key = jnp.broadcast_to(at[0], (len(x0),)), at[1]
        xt, told = states(t, key)
        mean, deviation, _ = normal(kernel.posterior(x0, xt, t))
        means = normal(kernel.posterior(reference[None], xt[:, None], t[..., None]))[0]
        off = _off(mean, means, xt, told) ** 2
        own = jnp.broadcast_to(normal(chain.model.reverse(xt, t))[1], off.shape) ** 2
        least = jnp.broadcast_to(deviation, off.shape) ** 2
        best = jnp.mean(least + off, 0)
        return tuple(total(0.5 * ((least + off) / of - 1 - jnp.log(least / of))) for of in (own, best))

    def last(key: Array) -> tuple[Array, ...]:
        x1, told = states(jnp.ones(len(x0), int), key)
        off = _off(x0, jnp.broadcast_to(reference, (len(x0), *reference.shape)), x1, told) ** 2
        own = jnp.broadcast_to(normal(chain.model.decode(x1))[1], off.shape) ** 2
        return tuple(-0.5 * total(jnp.log(2 * math.pi * of) + off / of) for of in (own, jnp.mean(off, 0)))

    @jax.jit
    def ends(key: Array) -> tuple[Any, ...]:
        prior = divergence(kernel.marginal(x0, step_number(num_steps)), kernel.stationary(), key)
        return *last(key), prior, kernel.stationary().log_prob(x0)

    first_key, *keys = jax.random.split(chain.key, _NUM_STEPS + 1)
    fixed, free, prior, null = ends(first_key)
    over = np.zeros(0)
    if num_steps > 1:
        # The first steps change fastest; between those that are looked at costs are taken to change evenly.
        some = np.unique(np.round(np.geomspace(2, num_steps, _NUM_STEPS)).astype(int))
        every = np.arange(2, num_steps + 1)
        found = jax.jit(lambda t, keys: jax.lax.map(step, (t, keys)))(jnp.asarray(some), jnp.stack(keys[: len(some)]))
        shares = np.stack([np.interp(every, some, row) for row in np.eye(len(some))])  # of each in every step
        fixed, free = (bound - shares.sum(1) @ cost for bound, cost in zip((fixed, free), found, strict=True))
        over = shares.T @ np.asarray(jnp.mean(found[0] - found[1], 1))
    return _Costs(fixed - prior, free - prior, null, over)


def _data(subject: Subject, chain: Chain) -> Array:
    found = draw(subject.data, key=jax.random.fold_in(chain.key, 7), num_data=_NUM_DATA + _NUM_REFERENCE)
    return found.astype(chain.x0.dtype)


def _off(value: Array, values: Array, xt: Array, told: ArrayLike) -> Array:
    """How far the best mean given x^t is off a value, one that is linear or that weighs the values of other data."""
    weighed = value - jnp.einsum("ij,ij...->i...", jax.nn.softmax(told, -1), values)
    rows = jnp.concatenate([jnp.ones((len(xt), 1)), xt.reshape(len(xt), -1)], -1)
    flat = value.reshape(len(xt), -1)
    linear = (flat - rows @ jnp.linalg.lstsq(rows, flat)[0]).reshape(value.shape)
    return jnp.where(jnp.mean(weighed**2) < jnp.mean(linear**2), weighed, linear)
