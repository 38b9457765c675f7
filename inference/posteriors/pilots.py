"""Which twist to take: those that suit a target, and the best of them by pilot runs."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.inference.posteriors import gaussian_guidance, guidance
from dpm_ppl.inference.posteriors.conditioning import Target, state_dtype
from dpm_ppl.inference.posteriors.gaussian_averaging import MOST_COORDINATES
from dpm_ppl.inference.posteriors.twists import Twist, averaged, defended, tempered, unguided, widened

NUM_PILOTS = 4  # independent runs of each twist

SHARE = 1 / 3  # of the particles, which all pilots together may have; at least a few

LEAST_PARTICLES = 8  # of one pilot

SHARES = (0.3, 0.6)  # of the prior in a twist: at little cost where it is right, and where it is not

INDIFFERENT = 0.05  # nats: pilots that are so close say nothing, and the twist named first is taken


def candidates(target: Target) -> tuple[Twist, ...]:
    """The twists to choose from, those that look furthest ahead first; a single one is taken without pilots.

    Raises:
        ValueError: coordinates are known exactly, and the chain's last step cannot be conditioned on them.
    """
    diffusion = target.diffusion
    kind = guidance.predicting(diffusion)
    if target.known is not None:
        _require_clampable(target, full=None)
        return (widened(),)
    if kind is None:
        warnings.warn(
            f"{type(diffusion.kernel).__name__} has no {guidance.listed(needs=True)}, from which x^0 is predicted; "
            "the best of tempered(), defended or not, and unguided() is used. Look at the k-hat of each step.",
            stacklevel=2,
        )
        return (tempered(), defended(tempered(), SHARES[-1]), unguided())
    if kind is not gaussian_guidance:
        return (widened(), defended(widened(), SHARES[-1]), unguided())
    slopes = _is_differentiable(target)
    if math.prod(diffusion.event_shape) <= MOST_COORDINATES:
        return tuple(defended(averaged(slopes=slopes), share) for share in SHARES)
    return (widened(), unguided()) if slopes else (unguided(),)


def require_suited(twist: Twist, target: Target) -> Twist:
    """A twist that the target allows.

    Raises:
        ValueError: it needs of the kernel what that lacks, or cannot condition on coordinates that are known exactly.
    """
    if isinstance(twist, defended):
        require_suited(twist.twist, target)
        return twist
    diffusion, name = target.diffusion, f"{type(twist).__name__}()"
    kind = guidance.predicting(diffusion)
    if target.known is not None:
        if not isinstance(twist, widened | averaged):
            raise ValueError(f"Expected twist=widened() for coordinates that are known exactly; got {name}.")
        _require_clampable(target, full=twist.full)
    if isinstance(twist, averaged) and kind is not None and kind is not gaussian_guidance:
        raise ValueError(f"Expected states that are real numbers for the twist {name}; got {kind.NAME} ones.")
    if kind is None and not isinstance(twist, tempered | unguided):
        raise ValueError(
            f"Expected a kernel with {guidance.listed(needs=True)} for the twist {name}; "
            f"{type(diffusion.kernel).__name__} has none. Use twist=tempered() or unguided()."
        )
    return twist


def best(run: Callable[[Array, int, Array], Any], key: Array, num_twists: int, num_particles: int) -> Array:
    """The number of the twist whose pilots do best.

    E log Z_hat <= log Z whatever the twist, and the less its weights spread the nearer it comes: of several the one of
    the highest mean log Z_hat is best. Two standard errors are taken off, so that none is taken for a lucky pilot.

    Args:
        run: What makes a posterior of (key, number of particles, number of the twist).
        key: Random key, of the pilots alone, so that the evidence stays unbiased.
        num_twists: Number of twists.
        num_particles: Number of particles of the run to come.
    """
    num = max(LEAST_PARTICLES, int(SHARE * num_particles / (NUM_PILOTS * num_twists)))

    def score(which: Array) -> Array:
        pilots = jax.vmap(lambda key: run(key, num, which))(jax.random.split(key, NUM_PILOTS))
        log_evidence = jnp.where(pilots.num_nan.any(-1), -jnp.inf, pilots.log_evidence)
        scored = jnp.mean(log_evidence) - 2 * jnp.std(log_evidence, ddof=1) / math.sqrt(NUM_PILOTS)
        return jnp.where(jnp.isfinite(scored), scored, -jnp.inf)

    scores = jax.lax.map(score, jnp.arange(num_twists))
    return jnp.argmax(scores >= jnp.max(scores) - INDIFFERENT)


def _require_clampable(target: Target, *, full: bool | None) -> None:
    diffusion = target.diffusion
    kind = guidance.predicting(diffusion)
    if kind is None:
        raise ValueError(
            f"Expected a kernel with {guidance.listed(needs=True)}, whose last step can be conditioned, for "
            f"coordinates that are known exactly; got {type(diffusion.kernel).__name__}. Observe them with a little "
            "noise."
        )
    kind.require_clampable(diffusion.decode(jnp.zeros(diffusion.event_shape, state_dtype(diffusion))), full=full)


def _is_differentiable(target: Target) -> bool:
    """Whether JAX takes r's gradient, and that forward as `widened` does; nothing is computed."""
    x = jax.ShapeDtypeStruct(target.diffusion.event_shape, state_dtype(target.diffusion))
    try:
        jax.eval_shape(lambda x: jax.jvp(jax.grad(target.log_r), (x,), (x,)), x)
    except (NotImplementedError, ValueError) as error:
        if not lacks_derivative(error):
            raise
        return False
    return True


def lacks_derivative(error: Exception) -> bool:
    """Whether JAX says that there is no derivative, as of a callback or a loop: it does so in words alone."""
    return any(word in str(error) for word in ("JVP", "differentiat"))
