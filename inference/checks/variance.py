"""Can fixed variances of the reverse steps be right: what bound is left to them under the best mean there is?"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.data import draw
from dpm_ppl.inference.checks.laws import NoNormalError, normal
from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped
from dpm_ppl.inference.checks.subject import Chain, Subject
from dpm_ppl.kernels.kernel import has_closed_forms, has_marginal

_NAME = "reverse variance"

MOST_COORDINATES = 16  # of a datum: in more, a thousand data say nothing of the best mean

_NUM_DATA, _NUM_REFERENCE, _NUM_STEPS = 200, 1000, 40


def variance(subject: Subject, chain: Chain) -> Iterator[Finding]:
    """A finding "reverse variance": fixed ones under which the bound stays below L_null, whatever the mean.

    The best mean of a step is E[x^(t-1) | x^t], by data weighed as q(x^t | x^0) has them, or linear in x^t, whichever
    leaves less; either leaves at least what is to be left, so that the bound it has is a little below the best.
    """
    if (why := _unsuited(subject, chain)) is not None:
        yield skipped(_NAME, why)
        return
    try:
        kl, least, last = _costs(subject, chain)
    except NoNormalError:
        yield skipped(_NAME, "it takes normal reverse steps, without correlations.")
        return
    terms = chain.terms
    null = float(terms.summary()["L_null_nats"])
    rest = -float(jnp.mean(terms.prior_matching))
    fixed, free = last[0] + rest - kl.sum(), last[1] + rest - least.sum()
    numbers = {"elbo_at_best_mean": fixed, "elbo_at_best_variance": free, "L_null": null}
    words = (
        f"Under these fixed variances and the best mean the bound is about {fixed:.4g} nats per datum, and {free:.4g} "
        f"under the best variances; L_null, that of a model that has learned nothing, is {null:.4g}"
    )
    if fixed >= null:
        yield passed(_NAME, f"{words}.", **numbers)
        return
    over = kl - least
    worst = np.sort(np.argsort(over)[::-1][:3]) + 2 if len(over) else np.array([], int)
    steps, cost = ", ".join(map(str, worst)), over[worst - 2].sum()
    words += (
        f". No fit brings it above: the variance of steps t = {steps} alone costs {cost:.4g}, and that of the last one "
        f"{last[1] - last[0]:.3g}. Learn the variances, or take beta_t in place of the posterior's, which is right "
        "only where x^t all but tells the datum; or make the first steps smaller."
    )
    yield failed(_NAME, words, **numbers)


def _unsuited(subject: Subject, chain: Chain) -> str | None:
    """Why a chain has no such finding, in words."""
    kernel, size = chain.kernel, math.prod(chain.forward.event_shape)
    if not (has_closed_forms(kernel) and has_marginal(kernel)):
        return "it takes a kernel with `marginal` and `posterior`."
    if size > MOST_COORDINATES:
        return f"it takes data of at most {MOST_COORDINATES} numbers; these have {size}."
    if chain.x0 is not subject.x0 or chain.model.context is not None or chain.batch_dim != 1:
        return "it takes a chain of the data alone."
    try:
        now, elsewhere = (_scales(other, chain) for other in (chain, _elsewhere(subject, chain)))
    except NoNormalError:
        return "it takes normal reverse steps, without correlations."
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


def _costs(subject: Subject, chain: Chain) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """KL of each step t = 2..T at the best mean, as the variances are and at the best ones; and E log p(x^0|x^1) so."""
    kernel: Any = chain.kernel  # with closed forms
    num_steps = chain.num_steps
    data = draw(subject.data, key=jax.random.fold_in(chain.key, 7), num_data=_NUM_DATA + _NUM_REFERENCE)
    data = data.astype(chain.x0.dtype)
    split = min(_NUM_DATA, len(data) // 2)
    x0, reference = data[:split], data[split:]

    def states(t: Array, key: Array) -> tuple[Array, Array]:
        """States x^t, and the log probabilities with which they tell their data."""
        xt = kernel.marginal(x0, t).sample(key)
        return xt, kernel.marginal(reference[None], t[..., None]).log_prob(xt[:, None])

    def step(at: tuple[Array, Array]) -> tuple[Array, Array]:
        t, key = jnp.broadcast_to(at[0], (len(x0),)), at[1]
        xt, told = states(t, key)
        mean, deviation, _ = normal(kernel.posterior(x0, xt, t))
        means = normal(kernel.posterior(reference[None], xt[:, None], t[..., None]))[0]
        off = _off(mean, means, xt, told) ** 2
        own = jnp.broadcast_to(normal(chain.model.reverse(xt, t))[1], off.shape) ** 2
        least = jnp.broadcast_to(deviation, off.shape) ** 2
        kl = 0.5 * ((least + off) / own - 1 - jnp.log(least / own))
        best = 0.5 * jnp.log(jnp.mean(least + off, 0) / jnp.mean(least, 0))
        return jnp.mean(jnp.sum(kl.reshape(len(x0), -1), -1)), jnp.sum(best)

    def last(key: Array) -> tuple[Array, Array]:
        x1, told = states(jnp.ones(len(x0), int), key)
        off = _off(x0, jnp.broadcast_to(reference, (len(x0), *reference.shape)), x1, told) ** 2
        own = jnp.broadcast_to(normal(chain.model.decode(x1))[1], off.shape) ** 2
        log_p = -0.5 * (jnp.log(2 * math.pi * own) + off / own)
        best = -0.5 * (jnp.log(2 * math.pi * jnp.mean(off, 0)) + 1)
        return jnp.mean(jnp.sum(log_p.reshape(len(x0), -1), -1)), jnp.sum(best)

    first_key, *keys = jax.random.split(chain.key, _NUM_STEPS + 1)
    of_last = jax.jit(last)(first_key)
    all_steps = np.arange(2, num_steps + 1)
    costs = [np.zeros(0), np.zeros(0)]
    if len(all_steps):
        some = np.unique(np.round(np.geomspace(2, num_steps, _NUM_STEPS)).astype(int))  # the first change fastest
        found = jax.jit(lambda t, keys: jax.lax.map(step, (t, keys)))(jnp.asarray(some), jnp.stack(keys[: len(some)]))
        costs = [np.interp(all_steps, some, np.asarray(cost)) for cost in found]
    return costs[0], costs[1], (float(of_last[0]), float(of_last[1]))


def _off(value: Array, values: Array, xt: Array, told: ArrayLike) -> Array:
    """How far the best mean given x^t is off a value, one that is linear or that weighs the values of other data."""
    weighed = value - jnp.einsum("ij,ij...->i...", jax.nn.softmax(told, -1), values)
    rows = jnp.concatenate([jnp.ones((len(xt), 1)), xt.reshape(len(xt), -1)], -1)
    flat = value.reshape(len(xt), -1)
    linear = (flat - rows @ jnp.linalg.lstsq(rows, flat)[0]).reshape(value.shape)
    return jnp.where(jnp.mean(weighed**2) < jnp.mean(linear**2), weighed, linear)
