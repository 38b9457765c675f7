"""Is the program's ELBO the bound, in each of its forms, and do the bounds stand in their order?"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import kl_divergence

from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.kernel import STANDARD_ERRORS
from dpm_ppl.inference.checks.losses import Estimate, elbo, num_steps_sampled
from dpm_ppl.inference.checks.own_loss import elbo_of, is_by_hand, one_kl, own_loss
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import Subject
from dpm_ppl.inference.likelihood import log_likelihood, log_mean_exp
from dpm_ppl.kernels import has_closed_forms

_NUMBERS = 1_000_000  # in the trajectories of an estimate, of all data


def bounds(subject: Subject) -> Iterator[Finding]:
    """Findings "subsampled bound", "loss" and, for each chain, "order of the bounds" and "analytic KL"."""
    # With a loss written by hand the smallest slip is to be seen, T for T - 1.
    within = one_kl(subject.chains[0]) / 8 if is_by_hand(subject) else 0.0
    plain = elbo(subject, sampled=False, key=subject.key, within=within)
    yield _subsampled(subject, plain)
    yield own_loss(subject, plain)
    for chain in subject.chains:
        yield _order(chain)
        yield _analytic(chain)


def _subsampled(subject: Subject, plain: Estimate) -> Finding:
    name = "subsampled bound"
    if not any(s.where == "model" for s in subject.statements):
        return skipped(name, "the program has no chain for subsample_steps to read.")
    size = num_steps_sampled(subject)
    few = elbo(subject, sampled=True, key=jax.random.fold_in(subject.key, 1))
    score = few.score(plain)
    words = (
        f"The program's ELBO is {few.mean:.4f} ± {few.error:.2g} nats per datum with subsample_steps(size={size}) and "
        f"{plain.mean:.4f} ± {plain.error:.2g} without, {score:.1f} standard errors apart"
    )
    numbers = {"elbo_subsampled": few.mean, "elbo_plain": plain.mean, "standard_errors": score}
    if not score < STANDARD_ERRORS:
        words += ": one of them is not the bound. Do step, marginal and posterior belong together?"
        return failed(name, words, **numbers)
    return passed(name, f"{words}; one draw deviates by {few.deviation:.2g} and {plain.deviation:.2g} nats.", **numbers)


def _data(chain: Chain) -> Array:
    """The chain's data as a batch of one dimension."""
    return chain.x0.reshape(-1, *chain.forward.event_shape)


