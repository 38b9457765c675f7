"""Throughput of `log_likelihood` over the same weights by hand in JAX, its memory against T, and its error in float32.

The hand-written loop has the same network, keys and order of draws, so the same trajectories; both run in one process,
interleaved, and the figure is the median of the ratios of their throughputs, in data x particles x steps a second.
Usage: python tests/benchmarks/likelihood.py [--repeats 5] [--particles 128]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from machine import describe, report
from numpyro import handlers
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.inference import log_likelihood
from dpm_ppl.inference.likelihoods.weights import forward_weights
from dpm_ppl.programs import instantiate

NUM_DATA = 256


def program(num_steps, *, width=128, beta=None):
    """The swiss roll of `models/` with a fixed schedule and a net that is not zero; its parameters, net and rates."""
    net = dpm.networks.TimeMLP(2, 5, num_steps=num_steps, width=width, key=jax.random.key(1))
    last = net.layers.layers[-1].weight
    noise = 0.05 * jax.random.normal(jax.random.key(2), last.shape)
    net = eqx.tree_at(lambda net: net.layers.layers[-1].weight, net, noise)
    beta = dpm.schedules.log_snr(num_steps, first=9.0, last=-6.0) if beta is None else beta

    def diffusion():
        kernel = dpm.GaussianKernel(beta, event_shape=(2,))
        module = eqx_module("reverse", net)

        def reverse(x, t):
            velocity, scale = jnp.split(module(x, t), [2], axis=-1)
            x0 = dpm.outputs.data_from_velocity(kernel, x, t, velocity)
            return dpm.outputs.full_normal(kernel, x, t, x0, scale)

        return dpm.Diffusion(kernel, reverse)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        diffusion()
    return diffusion, {name: site["value"] for name, site in trace.items() if site["type"] == "param"}, net, beta


def by_hand(net, beta, num_particles):
    """Log weights, shape (num_particles, num_data), from their formula, with no NumPyro."""
    num_steps = len(beta)
    log_alpha_bar = np.pad(np.cumsum(np.log1p(-beta)), (1, 0))
    signal, noise = jnp.asarray(np.exp(log_alpha_bar)), jnp.asarray(-np.expm1(log_alpha_bar))
    beta = jnp.asarray(beta)
    weights, static = eqx.partition(net, eqx.is_inexact_array)
    index = jnp.arange(num_particles * NUM_DATA)

    def log_normal(residual, variance):
        return -0.5 * jnp.sum(residual**2 / variance + jnp.log(2 * jnp.pi * variance), -1)

    def run(weights, x0, key):
        module = eqx.combine(weights, static)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i % NUM_DATA), i // NUM_DATA))(index)
        x0 = x0[index % NUM_DATA]

        def forward(x, t):
            draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), (2,)))(keys)
            mean, variance = jnp.sqrt(1 - beta[t - 1]) * x, beta[t - 1]
            xt = mean + jnp.sqrt(variance) * draw
            return xt, log_normal(xt - mean, jnp.full((2,), variance))

        def step(carry, t):
            x, total, low = carry
            xt, log_forward = forward(x, t)
            velocity, scale = jnp.split(module(xt, t), [2], axis=-1)
            b, before, after = beta[t - 1], signal[t - 1], noise[t]
            predicted = jnp.sqrt(signal[t]) * xt - jnp.sqrt(after) * velocity
            mean = jnp.sqrt(before) * b / after * predicted + jnp.sqrt(1 - b) * noise[t - 1] / after * xt
            off = (x - mean) / jnp.sqrt(b)
            first = off[:, 0] * jnp.exp(-scale[:, 0])
            second = (off[:, 1] - scale[:, 2] * first) * jnp.exp(-scale[:, 1])
            log_reverse = -0.5 * (first**2 + second**2) - scale[:, 0] - scale[:, 1] - jnp.log(2 * jnp.pi * b)
            term = log_reverse - log_forward
            new = total + term
            added = new - total
            low = low + (total - (new - added)) + (term - added)
            return (xt, new, low), -jnp.mean(log_reverse)

        x1, log_forward = forward(x0, 1)
        start = log_normal(x0 - jnp.sqrt(1 - beta[0]) * x1, jnp.full((2,), beta[0])) - log_forward
        (xt, total, low), _ = jax.lax.scan(step, (x1, start, jnp.zeros_like(start)), jnp.arange(2, num_steps + 1))
        return (total + low + log_normal(xt, jnp.ones(2))).reshape(num_particles, NUM_DATA)

    return jax.jit(run), weights


def compare(num_steps, num_particles, repeats):
    """Medians of throughput ours over by hand, by the clock and by processor time; ours; and how log weights differ."""
    diffusion, params, net, beta = program(num_steps)
    hand, weights = by_hand(net, beta, num_particles)
    x0 = dpm.SwissRoll().sample(jax.random.key(3), (NUM_DATA,))
    options = {"params": params, "num_particles": num_particles, "progress": False}
    options["block_size"] = NUM_DATA * num_particles
    runs = {
        "ours": lambda key: log_likelihood(diffusion, x0, key=key, **options).log_weight,
        "by hand": lambda key: np.asarray(hand(weights, x0, key)),
    }
    difference = np.abs(np.subtract(*(run(jax.random.key(4)) for run in runs.values()))).max()  # compiles
    ratios, rates = [], []
    for repeat in range(repeats):
        seconds = {}
        for name in sorted(runs, reverse=repeat % 2 == 0):
            start = np.array([time.perf_counter(), time.process_time()])
            runs[name](jax.random.key(5 + repeat))
            seconds[name] = np.array([time.perf_counter(), time.process_time()]) - start
        ratios.append(seconds["by hand"] / seconds["ours"])
        rates.append(NUM_DATA * num_particles * num_steps / seconds["ours"][0])
    print(f"T = {num_steps}: {max(rates):.3g} a second; log weights differ by {difference:.2g}")
    clock, processor = np.sort(np.round(ratios, 3), 0).T
    print(f"  ratios by the clock {clock}, by processor time {processor}")
    return (*np.median(ratios, 0), max(rates), difference)


def memory(num_steps, num_particles=64):
    """Bytes that one block takes beside its arguments, as compiled."""
    diffusion, params, *_ = program(num_steps)
    index = np.arange(num_particles * NUM_DATA, dtype=np.uint32)
    arguments = (diffusion, params, jnp.zeros((NUM_DATA, 2)), jax.random.key(0), index, index >= 0)
    analysis = forward_weights.lower(*arguments, num_data=NUM_DATA).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def float32_error(beta):
    """Largest difference in nats between float32 log weights and those of the same trajectories scored in x64.

    A state's own rounding is part of it, 1e-7 over the scale sqrt(beta_t) of each step: rates near 1e-7 cost accuracy.
    """
    diffusion, params, *_ = program(len(beta), width=16, beta=beta)
    x0 = dpm.SwissRoll().sample(jax.random.key(6), (4,))
    result = log_likelihood(
        diffusion, x0, params=params, key=jax.random.key(7), num_particles=4, num_trajectories=4, progress=False
    )
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)
        x0 = jnp.asarray(np.asarray(x0, np.float64))
        trajectories = jnp.asarray(result.trajectories.astype(np.float64))

        @jax.jit
        def score(params):
            built = instantiate(diffusion, params)
            decode = built.decode(trajectories[..., 0, :]).log_prob(x0)
            return ReverseChain(built).log_prob(trajectories) + decode - ForwardChain(built, x0).log_prob(trajectories)

        return float(np.abs(np.asarray(score(params)) - result.log_weight).max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--particles", type=int, default=128)
    options = parser.parse_args()
    print(describe())
    figures = {}
    for num_steps, num_particles in ((40, options.particles), (400, options.particles // 4)):
        clock, processor, rate, difference = compare(num_steps, num_particles, options.repeats)
        figures[f"throughput_ratio_T{num_steps}"] = round(float(clock), 3)
        figures[f"throughput_ratio_processor_time_T{num_steps}"] = round(float(processor), 3)
        figures[f"throughput_T{num_steps}"] = round(rate)
        figures[f"difference_nats_T{num_steps}"] = float(difference)
    figures["memory_ratio_T10000_over_T100"] = round(memory(10_000) / memory(100), 4)
    figures["float32_error_nats_T10000"] = float32_error(dpm.schedules.constant_fraction(10_000))
    figures["float32_error_nats_T10000_log_snr"] = float32_error(dpm.schedules.log_snr(10_000, first=9.0, last=-6.0))
    report(figures)
