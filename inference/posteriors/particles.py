"""Posteriors by sequential Monte Carlo along a reverse chain, asymptotically exact, with an unbiased evidence."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.devices import ALONE, Spread, spread_over
from dpm_ppl.inference.posteriors import islands
from dpm_ppl.inference.posteriors.cloud import (
    LEAST_SHARE,
    Cloud,
    Descent,
    Step,
    arrive,
    as_told,
    draw,
    finish,
    log_mean,
    resample,
    with_prior,
)
from dpm_ppl.inference.posteriors.conditioning import Conditioned, Latents, Target
from dpm_ppl.inference.posteriors.pilots import best, candidates, lacks_derivative, require_suited
from dpm_ppl.inference.posteriors.posterior import Posterior
from dpm_ppl.inference.posteriors.rejuvenation import AT_THE_END, Moves, Rejuvenation, leg
from dpm_ppl.inference.posteriors.twists import Twist, defended
from dpm_ppl.inference.posteriors.verdict import problems
from dpm_ppl.inference.psis import tail_size
from dpm_ppl.kernels.kernel import is_concrete

Program = Callable[..., Any]


def smc(
    model: Program,
    site: str,
    *,
    params: Mapping[str, Any],
    num_particles: int,
    twist: Twist | type[Twist] | None = None,
    threshold: float = 0.5,
    moves: Moves | None = AT_THE_END,
    num_islands: int = 1,
    mesh: Mesh | None = None,
) -> Callable[..., Posterior]:
    r"""The posterior of a chain's datum given all that the program observes, p(x) r(x) / Z.

    r is the rest of the program: every `numpyro.sample(..., obs=...)` and `numpyro.factor`. A coordinate is known
    exactly where the program observes `Delta(x0)`, with `.mask(mask)` in part, and the rest is drawn given it.

    Latent variables declared before the chain, such as a class or an unknown noise scale, are drawn from their prior
    with each particle when it starts: `Posterior.latents`. As few values survive where observations say much about
    them, those that enter r alone are moved at the end, by Metropolis' rule, and others if `moves` asks for it.

    Args:
        model: The program, of one datum. It declares the chain by `reverse_chain(site, ...)`, latent, in no plate.
        site: Name of the chain.
        params: Parameters by name, as `SVI.get_params` or `load_params` gives them.
        num_particles: Number of particles N, at least 2.
        twist: What tells a particle early what r will say, such as `averaged()`. By default the best of those that suit
            the chain, by pilot runs of a third as many particles in all (and at least 8 in each): of up to 10 real
            numbers `averaged()` with shares of 0.3 and 0.6 of the prior (`defended`), which is never much worse than as
            many draws of it; of more `widened()` and `unguided()`; of bits and letters these and `widened()` with a
            share of 0.6; likewise `tempered()` where the kernel lacks closed forms (a warning says so).
        threshold: Particles are resampled where their effective sample size falls below this share of N; 0 never.
        moves: How often latents are moved; None for never. `Posterior.acceptance` says how many moves were taken.
        num_islands: Into how many islands particles are divided, which resample each among its own and count by their
            evidence, so that devices send nothing where they do: Z_hat stays unbiased, and has about the same variance
            as long as an island has particles enough alone (see `islands.merged`).
        mesh: Devices that particles, or islands, are split over, by default all that JAX sees. Resampling is that of
            one device: the result is the same but for rounding, which can turn a draw that falls between two particles.

    Returns:
        A function of (key, *args), args being those of the program, to a `Posterior`. It is compiled once for each
        shape of the arguments, which are arrays (bind any other, such as a plate's size, by `functools.partial`), and
        takes `jax.vmap` over keys and arguments: a batch of observations, with one evidence each. Memory does not grow
        with T, but for the diagnostics of each step. When called it raises

        - ValueError: the program cannot be conditioned (`Conditioned.check` lists why); all weights are zero at a step;
          r or its gradient is NaN;
        - TypeError: r has no derivative, and the twist that was asked for needs one.

        It warns where `Posterior.verdict()` says not to trust the result. Under `jax.vmap` and `jax.jit` values cannot
        be looked at: there `Posterior.check()` says the last two.

    Raises:
        TypeError: num_particles or num_islands is no integer, model no function, twist none, or moves no `Moves`.
        ValueError: num_particles < 2, threshold outside [0, 1], or islands that do not divide the particles.

    Source: Sohl-Dickstein et al. 2015, section 2.5, whose sampler drops the weights; Wu et al. 2023; Del Moral, Doucet
        and Jasra 2012 for resampling when needed; Gilks and Berzuini 2001 for moves.
    """
    num_particles = require_count("num_particles", num_particles, at_least=2)
    num_islands = islands.require_islands(num_islands, num_particles)
    twist = twist() if isinstance(twist, type) else twist
    _require_kinds(model, twist, threshold, moves)
    params, spread = dict(params), spread_over(mesh)

    @jax.jit
    def compiled(key: Array, params: dict[str, Any], *args: Any) -> Posterior:
        conditioned = Conditioned(lambda: model(*args), site, params)
        some = conditioned.target(jax.tree.map(jnp.zeros_like, jax.eval_shape(conditioned.latents, key)))
        twists = candidates(some) if twist is None else (require_suited(twist, some),)
        swarm = Swarm(conditioned, twists, threshold, Rejuvenation.of(conditioned, moves), spread)
        if len(twists) == 1:
            return swarm.run(key, num_particles, num_islands=num_islands)
        pilot_key, key = jax.random.split(key)
        pilot = replace(swarm, rejuvenation=Rejuvenation())
        which = best(pilot.run, pilot_key, len(twists), num_particles)
        return swarm.run(key, num_particles, which, num_islands=num_islands)

    def run(key: Array, *args: Any) -> Posterior:
        require_key(key)
        Conditioned(lambda: model(*args), site, params).check()
        try:
            placed: Any = spread.put((key, params, *args))
            posterior = compiled(*placed)
        except (NotImplementedError, ValueError) as error:
            if not lacks_derivative(error):
                raise
            raise TypeError(
                f"Expected an r that JAX can differentiate, as the twist {type(twist).__name__}() takes its gradient; "
                f"got: {error} Leave the twist out, or take unguided() or averaged(slopes=False), which need none."
            ) from error
        posterior = replace(posterior, log_evidence_se=as_told(posterior.log_evidence_se))
        if is_concrete(posterior.log_evidence):
            posterior.check()
            if posterior.log_weight.ndim == 1 and problems(posterior.summary()):
                warnings.warn(f"{posterior.verdict()} Take more particles, and another key.", stacklevel=2)
        return posterior

    return run


def _require_kinds(model: Any, twist: Any, threshold: float, moves: Any) -> None:
    if not callable(model):
        raise TypeError(f"Expected `model` to be a NumPyro program; got {type(model).__name__}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"Expected `threshold`, a share of the particles, in [0, 1]; got {threshold}.")
    if twist is not None and not all(callable(getattr(twist, name, None)) for name in ("start", "at", "last")):
        raise TypeError(f"Expected `twist` to be an object such as widened(), with start, at and last; got {twist!r}.")
    if not isinstance(moves, Moves | None):
        raise TypeError(f"Expected `moves` to be a Moves, such as Moves(paths=3), or None; got {moves!r}.")


@dataclass(frozen=True, eq=False)
class Swarm:
    """A run of particles down a program's chain, ready for any of some twists.

    Args:
        conditioned: The program.
        twists: The twists.
        threshold: Particles are resampled where their effective sample size falls below this share of them.
        rejuvenation: What moves latent variables.
        spread: The devices: each moves its part of the particles, and has the weights and ancestors of all.
    """

    conditioned: Conditioned
    twists: Sequence[Twist]
    threshold: float
    rejuvenation: Rejuvenation = Rejuvenation()
    spread: Spread = ALONE

    def run(self, key: Array, num: int, which: ArrayLike = 0, *, num_islands: int = 1) -> Posterior:
        """The posterior by `num` particles under twist number `which`, which may be traced."""
        guided: Any = {"twist": jnp.asarray(which), "twists": tuple(map(repr, self.twists))}
        if num_islands == 1:
            return finish(self.descend(key, num, which), **guided)
        island, keys = replace(self, spread=ALONE), self.spread.constrained(jax.random.split(key, num_islands))
        num_tail = islands.tail_kept(num, num_islands)
        part = partial(island.descend, num=num // num_islands, which=which, num_tail=num_tail)
        return islands.merged(jax.vmap(part)(keys), **guided)

    def descend(self, key: Array, num: int, which: ArrayLike = 0, *, num_tail: int | None = None) -> Descent:
        """Where `num` particles come to, and their weights on the way, the largest `num_tail` of them kept."""
        num_tail = tail_size(num) + 1 if num_tail is None else num_tail
        rejuvenation = self.rejuvenation
        last_key, *keys = jax.random.split(key, 3)
        latent_keys, start_keys = jax.random.split(keys[0], (2, num))
        latents = self.spread.constrained(jax.vmap(self.conditioned.latents)(latent_keys))
        one = self.conditioned.target(jax.tree.map(lambda leaf: leaf[0], latents))
        num_steps = one.diffusion.num_steps

        def target(latents: Latents) -> Target:
            return self.conditioned.target(latents) if latents else one  # one for all, made outside the scan

        # Twists that differ in numbers alone are one program.
        alike = len({jax.tree.structure(twist) for twist in self.twists}) == 1 and not jax.tree_util.all_leaves(
            self.twists[:1]
        )

        def choose(of: Callable[..., Any], *args: Any) -> Any:
            if len(self.twists) == 1:
                return of(self.twists[0], *args)
            if alike:
                return of(jax.tree.map(lambda *numbers: jnp.stack(numbers)[which], *self.twists), *args)
            return jax.lax.switch(which, [partial(of, twist) for twist in self.twists], *args)

        def start(twist: Twist, key: Array, latents: Latents) -> tuple[Array, Array]:
            drawn: tuple[Array, Array] = jax.vmap(lambda key, z: twist.start(target(z)).draw(key))(key, latents)
            return drawn

        def back(twist: Twist, cloud: Cloud, t: Array, key: Array) -> tuple[Cloud, Any]:
            return move(twist, cloud, lambda z, x: Step(*twist.at(target(z), x, t)), t, key)

        def last(twist: Twist, cloud: Cloud, key: Array) -> tuple[Cloud, Any]:
            return move(twist, cloud, lambda z, x: Step(*twist.last(target(z), x)), None, key)

        def move(
            twist: Twist, cloud: Cloud, at: Callable[[Latents, Array], Step], t: Array | None, key: Array
        ) -> tuple[Cloud, Any]:
            bare = jax.vmap(at)(cloud.latents, cloud.x)
            of_prior = partial(
                with_prior,
                log_mean=log_mean(cloud, bare.log_r, spread=self.spread),
                share=twist.share if isinstance(twist, defended) else LEAST_SHARE,
                defends=isinstance(twist, defended),
            )
            steps = of_prior(bare)
            cloud, diagnosis = arrive(cloud, steps.log_r, num_tail=num_tail, spread=self.spread)
            # Before they are resampled: the states are the same, and the network is not run again.
            key, latents, steps, accepted = rejuvenation.at_step(
                key, cloud.latents, steps, lambda z: of_prior(jax.vmap(at)(z, cloud.x))
            )
            keys = jax.random.split(key, num + 1)
            cloud = cloud._replace(latents=latents)
            cloud, steps, resampled = resample(cloud, steps, key=keys[0], threshold=self.threshold, spread=self.spread)
            moved = draw(cloud, steps, keys=keys[1:], spread=self.spread)
            if cloud.log_path is not None:
                legs = jax.vmap(lambda z, x, to: leg(target(z), x, to, t))(cloud.latents, moved.x, cloud.x)
                moved = moved._replace(log_path=cloud.log_path + legs)
            return moved, ((diagnosis, resampled), accepted)

        x, log_weight = self.spread.constrained(choose(start, start_keys, latents))
        cloud = Cloud(x, latents, log_weight, jnp.zeros(()), jnp.arange(num), jnp.zeros((), int))
        if rejuvenation.moves_paths:
            ends = jax.vmap(lambda z, x: target(z).diffusion.kernel.stationary().log_prob(x))(latents, x)
            cloud = cloud._replace(log_path=ends)
        cloud, (trail, accepted) = jax.lax.scan(
            lambda cloud, at: choose(back, cloud, *at),
            cloud,
            (jnp.arange(2, num_steps + 1), jax.random.split(keys[1], num_steps - 1)),
            reverse=True,
        )
        last_key, end_key = (last_key, last_key) if rejuvenation.is_none else jax.random.split(last_key)
        cloud, (final, accepted_last) = choose(last, cloud, last_key)
        log_r = jax.vmap(lambda x, z: target(z).log_r(x))(cloud.x, cloud.latents)
        cloud, diagnosis = arrive(cloud, log_r, num_tail=num_tail, spread=self.spread)
        latents, acceptance = rejuvenation.at_end(end_key, cloud.latents, cloud.x, log_r, cloud.log_path, target)
        if accepted is not None:
            acceptance = {"each": (jnp.sum(accepted) + accepted_last) / num_steps, **acceptance}
        ends = [(diagnosis, jnp.zeros((), bool)), final]
        first = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ends)
        diagnosis, resampled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, trail)
        return Descent(cloud._replace(latents=latents), diagnosis, resampled, acceptance)
