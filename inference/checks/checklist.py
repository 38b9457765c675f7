"""Checks a program: everything that can be known of it before it is fitted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dpm_ppl.inference.checks.agreement import sites
from dpm_ppl.inference.checks.bounds import bounds
from dpm_ppl.inference.checks.context import context
from dpm_ppl.inference.checks.data import data
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.laws import bayes, kernel
from dpm_ppl.inference.checks.precision import cost, precision
from dpm_ppl.inference.checks.report import Finding, Report, failed, passed
from dpm_ppl.inference.checks.reverse import reverse
from dpm_ppl.inference.checks.rows import rows
from dpm_ppl.inference.checks.subject import Subject, subject
from dpm_ppl.inference.checks.variance import variance

_LOOP = "parameters in a loop body"

_OPTIMISE_LITTLE = "jax_disable_most_optimizations"


def check(
    program: Any,
    *,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    tell: Callable[[Finding], Any] = lambda finding: None,
) -> Report:
    """Runs a program small, in double precision, and says what is wrong with it.

    It finds what fits happily and is wrong: a posterior that is not Bayes' rule, indices off by one, parameters that no
    gradient reaches, a loss that is not the bound. Statistics are compared at 5.5 standard errors, under a fixed seed.

    Args:
        program: A module, or any object, with `model`, `guide` and `data`; and `diffusion` where it is one chain, and
            `recipe` if it likes (see `dpm_ppl.programs`).
        params: Parameters to check at, constrained, by name, such as `Fit.params`; by default the initial ones, moved a
            little, as at outputs of zero some gradients vanish.
        seed: Seed of everything random.
        tell: Called with each finding as soon as it is made.

    Returns:
        The findings. An error that the program itself raises is one of them.

    Raises:
        TypeError: program lacks a name, or one is of the wrong kind.
    """
    began = time.monotonic()
    is_double = jnp.result_type(float) == jnp.float64
    name = getattr(program, "name", None) or getattr(program, "__name__", None) or type(program).__name__
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        tell(finding)

    with jax.enable_x64(new_val=True):
        with _optimised_little():
            ready = _prepared(program, params, seed, add)
            for checks, label in _checks(ready) if ready is not None else ():
                _guarded(checks, label, add)
        if ready is not None:
            with jax.enable_x64(new_val=is_double):
                _guarded(partial(cost, ready), "cost of a fit", add)
    return Report(
        Path(str(name)).stem if "/" in str(name) else str(name).rpartition(".")[2],
        tuple(findings),
        time.monotonic() - began,
    )


def _prepared(
    program: Any, params: Mapping[str, Any] | None, seed: int, add: Callable[[Finding], None]
) -> Subject | None:
    """The program ready to check; None where it does not run, which is then a finding."""
    try:
        ready = subject(program, seed=seed, params=params)
    except TypeError as error:
        if str(error).startswith(("Expected a program", "Expected `model`", "Expected `guide`", "Expected `data`")):
            raise
        add(_error("program", error))
        return None
    except Exception as error:
        add(_error("program", error))
        return None
    add(passed("program", f"Model and guide run, on {len(ready.x0)} data of shape {ready.x0.shape[1:]}."))
    return ready


@contextmanager
def _optimised_little() -> Iterator[None]:
    """Most programs here compile for seconds to run for milliseconds: XLA has them ready in half the time, without."""
    before = jax.config.read(_OPTIMISE_LITTLE)
    jax.config.update(_OPTIMISE_LITTLE, val=True)
    try:
        yield
    finally:
        jax.config.update(_OPTIMISE_LITTLE, before)


def _checks(ready: Subject) -> Iterator[tuple[Callable[[], Iterator[Finding]], str]]:
    """Every check but that of the cost, and the name of the finding if it cannot be made."""
    yield partial(sites, ready), "sites"
    for chain in ready.chains:
        if chain.forward.kernel.num_steps != chain.model.num_steps:
            continue  # said already
        yield partial(kernel, chain), "stationarity"
        yield partial(bayes, chain), "posterior"
        yield partial(context, ready, chain), "context"
        yield partial(reverse, chain), "reverse steps"
        yield partial(variance, ready, chain), "reverse variance"
        yield partial(data, ready, chain), "data"
    yield partial(rows, ready), "rows"
    yield partial(gradients, ready), "gradients"
    yield partial(bounds, ready), "loss"
    yield partial(precision, ready), "float32"


def _guarded(checks: Callable[[], Iterator[Finding]], label: str, add: Callable[[Finding], None]) -> None:
    """Adds the findings of a check; an error in it is one as well."""
    try:
        for finding in checks():
            add(finding)
    except Exception as error:
        add(_error(label, error))


def _error(label: str, error: Exception) -> Finding:
    """A program's error, under the name of what it means."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    hidden = "it declares the sites" in message or isinstance(error, jax.errors.UnexpectedTracerError)
    if hidden or (isinstance(error, KeyError) and error.args == ("fn",)):
        words = (
            "Parameters or sites are declared in the body of a loop, where none can be learned: declare them outside."
        )
        return failed(_LOOP, f"{words} ({message[:400]})")
    return failed(label, f"It fails: {message[:600]}")
