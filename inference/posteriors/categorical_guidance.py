"""What r says of a factorised categorical step: r expanded in single substitutions, exact where it factorises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.distributions import innermost
from dpm_ppl.inference.posteriors.bernoulli_guidance import LARGEST_GROUP, bounded_gain
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target, all_laws
from dpm_ppl.inference.posteriors.proposals import CategoricalMove
from dpm_ppl.kernels.kernel import has_marginal

NAME = "categorical"

NEEDS = "marginal"

LEAST_UNCERTAIN = 0.05  # share of Bayes' rule with all x^0 alike in the predicted x^0: a network may be wrong

LEAST_KNOWN = -30.0  # nats, of a known letter that cannot be: a twist is positive, and what has no chance has no part

NUM_EXPANSIONS = 3  # of r, each about a likelier datum than the one before


def holds(stationary: dist.Distribution) -> bool:
    """Whether states are letters, each of its own categorical in pi."""
    return applies(stationary)


def applies(p: dist.Distribution) -> bool:
    """Whether a step is a factorised categorical."""
    return isinstance(innermost(p), dist.CategoricalLogits | dist.CategoricalProbs)


def guides(diffusion: Diffusion) -> bool:
    """Whether x^0 can be predicted: the kernel has `marginal`, and all is factorised."""
    return has_marginal(diffusion.kernel) and all_laws(diffusion, applies)


def require_clampable(p: dist.Distribution, *, full: bool | None = None) -> None:
    """Any factorised step can be conditioned."""


def mode(p: dist.Distribution) -> Array:
    """The likeliest state of a step, shape (*event)."""
    return jnp.argmax(_log_probs(p), -1)


def product(
    p: dist.Distribution, log_r: LogR, known: Known, *, full: bool | None = None
) -> tuple[Array, CategoricalMove]:
    """Log E_p r in nats, r expanded at p's mode, and the proposal proportional to p times that expansion."""
    log_p = _log_probs(p)
    log_mean, guided = _guide(log_p, log_r, known)
    unguided = log_p if known is None else jnp.where(known[0][..., None], guided, log_p)
    return log_mean, CategoricalMove(p, guided, unguided)


def posterior_step(target: Target, x: Array, t: Array, *, full: bool | None = None) -> tuple[Array, CategoricalMove]:
    """Log r averaged over the predicted x^0, and the reverse step as the guided x^0 changes it.

    The step is multiplied by the kernel's posterior averaged over the guided x^0, and divided by that averaged over the
    predicted one: where the step is such an average, as `outputs.data_categorical` makes it, the former is left; where
    it is none, an r that says nothing leaves it as it is.

    Source: Austin et al. 2021, eq. 4, for the average.
    """
    p, predicted = _predict(target, x, t)
    return _guided_step(p, predicted, target)


def denoised_step(target: Target, x: Array, t: Array) -> tuple[Array, CategoricalMove]:
    """Log r at the likeliest datum given x^t, letter by letter, and the move of `posterior_step`."""
    p, predicted = _predict(target, x, t)
    return target.log_r(jnp.argmax(predicted.log_x0, -1)), _guided_step(p, predicted, target)[1]


def _guided_step(p: dist.Distribution, predicted: "Predicted", target: Target) -> tuple[Array, CategoricalMove]:
    log_mean, guided = _guide(
        predicted.log_x0, target.log_r, target.known, least_known=jnp.maximum(predicted.log_unexplained, LEAST_KNOWN)
    )
    ratio = predicted.average(guided) - predicted.average(predicted.log_x0)
    if target.known is not None:
        # A known letter that cannot have led to x^t: the model may still lead to it, but by no way that is known.
        mask, value = target.known
        letter = _letter(value, predicted.log_x0.shape[-1])
        barred = mask & ~_possible(_of(predicted.log_x0, letter))
        ratio = jnp.where(barred[..., None], 0.0, ratio)
    log_p = _log_probs(p)
    return log_mean, CategoricalMove(p, _normalised(log_p + ratio), log_p)


