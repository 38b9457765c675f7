r"""The Kullback-Leibler divergences that NumPyro lacks, registered with its own `kl_divergence` when this is imported.

`TraceMeanField_ELBO` asks `kl_divergence` for every latent site and, where a pair is missing, silently takes one sample
of log p - log q instead. Added here, all in nats:

- Bernoulli and categorical, each side in probabilities or logits, exact at probabilities 0 and 1 and infinite where q
  has no mass and p has. (Replaces NumPyro's rule for two `CategoricalProbs`, whose gradient is NaN at probability 0.)
- A diagonal normal, in any nesting of `Independent` and `expand`, against a `MultivariateNormal`, both ways round.
- Wrappers that change nothing, `Independent` over 0 dimensions and a mask that is `True`, against any distribution.

Not added, on purpose: a mask on one side. The term of the ELBO is then E_q[log p] or -E_q[log q] where the mask is
`False`, which is no divergence, and NumPyro's one sample is unbiased for it. NumPyro's own rule for masks on both sides
takes them to be equal.
"""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from multipledispatch.dispatcher import MDNotImplementedError  # which NumPyro dispatches with
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.kl import kl_divergence

from dpm_ppl.distributions import solve_lower

_BERNOULLI = (dist.BernoulliProbs, dist.BernoulliLogits)
_CATEGORICAL = (dist.CategoricalProbs, dist.CategoricalLogits)


def _kl_discrete(p: Any, q: Any) -> Array:
    """Sum of p log(p / q) over outcomes, shape the broadcast batch shapes; an outcome with p = 0 adds nothing.

    Derivatives in q are exact; in p, at p = 0 or 1, they leave out the infinite slope of p log p.
    """
    probs = _probs(p)
    if probs.shape[-1] != _probs(q).shape[-1]:
        raise ValueError(
            f"Expected `p` and `q` over equally many categories; got {probs.shape[-1]} and {_probs(q).shape[-1]}. "
            "Give the shorter one probability 0 for the categories it lacks."
        )
    possible = probs > 0
    log_ratio = jnp.where(possible, _log_probs(p, possible) - _log_probs(q, possible), 0.0)
    return jnp.sum(probs * log_ratio, -1)


def _probs(d: Any) -> Array:
    """Probability of each outcome, shape (*batch, outcomes)."""
    if isinstance(d, dist.BernoulliProbs):
        return jnp.stack([1.0 - jnp.asarray(d.probs), jnp.asarray(d.probs)], -1)
    if isinstance(d, dist.BernoulliLogits):
        return jax.nn.sigmoid(jnp.stack([-jnp.asarray(d.logits), jnp.asarray(d.logits)], -1))
    return jnp.asarray(d.probs) if isinstance(d, dist.CategoricalProbs) else jax.nn.softmax(jnp.asarray(d.logits), -1)


def _log_probs(d: Any, possible: Array) -> Array:
    """Log probability of each outcome, in nats; not to be used where not `possible`, and of finite derivative there."""
    if isinstance(d, dist.BernoulliProbs):
        rate = jnp.asarray(d.probs)
        log_zero = jnp.log1p(jnp.where(possible[..., 0], -rate, 0.0))
        return jnp.stack([log_zero, jnp.log(jnp.where(possible[..., 1], rate, 1.0))], -1)
    if isinstance(d, dist.BernoulliLogits):
        return jax.nn.log_sigmoid(jnp.stack([-jnp.asarray(d.logits), jnp.asarray(d.logits)], -1))
    if isinstance(d, dist.CategoricalProbs):
        return jnp.log(jnp.where(possible, jnp.asarray(d.probs), 1.0))
    return jax.nn.log_softmax(jnp.asarray(d.logits), -1)


