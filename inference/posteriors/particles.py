"""Posteriors by sequential Monte Carlo along a reverse chain, asymptotically exact, with an unbiased evidence."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count
from dpm_ppl.inference.posteriors import guidance
from dpm_ppl.inference.posteriors.conditioning import Conditioned, Latents, Target, state_dtype
from dpm_ppl.inference.posteriors.posterior import Posterior
from dpm_ppl.inference.posteriors.proposals import Move
from dpm_ppl.inference.posteriors.resampling import systematic
from dpm_ppl.inference.posteriors.twists import Twist, tempered, widened
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
) -> Callable[..., Posterior]:
    r"""The posterior of a chain's datum given all that the program observes, p(x) r(x) / Z.

    r is the rest of the program: every `numpyro.sample(..., obs=...)` and `numpyro.factor`. A coordinate is known
    exactly where the program observes `Delta(x0)`, with `.mask(mask)` in part, and the rest is drawn given it.

    Latent variables declared before the chain, such as a class or an unknown noise scale, are drawn from their prior
    with each particle when it starts and kept: `Posterior.latents`. They are not moved afterwards, so that where the
    observations say much about them few values survive; `Posterior.num_ancestors` tells.

    Args:
        model: The program, of one datum. It declares the chain by `reverse_chain(site, ...)`, latent, in no plate.
        site: Name of the chain.
        params: Parameters by name, as `SVI.get_params` or `load_params` gives them.
        num_particles: Number of particles N, at least 2.
        twist: What tells a particle early what r will say, of `inference.twists`; by default `widened()`, or
            `tempered()` where the kernel lacks the closed forms that it needs (a warning says so).
        threshold: Particles are resampled where their effective sample size falls below this share of N; 0 never.

    Returns:
        A function of (key, *args), args being those of the program, to a `Posterior`. It is compiled once for each
        shape of the arguments, which are arrays (bind any other, such as a plate's size, by `functools.partial`), and
        takes `jax.vmap` over keys and arguments: a batch of observations, with one evidence each. Memory does not grow
        with T, but for the diagnostics of each step. When called it raises

        - ValueError: the program cannot be conditioned (`Conditioned.check` lists why); all weights are zero at a step;
          r or its gradient is NaN;
        - TypeError: r has no derivative, and the twist needs one.

        Under `jax.vmap` and `jax.jit` values cannot be looked at: there `Posterior.check()` says the last two.

    Raises:
        TypeError: num_particles is no integer, model no function, or twist none.
        ValueError: num_particles < 2, or threshold outside [0, 1].

    Source: Sohl-Dickstein et al. 2015, section 2.5, whose sampler drops the weights; Wu et al. 2023; Del Moral, Doucet
        and Jasra 2012 for resampling when needed.
    """
    if not callable(model):
        raise TypeError(f"Expected `model` to be a NumPyro program; got {type(model).__name__}.")
    require_count("num_particles", num_particles, at_least=2)
    if not 0 <= threshold <= 1:
        raise ValueError(f"Expected `threshold`, a share of the particles, in [0, 1]; got {threshold}.")
    params = dict(params)
    twist = twist() if isinstance(twist, type) else twist
    if twist is not None and not all(callable(getattr(twist, name, None)) for name in ("start", "at", "last")):
        raise TypeError(f"Expected `twist` to be an object such as widened(), with start, at and last; got {twist!r}.")

    @jax.jit
    def compiled(key: Array, params: dict[str, Any], *args: Any) -> Posterior:
        conditioned = Conditioned(lambda: model(*args), site, params)
        return _run(key, conditioned, num_particles, twist, threshold)

    def run(key: Array, *args: Any) -> Posterior:
        Conditioned(lambda: model(*args), site, params).check()
        try:
            posterior = compiled(key, params, *args)
        except (NotImplementedError, ValueError) as error:
            # A callback or a loop: JAX says which in words alone.
            if not any(word in str(error) for word in ("JVP", "differentiat")):
                raise
            raise TypeError(
                f"Expected an r that JAX can differentiate, as the twist {_name(twist)} takes its gradient; got: "
                f"{error} Observe through differentiable functions, or write a twist of your own that needs none."
            ) from error
        if is_concrete(posterior.log_evidence):
            posterior.check()
        return posterior

    return run


def suited(twist: Twist | None, target: Target) -> Twist:
    """The twist for a kernel: `widened` where its closed forms are known, and else `tempered`, with a warning.

    Raises:
        ValueError: a twist was asked for that the kernel does not allow.
    """
    diffusion = target.diffusion
    kind, kernel = guidance.predicting(diffusion), type(diffusion.kernel).__name__
    if target.known is not None:
        if kind is None:
            raise ValueError(
                f"Expected a kernel with {guidance.listed(needs=True)}, whose last step can be conditioned, for "
                f"coordinates that are known exactly; got {kernel}. Observe them with a little noise."
            )
        if not isinstance(twist, widened | None):
            raise ValueError(f"Expected twist=widened() for coordinates that are known exactly; got {_name(twist)}.")
        x = jnp.zeros(diffusion.event_shape, state_dtype(diffusion))
        kind.require_clampable(diffusion.decode(x), full=None if twist is None else twist.full)
    if kind is None and twist is None:
        warnings.warn(
            f"{kernel} has no {guidance.listed(needs=True)}, from which widened() predicts x^0; tempered() is used in "
            "its place. Look at the k-hat of each step.",
            stacklevel=2,
        )
        return tempered()
    if kind is None and not isinstance(twist, tempered):
        raise ValueError(
            f"Expected a kernel with {guidance.listed(needs=True)} for the twist {_name(twist)}; {kernel} has none. "
            "Use twist=tempered()."
        )
    return widened() if twist is None else twist


def _run(key: Array, conditioned: Conditioned, num: int, twist: Twist | None, threshold: float) -> Posterior:
    latent_key, start_key, key = jax.random.split(key, 3)
    latents = jax.vmap(conditioned.latents)(jax.random.split(latent_key, num))
    first = jax.tree.map(lambda leaf: leaf[0], latents)
    some = conditioned.target(first)
    chosen, num_steps = suited(twist, some), some.diffusion.num_steps

    def target(latents: Latents) -> Target:
        return conditioned.target(latents) if latents else some  # one for all, made outside the scan

    def start(key: Array, latents: Latents) -> tuple[Array, Array]:
        return chosen.start(target(latents)).draw(key)

    def at(x: Array, latents: Latents, t: Array) -> Step:
        return Step(*chosen.at(target(latents), x, t))

    def last(x: Array, latents: Latents) -> Step:
        return Step(*chosen.last(target(latents), x))

    def back(cloud: Cloud, t: Array) -> tuple[Cloud, Any]:
        steps = jax.vmap(at, (0, 0, None))(cloud.x, cloud.latents, t)
        return move(cloud, steps, jax.random.fold_in(key, t))

    def move(cloud: Cloud, steps: Step, key: Array) -> tuple[Cloud, Any]:
        steps = positive(steps)
        cloud, diagnosis = arrive(cloud, steps.log_r)
        cloud, steps, resampled = resample(cloud, steps, key=key, threshold=threshold)
        return draw(cloud, steps, key=jax.random.fold_in(key, 1)), (diagnosis, resampled)

    x, log_weight = jax.vmap(start)(jax.random.split(start_key, num), latents)
    cloud = Cloud(x, latents, log_weight, jnp.zeros(()), jnp.arange(num), jnp.zeros((), int))
    cloud, trail = jax.lax.scan(back, cloud, jnp.arange(2, num_steps + 1), reverse=True)
    cloud, final = move(cloud, jax.vmap(last)(cloud.x, cloud.latents), jax.random.fold_in(key, 1))
    cloud, diagnosis = arrive(cloud, jax.vmap(lambda x, z: target(z).log_r(x))(cloud.x, cloud.latents))
    return finish(cloud, [(diagnosis, jnp.zeros((), bool)), final], trail)


def _name(twist: Twist | None) -> str:
    return f"{type(widened() if twist is None else twist).__name__}()"


class Cloud(NamedTuple):
    """Weighted particles at one time.

    Attributes:
        x: States, shape (num_particles, *event).
        latents: The program's other latent variables, each of shape (num_particles, ...).
        log_weight: Log weights since they were last resampled, in nats, shape (num_particles,).
        log_evidence: Log of the product of the mean weights so far, in nats, scalar.
        eve: Which particle of the start each descends from, shape (num_particles,).
        num_resampled: How often they were resampled.
    """

    x: Array
    latents: Latents
    log_weight: Array
    log_evidence: Array
    eve: Array
    num_resampled: Array


class Step(NamedTuple):
    """log r_t at each particle, shape (num_particles,), and its move."""

    log_r: Array
    move: Move


class Diagnosis(NamedTuple):
    """What is kept of the weights at one time: see `Posterior`."""

    ess: Array
    tail: Array
    num_ancestors: Array
    num_nan: Array


FORBIDDEN = 5.0  # nats below the best twist at which a particle lives on where its twist is 0: r itself is yet to come


def positive(steps: Step) -> Step:
    """Twists must be positive: a state that r would forbid may lead to a datum that it allows."""
    allowed = jnp.isfinite(steps.log_r)
    best = jnp.max(jnp.where(allowed, steps.log_r, -jnp.inf))
    lowest = jnp.where(best > -jnp.inf, best, 0.0) - FORBIDDEN
    return steps._replace(log_r=jnp.where(steps.log_r == -jnp.inf, lowest, steps.log_r))


def arrive(cloud: Cloud, log_r: Array) -> tuple[Cloud, Diagnosis]:
    """Weighs the particles by r_t, which completes w = p r_t / (q r_(t+1)); and says how even the weights are."""
    log_weight = cloud.log_weight + log_r
    nan = jnp.isnan(log_weight) | (log_weight == jnp.inf)
    log_weight = jnp.where(nan, -jnp.inf, log_weight)
    num = len(log_weight)
    share = jax.nn.softmax(log_weight)
    ess = 1 / jnp.sum(share**2)
    alive = jnp.zeros(num, bool).at[cloud.eve].max(share > 0)
    tail = jax.lax.top_k(log_weight, tail_size(num) + 1)[0]
    diagnosis = Diagnosis(jnp.where(jnp.isfinite(ess), ess, 0.0), tail, jnp.sum(alive), jnp.sum(nan))
    return cloud._replace(log_weight=log_weight), diagnosis


def resample(cloud: Cloud, steps: Step, *, key: Array, threshold: float) -> tuple[Cloud, Step, Array]:
    """Draws particles in proportion to their weights, systematically, where few of them count; else leaves them."""
    num = len(cloud.log_weight)
    share = jax.nn.softmax(cloud.log_weight)
    needed = 1 / jnp.sum(share**2) < threshold * num
    rows = jnp.where(needed, systematic(share, key, num), jnp.arange(num))
    x, latents, eve, steps = jax.tree.map(lambda leaf: leaf[rows], (cloud.x, cloud.latents, cloud.eve, steps))
    log_mean = jax.nn.logsumexp(cloud.log_weight) - jnp.log(num)
    resampled = Cloud(
        x,
        latents,
        jnp.where(needed, 0.0, cloud.log_weight),
        cloud.log_evidence + jnp.where(needed, log_mean, 0.0),
        eve,
        cloud.num_resampled + needed,
    )
    return resampled, steps, needed


def draw(cloud: Cloud, steps: Step, *, key: Array) -> Cloud:
    """Moves every particle a step back, and weighs it by p / (q r_t)."""
    x, log_ratio = jax.vmap(lambda move, key: move.draw(key))(steps.move, jax.random.split(key, len(cloud.x)))
    return cloud._replace(x=x, log_weight=cloud.log_weight + log_ratio - steps.log_r)


def finish(cloud: Cloud, ends: list[tuple[Diagnosis, Array]], trail: tuple[Diagnosis, Array]) -> Posterior:
    """The posterior that the particles at t = 0 are, with the diagnoses of t = 0, 1 (`ends`) and 2..T (`trail`)."""
    first = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ends)
    diagnosis, resampled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, trail)
    num = len(cloud.log_weight)
    share = jax.nn.softmax(cloud.log_weight)
    by_eve = jnp.zeros(num).at[cloud.eve].add(share)
    correction = (num / (num - 1)) ** (cloud.num_resampled + 1.0)
    variance = 1 - correction * (1 - jnp.sum(by_eve**2))
    return Posterior(
        samples=cloud.x,
        log_weight=cloud.log_weight,
        log_evidence=cloud.log_evidence + jax.nn.logsumexp(cloud.log_weight) - jnp.log(num),
        log_evidence_se=jnp.sqrt(jnp.maximum(variance, 0.0)),
        latents=cloud.latents,
        ess=diagnosis.ess,
        tail=diagnosis.tail,
        num_ancestors=diagnosis.num_ancestors,
        num_nan=diagnosis.num_nan,
        resampled=resampled,
    )
