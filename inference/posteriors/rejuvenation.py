"""Moves that leave the target alone: latent variables beside a chain are moved by Metropolis' rule, not only picked.

At t = 0 those that enter r alone have, given a particle's datum, the density p(z) r(x^0; z), and given its state at t
p(z) r_t(x^t; z): nothing else of the target depends on them. Those that the chain depends on are moved together with
the path that led to the datum, which is drawn anew from the forward chain: so z and x^(1..T) have the density
p(z) p(x^(0..T) | z) r(x^0; z), and the proposal q(x^(1..T) | x^0).

One variable is chosen by chance and either drawn anew from its prior, its parents given, or, where it is continuous,
moved a little: a normal step in unconstrained coordinates, of a width drawn by chance. Nothing of a proposal is taken
from the particles, so that the weights stay as they are and the evidence unbiased.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.transforms import biject_to

from dpm_ppl.arguments import require_count
from dpm_ppl.chains import ReverseChain
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.posteriors.conditioning import Conditioned, Latents, Target, state_dtype
from dpm_ppl.kernels.kernel import step_number
from dpm_ppl.statements import LatentDatum

WIDTHS = (0.03, 1.5)  # of a step, in the prior's deviations: log-uniform between

NUM_PRIOR = 256  # draws of the prior by which its deviation is known


@dataclass(frozen=True)
class Moves:
    """How often each particle's latent variables are moved by Metropolis' rule; 0 for never.

    Not moved are those that say what is known of the datum exactly (in the values or the mask of a `Delta`), the values
    of other chains, and all of them where one of them has no log density.

    Args:
        last: At t = 0, those that enter r alone; each takes an evaluation of r.
        each: At every step before, the same ones; each takes an evaluation of the twist.
        paths: At t = 0, those that the chain depends on, together with the path x^(1..T), which is drawn anew from the
            forward chain; each takes T evaluations of the reverse step, and they one more a step. Where a path's weight
            p / q varies much, as in many dimensions, few are taken (`Posterior.acceptance` tells).

    Raises:
        TypeError: a number is no integer.
        ValueError: it is less than 0.

    Source: Gilks and Berzuini 2001; for paths Andrieu and Roberts 2009 (p(x^0 | z) by one importance weight).
    """

    last: int = 10
    each: int = 0
    paths: int = 0

    def __post_init__(self) -> None:
        for name in ("last", "each", "paths"):
            object.__setattr__(self, name, require_count(name, getattr(self, name), at_least=0))


AT_THE_END = Moves()


@dataclass(frozen=True, eq=False)
class Rejuvenation:
    """What moves the latent variables of a program; by default nothing.

    Attributes:
        moves: How often.
        of_r: What proposes those that enter r alone; None where there are none to move.
        of_chain: What proposes those that the chain depends on; likewise.
    """

    moves: Moves = Moves(0)
    of_r: "Proposal | None" = None
    of_chain: "Proposal | None" = None

    @classmethod
    def of(cls, conditioned: Conditioned, moves: Moves | None) -> "Rejuvenation":
        """What moves those of a program that `moves` asks for."""
        if moves is None or not jax.eval_shape(conditioned.latents, jax.random.key(0)):
            return cls()
        of_r, of_chain = parted(conditioned)
        return cls(
            moves,
            Proposal.of(conditioned, of_r) if of_r and moves.last + moves.each else None,
            Proposal.of(conditioned, of_chain) if of_chain and moves.paths else None,
        )

    @property
    def is_none(self) -> bool:
        """Whether nothing is moved at the end."""
        return not (self.of_r and self.moves.last) and self.of_chain is None

    @property
    def moves_paths(self) -> bool:
        """Whether paths are moved."""
        return self.of_chain is not None

    def at_step(
        self, key: Array, latents: Latents, steps: Any, at: Callable[[Latents], Any]
    ) -> tuple[Array, Latents, Any, Array | None]:
        """A key that is left, latent variables at t > 0 and their steps, and the share of moves that were taken.

        Args:
            key: Random key.
            latents: Latent variables, each of shape (num_particles, ...).
            steps: Their steps, a record with `log_r`, shape (num_particles,).
            at: The steps of others.
        """
        if self.of_r is None or not self.moves.each:
            return key, latents, steps, None
        move_key, key = jax.random.split(key)
        moved = self.of_r.move(move_key, latents, steps, lambda z, _: at(z), num_moves=self.moves.each)
        return key, *moved

    def at_end(
        self,
        key: Array,
        latents: Latents,
        x0: Array,
        log_r: Array,
        log_path: Array | None,
        target: Callable[[Latents], Target],
    ) -> tuple[Latents, dict[str, Array]]:
        """Latent variables at t = 0, and the shares of moves that were taken, by kind.

        Args:
            key: Random key.
            latents: Latent variables, each of shape (num_particles, ...).
            x0: Data, shape (num_particles, *event).
            log_r: log r of them, in nats, shape (num_particles,).
            log_path: log p(x^(0..T)) - log q(x^(1..T) | x^0), in nats, likewise, where paths are moved.
            target: The target of one particle, of its latent variables.
        """
        acceptance: dict[str, Array] = {}
        if self.is_none:
            return latents, acceptance
        path_key, last_key = jax.random.split(key)

        def on_fresh_paths(latents: Latents, key: Array) -> Weighed:
            keys = jax.random.split(key, len(x0))
            return Weighed(jax.vmap(lambda key, z, x0: _fresh_path(key, target(z), x0))(keys, latents, x0))

        def of_data(latents: Latents) -> Weighed:
            return Weighed(jax.vmap(lambda z, x0: target(z).log_r(x0))(latents, x0))

        if self.of_chain is not None and log_path is not None:
            here = Weighed(log_r + log_path)
            latents, _, acceptance["paths"] = self.of_chain.move(
                path_key, latents, here, on_fresh_paths, num_moves=self.moves.paths
            )
        if self.of_r is not None and self.moves.last:
            latents, _, acceptance["last"] = self.of_r.move(
                last_key, latents, of_data(latents), lambda z, _: of_data(z), num_moves=self.moves.last
            )
        return latents, acceptance


@dataclass(frozen=True, eq=False)
class Proposal:
    """How a particle's latent variables are moved.

    Attributes:
        conditioned: The program.
        names: Those that are moved.
        scored: Those whose prior changes when they move: they, and those whose law depends on one of them.
        scales: Deviation of the prior of each in unconstrained coordinates, of their shape; None for one that is only
            drawn anew, such as a class.
    """

    conditioned: Conditioned
    names: Sequence[str]
    scored: Sequence[str]
    scales: dict[str, Array | None]

    @classmethod
    def of(cls, conditioned: Conditioned, names: Sequence[str]) -> "Proposal":
        """A proposal for some of a program's latent variables."""
        keys = jax.random.split(jax.random.key(0), NUM_PRIOR)  # the program's own: no particle decides
        draws = jax.vmap(conditioned.latents)(keys)
        laws = conditioned.laws(jax.tree.map(lambda leaf: leaf[0], draws))
        scales = {name: _deviation(conditioned, name, laws[name], draws) for name in names}
        shapes = jax.eval_shape(conditioned.latents, keys[0])

        def depends(other: str) -> bool:
            def score(latents: Latents) -> Array:
                return conditioned.laws(latents)[other].log_prob(jnp.zeros_like(shapes[other]))

            return any(_enters(shapes, name, score) for name in names)

        return cls(conditioned, names, [name for name in laws if name in names or depends(name)], scales)

    def draw(self, key: Array, latents: Latents) -> tuple[Latents, Array]:
        """Other latent variables of one particle, and the log of p(z') q(z | z') / (p(z) q(z' | z)), in nats."""
        which_key, *keys = jax.random.split(key, 1 + len(self.names))
        laws = self.conditioned.laws(latents)
        which = jax.random.randint(which_key, (), 0, len(self.names))
        moved, log_ratio = dict(latents), jnp.zeros(())
        for number, (name, key) in enumerate(zip(self.names, keys, strict=True)):
            value, ratio = _one(key, laws[name], latents[name], self.scales[name])
            chosen = which == number
            moved[name] = jnp.where(chosen, value, latents[name])
            log_ratio = log_ratio + jnp.where(chosen, ratio, 0.0)
        prior, before = (self._log_prior(of, at) for of, at in ((self.conditioned.laws(moved), moved), (laws, latents)))
        return moved, log_ratio + prior - before

    def _log_prior(self, laws: dict[str, dist.Distribution], latents: Latents) -> Array:
        terms = [jnp.sum(laws[name].log_prob(latents[name])) for name in self.scored]
        return sum(terms, start=jnp.zeros(()))

    def move(
        self, key: Array, latents: Latents, here: Any, at: Callable[[Latents, Array], Any], *, num_moves: int
    ) -> tuple[Latents, Any, Array]:
        """Moves the latent variables of all particles some times, by Metropolis' and Hastings' rule.

        Args:
            key: Random key.
            latents: Latent variables, each of shape (num_particles, ...).
            here: What goes with them, a record with `log_r`, log r_t in nats, shape (num_particles,), such as a step.
            at: What goes with others, of them and a random key.
            num_moves: How often.

        Returns:
            Latent variables, what goes with them, and the share of the moves that were taken.

        Source: Gilks and Berzuini 2001 (resample-move); Del Moral, Doucet and Jasra 2006, section 3.3.
        """

        def once(carry: tuple[Latents, Any], key: Array) -> tuple[tuple[Latents, Any], Array]:
            latents, here = carry
            draw_key, at_key, accept_key = jax.random.split(key, 3)
            keys = jax.random.split(draw_key, len(here.log_r))
            others, log_ratio = jax.vmap(self.draw)(keys, latents)
            there = at(others, at_key)
            log_ratio = log_ratio + there.log_r - here.log_r
            below = -jax.random.exponential(accept_key, log_ratio.shape, log_ratio.dtype)
            taken = below < log_ratio  # and not where it is NaN

            def pick(new: Array, old: Array) -> Array:
                return jnp.where(taken.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

            return jax.tree.map(pick, (others, there), carry), jnp.mean(taken)

        keys = jax.random.split(key, num_moves)
        if num_moves == 1:  # no loop: what both sides have in common, such as a network, is computed once
            carry, share = once((latents, here), keys[0])
        else:
            carry, share = jax.lax.scan(once, (latents, here), keys)
        return *carry, jnp.mean(share)


class Weighed(NamedTuple):
    """Log of what particles are weighed by, in nats, shape (num_particles,)."""

    log_r: Array


def leg(target: Target, x: Array, to: Array, t: Array | None) -> Array:
    """Log p(x^(t-1) | x^t) - log q(x^t | x^(t-1)) in nats, of one particle; t is None for the step of the datum."""
    diffusion = target.diffusion
    back = diffusion.decode(to) if t is None else diffusion.reverse(to, t)
    return back.log_prob(x) - diffusion.kernel.step(x, step_number(1) if t is None else t).log_prob(to)


def _fresh_path(key: Array, target: Target, x0: Array) -> Array:
    """Log of r(x^0) p(x^(0..T)) / q(x^(1..T) | x^0), in nats, on a path by the forward chain; of one particle."""
    kernel, num_steps = target.diffusion.kernel, target.diffusion.num_steps

    def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (x, total), (t, key) = carry, at
        to = kernel.step(x, t).sample(key)
        return (to, total + leg(target, x, to, t)), None

    first_key, key = jax.random.split(key)
    x1 = kernel.step(x0, step_number(1)).sample(first_key)
    start = x1, target.log_r(x0) + leg(target, x0, x1, None)
    (x, total), _ = jax.lax.scan(step, start, (jnp.arange(2, num_steps + 1), jax.random.split(key, num_steps - 1)))
    return total + kernel.stationary().log_prob(x)


def parted(conditioned: Conditioned) -> tuple[list[str], list[str]]:
    """Names of the latent variables that enter r alone, and of those that the chain depends on; nothing is computed.

    Left out are those that say what is known of the datum exactly, which they would have to move along with; the values
    of other chains, a trajectory each; and all of them where one has no log density.
    """
    latents = jax.eval_shape(conditioned.latents, jax.random.key(0))
    laws: dict[str, dist.Distribution] = {}

    def score(latents: Latents) -> None:
        for name, law in conditioned.laws(latents).items():
            law.log_prob(latents[name])
            laws[name] = law

    try:
        jax.eval_shape(score, latents)
    except NotImplementedError:
        return [], []
    names = [
        name
        for name, law in laws.items()
        if not isinstance(law, ReverseChain | LatentDatum)
        and not _enters(latents, name, lambda z: conditioned.target(z).known)
    ]
    chain = [name for name in names if _enters(latents, name, lambda z: _scores(conditioned.target(z).diffusion))]
    return [name for name in names if name not in chain], chain


def _scores(diffusion: Diffusion) -> list[Array]:
    """A log density by each law of a chain that its values hang on."""
    x = jnp.zeros(diffusion.event_shape, state_dtype(diffusion))
    laws = [diffusion.kernel.stationary(), diffusion.decode(x)]
    laws += [diffusion.reverse(x, step_number(2))] if diffusion.num_steps > 1 else []
    return [law.log_prob(x) for law in laws]


def _enters(latents: Any, name: str, of: Callable[[Latents], Any]) -> bool:
    """Whether what a function makes of latent variables depends on one of them: `vmap` over it alone tells.

    Args:
        latents: Shape and type of each.
        name: The one.
        of: The function; nothing is computed.
    """

    def run(others: Latents, several: Array) -> Any:
        return jax.vmap(lambda one: of({**others, name: one}), out_axes=None)(several)

    leaf = latents[name]
    try:
        jax.eval_shape(run, latents, jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype))
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False


