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

from dpm_ppl.chains import ForwardChain
from dpm_ppl.distributions import layers_of
from dpm_ppl.inference.checks.losses import elbo, num_steps_sampled
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.statistics import STANDARD_ERRORS, Estimate
from dpm_ppl.inference.checks.subject import Chain, Subject
from dpm_ppl.inference.likelihoods.bounds import Bound, divergence
from dpm_ppl.inference.likelihoods.likelihood import log_likelihood, log_mean_exp
from dpm_ppl.kernels.kernel import has_closed_forms
from dpm_ppl.parts import rows_of

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
        rows = np.concatenate([np.arange(num_data), np.arange(len(made_data))])
        both = log_likelihood(
            chain.definition, np.concatenate([x0, made_data]), context=rows_of(chain.context, rows), **given
        )
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
    kernel = chain.kernel
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
    return " || ".join(type(layers_of(law)[-1]).__name__ for law in laws)


_CLOSE = 4.0  # standard errors, within which a forgotten term explains a difference


def own_loss(subject: Subject, plain: Estimate) -> Finding:
    """A finding "loss".

    Args:
        subject: The program.
        plain: Its ELBO by its own loss, without `subsample_steps`.
    """
    name, chains, by_hand = "loss", subject.chains, is_by_hand(subject)
    if not chains:
        words = (
            "the program has no chain. Where its bound is written by hand, give the file a `diffusion()`: the loss is "
            "then compared with its bound."
        )
        return skipped(name, words)
    if not by_hand:
        known = {site for chain in chains for site in (chain.name, f"{chain.name}_chain")}
        others = [k for k, s in subject.sites["model"].items() if s["type"] == "sample" and k not in known]
        if len(chains) != 1 or others:
            extra = ", ".join(map(repr, others)) or f"{len(chains)} chains"
            return skipped(name, f"the program is more than one chain of its data: {extra}.")
    (chain,) = chains
    expected = elbo_of(chain.terms)
    score, error = plain.score(expected), float(np.hypot(plain.error, expected.error))
    numbers = {"elbo_of_loss": plain.mean, "elbo_of_diffusion": expected.mean, "standard_errors": score}
    words = (
        f"By the program's own loss the ELBO is {plain.mean:.4f} ± {plain.error:.2g} nats per datum, and by the bound "
        f"of its diffusion, term by term, {expected.mean:.4f} ± {expected.error:.2g}"
    )
    if score < STANDARD_ERRORS:
        words += f": {score:.1f} standard errors apart."
        if by_hand and 0 < one_kl(chain) < STANDARD_ERRORS * error:
            words += (
                f" A factor T / (T - 1) on its KLs would change it by {one_kl(chain):.2g}, below what these draws can "
                "tell."
            )
        return passed(name, words, **numbers)
    excess = Estimate(plain.mean - expected.mean, error)
    words += f": {excess.mean:+.4f} apart, {score:.0f} standard errors."
    slips = {slip: value.score(excess) for slip, value in _slips(chain, chain.terms).items()}
    close = [slip for slip in sorted(slips, key=slips.__getitem__) if slips[slip] < _CLOSE]
    if close:
        words += f" That is the size of {', or of '.join(close)}."
    else:
        words += " Is a term of the bound forgotten, scaled or counted twice?"
    return failed(name, words, **numbers, excess=excess.mean)


def is_by_hand(subject: Subject) -> bool:
    """Whether the bound is written out as sites or factors, beside a `diffusion()` that says what it is to be."""
    return subject.definition is not None and not any(s.where == "model" for s in subject.statements)


def one_kl(chain: Chain) -> float:
    """Mean KL of a step, by which T in place of T - 1 lowers the bound; 0 with T = 1."""
    return abs(float(jnp.mean(jnp.sum(chain.terms.kl, -1)))) / max(chain.num_steps - 1, 1)


def elbo_of(terms: Bound, num_data: int | None = None) -> Estimate:
    """Its mean over the first data, by default all, with the Monte Carlo error alone."""
    elbo, variance = (np.asarray(a, np.float64)[:num_data] for a in (terms.elbo, terms.elbo_variance))
    deviation = float(np.sqrt(np.mean(variance) / len(elbo)))
    num = 1 + (terms.num_samples - 1) * len(elbo)
    return Estimate(float(elbo.mean()), deviation / np.sqrt(terms.num_samples), deviation, num)


def _slips(chain: Chain, terms: Bound) -> dict[str, Estimate]:
    """By how much each usual slip raises the ELBO, in nats per datum."""
    kl = float(jnp.mean(jnp.sum(terms.kl, -1)))
    prior, first, last = (float(jnp.mean(a)) for a in (terms.prior_matching, terms.entropy_first, terms.entropy_last))
    known = {
        "a forgotten prior, KL(q(x^T|x^0) || pi)": prior,
        "a forgotten log pi(x^T), with the entropy of q(x^T|x^0) kept": prior + last,
        "a forgotten entropy of q(x^T|x^0)": -last,
        "a forgotten entropy of q(x^1|x^0)": first,
        "a forgotten E log p(x^0|x^1)": -float(jnp.mean(terms.reconstruction)),
        "KLs left out altogether": kl,
    }
    others = chain.num_steps - 1
    if others:
        known["KLs scaled by T instead of T - 1"] = -kl / others
        known["KLs scaled by T - 2 instead of T - 1"] = kl / others
        known["a mean of the KLs instead of their sum"] = kl * (1 - 1 / others)
    slips = {name: Estimate(value) for name, value in known.items()} | _sampled_slips(chain)
    return {name: slip for name, slip in slips.items() if np.isfinite(slip.mean)}


def _sampled_slips(chain: Chain) -> dict[str, Estimate]:
    """Those that take forward trajectories of their own."""
    forward, kernel = ForwardChain(chain.forward, chain.x0), chain.kernel
    t = chain.steps(*range(2, chain.num_steps + 1))

    def once(key: Array) -> dict[str, Array]:
        trajectory = forward.sample(key)
        found = {"a forgotten entropy of the forward chain": jnp.mean(forward.log_prob(trajectory))}
        if chain.num_steps > 1 and has_closed_forms(kernel):
            xt = jnp.moveaxis(trajectory, chain.batch_dim, 0)[1:]
            back, x0 = chain.model.reverse(xt, t), jnp.broadcast_to(chain.x0, xt.shape)
            right, wrong = (divergence(q, back, key) for q in (kernel.posterior(x0, xt, t), kernel.step(xt, t)))
            found["q(x^t|x^(t-1)) in place of the posterior"] = jnp.mean(jnp.sum(right - wrong, 0))
        return found

    drawn = jax.jit(lambda keys: jax.lax.map(once, keys))(jax.random.split(chain.key, 50))
    return {name: Estimate.of(values) for name, values in drawn.items()}
