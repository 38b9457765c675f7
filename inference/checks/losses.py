"""A program's own loss, as SVI sees it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import TraceMeanField_ELBO

from dpm_ppl.handlers import subsample_steps
from dpm_ppl.inference.checks.subject import Subject

_FEWEST, _MOST, _SECONDS = 30, 400, 3.0  # evaluations, and what to spend on them


@dataclass(frozen=True)
class Estimate:
    """A mean of draws.

    Args:
        mean: The mean, in nats per datum.
        error: Its standard error.
        deviation: Standard deviation of one draw.
    """

    mean: float
    error: float
    deviation: float

    @classmethod
    def of(cls, values: Any) -> "Estimate":
        """That of independent draws."""
        values = np.asarray(values, np.float64)
        deviation = float(values.std(ddof=1))
        return cls(float(values.mean()), deviation / np.sqrt(len(values)), deviation)

    def score(self, other: "Estimate") -> float:
        """Distance from another in standard errors; differences that rounding explains count as none."""
        rounding = 1e-9 * (1 + abs(self.mean) + abs(other.mean))
        return abs(self.mean - other.mean) / max(float(np.hypot(self.error, other.error)), rounding)


def loss(subject: Subject, *, sampled: bool) -> Callable[[Mapping[str, Any], Array], Array]:
    """-ELBO in nats per datum under stock `TraceMeanField_ELBO`, of parameters and a key.

    Args:
        subject: The program.
        sampled: Whether its chains are read by `subsample_steps`, or plainly.
    """
    model, guide = subject.model, subject.guide
    if sampled:
        size = num_steps_sampled(subject)
        model, guide = (subsample_steps(program, size=size) for program in (model, guide))

    def of_params(params: Mapping[str, Any], key: Array) -> Array:
        total = TraceMeanField_ELBO().loss(key, dict(params), model, guide, subject.x0)
        return jnp.asarray(total) / subject.normaliser

    return of_params


def fitted_loss(subject: Subject) -> Callable[[Mapping[str, Any], Array, Array], Array]:
    """What `fit` minimises by the program's recipe, of parameters, a key and a batch: a sum over the batch."""
    recipe, size = subject.recipe, num_steps_sampled(subject)
    weight = {} if recipe.get("weight") is None else {"weight": recipe["weight"]}
    model, guide = (subsample_steps(program, size=size, **weight) for program in (subject.model, subject.guide))
    objective = recipe.get("loss") or TraceMeanField_ELBO()

    def of_params(params: Mapping[str, Any], key: Array, x0: Array) -> Array:
        return jnp.asarray(objective.loss(key, dict(params), model, guide, x0, *recipe.get("args", ())))

    return of_params


def num_steps_sampled(subject: Subject) -> int | None:
    """Steps per datum: the recipe's, at most what the shortest chain has."""
    terms = [s.diffusion.num_steps - 1 for s in subject.statements]
    size = subject.recipe.get("num_steps_sampled", 8)
    return None if size is None or not terms else min(size, *terms) or None


def elbo(subject: Subject, *, sampled: bool, key: Array) -> Estimate:
    """The program's ELBO on its data, by its own loss, in nats per datum; the error is of Monte Carlo alone."""
    compiled = jax.jit(loss(subject, sampled=sampled))
    values: list[float] = []
    began = time.monotonic()
    while len(values) < _FEWEST or (len(values) < _MOST and time.monotonic() - began < _SECONDS):
        values.append(-float(compiled(subject.params, jax.random.fold_in(key, len(values)))))
    return Estimate.of(values)
