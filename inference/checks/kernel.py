"""Does the kernel keep pi, and does the chain get there?"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import kl_divergence

from dpm_ppl.diffusion import check_laws
from dpm_ppl.inference.checks.alternatives import Laws, NoNormalError, scales
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.difference import Difference
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.trajectories import forward_states

STANDARD_ERRORS = 5.5  # a true kernel exceeds them once in 30 million statistics
FAR_FROM_PI = 1.0  # bits per dimension at the end of a chain
NEAR_PI = 0.05  # bits per datum
_NUMBERS = 1_000_000


def kernel(chain: Chain) -> Iterator[Finding]:
    """Findings "stationarity" and "end of the chain"."""
    check_laws(chain.kernel, "step", "marginal", "posterior")
    yield _stationarity(chain)
    yield _end(chain)


def balance(laws: Laws, chain: Chain) -> Difference:
    """Detailed balance, log pi(x') step(x|x') against log pi(x) step(x'|x), on a trajectory, a row for each t."""

    def both(states: Array) -> tuple[Array, Array]:
        before, after, t, pi = states[:-1], states[1:], chain.steps(), laws.stationary()
        forward = pi.log_prob(before) + laws.step(before, t).log_prob(after)
        return forward, pi.log_prob(after) + laws.step(after, t).log_prob(before)

    return Difference.of(*jax.jit(both)(chain.states))


def _stationarity(chain: Chain) -> Finding:
    laws = Laws.of(chain.kernel)
    difference = balance(laws, chain)
    off = difference.off
    if difference.is_none:
        words = f"`step` keeps pi at all {chain.num_steps} steps: detailed balance holds to {off:.1g}."
        return passed("stationarity", words, detailed_balance=off)
    if difference.is_single:
        return note("stationarity", f"The sides of `step`'s detailed balance {difference.words}", detailed_balance=off)
    score, t, feature, before, after = max(_drifts(chain), key=lambda drift: drift[0])
    numbers = {"detailed_balance": off, "standard_errors": score, "t": t, "before": before, "after": after}
    if score < STANDARD_ERRORS:
        words = (
            f"`step` is not reversible (at t = {difference.at + 1}), but no moment of pi drifts under it: the largest "
            f"change, of {feature} at t = {t}, is {score:.1f} standard errors."
        )
        return passed("stationarity", words, **numbers)
    words = (
        f"`step` does not keep pi: at t = {t}, from x ~ stationary(), {feature} goes from {before:.4g} to {after:.4g} "
        f"({min(score, 1e6):.0f} standard errors)."
    )
    for name, hint, repaired in scales(laws):
        with suppress(NoNormalError):
            if name == "step" and balance(repaired, chain).is_none:
                words += f" {hint}."
    if not chain.model.has_fixed_last_step:
        words += " The bound holds nevertheless, as `decode` is the program's own: it does not ask a kernel to keep pi."
        return note("stationarity", words, **numbers)
    return failed("stationarity", words, **numbers)


def _drifts(chain: Chain) -> Iterator[tuple[float, int, str, float, float]]:
    """How moments of x ~ pi change in a step: standard errors, t, which moment, before and after."""
    laws, size = Laws.of(chain.kernel), int(np.prod(chain.forward.event_shape))
    num = max(200, min(20_000, _NUMBERS // size))

    @jax.jit
    def one_step(t: Array, key: Array) -> tuple[Array, Array]:
        x_key, y_key = jax.random.split(key)
        x = laws.stationary().sample(x_key, (num,))
        return x, laws.step(x, t).sample(y_key)

    for t in chosen(1, chain.num_steps):
        x, y = one_step(jnp.asarray(t), jax.random.fold_in(chain.key, t))
        x, y = (np.asarray(a, np.float64).reshape(num, -1) for a in (x, y))
        moments = {"the mean": (x, y), "the mean square": (x**2, y**2)}
        moments |= {f"{name} over coordinates": (a.mean(1), b.mean(1)) for name, (a, b) in moments.items()}
        for name, (a, b) in moments.items():
            change = b - a
            error = np.maximum(np.std(change, axis=0, ddof=1) / np.sqrt(num), 1e-12)
            scores = np.atleast_1d(np.abs(change.mean(0)) / error)
            worst_at = int(scores.argmax())
            values = [float(np.atleast_1d(m.mean(0))[worst_at]) for m in (a, b)]
            yield float(scores[worst_at]), t, name, *values  # type: ignore[misc]
    num_run = max(100, min(num, 20 * _NUMBERS // (size * chain.num_steps)))
    x = laws.stationary().sample(chain.key, (num_run,))
    run = jax.jit(partial(forward_states, chain.forward, key=chain.key, times=[chain.num_steps]))
    y = run(x)[chain.num_steps]
    fresh = laws.stationary().sample(jax.random.fold_in(chain.key, 1), (4 * num_run,))
    for power, name in ((1, "the mean, after all steps,"), (2, "the mean square, after all steps,")):
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) ** power for v in (fresh, y))
        a, b = a.mean(1), b.mean(1)
        error = max(float(np.hypot(a.std(ddof=1) / np.sqrt(len(a)), b.std(ddof=1) / np.sqrt(len(b)))), 1e-12)
        yield abs(b.mean() - a.mean()) / error, chain.num_steps, name, float(a.mean()), float(b.mean())


def chosen(first: int, last: int) -> list[int]:
    """A few steps between two, both included, the ends more densely than the middle."""
    span = last - first
    steps = {first, first + 1, *(first + span * i // 4 for i in (1, 2, 3)), last - 1, last}
    return sorted(t for t in steps if first <= t <= last)


def _end(chain: Chain) -> Finding:
    kernel: Any = chain.kernel
    if not hasattr(kernel, "marginal"):
        return skipped("end of the chain", "q(x^T|x^0) is not known: the kernel has no `marginal`.")

    def divergence(x0: Array, key: Array) -> Array:
        last, pi = kernel.marginal(x0, kernel.num_steps), kernel.stationary()
        try:
            return kl_divergence(last, pi)
        except NotImplementedError:
            x = last.sample(key, (200,))
            return jnp.mean(last.log_prob(x) - pi.log_prob(x), 0)

    bits = float(jnp.mean(jax.jit(divergence)(chain.x0, chain.key))) / np.log(2)
    per_dimension = bits / int(np.prod(chain.forward.event_shape))
    words = f"KL(q(x^T|x^0) || pi) at T = {chain.num_steps} is {bits:.3g} bits per datum"
    if not per_dimension < FAR_FROM_PI:
        words += (
            f", {per_dimension:.3g} per dimension: it ends far from pi, where the reverse chain begins. Use more noise."
        )
        return failed("end of the chain", words, bits=bits)
    if bits > NEAR_PI:
        return note("end of the chain", words + ", which the bound pays for; more noise lowers it.", bits=bits)
    return passed("end of the chain", words + ".", bits=bits)
