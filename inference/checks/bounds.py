"""Is the program's loss the bound, in each of its forms, and do the bounds stand in their order?"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import kl_divergence

from dpm_ppl.chains import ForwardChain
from dpm_ppl.inference.bound import Bound
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.kernel import STANDARD_ERRORS
from dpm_ppl.inference.checks.losses import Estimate, elbo, num_steps_sampled
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import Subject
from dpm_ppl.inference.likelihood import log_likelihood, log_mean_exp
from dpm_ppl.kernels import has_closed_forms

_NUMBERS = 4_000_000  # in the trajectories of an estimate, of all data
_CLOSE = 4.0  # standard errors, within which a forgotten term explains a difference


def bounds(subject: Subject) -> Iterator[Finding]:
    """Findings "subsampled bound", "loss" and, for each chain, "order of the bounds" and "analytic KL"."""
    plain = elbo(subject, sampled=False, key=subject.key)
    yield _subsampled(subject, plain)
    chains = subject.chains()
    yield _loss(subject, chains, plain)
    for chain in chains:
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


def _loss(subject: Subject, chains: list[Chain], plain: Estimate) -> Finding:
    name = "loss"
    by_hand = subject.definition is not None and not any(s.where == "model" for s in subject.statements)
    if not by_hand:
        known = {site for chain in chains for site in (chain.name, f"{chain.name}_chain")}
        others = [k for k, s in subject.sites["model"].items() if s["type"] == "sample" and k not in known]
        if len(chains) != 1 or others:
            extra = ", ".join(map(repr, others)) or "no chain"
            return skipped(name, f"the program has more or less than one chain of its data: {extra}.")
    (chain,) = chains
    expected = _elbo(chain.terms)
    score = plain.score(expected)
    numbers = {"elbo_of_loss": plain.mean, "elbo_of_diffusion": expected.mean, "standard_errors": score}
    words = (
        f"By the program's own loss the ELBO is {plain.mean:.4f} ± {plain.error:.2g} nats per datum, and by the bound "
        f"of its diffusion, term by term, {expected.mean:.4f} ± {expected.error:.2g}"
    )
    if score < STANDARD_ERRORS:
        return passed(name, f"{words}: {score:.1f} standard errors apart.", **numbers)
    excess, error = plain.mean - expected.mean, float(np.hypot(plain.error, expected.error))
    words += f": {excess:+.4f} apart, {score:.0f} standard errors."
    slips = _slips(chain, chain.terms)
    close = [slip for slip, value in slips.items() if abs(value - excess) < _CLOSE * error + 1e-6]
    if close:
        words += f" So much it would be for {' or for '.join(close)}."
    else:
        words += " Is a term of the bound forgotten, scaled or counted twice?"
    return failed(name, words, **numbers, excess=excess)


def _elbo(terms: Bound) -> Estimate:
    """Its mean over the data, with the Monte Carlo error alone."""
    elbo = np.asarray(terms.elbo, np.float64)
    deviation = float(np.sqrt(np.mean(terms.elbo_variance) / len(elbo)))
    return Estimate(float(elbo.mean()), deviation / np.sqrt(terms.num_samples), deviation)


def _slips(chain: Chain, terms: Bound) -> dict[str, float]:
    """By how much each usual slip raises the ELBO, in nats per datum."""
    kl = float(jnp.mean(jnp.sum(terms.kl, -1)))
    prior, first, last = (float(jnp.mean(a)) for a in (terms.prior_matching, terms.entropy_first, terms.entropy_last))
    others = chain.num_steps - 1
    forward = ForwardChain(chain.forward, chain.x0)
    keys = jax.random.split(chain.key, 50)
    steps = float(
        -jnp.mean(jax.jit(lambda keys: jax.lax.map(lambda k: forward.log_prob(forward.sample(k)), keys))(keys))
    )
    slips = {
        "a forgotten prior, KL(q(x^T|x^0) || pi)": prior,
        "a forgotten log pi(x^T), with the entropy of q(x^T|x^0) kept": prior + last,
        "a forgotten entropy of q(x^T|x^0)": -last,
        "a forgotten entropy of q(x^1|x^0)": first,
        "a forgotten entropy of the forward chain": -steps,
        "a forgotten E log p(x^0|x^1)": -float(jnp.mean(terms.reconstruction)),
        "KLs left out altogether": kl,
    }
    if others:
        slips["KLs scaled by T instead of T - 1"] = -kl / others
        slips["KLs scaled by T - 2 instead of T - 1"] = kl / others
        slips["a mean of the KLs instead of their sum"] = kl * (1 - 1 / others)
    return {name: value for name, value in slips.items() if np.isfinite(value)}


def _data(chain: Chain) -> Array:
    """The chain's data as a batch of one dimension."""
    return chain.x0.reshape(-1, *chain.forward.event_shape)


def _order(chain: Chain) -> Finding:
    name = "order of the bounds"
    x0, num_data = _data(chain), len(_data(chain))
    num = max(8, min(200, _NUMBERS // (2 * chain.states.size)))
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
    below, above = _elbo(chain.terms), Estimate.of(given_weights.mean(1))
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
    if below.mean - estimate > STANDARD_ERRORS * np.hypot(below.error, above.error) + 1e-6:
        problems.append(f"the ELBO, {below.mean:.4f}, is above the estimate, {estimate:.4f}")
    if -gap.mean > STANDARD_ERRORS * gap.error + 1e-6:
        problems.append(
            f"on simulated data the lower bound {lower:.4f} is above the upper one {upper:.4f}, by {-gap.mean:.3g} ± "
            f"{gap.error:.2g}"
        )
    # E log w of posterior draws is above log p(x^0), and that of forward draws below it.
    excess = Estimate.of(own[: len(made_data)] - made.mean(0))
    if -excess.mean > STANDARD_ERRORS * excess.error + 1e-6:
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
    known = [True]

    @jax.jit
    def sampled(states: Array, key: Array) -> tuple[Array, Array]:
        xt, t = states[2:], chain.steps(*range(2, chain.num_steps + 1))
        q, p = kernel.posterior(jnp.broadcast_to(chain.x0, xt.shape), xt, t), chain.model.reverse(xt, t)
        try:
            kl_divergence(q, p)
        except NotImplementedError:
            known[0] = False
        x = q.sample(key, (2,))
        one, other = q.log_prob(x) - p.log_prob(x)
        return one, other

    one, other = sampled(chain.states, chain.key)
    within = float(np.sqrt(np.mean(np.asarray(one - other) ** 2 / 2, axis=tuple(range(1, one.ndim))).sum()))
    xt, two = chain.states[2], jnp.asarray(2)
    kinds = _kinds(kernel.posterior(chain.x0, xt, two), chain.model.reverse(xt, two))
    if known[0]:
        words = f"KL({kinds}) is analytic; a sample of each in its place would deviate by {within:.3g} nats per datum."
        return passed(name, words, deviation_if_sampled=within)
    total = (
        float(np.std(np.asarray(one).reshape(chain.num_steps - 1, -1).sum(0), ddof=1)) if one[0].size > 1 else np.nan
    )
    words = (
        f"KL({kinds}) is not known to NumPyro or dpm_ppl: TraceMeanField_ELBO silently takes one sample of log q - "
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
