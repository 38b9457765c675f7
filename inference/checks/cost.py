"""What a fit by the program's recipe would take."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import optax
from jax import Array

from dpm_ppl.inference.checks.losses import fitted_loss
from dpm_ppl.inference.checks.report import Finding, note, skipped
from dpm_ppl.inference.checks.subject import Subject, as_now, draw

_SECONDS = 1.0


def cost(subject: Subject) -> Iterator[Finding]:
    """A finding "cost of a fit": seconds and memory, by timing compiled iterations on this machine."""
    if not subject.params:
        yield skipped("cost of a fit", "there are no parameters to fit.")
        return
    recipe: dict[str, Any] = {"num_iterations": 5000, "batch_size": 256, **subject.recipe}
    if not isinstance(subject.data, dist.Distribution):
        recipe["batch_size"] = min(recipe["batch_size"], len(subject.data))
    loss = fitted_loss(subject)
    with jax.enable_x64(new_val=True):  # as the data were made
        batch = np.asarray(draw(subject.data, key=subject.key, num_data=recipe["batch_size"]))
    x0 = as_now(batch)
    optimizer = optax.adam(1e-3)

    def update(params: Any, state: Any, x0: Array, key: Array) -> tuple[Any, Any, Array]:
        def of_params(params: Any) -> Array:
            return loss(params, key, x0)

        value, gradient = jax.value_and_grad(of_params)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params = as_now(jax.tree.map(np.asarray, subject.params))
    given = (params, optimizer.init(params), x0, jax.random.key(0))
    began = time.perf_counter()
    compiled = jax.jit(update).lower(*given).compile()
    compiling, count = time.perf_counter() - began, 0
    jax.block_until_ready(compiled(*given))
    began = time.perf_counter()
    while count < 3 or time.perf_counter() - began < _SECONDS:
        jax.block_until_ready(compiled(*given))
        count += 1
    each = (time.perf_counter() - began) / count
    seconds = compiling + each * recipe["num_iterations"]
    memory = compiled.memory_analysis()
    gigabytes = float("nan")
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        gigabytes = held / 2**30
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    words = (
        f"{recipe['num_iterations']:,} iterations of {recipe['batch_size']} data would take about {took} here "
        f"({1000 * each:.3g} ms each, {compiling:.1f} s to compile), and {1024 * gigabytes:.3g} MiB beside the data."
    )
    yield note("cost of a fit", words, seconds=seconds, gigabytes=gigabytes)