def _one(key: Array, law: dist.Distribution, value: Array, scale: Array | None) -> tuple[Array, Array]:
    """Another value of one latent variable, and log q(z | z') / q(z' | z) in nats."""
    new_key, walk_key, width_key, which_key = jax.random.split(key, 4)
    new = law.sample(new_key)
    anew = jnp.sum(law.log_prob(value)) - jnp.sum(law.log_prob(new))
    if scale is None:
        return new, anew
    transform = biject_to(law.support)
    at = transform.inv(value)
    low, high = map(math.log, WIDTHS)
    width = jnp.exp(jax.random.uniform(width_key, (), at.dtype, low, high)) / math.sqrt(at.size)
    to = at + width * scale * jax.random.normal(walk_key, at.shape, at.dtype)
    walked = transform(to)
    stretch = jnp.sum(transform.log_abs_det_jacobian(to, walked)) - jnp.sum(transform.log_abs_det_jacobian(at, value))
    walks = jax.random.bernoulli(which_key)
    return jnp.where(walks, walked, new), jnp.where(walks, stretch, anew)


def _deviation(conditioned: Conditioned, name: str, law: dist.Distribution, draws: Latents) -> Array | None:
    """Half the width of the middle 68% of a prior, in unconstrained coordinates; None where there are none."""
    if law.support is None or law.support.is_discrete:
        return None
    try:
        biject_to(law.support)
    except NotImplementedError:
        return None

    def unconstrained(latents: Latents) -> Array:
        return biject_to(conditioned.laws(latents)[name].support).inv(latents[name])

    low, high = jnp.quantile(jax.vmap(unconstrained)(draws), jnp.asarray([0.16, 0.84]), axis=0)
    return 0.5 * (high - low)
