"""Do `step`, `marginal` and `posterior` belong to one chain?"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from dpm_ppl.inference.checks.alternatives import Laws, NoNormalError, scales, shifts
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.difference import ROUNDING, Difference
from dpm_ppl.inference.checks.kernel import STANDARD_ERRORS, chosen
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped

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
