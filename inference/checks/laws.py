"""Do the laws of a kernel belong to one chain that keeps pi, and by which slip do they not?"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import kl_divergence

from dpm_ppl.chains import forward_states
from dpm_ppl.diffusion import require_laws
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.statistics import ROUNDING, STANDARD_ERRORS, Difference
from dpm_ppl.inference.checks.subject import Chain
from dpm_ppl.kernels.kernel import Kernel, has_closed_forms, has_marginal, step_number

Law = Callable[..., dist.Distribution]


@dataclass(frozen=True)
class Laws:
    """A kernel's laws, any of which may be replaced.

    Args:
        stationary: pi.
        step: q(x^t | x^(t-1)) of (x, t).
        marginal: q(x^t | x^0) of (x0, t).
        posterior: q(x^(t-1) | x^t, x^0) of (x0, xt, t).
    """

    stationary: Callable[[], dist.Distribution]
    step: Law
    marginal: Law | None
    posterior: Law | None

    @classmethod
    def of(cls, kernel: Kernel) -> "Laws":
        """Those of a kernel."""
        return cls(
            kernel.stationary,
            kernel.step,
            kernel.marginal if has_marginal(kernel) else None,
            kernel.posterior if has_closed_forms(kernel) else None,
        )

    def replaced(self, name: str, law: Law) -> "Laws":
        """The same with another law."""
        return Laws(**{**self.__dict__, name: law})


def shifts(laws: Laws) -> Iterator[tuple[str, str, Laws]]:
    """One law at a time moved by a step: its name, what that means if it restores the others, and the laws."""
    index = {"step": "beta", "marginal": "alpha_bar", "posterior": "beta or alpha_bar"}
    for name in ("step", "marginal", "posterior"):
        law = getattr(laws, name)
        if law is None:
            continue
        for by in (1, -1):
            moved = f"t {'+' if by > 0 else '-'} 1"
            words = f"With {moved} for t in `{name}` alone they agree: {index[name]} is off by one there"
            yield name, words, laws.replaced(name, _shifted(law, by))


def scales(laws: Laws) -> Iterator[tuple[str, str, Laws]]:
    """One normal law at a time with its scale, or the slope of its mean, under a root."""
    for name in ("step", "marginal", "posterior"):
        law = getattr(laws, name)
        if law is None:
            continue
        words = (
            f"With the root of its scale `{name}` is right: it gives Normal a variance where a standard deviation "
            "belongs"
        )
        yield name, words, laws.replaced(name, _rooted_scale(law))
        if name != "posterior":
            share = {"step": "1 - beta", "marginal": "alpha_bar"}[name]
            words = (
                f"With the root of its slope `{name}` is right: its mean is ({share}) x, and should be sqrt({share}) x"
            )
            yield name, words, laws.replaced(name, _rooted_slope(law))


def _shifted(law: Law, by: int) -> Law:
    def shifted(*args: Array) -> dist.Distribution:
        return law(*args[:-1], args[-1] + by)

    return shifted


def _rooted_scale(law: Law) -> Law:
    def rooted(*args: Array) -> dist.Distribution:
        loc, scale, event_dim = normal(law(*args))
        return dist.Normal(loc, jnp.sqrt(scale)).to_event(event_dim)

    return rooted


def _rooted_slope(law: Law) -> Law:
    def rooted(x: Array, t: Array) -> dist.Distribution:
        loc, scale, event_dim = normal(law(x, t))
        at_zero, at_one = (normal(law(jnp.full_like(x, value), t))[0] for value in (0, 1))
        slope = at_one - at_zero
        return dist.Normal(at_zero + (loc - at_zero) / jnp.sqrt(slope), scale).to_event(event_dim)

    return rooted


class NoNormalError(TypeError):
    """A law is no diagonal normal."""


def normal(law: Any) -> tuple[Array, Array, int]:
    """Mean, standard deviation and event dimensions of a diagonal normal."""
    event_dim = law.event_dim
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if not isinstance(law, dist.Normal):
        raise NoNormalError(f"Expected a diagonal normal; got {type(law).__name__}.")
    return law.loc, law.scale, event_dim


FAR_FROM_PI = 1.0  # bits per dimension at the end of a chain


NEAR_PI = 0.05  # bits per datum; of a kernel that does not keep pi per dimension


_NUMBERS = 1_000_000


def kernel(chain: Chain) -> Iterator[Finding]:
    """Findings "stationarity" and "end of the chain"."""
    require_laws(chain.kernel, "step", "marginal", "posterior")
    end = _end(chain)
    yield _stationarity(chain, end)
    yield end


def balance(laws: Laws, chain: Chain) -> Difference:
    """Detailed balance, log pi(x') step(x|x') against log pi(x) step(x'|x), on a trajectory, a row for each t."""

    def both(states: Array) -> tuple[Array, Array]:
        before, after, t, pi = states[:-1], states[1:], chain.steps(), laws.stationary()
        forward = pi.log_prob(before) + laws.step(before, t).log_prob(after)
        return forward, pi.log_prob(after) + laws.step(after, t).log_prob(before)

    return Difference.of(*jax.jit(both)(chain.states))


def keeps_pi(chain: Chain) -> bool:
    """Whether pi is kept by every step, in detailed balance or in its moments."""
    difference = balance(Laws.of(chain.kernel), chain)
    return difference.is_none or difference.is_single or max(_drifts(chain))[0] < STANDARD_ERRORS


def _meets_pi(chain: Chain, end: Finding) -> bool:
    """Whether a chain comes to pi all the same, as one whose variance explodes does, by laws that belong together."""
    if not end.numbers.get("bits_per_dimension", math.inf) < NEAR_PI:
        return False
    return all(finding.status != "failed" for finding in bayes(chain))


def _stationarity(chain: Chain, end: Finding) -> Finding:
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
    if _meets_pi(chain, end):
        words += (
            " The bound holds nevertheless, as the chain ends at pi and its laws belong together: a variance that "
            "explodes is of this kind."
        )
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
    kernel = chain.kernel
    if not has_marginal(kernel):
        return skipped("end of the chain", "q(x^T|x^0) is not known: the kernel has no `marginal`.")

    def divergence(x0: Array, key: Array) -> Array:
        last, pi = kernel.marginal(x0, step_number(kernel.num_steps)), kernel.stationary()
        try:
            return kl_divergence(last, pi)
        except NotImplementedError:
            x = last.sample(key, (200,))
            return jnp.mean(last.log_prob(x) - pi.log_prob(x), 0)

    bits = float(jnp.mean(jax.jit(divergence)(chain.x0, chain.key))) / np.log(2)
    per_dimension = bits / int(np.prod(chain.forward.event_shape))
    numbers = {"bits": bits, "bits_per_dimension": per_dimension}
    words = f"KL(q(x^T|x^0) || pi) at T = {chain.num_steps} is {bits:.3g} bits per datum"
    if not per_dimension < FAR_FROM_PI:
        words += (
            f", {per_dimension:.3g} per dimension: it ends far from pi, where the reverse chain begins. Use more noise."
        )
        return failed("end of the chain", words, **numbers)
    if bits > NEAR_PI:
        return note("end of the chain", words + ", which the bound pays for; more noise lowers it.", **numbers)
    return passed("end of the chain", words + ".", **numbers)


_DRAWS = 512


_ENOUGH = 10  # effective draws, below which an average over them says nothing


def bayes(chain: Chain) -> Iterator[Finding]:
    """Findings "first marginal", "composition" and "posterior"."""
    laws = Laws.of(chain.kernel)
    if laws.marginal is None:
        reason = "the kernel has no `marginal`; its bound comes from whole trajectories."
        yield from (skipped(name, reason) for name in ("first marginal", "composition", "posterior"))
        return
    first = _first(laws, chain)
    yield first
    if chain.num_steps == 1:
        yield from (skipped(name, "there is one step only.") for name in ("composition", "posterior"))
        return
    difference, hints = Difference(np.inf, 0, np.inf), {}
    if laws.posterior is not None:
        identity = jax.jit(lambda states: _identity(laws, chain, states, first=2, last=chain.num_steps))
        difference = Difference.of(*identity(chain.states))
    off = difference.off
    if difference.is_none:
        words = f"`marginal` is `step` composed, at t = 2..{chain.num_steps}, to {off:.1g}."
        yield passed("composition", words, off=off)
        words = f"`posterior` is Bayes' rule of `step` and `marginal` at t = 2..{chain.num_steps}, to {off:.1g}."
        yield passed("posterior", words, off=off)
        return
    if difference.is_single:
        words = f"`step`, `marginal` and `posterior` {difference.words}"
        yield from (note(name, words, off=off) for name in ("composition", "posterior"))
        return
    if laws.posterior is not None:
        hints = _hints(laws, chain)
    composition = _composition(laws, chain, hints)
    yield composition
    yield _posterior(laws, chain, composition, hints, off=off, t=difference.at + 2)


def _first(laws: Laws, chain: Chain) -> Finding:
    assert laws.marginal is not None
    marginal = laws.marginal

    @jax.jit
    def both(x0: Array, x1: Array) -> tuple[Array, Array]:
        t = jnp.asarray(1)
        return marginal(x0, t).log_prob(x1), laws.step(x0, t).log_prob(x1)

    one, other = both(chain.x0, chain.states[1])
    difference = Difference.of(one[None], other[None])
    if difference.is_none:
        words = f"`marginal(x0, 1)` is `step(x0, 1)`, to {difference.off:.1g}."
        return passed("first marginal", words, off=difference.off)
    if difference.is_single:
        words = f"`marginal(x0, 1)` and `step(x0, 1)` {difference.words}"
        return note("first marginal", words, off=difference.off)
    words = (
        f"`marginal(x0, 1)` is not `step(x0, 1)`: at the same points log densities of {float(jnp.mean(one)):.4g} and "
        f"{float(jnp.mean(other)):.4g} on average. Does alpha_bar start at beta_1?"
    )
    return failed("first marginal", words, marginal=float(jnp.mean(one)), step=float(jnp.mean(other)))


def _identity(laws: Laws, chain: Chain, states: Array, *, first: int, last: int) -> tuple[Array, Array]:
    """Log of marginal(t-1) step(t), and of marginal(t) posterior(t), at x^(t-1) and x^t, t = first..last."""
    assert laws.marginal is not None
    assert laws.posterior is not None
    before, after = states[first - 1 : last], states[first : last + 1]
    t = chain.steps(*range(first, last + 1))
    x0 = jnp.broadcast_to(chain.x0, after.shape)
    joint = laws.marginal(x0, t - 1).log_prob(before) + laws.step(before, t).log_prob(after)
    return joint, laws.marginal(x0, t).log_prob(after) + laws.posterior(x0, after, t).log_prob(before)


def _hints(laws: Laws, chain: Chain) -> dict[str, str]:
    """For each law that a known slip explains, the slip."""
    # With an index moved, t - 2 and t + 1 must be steps as well.
    moved = list(shifts(laws)) if chain.num_steps >= 5 else []
    first, last = (3, chain.num_steps - 1) if moved else (2, chain.num_steps)
    candidates = moved + list(scales(laws))

    @jax.jit
    def all_of_them(states: Array) -> dict[int, tuple[Array, Array]]:
        found = {}
        for i, (_, _, repaired) in enumerate(candidates):
            with suppress(NoNormalError):
                found[i] = _identity(repaired, chain, states, first=first, last=last)
        return found

    found: dict[str, str] = {}
    for i, both in all_of_them(chain.states).items():
        if Difference.of(*both).is_none:
            found.setdefault(*candidates[i][:2])
    return found


@dataclass(frozen=True)
class _Gap:
    """Log of step composed with marginal(t - 1), less log marginal(t): mean over data, error, effective draws."""

    t: int
    nats: float
    error: float
    effective: float

    @property
    def score(self) -> float:
        return abs(self.nats) / (self.error + ROUNDING / STANDARD_ERRORS)


def _composition(laws: Laws, chain: Chain, hints: dict[str, str]) -> Finding:
    gaps = _gaps(laws, chain, chosen(2, chain.num_steps))
    known = [gap for gap in gaps if gap.effective > _ENOUGH]
    broken = [gap for gap in gaps if not np.isfinite(gap.nats)]
    culprits = [hints[name] for name in ("step", "marginal") if name in hints]
    if broken:
        words = f"`step` composed with `marginal` is no density at t = {broken[0].t}: its log is {broken[0].nats}."
        return failed("composition", words + _either(culprits), t=broken[0].t)
    if not known:
        reason = "states have too many dimensions to compose `step` with `marginal` by averages."
        if not culprits:
            return skipped("composition", reason)
    gap = max(known or gaps, key=lambda gap: gap.score)
    if gap.score < STANDARD_ERRORS and not (culprits and "posterior" not in hints):
        words = (
            f"`marginal` is `step` composed at t = {', '.join(str(gap.t) for gap in known)}: off by {gap.nats:.2g} "
            f"nats at t = {gap.t}, {gap.score:.1f} standard errors."
        )
        return passed("composition", words, off=gap.nats, standard_errors=gap.score)
    words = (
        f"`marginal` is not `step` composed: at t = {gap.t} the average of step(x', t) over x' ~ marginal(x0, t - 1) "
        f"is off by {gap.nats:+.3g} ± {gap.error:.2g} nats per datum."
    )
    if not culprits and chain.num_steps >= 5:
        culprits = _shift(laws, chain, gap)
    words += _either(culprits)
    return failed("composition", words, t=gap.t, off=gap.nats, standard_errors=gap.score)


def _either(hints: list[str]) -> str:
    """Slips each of which alone restores the laws, as one sentence."""
    text = ", or ".join(hint if i == 0 else hint[0].lower() + hint[1:] for i, hint in enumerate(hints))
    return f" {text}." if text else ""


def _shift(laws: Laws, chain: Chain, gap: _Gap) -> list[str]:
    """Slips of the index that close the gap, where no posterior tells."""
    t = min(max(gap.t, 3), chain.num_steps - 1)
    moved = [(words, repaired) for name, words, repaired in shifts(laws) if name != "posterior"]
    return [words for words, repaired in moved if _gaps(repaired, chain, [t])[0].score < 3]


def _gaps(laws: Laws, chain: Chain, steps: list[int]) -> list[_Gap]:
    """By importance sampling of x^(t-1) given x^t; of several proposals the one that serves best."""
    marginal, step = laws.marginal, laws.step
    assert marginal is not None

    @jax.jit
    def of(x0: Array, xt: Array, t: Array, key: Array) -> list[tuple[Array, Array, Array]]:
        before = marginal(x0, t - 1)
        proposals = [before, step(xt, t)]
        if laws.posterior is not None:
            proposals.append(laws.posterior(x0, xt, t))
        results = []
        for i, proposal in enumerate(proposals):
            x = proposal.sample(jax.random.fold_in(key, i), (_DRAWS,))
            target = before.log_prob(x) + step(x, t).log_prob(jnp.broadcast_to(xt, x.shape))
            log_weight = target - proposal.log_prob(x)
            mean = logsumexp(log_weight, 0) - jnp.log(_DRAWS)
            relative = jnp.exp(log_weight - mean)
            results.append((mean - marginal(x0, t).log_prob(xt), relative.std(0, ddof=1), (relative**2).mean(0)))
        return results

    found = []
    for t in steps:
        best = _Gap(t, np.nan, np.inf, 0.0)
        results = of(chain.x0, chain.states[t], jnp.asarray(t), jax.random.fold_in(chain.key, t))
        for nats, spread, second in jax.device_get(results):
            effective = float(np.mean(_DRAWS / second))
            if effective > best.effective:
                error = float(np.sqrt(np.sum(spread**2 / _DRAWS)) / nats.size)
                best = _Gap(t, float(np.mean(nats)), error, effective)
        found.append(best)
    return found


def _posterior(laws: Laws, chain: Chain, composition: Finding, hints: dict[str, str], *, off: float, t: int) -> Finding:
    if laws.posterior is None:
        return skipped("posterior", "the kernel has none; its bound comes from whole trajectories.")
    if "posterior" not in hints and (composition.status == "failed" or "step" in hints or "marginal" in hints):
        return skipped("posterior", "it cannot be judged before `step` and `marginal` agree.")
    words = (
        f"`posterior` is not Bayes' rule of `step` and `marginal`: at t = {t} log densities differ by {off:.2g} of "
        f"their size, where they should agree."
    )
    words += f" {hints['posterior']}." if "posterior" in hints else _missing(laws, chain)
    return failed("posterior", words, t=t, off=off)


def _missing(laws: Laws, chain: Chain) -> str:
    """Whether the posterior forgot the data."""
    posterior = laws.posterior
    assert posterior is not None
    t, before, after = chain.steps(*range(2, chain.num_steps + 1)), chain.states[1:-1], chain.states[2:]
    x0 = jnp.broadcast_to(chain.x0, after.shape)

    def off(other: Array) -> float:
        return Difference.of(posterior(x0, after, t).log_prob(before), other).off

    words = ""
    if off(posterior(jnp.broadcast_to(chain.states[1], after.shape), after, t).log_prob(before)) == 0:
        words = " It is the same whatever x0: q(x^(t-1)|x^t) stands in place of q(x^(t-1)|x^t, x^0)."
    if off(laws.step(after, t).log_prob(before)) < ROUNDING:
        words += " It is `step(xt, t)`."
    return words