def _order(chain: Chain) -> Finding:
    name = "order of the bounds"
    x0, one = _data(chain), chain.num_steps * math.prod(chain.forward.event_shape)  # numbers in a trajectory
    num = max(16, min(200, _NUMBERS // (2 * len(x0) * one)))
    num_data = max(8, min(len(x0), _NUMBERS // (2 * num * one)))
    x0 = x0[:num_data]
    num_data = len(x0)
    states, _, own = (np.asarray(a) for a in chain.simulated)
    made_data = states[0, : min(num_data, len(own))].astype(x0.dtype)
    given: dict[str, Any] = {
        "params": {},
        "num_particles": num,
        "progress": False,
        "key": jax.random.fold_in(chain.key, 2),
    }
    try:
        both = log_likelihood(chain.definition, np.concatenate([x0, made_data]), **given)
    except ValueError as error:
        return failed(name, f"Importance weights cannot be had: {error}")
    given_weights, made = both.log_weight[:, :num_data], both.log_weight[:, num_data:]
    below, above = elbo_of(chain.terms, num_data), Estimate.of(given_weights.mean(1))
    estimate = float(np.mean(log_mean_exp(given_weights)))
    # A datum's own trajectory is a draw from the posterior: in place of a forward one it turns the bound round.
    lowers, uppers = (
        log_mean_exp(weights) for weights in (made, np.concatenate([made[:-1], own[None, : len(made_data)]]))
    )
    gap, lower, upper = Estimate.of(uppers - lowers), float(np.mean(lowers)), float(np.mean(uppers))
    numbers = {"elbo": below.mean, "elbo_by_weights": above.mean, "estimate": estimate, "lower": lower, "upper": upper}
    words = (
        f"On data ELBO {below.mean:.4g} <= importance-weighted estimate {estimate:.4g} nats ({num} particles); on "
        f"simulated data lower bound {lower:.4g} <= upper bound {upper:.4g}."
    )
    problems = []
    if not np.isfinite([below.mean, above.mean, lower, upper]).all():
        problems.append("a bound is not finite")
    if below.score(above) > STANDARD_ERRORS:
        problems.append(
            f"the ELBO by KLs is {below.mean:.4f} ± {below.error:.2g} nats, and the mean log weight of trajectories "
            f"{above.mean:.4f} ± {above.error:.2g}"
        )
    if below.excess(replace(above, mean=estimate)) > STANDARD_ERRORS:
        problems.append(f"the ELBO, {below.mean:.4f}, is above the estimate, {estimate:.4f}")
    if -gap.excess(Estimate(0.0)) > STANDARD_ERRORS:
        problems.append(
            f"on simulated data the lower bound {lower:.4f} is above the upper one {upper:.4f}, by {-gap.mean:.3g} ± "
            f"{gap.error:.2g}"
        )
    # E log w of posterior draws is above log p(x^0), and that of forward draws below it.
    excess = Estimate.of(own[: len(made_data)] - made.mean(0))
    if -excess.excess(Estimate(0.0)) > STANDARD_ERRORS:
        problems.append(
            f"on simulated data the log weight of the trajectories that made them is {-excess.mean:.3g} ± "
            f"{excess.error:.2g} nats below that of forward ones, where it should be above: do `sample` and `log_prob` "
            "of `reverse` and `step` belong together?"
        )
    if problems:
        return failed(name, "; ".join(problems)[:1].upper() + "; ".join(problems)[1:] + ".", **numbers)
    return passed(name, words, **numbers)


def _analytic(chain: Chain) -> Finding:
    """Whether each KL is known, and what a sample in its place adds to the noise of the bound."""
    name = "analytic KL"
    kernel: Any = chain.kernel
    if chain.num_steps == 1:
        return skipped(name, "there is no reverse step with T = 1.")
    if not has_closed_forms(kernel):
        return note(
            name, "The kernel has no `posterior`: every KL is a log ratio along a whole trajectory, and noisier."
        )
    known, kinds = [True], [""]

    @jax.jit
    def sampled(states: Array, key: Array) -> tuple[Array, Array]:
        xt, t = states[2:], chain.steps(*range(2, chain.num_steps + 1))
        q, p = kernel.posterior(jnp.broadcast_to(chain.x0, xt.shape), xt, t), chain.model.reverse(xt, t)
        kinds[0] = _kinds(q, p)
        try:
            kl_divergence(q, p)
        except NotImplementedError:
            known[0] = False
        x = q.sample(key, (2,))
        one, other = q.log_prob(x) - p.log_prob(x)
        return one, other

    one, other = sampled(chain.states, chain.key)
    within = float(np.sqrt(np.mean(np.asarray(one - other) ** 2 / 2, axis=tuple(range(1, one.ndim))).sum()))
    if known[0]:
        words = (
            f"KL({kinds[0]}) is analytic; a sample of each in its place would deviate by {within:.3g} nats per datum."
        )
        return passed(name, words, deviation_if_sampled=within)
    total = (
        float(np.std(np.asarray(one).reshape(chain.num_steps - 1, -1).sum(0), ddof=1)) if one[0].size > 1 else np.nan
    )
    words = (
        f"KL({kinds[0]}) is not known to NumPyro or dpm_ppl: TraceMeanField_ELBO silently takes one sample of log q - "
        f"log p. That deviates by {within:.3g} nats per datum, of {total:.3g} in all; register the pair with "
        "kl_divergence.add."
    )
    return note(name, words, deviation=within, deviation_in_all=total)


def _kinds(*laws: Any) -> str:
    names = []
    for law in laws:
        while hasattr(law, "base_dist"):
            law = law.base_dist
        names.append(type(law).__name__)
    return " || ".join(names)
