"""Is a program's own loss the bound of its diffusion, and if not, by which slip?"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.chains import ForwardChain
from dpm_ppl.inference.bound import Bound
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.kernel import STANDARD_ERRORS
from dpm_ppl.inference.checks.losses import Estimate
from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped
from dpm_ppl.inference.checks.subject import Subject
from dpm_ppl.inference.terms import divergence
from dpm_ppl.kernels import has_closed_forms

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
