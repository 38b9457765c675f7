"""How a particle steps back, x^t to x^(t-1): draws from a proposal q, with log p - log q of the reverse step p.

Each is a record of arrays for one particle, so that `jax.vmap` makes and draws many and resampling takes rows.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.distributions import inverse_lower

DEFENSIVE = 0.1  # share of a proposal over bits or letters, or of a mixture, that is the reverse step


def _record(*static: str) -> Any:
    def register(cls: Any) -> Any:
        names = [name for name in cls.__dataclass_fields__ if name not in static]
        return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=list(static))

    return register


@_record()
@dataclass(frozen=True, eq=False)
class Unguided:
    """The reverse step itself.

    Attributes:
        p: The reverse step.
    """

    p: dist.Distribution

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A state of shape (*event), and log p - log q, which is 0."""
        return self.p.sample(key), jnp.zeros(())

    def defended(self, share: Array) -> "Unguided":
        """Itself."""
        return self

    def undefended(self) -> "Unguided":
        """Itself."""
        return self


@_record("event_shape")
@dataclass(frozen=True, eq=False)
class NormalMove:
    """A normal proposal in blocks: x = loc + scale_tril (shift + factor e), with e standard normal.

    Attributes:
        loc: Mean of the reverse step, shape (num_blocks, size).
        scale_tril: Its factor, shape (num_blocks, size, size).
        shift: Shift of the proposal in units of the reverse step, shape (num_blocks, size).
        factor: Lower-triangular matrix of the proposal in those units, shape (num_blocks, size, size).
        log_p_known: log density, in nats, of coordinates that are known and not drawn.
        p: The reverse step where it is no normal of that mean and covariance; else None.
        event_shape: Shape of a state.
        defence: Share of draws of the reverse step in place of it, given what is known; None for no such draws.
    """

    loc: Array
    scale_tril: Array
    shift: Array
    factor: Array
    log_p_known: Array
    p: dist.Distribution | None
    event_shape: tuple[int, ...]
    defence: Array | None = None

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A state of shape (*event), and log p - log q in nats."""
        if self.defence is None:
            e = jax.random.normal(key, self.loc.shape, self.loc.dtype)
            log_q = -0.5 * jnp.sum(e**2) - _log_det(self.factor)  # in units of the reverse step, less a constant
            z = self.moved(e)
            return self.state(z), self.log_p(z) - log_q
        which_key, key = jax.random.split(key)
        e = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        z = jnp.where(jax.random.uniform(which_key) < self.defence, e, self.moved(e))
        log_q = _mixed(self.log_guided(z), -0.5 * jnp.sum(z**2), self.defence)
        return self.state(z), self.log_p(z) - log_q

    def moved(self, e: Array) -> Array:
        """A draw of the proposal alone, in units of the reverse step, of standard normal numbers."""
        return self.shift + jnp.einsum("bij,bj->bi", self.factor, e)

    def log_guided(self, z: Array) -> Array:
        """Log density there of the proposal alone, in nats, less the constant of a normal in those units."""
        off = jnp.einsum("bij,bj->bi", inverse_lower(self.factor), z - self.shift)
        return -0.5 * jnp.sum(off**2) - _log_det(self.factor)

    def state(self, z: Array) -> Array:
        """The state that is z in units of the reverse step, shape (*event)."""
        return (self.loc + jnp.einsum("bij,bj->bi", self.scale_tril, z)).reshape(self.event_shape)

    def log_p(self, z: Array) -> Array:
        """Log density of the reverse step there, in nats, less the constant of a normal in those units."""
        if self.p is None:
            return self.log_p_known - 0.5 * jnp.sum(z**2)
        constant = _log_det(self.scale_tril) + 0.5 * z.size * math.log(2 * math.pi)
        return self.p.log_prob(self.state(z)) + constant

    def defended(self, share: Array) -> "NormalMove":
        """With a share of draws of the reverse step."""
        return replace(self, defence=share)

    def undefended(self) -> "NormalMove":
        """What is guided alone."""
        return replace(self, defence=None)


@_record()
@dataclass(frozen=True, eq=False)
class MixtureMove:
    """A normal proposal, normals about points, and the reverse step itself, mixed: so p / q is bounded.

    Attributes:
        normal: The normal proposal.
        shifts: Means of the normals about points, in units of the reverse step, shape (num_points, num_blocks, size).
        log_share: Log shares of the points, which add up to one, shape (num_points,).
        factor: Lower-triangular matrix that they all have in those units, shape (num_blocks, size, size).
        trust: Share of the normal proposal in what is guided.
        defence: Share of the reverse step in all.
    """

    normal: NormalMove
    shifts: Array
    log_share: Array
    factor: Array
    trust: Array
    defence: Array

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A state of shape (*event), and log p - log q in nats."""
        normal = self.normal
        dtype = normal.loc.dtype
        least = jnp.nextafter(jnp.asarray(-1, dtype), jnp.asarray(0, dtype))
        drawn = jax.random.uniform(key, (normal.loc.size + 3,), dtype, least, 1)  # once: generators compile for long
        of_points, guided, point = (drawn[:3] + 1) / 2
        e = math.sqrt(2) * jax.lax.erf_inv(drawn[3:]).reshape(normal.loc.shape)
        row = jnp.searchsorted(jnp.cumsum(jnp.exp(self.log_share[:-1])), point)
        near = self.shifts[row] + jnp.einsum("bij,bj->bi", self.factor, e)
        z = jnp.where(guided < self.defence, e, jnp.where(of_points < self.trust, normal.moved(e), near))
        off = jnp.einsum("bij,mbj->mbi", inverse_lower(self.factor), z - self.shifts)
        log_near = jax.nn.logsumexp(self.log_share - 0.5 * jnp.sum(off**2, (-1, -2))) - _log_det(self.factor)
        log_guided = _mixed(log_near, normal.log_guided(z), self.trust)
        log_q = _mixed(log_guided, -0.5 * jnp.sum(z**2), self.defence)
        return normal.state(z), normal.log_p(z) - log_q

    def defended(self, share: Array) -> "MixtureMove":
        """With a share of draws of the reverse step beside its own."""
        return replace(self, defence=_beside(self.defence, share))

    def undefended(self) -> "MixtureMove":
        """What is guided alone."""
        return replace(self, defence=jnp.zeros_like(self.defence))


