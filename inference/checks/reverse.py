"""Do the reverse steps undo the forward ones: where it goes, only where it goes, and at its times?"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.inference.checks.laws import Laws, NoNormalError, normal
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.statistics import STANDARD_ERRORS, Difference
from dpm_ppl.inference.checks.subject import Chain
from dpm_ppl.inference.likelihoods.bounds import divergence
from dpm_ppl.kernels.kernel import has_closed_forms

IMPOSSIBLE = -1e8  # nats, below any log density that is meant: kernels of logits say "never" by finite ones

SMALL = 0.01  # nats per dimension

BETTER = 0.5  # of the KLs that are left with time turned round, below which it runs the wrong way


def reverse(chain: Chain) -> Iterator[Finding]:
    """Findings "reverse steps", "reverse scale", "last step", "reverse support" and "reverse time"."""
    yield _positive(chain)
    yield scale(chain)
    yield _last(chain)
    yield _support(chain)
    yield _time(chain)


def _positive(chain: Chain) -> Finding:
    """Whether every state that the forward chain visits is given a density, at all t."""

    @jax.jit
    def densities(states: Array) -> tuple[Array, Array]:
        decode = chain.model.decode(states[1]).log_prob(states[0].astype(chain.x0.dtype))
        if chain.num_steps == 1:
            return decode, decode[None][:0]
        t = chain.steps(*range(2, chain.num_steps + 1))
        return decode, chain.model.reverse(states[2:], t).log_prob(states[1:-1])

    decode, steps = (np.asarray(a, np.float64) for a in densities(chain.states))
    expected = (chain.num_steps - 1, *chain.x0.shape[: chain.batch_dim])
    if steps.shape != expected:
        words = f"`reverse` scores states of batch shape {expected}, at a t of their first dimension, as {steps.shape}."
        return failed("reverse steps", words)
    per_step = np.concatenate([decode[None], steps]).reshape(chain.num_steps, -1)
    bad = ~(np.isfinite(per_step) & (per_step > IMPOSSIBLE))
    if bad.any():
        t = int(np.argmax(bad.any(1))) + 1
        of, value = ("`decode`" if t == 1 else "`reverse`"), per_step[t - 1][bad[t - 1]][0]
        words = (
            f"{of} gives log density {value} to states that the forward chain visits, at {int(bad.any(1).sum())} of "
            f"{chain.num_steps} steps, first at t = {t}, for {bad[t - 1].mean():.0%} of them: the bound is lost there. "
            "Give it a floor for its scale, or mass for every state."
        )
        return failed("reverse steps", words, t=t)
    words = (
        f"p(x^(t-1)|x^t) gives finite log densities to forward states at t = 1..{chain.num_steps}, "
        f"from {per_step.min():.3g} to {per_step.max():.3g} nats."
    )
    return passed("reverse steps", words, least=float(per_step.min()), most=float(per_step.max()))


def _last(chain: Chain) -> Finding:
    """Whether p(x^0|x^1) is the paper's, and that the exact undoing of step 1 on pi."""
    kernel = chain.kernel

    @jax.jit
    def both(x0: Array, x1: Array) -> tuple[Array, Array]:
        pi = kernel.stationary()
        bayes = kernel.step(x0, jnp.asarray(1)).log_prob(x1) + pi.log_prob(x0) - pi.log_prob(x1)
        return chain.model.decode(x1).log_prob(x0), bayes

    own, bayes = both(chain.x0, chain.states[1])
    difference = Difference.of(own[None], bayes[None])
    means = {"decode": float(jnp.mean(own)), "fixed": float(jnp.mean(bayes))}
    if difference.is_none:
        words = f"p(x^0|x^1) is q(x^1|x^0) pi(x^0) / pi(x^1), the fixed last step, to {difference.off:.1g}."
        return passed("last step", words, **means)
    if difference.is_single:
        return note("last step", f"p(x^0|x^1) and q(x^1|x^0) pi(x^0) / pi(x^1) {difference.words}", **means)
    if not chain.model.has_fixed_last_step:
        words = (
            f"`decode` is the program's own: E log p(x^0|x^1) = {means['decode']:.4g} nats, with the fixed last step "
            f"{means['fixed']:.4g}. K, the paper's form, is not known then."
        )
        return note("last step", words, **means)
    words = (
        f"The default last step step(x1, 1) gives {means['decode']:.4g} nats on average, and q(x^1|x^0) pi(x^0) / "
        f"pi(x^1) gives {means['fixed']:.4g}: step 1 is not reversible under pi"
    )
    if abs(means["decode"] - means["fixed"]) < SMALL * math.prod(chain.forward.event_shape):
        return note("last step", f"{words}, of which little is seen. K, the paper's form, is not known then.", **means)
    words += ". Give the Diffusion a `decode`."
    return failed("last step", words, **means)