class Predicted(NamedTuple):
    """x^0 given x^t, and the way from it to x^(t-1).

    Attributes:
        log_x0: log P(x^0 = k | x^t), shape (*event, K).
        log_reach: log q(x^t | x^0 = k), same shape.
        log_step: log q(x^t | x^(t-1) = j), same shape.
        before: q(x^(t-1) = j | x^0 = k), shape (*event, K, K), j last: one for all particles.
        log_unexplained: Log of how often the reverse step goes where no x^0 leads, shape (*event).
    """

    log_x0: Array
    log_reach: Array
    log_step: Array
    before: Array
    log_unexplained: Array

    def average(self, log_x0: Array) -> Array:
        """Log of the kernel's posterior averaged over x^0 of these log probabilities, shape (*event, K)."""
        share = jnp.where(_possible(self.log_reach), log_x0 - self.log_reach, _impossible(log_x0))
        largest = jnp.max(share, -1, keepdims=True)
        mean = jnp.einsum("...k,...kj->...j", jnp.exp(share - largest), self.before)
        return _finite(largest + jnp.log(mean) + self.log_step)


def _predict(target: Target, x: Array, t: Array) -> tuple[dist.Distribution, Predicted]:
    """The reverse step, and what it says of x^0: P solves p(x^(t-1) | x^t) = sum over k of P_k q(x^(t-1) | x^t, k).

    With q(j | x^t, k) = M_kj L_j / m_k, M_kj = q(x^(t-1) = j | x^0 = k), L_j = q(x^t | x^(t-1) = j) and
    m_k = q(x^t | x^0 = k), it is m (p / L) M^-1. M does not depend on x^t: it is inverted once for all particles.
    """
    kernel: Any = target.diffusion.kernel
    p = target.diffusion.reverse(x, t)
    log_p = _log_probs(p)
    num_states, dtype = log_p.shape[-1], log_p.dtype

    def of_each_state(law: Callable[[Array, Array], dist.Distribution], t: Array) -> Array:
        """Log probabilities given each state, shape (*event, K, K), what is drawn last."""
        states = jnp.arange(num_states, dtype=x.dtype)
        return jnp.moveaxis(jax.vmap(lambda k: _log_probs(law(jnp.full_like(x, k), t)))(states), 0, -2)

    def of_x(table: Array) -> Array:
        return jnp.take_along_axis(table, x[..., None, None], -1)[..., 0]

    before = jnp.exp(of_each_state(kernel.marginal, t - 1))
    log_step, log_reach = of_x(of_each_state(kernel.step, t)), of_x(of_each_state(kernel.marginal, t))
    reach, step = jnp.exp(log_reach), jnp.exp(log_step)
    total = jnp.sum(reach, -1, keepdims=True)
    alike = jnp.where(total > 0, reach / jnp.where(total > 0, total, 1.0), 1 / num_states)
    start = 1 / jnp.where(total > 0, total, 1.0)
    # Where M is all but singular, x^0 cannot be told, and all are alike.
    small = jnp.finfo(dtype).eps ** 0.5
    inverse = jnp.linalg.inv(before + small * jnp.eye(num_states, dtype=dtype))
    happens = step > jnp.finfo(dtype).tiny ** 0.5
    ratio = jnp.exp(log_p) / jnp.where(happens, step, 1.0)
    off = jnp.where(happens, ratio - start * jnp.sum(before, -2), 0.0)
    solved = jnp.maximum(reach * (start + jnp.einsum("...j,...jk->...k", off, inverse)), 0.0)
    mass = jnp.sum(solved, -1, keepdims=True)
    x0 = jnp.where(mass > 0, solved / jnp.where(mass > 0, mass, 1.0), alike)
    log_x0 = _finite(jnp.log((1 - LEAST_UNCERTAIN) * x0 + LEAST_UNCERTAIN * alike))
    unexplained = _finite(jnp.log(jnp.sum(jnp.where(happens, 0.0, jnp.exp(log_p)), -1)))
    return p, Predicted(log_x0, log_reach, log_step, before, unexplained)