@_record()
@dataclass(frozen=True, eq=False)
class BernoulliMove:
    """A factorised Bernoulli proposal, now and then replaced by the reverse step itself, so that p / q is bounded.

    Attributes:
        p: The reverse step, a factorised Bernoulli.
        logits: Logits of the proposal, shape (*event).
        unguided: Logits of what replaces it: those of p, but for coordinates that are known.
        defence: Share of draws of what replaces it.
    """

    p: dist.Distribution
    logits: Array
    unguided: Array
    defence: ArrayLike = DEFENSIVE

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A state of shape (*event), and log p - log q in nats."""
        guided, unguided = (
            dist.Bernoulli(logits=logits).to_event(logits.ndim) for logits in (self.logits, self.unguided)
        )
        x, log_q = _defended(key, guided, unguided, self.defence)
        return x, self.p.log_prob(x) - log_q

    def defended(self, share: Array) -> "BernoulliMove":
        """With a share of draws of the reverse step beside its own."""
        return replace(self, defence=_beside(self.defence, share))

    def undefended(self) -> "BernoulliMove":
        """The guided proposal alone."""
        return replace(self, unguided=self.logits)


@_record()
@dataclass(frozen=True, eq=False)
class CategoricalMove:
    """A factorised categorical proposal, now and then replaced by the reverse step itself, so that p / q is bounded.

    Attributes:
        p: The reverse step, a factorised categorical.
        logits: Logits of the proposal, shape (*event, K).
        unguided: Logits of what replaces it: those of p, but for coordinates that are known.
        defence: Share of draws of what replaces it.
    """

    p: dist.Distribution
    logits: Array
    unguided: Array
    defence: ArrayLike = DEFENSIVE

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A state of shape (*event), and log p - log q in nats; -inf where p cannot be that state."""
        guided, unguided = (
            dist.Categorical(logits=logits).to_event(logits.ndim - 1) for logits in (self.logits, self.unguided)
        )
        x, log_q = _defended(key, guided, unguided, self.defence)
        log_p = self.p.log_prob(x)
        # "Cannot be" is a finite number in kernels: in a weight it would cancel, and take the rest of the digits along.
        return x, jnp.where(log_p < jnp.finfo(log_p.dtype).min / 8, -jnp.inf, log_p) - log_q

    def defended(self, share: Array) -> "CategoricalMove":
        """With a share of draws of the reverse step beside its own."""
        return replace(self, defence=_beside(self.defence, share))

    def undefended(self) -> "CategoricalMove":
        """The guided proposal alone."""
        return replace(self, unguided=self.logits)


Move = Unguided | NormalMove | MixtureMove | BernoulliMove | CategoricalMove


def _defended(
    key: Array, guided: dist.Distribution, unguided: dist.Distribution, share: ArrayLike
) -> tuple[Array, Array]:
    """A draw of the guided proposal, or now and then of the other, and the log probability of the two together.

    Source: Hesterberg 1995 (defensive mixtures).
    """
    which_key, key = jax.random.split(key)
    defends = jax.random.bernoulli(which_key, share)
    x = jnp.where(defends, unguided.sample(key), guided.sample(key))
    return x, _mixed(guided.log_prob(x), unguided.log_prob(x), share)


def _mixed(log_first: Array, log_second: Array, share: ArrayLike) -> Array:
    """Log density of a mixture that has this share of the second."""
    return jnp.logaddexp(jnp.log1p(-jnp.asarray(share)) + log_first, jnp.log(share) + log_second)


def _beside(share: ArrayLike, other: Array) -> Array:
    """The share of the reverse step where one share of a proposal is it already, and another of the whole."""
    return 1 - (1 - jnp.asarray(share)) * (1 - other)


def _log_det(triangular: Array) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(triangular, axis1=-2, axis2=-1)))
