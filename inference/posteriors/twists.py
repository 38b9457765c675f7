r"""Twists: positive functions r_t of the state x^t, with r_0 = r, that tell a particle early what r will say of it.

Any twist leaves the posterior and its evidence exact; a good one, near E[r(x^0) | x^t], keeps the weights even. Each is
an object, named like NumPyro's handlers, with three methods for one particle; one of your own needs the same three.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count
from dpm_ppl.inference.posteriors import gaussian_averaging, guidance
from dpm_ppl.inference.posteriors.conditioning import Target
from dpm_ppl.inference.posteriors.proposals import Move, Unguided


class Twist(Protocol):
    """What `smc` needs of a twist."""

    def start(self, target: Target) -> Move:
        """The move that draws x^T, as if pi were a reverse step."""

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r_t(x^t) in nats, and the move to x^(t-1), for t = 2..T."""

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """The same at t = 1, where the step is `decode` and r_0 = r."""


@dataclass(frozen=True)
class widened:
    """r averaged over the uncertainty of x^0 given x^t, by an expansion of log r.

    Gaussian diffusion: x^0 given x^t is taken as a normal, and log r to second order at its mean, which is exact where
    r is Gaussian under a linear map. The mean is that of the reverse step undone, x0 = (mean - c1 x^t) / c0; the
    covariance is dx0/dx^t S A^-T for q(x^t | x^0) = N(A x0, S) (Tweedie's second order), in events of at most 16
    coordinates, and in larger ones that of standard normal data, where r is taken coordinate by coordinate. Bernoulli
    diffusion: r is expanded in single flips at the likeliest x^0, which is exact where it factorises; categorical
    diffusion: in single substitutions, likewise. Coordinates that are known exactly, by an observed `Delta`, follow the
    forward chain's conditional.

    Args:
        full: Whether the covariance of x^0 is kept whole; by default where the event has at most 16 coordinates. Ask
            for it, where memory for the square of them allows, if r mixes coordinates of a larger event, as blurring or
            pooling does: taken one by one, the particles' weights become uneven (`Posterior.ess` tells).

    Source: Wu et al. 2023 (twisted diffusion sampler), widened; for the covariance Boys et al. 2023.
    """

    full: bool | None = None

    def start(self, target: Target) -> Move:
        """The move that draws x^T: from pi."""
        return Unguided(target.diffusion.kernel.stationary())

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r_t(x^t), and the guided move to x^(t-1)."""
        kind = guidance.require_predicting(target.diffusion.kernel)
        return kind.posterior_step(target, x, t, full=self.full)

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """Log E[r(x^0) | x^1], and the move that draws x^0."""
        kind = guidance.require_predicting(target.diffusion.kernel)
        return kind.product(target.diffusion.decode(x), target.log_r, target.known, full=self.full)


@partial(jax.tree_util.register_dataclass, data_fields=["power"], meta_fields=["num_points", "slopes", "full"])
@dataclass(frozen=True)
class averaged:
    """r averaged over points of x^0 given x^t, whatever its shape: rings, ridges, several modes. Gaussian diffusion.

    The normal of x^0 given x^t is that of `widened`. Half of the points are its own, half those of its product with r
    expanded to second order, each weighed by how it was drawn; where r bears the expansion out, as where it is Gaussian
    under a linear map, its integral and its normal are taken. The proposal is a mixture of that normal, of normals
    about the points, and a share of the reverse step itself. It takes `num_points` evaluations of r a particle and
    step, and one of the reverse step.

    Args:
        num_points: Number of points, a power of two.
        slopes: Whether the expansion is used, which takes r's gradient; else all points are the normal's own, for an r
            without one (a simulator, a count, a rounding).
        power: Power of r that the twist is of, in [0, 1]: below 1 it believes less of what the reverse steps predict
            of x^0, which may be wrong; at 0 it is `unguided`.
        full: As for `widened`.

    Raises:
        ValueError: `num_points` is no power of two, or less than 4.

    Source: importance sampling of E[r(x^0) | x^t], with defensive mixtures and a control variate (Hesterberg 1995).
    """

    num_points: int = 32
    slopes: bool = True
    power: ArrayLike = 1.0
    full: bool | None = None

    def __post_init__(self) -> None:
        num = require_count("num_points", self.num_points, at_least=4)
        if num & (num - 1):
            raise ValueError(f"Expected `num_points` to be a power of two, as 32 or 64; got {num}.")
        object.__setattr__(self, "num_points", num)

    def start(self, target: Target) -> Move:
        """The move that draws x^T: from pi."""
        return Unguided(target.diffusion.kernel.stationary())

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r_t(x^t), and the mixture that moves to x^(t-1)."""
        return gaussian_averaging.averaged_step(target, x, t, self._averaging, full=self.full)

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """Log E[r(x^0) | x^1], and the mixture that draws x^0."""
        p = target.diffusion.decode(x)
        return gaussian_averaging.averaged_product(p, target.log_r, target.known, self._averaging, full=self.full)

    @property
    def _averaging(self) -> gaussian_averaging.Averaging:
        return gaussian_averaging.Averaging(self.num_points, self.slopes, self.power)


