"""What single precision does to the bound."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpyro.distributions import kl_divergence

from dpm_ppl.data import as_now, draw, num_data_of
from dpm_ppl.inference.checks.losses import fitted_loss
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import Chain, Subject, bound_definition
from dpm_ppl.kernels.kernel import has_closed_forms
from dpm_ppl.programs import read

LARGE, SMALL = 0.05, 0.005  # nats per datum; the first, or a thousandth of the terms, is a mistake


def precision(subject: Subject) -> Iterator[Finding]:
    """A finding "float32" for each chain: its terms at the same states in single and in double precision."""
    for chain in subject.chains:
        yield _precision(subject, chain)


def _precision(subject: Subject, chain: Chain) -> Finding:
    states = np.asarray(chain.states)
    if np.issubdtype(states.dtype, np.floating):
        states = states.astype(np.float32)  # the same numbers for both
    x0 = states[0] if np.issubdtype(states.dtype, np.floating) else np.asarray(chain.x0)
    double = np.asarray(jax.jit(lambda s: _terms(chain, as_now(s[0]), as_now(s[1])))((x0, states)), np.float64)
    with jax.enable_x64(new_val=False):
        params = as_now(jax.tree.map(np.asarray, subject.params))
        batch = as_now(jax.tree.map(np.asarray, subject.batch))
        statements, *_ = read(subject.model, subject.guide, bound_definition(subject.parts, batch), batch, params)
        found = {(s.where, s.statement.name): s.statement.diffusion for s in statements}
        forward = found.get(("guide", chain.name)) or found["diffusion()", "diffusion()"]
        model = found.get(("model", chain.name)) or found["diffusion()", "diffusion()"]
        single_chain = Chain(chain.name, as_now(x0), forward, model, chain.key)
        single = np.asarray(jax.jit(lambda s: _terms(single_chain, *s))((as_now(x0), as_now(states))), np.float64)
    off = single - double
    wrong = np.isfinite(double) & ~np.isfinite(single)
    if wrong.any():
        t = int(np.argmax(wrong.any(1))) + 1
        words = (
            f"In float32 the term {_of(t, chain)} is {single[wrong][0]}, where it is {double[wrong][0]:.4g} in float64."
        )
        return failed("float32", words + " Look for a cancellation such as 1 - alpha_bar.", t=t)
    total, worst_t = float(np.nanmean(np.nansum(off, 0))), int(np.nanmax(np.abs(off), 1).argmax()) + 1
    size = float(np.nanmean(np.nansum(np.abs(double), 0)))
    words = (
        f"The bound in float32 is off by {total:+.2g} nats per datum of {size:.3g}, most {_of(worst_t, chain)}, from "
        "that in float64 at the same states"
    )
    numbers = {"off": total, "t": worst_t}
    if abs(total) > max(LARGE, 1e-3 * size):
        words += ". Look for a cancellation such as 1 - alpha_bar or 1 - prob there, or run with numpyro.enable_x64()"
        return failed("float32", words + ".", **numbers)
    return (note if abs(total) > SMALL else passed)("float32", words + ".", **numbers)


def _of(row: int, chain: Chain) -> str:
    return "of pi" if row > chain.num_steps else f"at t = {row}"


def _terms(chain: Chain, x0: Array, states: Array) -> Array:
    """Terms of the bound at given states, shape (T + 1, num_data): log p(x^0|x^1), those of t = 2..T, and of pi."""
    kernel = chain.kernel
    before, after, t = states[1:-1], states[2:], chain.steps(*range(2, chain.num_steps + 1))
    first = chain.model.decode(states[1]).log_prob(x0)
    last = kernel.stationary().log_prob(states[-1])
    rows = [first[None]]
    if chain.num_steps > 1:
        back = chain.model.reverse(after, t)
        if has_closed_forms(kernel):
            q = kernel.posterior(jnp.broadcast_to(x0, after.shape), after, t)
            last = last - kernel.marginal(x0, jnp.asarray(chain.num_steps)).log_prob(states[-1])
            try:
                rows.append(-kl_divergence(q, back))
            except NotImplementedError:
                rows.append(back.log_prob(before) - q.log_prob(before))
        else:
            rows.append(back.log_prob(before) - kernel.step(before, t).log_prob(after))
    return jnp.concatenate([*rows, last[None]]).reshape(chain.num_steps + 1, -1)


_SECONDS = 1.0


def cost(subject: Subject) -> Iterator[Finding]:
    """A finding "cost of a fit": seconds and memory, by timing compiled iterations on this machine."""
    if not subject.params:
        yield skipped("cost of a fit", "there are no parameters to fit.")
        return
    recipe: dict[str, Any] = {"num_iterations": 5000, "batch_size": 256, **subject.recipe}
    if (num_data := num_data_of(subject.source)) is not None:
        recipe["batch_size"] = min(recipe["batch_size"], num_data)
    loss = fitted_loss(subject)
    with jax.enable_x64(new_val=True):  # as the data were made
        drawn = draw(subject.source, key=subject.key, num_data=recipe["batch_size"])
        drawn = jax.tree.map(np.asarray, drawn)
    batch = as_now(drawn)
    optimizer = optax.adam(1e-3)

    def update(params: Any, state: Any, batch: Any, key: Array) -> tuple[Any, Any, Array]:
        def of_params(params: Any) -> Array:
            return loss(params, key, batch)

        value, gradient = jax.value_and_grad(of_params)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params = as_now(jax.tree.map(np.asarray, subject.params))
    given = (params, optimizer.init(params), batch, jax.random.key(0))
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