def _support(chain: Chain) -> Finding:
    """Whether reverse trajectories are possible for the forward chain."""
    name = "reverse support"
    states, forward, _ = (np.asarray(a, np.float64) for a in chain.simulated)
    wrong = np.any(~np.isfinite(states).reshape(*states.shape[:2], -1), axis=-1)
    if wrong.any():
        t = int(np.flatnonzero(wrong.any(1)).max())
        words = f"{wrong[t].mean():.0%} of reverse trajectories become NaN or infinite, first at x^{t}."
        return failed(name, words, t=t, share=float(wrong[t].mean()))
    impossible = ~(forward > IMPOSSIBLE)
    share, num = float(impossible.any(0).mean()), forward.shape[1]
    if share:
        t = int(impossible.sum(1).argmax()) + 1
        words = (
            f"{share:.0%} of {num} reverse trajectories take a step that the forward chain never takes, at "
            f"{int(impossible.any(1).sum())} of {chain.num_steps} steps, most often from x^{t} to x^{t - 1}, t = {t}. "
            "The mass put there is lost to importance weights: likelihoods are biased low without a sign. Give "
            f"{'`decode`' if t == 1 else '`reverse`'} no more support than the forward step has."
        )
        return failed(name, words, t=t, share=share)
    return passed(name, f"Every step of {num} reverse trajectories is possible for the forward chain, at all t.")


def _time(chain: Chain) -> Finding:
    """Whether the reverse steps are nearer to the posteriors at their own t than with time turned round."""
    kernel = chain.kernel
    if not has_closed_forms(kernel) or chain.num_steps < 3:
        return skipped("reverse time", "it takes a kernel with `posterior`, and three steps.")
    num_steps = chain.num_steps

    @jax.jit
    def divergences(states: Array, key: Array) -> tuple[Array, Array]:
        t, xt = chain.steps(*range(2, num_steps + 1)), states[2:]
        q = kernel.posterior(jnp.broadcast_to(chain.x0, xt.shape), xt, t)
        return tuple(divergence(q, chain.model.reverse(xt, at), key) for at in (t, num_steps + 2 - t))  # type: ignore[return-value]

    own, turned = (np.asarray(kl).reshape(num_steps - 1, -1).sum(0) for kl in divergences(chain.states, chain.key))
    less = own - turned
    score = less.mean() / max(less.std(ddof=1) / np.sqrt(len(less)), 1e-12) if len(less) > 1 else 0.0
    numbers = {"kl": float(own.mean()), "kl_turned_round": float(turned.mean()), "standard_errors": float(score)}
    if score > STANDARD_ERRORS and turned.mean() < BETTER * own.mean():
        words = (
            f"The reverse steps fit better with time turned round: the sum of KL(q(x^(t-1)|x^t,x^0) || reverse(x^t, "
            f"t)) is {own.mean():.4g} nats, and with reverse(x^t, T + 2 - t) {turned.mean():.4g}. Does `reverse` count "
            "t from the other end?"
        )
        return failed("reverse time", words, **numbers)
    words = (
        f"The reverse steps are no nearer to the posteriors with time turned round: KLs of {own.mean():.4g} nats, and "
        f"{turned.mean():.4g} then."
    )
    return passed("reverse time", words, **numbers)


NEAR, FAR = 0.1, 0.3  # of the log of a scale from the kernel's: a root that lands near, from far, is the right scale


def scale(chain: Chain) -> Finding:
    """A finding "reverse scale": an untrained reverse step is about as wide as `step` or `posterior`."""
    name = "reverse scale"
    if chain.num_steps == 1:
        return skipped(name, "there is no reverse step with T = 1.")
    try:
        off, off_root = (float(a) for a in _medians(chain))
    except NoNormalError:
        return skipped(name, "it takes normal laws, without correlations.")
    numbers = {"off": off, "off_root": off_root}
    words = f"In the median over all t the scale of `reverse` is {np.exp(off):.3g} times off that of the kernel's"
    if off_root < NEAR and off > FAR:
        words += (
            f" `step` or `posterior`, and its root {np.exp(off_root):.3g} times: it gives Normal a variance where a "
            "standard deviation belongs."
        )
        return failed(name, words, **numbers)
    return passed(name, f"{words} `step` or `posterior`.", **numbers)


def _medians(chain: Chain) -> tuple[Array, Array]:
    """Median |log of scale over the kernel's|, as it is and of the scale's root, by the law that is nearer."""
    laws = Laws.of(chain.kernel)

    @jax.jit
    def medians(states: Array) -> tuple[Array, Array]:
        xt, t = states[2:], chain.steps(*range(2, chain.num_steps + 1))
        mean, own, _ = normal(chain.model.reverse(xt, t))
        references = [normal(laws.step(xt, t))[1]]
        if laws.posterior is not None:
            references.append(normal(laws.posterior(jnp.broadcast_to(chain.x0, xt.shape), xt, t))[1])

        def nearest(scale: Array) -> Array:
            off = [jnp.median(jnp.abs(jnp.broadcast_to(jnp.log(scale / r), mean.shape))) for r in references]
            return jnp.min(jnp.stack(off))

        return nearest(own), nearest(jnp.sqrt(own))

    return medians(chain.states)
