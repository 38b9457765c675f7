"""The kinds of state that r can guide, in one table: a new kind is one module of these functions, and a line in it."""

from typing import Any, Protocol

import numpyro.distributions as dist
from jax import Array

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.posteriors import bernoulli_guidance, categorical_guidance, gaussian_guidance
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target
from dpm_ppl.inference.posteriors.proposals import Move
from dpm_ppl.kernels.kernel import Kernel


class Guidance(Protocol):
    """What a kind of state has to know: how a step is multiplied by r, and how x^0 is predicted from x^t.

    `full` is what `widened` is given, and says nothing to a kind without covariances.

    Attributes:
        NAME: What its steps are called, such as "normal".
        NEEDS: What of a kernel tells x^0 from x^t.
    """

    NAME: str
    NEEDS: str

    def holds(self, stationary: dist.Distribution) -> bool:
        """Whether the states of a chain that ends in this pi are of the kind."""

    def applies(self, p: dist.Distribution) -> bool:
        """Whether a step is of the family whose product with r is known."""

    def guides(self, diffusion: Diffusion) -> bool:
        """Whether x^0 can be predicted, which all but `product` and `mode` take for granted."""

    def require_clampable(self, p: dist.Distribution, *, full: bool | None = None) -> None:
        """Raises ValueError where a last step cannot be conditioned on coordinates that are known exactly."""

    def product(
        self, p: dist.Distribution, log_r: LogR, known: Known, *, full: bool | None = None
    ) -> tuple[Array, Move]:
        """Log E_p r in nats, and the proposal proportional to p r; the known coordinates are clamped."""

    def posterior_step(self, target: Target, x: Array, t: Array, *, full: bool | None = None) -> tuple[Array, Move]:
        """Log r averaged over x^0 given x^t, in nats, and the proposal for x^(t-1) that the guided x^0 makes."""

    def denoised_step(self, target: Target, x: Array, t: Array) -> tuple[Array, Move]:
        """Log r at the predicted x^0, as if it were certain, and a proposal for x^(t-1)."""

    def mode(self, p: dist.Distribution) -> Array:
        """The likeliest datum of a last step, shape (*event)."""


KINDS: tuple[Guidance, ...] = (gaussian_guidance, bernoulli_guidance, categorical_guidance)


def of_step(p: dist.Distribution) -> Guidance | None:
    """The kind that a step is of, so that it can be multiplied by r; or None."""
    return next((kind for kind in KINDS if kind.applies(p)), None)


def of_chain(kernel: Kernel) -> Guidance | None:
    """The kind that the states of a chain are of, whatever its steps are; or None."""
    stationary = kernel.stationary()
    return next((kind for kind in KINDS if kind.holds(stationary)), None)


def predicting(diffusion: Diffusion) -> Guidance | None:
    """The kind of a chain whose x^0 can be predicted from x^t; None where it cannot."""
    kind = of_chain(diffusion.kernel)
    return kind if kind is not None and kind.guides(diffusion) else None


def require_predicting(kernel: Kernel) -> Guidance:
    """The kind of a chain, or a clear error where its states are of none."""
    kind = of_chain(kernel)
    if kind is None:
        raise ValueError(
            f"Expected states of a kind from which x^0 is predicted, {listed()}; {type(kernel).__name__} ends in a "
            f"{type(kernel.stationary()).__name__}. Use twist=tempered()."
        )
    return kind


def listed(*, needs: bool = False) -> str:
    """The kinds by name, as in "normal, Bernoulli or categorical"; or what each needs of a kernel."""
    each: list[Any] = [f"{kind.NEEDS} ({kind.NAME} steps)" if needs else kind.NAME for kind in KINDS]
    return f"{', '.join(each[:-1])} or {each[-1]}"
