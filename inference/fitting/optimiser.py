"""The steps of a fit: the optimiser behind the gradient per datum, clipped, and where the default one ends."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from dpm_ppl.inference.fitting import runs

_FIRST_END = "num_iterations of the default optimizer"


@dataclass(frozen=True)
class Steps:
    """What makes a step of a gradient.

    Args:
        optimizer: Optax optimiser of the user's; None for Adam.
        learning_rate: First rate of Adam.
        clip_norm: Largest norm of the gradient per datum; None does not clip.
        ends: After how many iterations Adam's rate is 0, along a cosine, to start anew; ascending.
    """

    optimizer: optax.GradientTransformation | None
    learning_rate: float
    clip_norm: float | None
    ends: tuple[int, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What of the default optimiser a run must keep to be continued exactly; JSON."""
        if self.optimizer is not None:
            return {}
        return {_FIRST_END: self.ends[0], "learning_rate": float(self.learning_rate)}

    def of(self, normaliser: int) -> optax.GradientTransformation:
        """The steps for gradients of so many data together; the state ends with the norm of the last, per datum."""
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        optimizer = optax.adam(self.rates) if self.optimizer is None else self.optimizer
        return _norm_kept(optax.chain(optax.scale(1 / normaliser), clip, optimizer), normaliser)

    def rate(self, position: int, optimizer_state: Any) -> float:
        """The learning rate of the last of `position` iterations; NaN where an optimiser of one's own keeps it."""
        if self.optimizer is None:
            return float(self.rates(max(position - 1, 0)))
        found = optax.tree.get_all_with_path(optimizer_state, "learning_rate")
        injected = [value for path, value in found if "hyperparams'" in f"{path}'" and np.ndim(value) == 0]
        return float(injected[0]) if len(injected) == 1 else math.nan

    @property
    def rates(self) -> optax.Schedule:
        """Adam's, from the first rate to 0, from each end to the next."""
        lengths = [end - begin for begin, end in zip([0, *self.ends], self.ends, strict=False)]
        falls = [optax.cosine_decay_schedule(self.learning_rate, length) for length in lengths]
        return falls[0] if len(falls) == 1 else optax.join_schedules(falls, self.ends[:-1])


def _norm_kept(optimizer: optax.GradientTransformation, normaliser: int) -> optax.GradientTransformation:
    """A chain of transformations that keeps the norm of the last gradient per datum at the end of its state."""

    def init(params: Any) -> tuple[Any, ...]:
        return (*optimizer.init(params), jnp.zeros(()))

    def update(gradient: Any, state: tuple[Any, ...], params: Any = None, **extra: Any) -> tuple[Any, tuple[Any, ...]]:
        norm = (optax.tree.norm(gradient) / normaliser).astype(state[-1].dtype)
        updates, state = optax.with_extra_args_support(optimizer).update(gradient, state[:-1], params, **extra)
        return updates, (*state, norm)

    return optax.GradientTransformationExtraArgs(init, update)


def rate_ends(path: Path | None, num_iterations: int) -> list[int]:
    """Where the default optimiser's rate is 0: where the run in a directory was to end before, and where it now is.

    Args:
        path: Directory of the run; None where none is kept.
        num_iterations: Number of iterations in all.

    Raises:
        ValueError: there are fewer than the run was to have.
    """
    if path is None or not (path / runs.FILE).exists():
        return [num_iterations]
    run = runs.read_run(path)
    if _FIRST_END not in run["settings"]:
        return [num_iterations]  # a run with another optimiser
    ends = [run["settings"][_FIRST_END], *run.get("restarts", [])]
    while ends[1:] and runs.newest_position(path) <= ends[-2]:
        ends.pop()  # of which no iteration is kept
    if num_iterations < ends[-1]:
        raise ValueError(
            f"Expected `num_iterations` of at least {ends[-1]}, at which the learning rate of the run in {path} ends; "
            f"got {num_iterations}."
        )
    return ends if num_iterations == ends[-1] else [*ends, num_iterations]