def _guide(log_p: Array, log_r: LogR, known: Known, *, least_known: Array | float = LEAST_KNOWN) -> tuple[Array, Array]:
    """Log E r over independent letters, r expanded about one datum, and the log probabilities of the letters times r.

    The datum is the likeliest one, and then twice over that of the letters times the expansion, where it is likelier
    under both: where letters are coupled, an expansion far from the product's own mode is off by many nats.
    """
    num_states, log_known = log_p.shape[-1], jnp.zeros(())
    log_p = log_p.astype(jnp.result_type(log_p, float))  # of a network in single precision too
    if known is not None:
        mask, letter = known[0], _letter(known[1], num_states)
        log_known = jnp.sum(jnp.where(mask, jnp.maximum(_of(log_p, letter), least_known), 0.0))
        certain = jnp.where(letter[..., None] == jnp.arange(num_states), 0.0, _impossible(log_p))
        log_p = jnp.where(mask[..., None], certain, log_p)

    def expand(_: Array, best: "_Expansion") -> _Expansion:
        anchor = jnp.argmax(log_p + best.gain, -1)
        value, gain = _substituted(anchor, log_r, num_states)
        score = value + jnp.sum(_of(log_p, anchor))
        better = (score > best.score) | jnp.isnan(score)
        new = _Expansion(score, value, gain)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b).astype(log_p.dtype), new, best)

    nowhere = jnp.full((), -jnp.inf, log_p.dtype)
    _, value, gain = jax.lax.fori_loop(0, NUM_EXPANSIONS, expand, _Expansion(nowhere, nowhere, jnp.zeros_like(log_p)))
    terms = jax.nn.logsumexp(log_p + gain, -1)
    return log_known + value + jnp.sum(terms), _finite(log_p + gain - terms[..., None])


class _Expansion(NamedTuple):
    """log r about a datum: its value there, what each letter gains, and log P + log r of the datum."""

    score: Array
    value: Array
    gain: Array


def _substituted(anchor: Array, log_r: LogR, num_states: int) -> tuple[Array, Array]:
    """Log r at a datum, and what each letter in place of one of its own gains, shape (*event, K)."""
    flat = anchor.ravel()
    value = log_r(anchor)

    def substituted_at(i: Array) -> Array:
        at, by = i // (num_states - 1), 1 + i % (num_states - 1)
        letter = (flat[at] + by) % num_states
        return log_r(flat.at[at].set(letter.astype(flat.dtype)).reshape(anchor.shape))

    # In groups, so that memory grows with the event and not with its square.
    num = flat.size * (num_states - 1)
    others = jax.lax.map(substituted_at, jnp.arange(num), batch_size=min(num, LARGEST_GROUP))
    value, gain = bounded_gain(value, others)
    gain = jnp.pad(gain.reshape(*anchor.shape, num_states - 1), [(0, 0)] * anchor.ndim + [(1, 0)])
    return value, jnp.take_along_axis(gain, (jnp.arange(num_states) - anchor[..., None]) % num_states, -1)


def _log_probs(p: dist.Distribution) -> Array:
    """Log probabilities of each letter, shape (*event, K), finite."""
    logits = _finite(innermost(p).logits)
    return _normalised(jnp.broadcast_to(logits, (*p.event_shape, logits.shape[-1])))


def _normalised(logits: Array) -> Array:
    return _finite(jax.nn.log_softmax(logits))


def _finite(logits: Array) -> Array:
    return jnp.maximum(logits, _impossible(logits))


def _impossible(logits: Array) -> Array:
    """The log probability of what cannot be: finite, so that sums and differences of two are no NaN."""
    return jnp.asarray(jnp.finfo(logits.dtype).min / 4, logits.dtype)


def _possible(log_probs: Array) -> Array:
    return log_probs > _impossible(log_probs) / 2


def _letter(value: Array, num_states: int) -> Array:
    """A known letter as an index; one that is none has no evidence (`known_coordinates`), whatever is done with it."""
    return jnp.clip(value, 0, num_states - 1)


def _of(log_probs: Array, letter: Array) -> Array:
    """The log probability of each letter of a datum, shape (*event)."""
    return jnp.take_along_axis(log_probs, letter[..., None], -1)[..., 0]