@partial(jax.tree_util.register_dataclass, data_fields=["twist", "share"], meta_fields=[])
@dataclass(frozen=True)
class defended:
    """A twist with a share of the prior: (1 - share) r_t / E r_t + share, so that no particle is all but lost.

    As if that share of the particles were draws of the prior, and stepped as such: whatever r is, and however wrong the
    twist, the weights are at most about r / (share Z), those of so many draws. Where the twist is right, what it costs
    is that share. E r_t, over the prior, is the run's own estimate, which leaves the evidence unbiased.

    Args:
        twist: The twist.
        share: Share of the prior, in (0, 1).

    Raises:
        ValueError: share is not in (0, 1), or the twist has one already, which would be ignored.

    Source: Hesterberg 1995 (defensive mixtures), of a twist in place of a proposal.
    """

    twist: Twist
    share: ArrayLike = 0.3

    def __post_init__(self) -> None:
        if isinstance(self.share, int | float) and not 0 < self.share < 1:
            raise ValueError(f"Expected `share`, of draws of the prior, in (0, 1); got {self.share}.")
        if isinstance(self.twist, defended):
            raise ValueError(f"Expected a twist without a share of the prior; got {self.twist}. Give it the one share.")

    def start(self, target: Target) -> Move:
        """The move that draws x^T."""
        return self.twist.start(target)

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r_t(x^t) of the twist itself, and its move to x^(t-1); `smc` adds the share."""
        return self.twist.at(target, x, t)

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """The same at t = 1."""
        return self.twist.last(target, x)


@dataclass(frozen=True)
class unguided:
    """No twist: particles are draws of the prior, weighed by r at the end. For any r at all that the prior meets."""

    def start(self, target: Target) -> Move:
        """The move that draws x^T: from pi."""
        return Unguided(target.diffusion.kernel.stationary())

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """0, and the reverse step."""
        return jnp.zeros(()), Unguided(target.diffusion.reverse(x, t))

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """0, and the last step."""
        return jnp.zeros(()), Unguided(target.diffusion.decode(x))


@dataclass(frozen=True)
class denoised:
    """r at the predicted x^0, as if it were certain: fails where r is narrow or the observation far out.

    The proposal is the reverse step shifted by Sigma grad log r, at most two standard deviations in root mean square,
    over discrete states that of `widened`.

    Source: Wu et al. 2023, eq. 9.
    """

    def start(self, target: Target) -> Move:
        """The move that draws x^T: from pi."""
        return Unguided(target.diffusion.kernel.stationary())

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r(x0), and the move to x^(t-1)."""
        return guidance.require_predicting(target.diffusion.kernel).denoised_step(target, x, t)

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """Log r at the mean of x^0 given x^1, and the move that draws x^0."""
        kind = guidance.require_predicting(target.diffusion.kernel)
        _, move = widened().last(target, x)
        return target.log_r(kind.mode(target.diffusion.decode(x))), move


@dataclass(frozen=True)
class tempered:
    """r^((T - t)/T) of the state itself, as if x^t were the datum: needs nothing of the kernel.

    The proposal is the product of the reverse step and r, expanded at the step's mean (Gaussian) or in single changes
    of its mode (Bernoulli, categorical), and the reverse step itself for any other.

    Source: Sohl-Dickstein et al. 2015, section 2.5 and app. C.
    """

    def power(self, t: Array, num_steps: int) -> Array:
        """The power of r at t."""
        return 1 - jnp.asarray(t) / num_steps

    def start(self, target: Target) -> Move:
        """The move that draws x^T: from pi times r_T."""
        num_steps = target.diffusion.num_steps
        return self._product(target, target.diffusion.kernel.stationary(), jnp.asarray(num_steps))

    def at(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """The power of log r(x^t), and the move to x^(t-1)."""
        value = self._log_r(target, x, t)
        return value, self._product(target, target.diffusion.reverse(x, t), t - 1)

    def last(self, target: Target, x: Array) -> tuple[Array, Move]:
        """The same at t = 1."""
        value = self._log_r(target, x, jnp.asarray(1))
        return value, self._product(target, target.diffusion.decode(x), jnp.asarray(0))

    def _log_r(self, target: Target, x: Array, t: Array) -> Array:
        power = self.power(t, target.diffusion.num_steps)
        return jnp.where(power > 0, jnp.where(power > 0, power, 1.0) * target.log_r(x), 0.0)  # also where r is 0

    def _product(self, target: Target, p: dist.Distribution, t: Array) -> Move:
        def log_r(x: Array) -> Array:
            return self._log_r(target, x, t)

        kind = guidance.of_step(p)
        return Unguided(p) if kind is None else kind.product(p, log_r, None)[1]


@dataclass(frozen=True)
class constant(tempered):
    """r of the state itself at every t, the paper's: its weights have no variance to speak of only where r is wide."""

    def power(self, t: Array, num_steps: int) -> Array:
        """The power of r at t, 1."""
        return jnp.ones(())