def _kl_diagonal_full(p: Any, q: Any) -> Array:
    """KL(diagonal normal || multivariate normal)."""
    (loc, scale), dim = _loc_and_scale(p, q), p.event_shape[0]
    batch = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    factor = jnp.broadcast_to(scale[..., None] * jnp.eye(dim, dtype=scale.dtype), (*batch, dim, dim))
    shift = jnp.broadcast_to((loc - q.loc)[..., None], (*batch, dim, 1))
    whitened = solve_lower(q.scale_tril, jnp.concatenate([factor, shift], -1))
    return _kl_whitened(whitened, jnp.sum(jnp.log(scale), -1), _log_det(q))


def _kl_full_diagonal(p: Any, q: Any) -> Array:
    """KL(multivariate normal || diagonal normal)."""
    (loc, scale), dim = _loc_and_scale(q, p), p.event_shape[0]
    batch = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    factor = jnp.broadcast_to(p.scale_tril, (*batch, dim, dim))
    shift = jnp.broadcast_to((p.loc - loc)[..., None], (*batch, dim, 1))
    whitened = jnp.concatenate([factor, shift], -1) / scale[..., None]
    return _kl_whitened(whitened, _log_det(p), jnp.sum(jnp.log(scale), -1))


def _kl_whitened(whitened: Array, log_det_p: Array, log_det_q: Array) -> Array:
    """KL of normals from L_q^-1 [L_p, mu_p - mu_q], shape (*batch, D, D + 1), and log |L_p|, log |L_q|."""
    return 0.5 * (jnp.sum(whitened**2, (-2, -1)) - whitened.shape[-2]) + log_det_q - log_det_p


def _log_det(d: Any) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(d.scale_tril, axis1=-2, axis2=-1)), -1)


def _loc_and_scale(diagonal: Any, full: Any) -> tuple[Array, Array]:
    """Location and scale of a wrapped normal, shape (*batch, D); its only wrappers extend or regroup the batch."""
    leaf = diagonal
    while isinstance(leaf, (Independent, ExpandedDistribution)) or _changes_nothing(leaf):
        leaf = leaf.base_dist
    if not isinstance(leaf, dist.Normal):
        raise NotImplementedError
    if diagonal.event_shape != full.event_shape:
        raise ValueError(
            f"Expected normals of equal event shape; got {diagonal.event_shape} and {full.event_shape}. "
            "Move batch dimensions to the event with `to_event`."
        )
    return jnp.broadcast_to(leaf.loc, diagonal.shape()), jnp.broadcast_to(leaf.scale, diagonal.shape())


def _kl_unwrapped(p: Any, q: Any) -> Array:
    """The divergence within wrappers that change nothing; where there are none, the next rule's turn."""
    if not (_changes_nothing(p) or _changes_nothing(q)):
        raise MDNotImplementedError
    return kl_divergence(p.base_dist if _changes_nothing(p) else p, q.base_dist if _changes_nothing(q) else q)


def _changes_nothing(d: Any) -> bool:
    if isinstance(d, Independent):
        return bool(d.reinterpreted_batch_ndims == 0)
    return isinstance(d, MaskedDistribution) and d._mask is True


for _pair in (*product(_BERNOULLI, repeat=2), *product(_CATEGORICAL, repeat=2)):
    kl_divergence.add(_pair, _kl_discrete)
kl_divergence.add((Independent, dist.MultivariateNormal), _kl_diagonal_full)
kl_divergence.add((dist.MultivariateNormal, Independent), _kl_full_diagonal)
for _wrapper in (Independent, MaskedDistribution):
    # With `Distribution` the rule itself; the others only settle which of two rules comes first.
    for _other in (dist.Distribution, ExpandedDistribution):
        kl_divergence.add((_wrapper, _other), _kl_unwrapped)
        kl_divergence.add((_other, _wrapper), _kl_unwrapped)
    kl_divergence.add((dist.Delta, _wrapper), _kl_unwrapped)
kl_divergence.add((Independent, MaskedDistribution), _kl_unwrapped)
kl_divergence.add((MaskedDistribution, Independent), _kl_unwrapped)
