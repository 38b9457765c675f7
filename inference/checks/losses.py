"""A program's own loss, as SVI sees it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import TraceMeanField_ELBO

from dpm_ppl.handlers import subsample_steps
from dpm_ppl.inference.checks.statistics import Estimate
from dpm_ppl.inference.checks.subject import Subject

_BLOCK, _MOST, _SECONDS = 30, 400, 2.0  # evaluations, those at a time first, and what to spend on them

_LONGER = 10.0  # seconds, where a smaller error is asked for


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
        total = TraceMeanField_ELBO().loss(key, dict(params), model, guide, subject.batch)
        return jnp.asarray(total) / subject.normaliser

    return of_params


def fitted_loss(subject: Subject, *, all_steps: bool = False) -> Callable[[Mapping[str, Any], Array, Any], Array]:
    """What `fit` minimises by the program's recipe, of parameters, a key and a batch: a sum over it.

    Args:
        subject: The program.
        all_steps: Whether every step counts, instead of those that the recipe would draw.
    """
    recipe, size = subject.recipe, None if all_steps else num_steps_sampled(subject)
    weight = {} if recipe.get("weight") is None else {"weight": recipe["weight"]}
    model, guide = (subsample_steps(program, size=size, **weight) for program in (subject.model, subject.guide))
    objective = recipe.get("loss") or TraceMeanField_ELBO()

    def of_params(params: Mapping[str, Any], key: Array, batch: Any) -> Array:
        return jnp.asarray(objective.loss(key, dict(params), model, guide, batch, *recipe.get("args", ())))

    return of_params


def num_steps_sampled(subject: Subject) -> int | None:
    """Steps per datum: the recipe's, or as `fit` has it."""
    size: int | None = subject.recipe.get("num_steps_sampled", 8)
    return size


def elbo(subject: Subject, *, sampled: bool, key: Array, within: float = 0.0) -> Estimate:
    """The program's ELBO on its data, by its own loss, in nats per datum; the error is of Monte Carlo alone.

    Args:
        subject: The program.
        sampled: Whether its chains are read by `subsample_steps`, or plainly.
        key: Random key.
        within: The standard error that is asked for, if time allows; by default whatever a few seconds give.
    """
    once = loss(subject, sampled=sampled)
    block = jax.jit(lambda params, keys: -jax.lax.map(lambda key: once(params, key), keys))
    values, began = np.empty(0), time.monotonic()
    seconds = _LONGER if within else _SECONDS
    while True:
        keys = jax.random.split(jax.random.fold_in(key, len(values)), _BLOCK)
        values = np.append(values, np.asarray(block(subject.params, keys), np.float64))
        found, spent = Estimate.of(values), time.monotonic() - began
        if spent > seconds or (found.error <= within if within else len(values) >= _MOST):
            return found
