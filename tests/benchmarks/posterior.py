"""Throughput of `smc` over the same algorithm by hand in JAX, and its memory against T.

The program is the swiss roll of `models/` with a net that is not zero, observed through noise; the twist is widened().
The hand-written loop has the same net, and r's derivatives by hand. Both run in one process, interleaved, and the
figure is the median of the ratios of their throughputs, in particles x steps a second. Also whether they agree: the
difference of their mean log evidences over standard error.
Usage: python tests/benchmarks/posterior.py [--repeats 7] [--particles 4000]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe, report
from numpyro import handlers
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.inference import smc, widened
from dpm_ppl.inference.psis import tail_size

Y, SCALE = jnp.array([0.8, -0.5]), 0.3


def program(num_steps):
    """The denoising program; its parameters, net and rates."""
    net = dpm.networks.TimeMLP(2, 5, num_steps=num_steps, key=jax.random.key(1))
    last = net.layers.layers[-1].weight
    noise = 0.05 * jax.random.normal(jax.random.key(2), last.shape)
    net = eqx.tree_at(lambda net: net.layers.layers[-1].weight, net, noise)
    beta = dpm.schedules.log_snr(num_steps, first=9.0, last=-6.0)

    def denoise(y):
        kernel = dpm.GaussianKernel(beta, event_shape=(2,))
        module = eqx_module("reverse", net)

        def reverse(x, t):
            velocity, scale = jnp.split(module(x, t), [2], axis=-1)
            x0 = dpm.outputs.data_from_velocity(kernel, x, t, velocity)
            return dpm.outputs.full_normal(kernel, x, t, x0, scale)

        x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse))
        numpyro.sample("y", dist.Normal(x, SCALE).to_event(1), obs=y)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        denoise(Y)
    return denoise, {name: site["value"] for name, site in trace.items() if site["type"] == "param"}, net, beta


def by_hand(net, beta, num):
    """Log evidence and weighted samples, with no NumPyro."""
    num_steps = len(beta)
    log_alpha_bar = np.pad(np.cumsum(np.log1p(-beta)), (1, 0))
    signal, noise = jnp.asarray(np.exp(log_alpha_bar)), jnp.asarray(-np.expm1(log_alpha_bar))
    beta = jnp.asarray(beta)
    weights, static = eqx.partition(net, eqx.is_inexact_array)
    identity = jnp.eye(2)

    def factor(a):
        first = jnp.sqrt(a[:, 0, 0])
        below = a[:, 1, 0] / first
        second = jnp.sqrt(a[:, 1, 1] - below**2)
        return lower(first, below, second)

    def lower(first, below, second):
        return jnp.stack([jnp.stack([first, jnp.zeros_like(first)], -1), jnp.stack([below, second], -1)], -2)

    def inverse(a):
        return lower(1 / a[:, 0, 0], -a[:, 1, 0] / (a[:, 0, 0] * a[:, 1, 1]), 1 / a[:, 1, 1])

    def log_det(a):
        return jnp.log(a[:, 0, 0]) + jnp.log(a[:, 1, 1])

    def positive_part(a):
        sign = a / jnp.sqrt(jnp.sum(a**2, (1, 2), keepdims=True))
        sign = jax.lax.fori_loop(0, 15, lambda _, s: 1.5 * s - 0.5 * s @ s @ s, sign)
        return 0.5 * (a + a @ sign)

    def log_r(x):
        return -0.5 * jnp.sum(((Y - x) / SCALE) ** 2, -1) - 2 * jnp.log(SCALE * jnp.sqrt(2 * jnp.pi))

    def guided(loc, tril):
        """Log of r averaged over N(loc, tril tril'), and the product: loc + tril B^-T (u + e)."""
        slope = (Y - loc) / SCALE**2
        inner = factor(identity + tril.mT @ tril / SCALE**2)
        back = inverse(inner)
        u = jnp.einsum("nij,nkj,nk->ni", back, tril.mT, slope)
        return log_r(loc) + 0.5 * jnp.sum(u**2, -1) - log_det(inner), u, back.mT

    def arrive(log_weight, eve):
        share = jax.nn.softmax(log_weight)
        alive = jnp.zeros(num, bool).at[eve].max(share > 0).sum()
        return 1 / jnp.sum(share**2), jax.lax.top_k(log_weight, tail_size(num) + 1)[0], alive

    def move(state, log_twist, proposal, key):
        log_weight, eve, log_evidence, resampled = state
        log_weight = log_weight + log_twist
        kept = arrive(log_weight, eve)
        needed = kept[0] < 0.5 * num
        places = (jnp.arange(num) + jax.random.uniform(key)) / num
        total = jnp.cumsum(jax.nn.softmax(log_weight))
        rows = jnp.where(needed, jnp.searchsorted(total / total[-1], places, side="right"), jnp.arange(num))
        log_twist, proposal, eve = jax.tree.map(lambda a: a[rows], (log_twist, proposal, eve))
        log_evidence = log_evidence + jnp.where(needed, jax.nn.logsumexp(log_weight) - jnp.log(num), 0.0)
        loc, tril, shift, spread, log_spread = proposal
        e = jax.random.normal(jax.random.fold_in(key, 1), (num, 2))
        z = shift + jnp.einsum("nij,nj->ni", spread, e)
        x = loc + jnp.einsum("nij,nj->ni", tril, z)
        log_weight = jnp.where(needed, 0.0, log_weight) - log_twist
        log_weight = log_weight + 0.5 * jnp.sum(e**2 - z**2, -1) + log_spread
        return x, (log_weight, eve, log_evidence, resampled + needed), (*kept, needed)

    def run(weights, key):
        module = eqx.combine(weights, static)

        def predict(x, t):
            velocity, scale = jnp.split(module(x, t), [2], axis=-1)
            x0 = jnp.sqrt(signal[t]) * x - jnp.sqrt(noise[t]) * velocity
            return x0, (x0, scale)

        def step(carry, t):
            x, state = carry
            b, before, noise_before, after = beta[t - 1], signal[t - 1], noise[t - 1], noise[t]
            c0, c1 = jnp.sqrt(before) * b / after, jnp.sqrt(1 - b) * noise_before / after
            variance = b * noise_before / after
            slope, (x0, scale) = jax.vmap(jax.jacfwd(predict, has_aux=True), (0, None))(x, t)
            tril = jnp.sqrt(b) * lower(jnp.exp(scale[:, 0]), scale[:, 2], jnp.exp(scale[:, 1]))
            tweedie = after / jnp.sqrt(signal[t]) * 0.5 * (slope + slope.mT)
            least = 0.05 * after * identity
            wide = factor(least + positive_part(tweedie - least))
            log_twist, u, back = guided(x0, wide)
            reach = wide @ back
            expected = inverse(factor(c0**2 * wide @ wide.mT + variance * identity))
            spread = factor(expected @ (c0**2 * reach @ reach.mT + variance * identity) @ expected.mT)
            shift = c0 * jnp.einsum("nij,njk,nk->ni", expected, reach, u)
            proposal = c0 * x0 + c1 * x, tril, shift, spread, log_det(spread)
            x, state, kept = move(state, log_twist, proposal, jax.random.fold_in(key, t))
            return (x, state), kept

        x = jax.random.normal(jax.random.fold_in(key, 0), (num, 2))
        state = jnp.zeros(num), jnp.arange(num), jnp.zeros(()), jnp.zeros((), int)
        (x, state), kept = jax.lax.scan(step, (x, state), jnp.arange(2, num_steps + 1), reverse=True)
        loc, tril = jnp.sqrt(1 - beta[0]) * x, jnp.broadcast_to(jnp.sqrt(beta[0]) * identity, (num, 2, 2))
        log_twist, u, back = guided(loc, tril)
        proposal = loc, tril, jnp.einsum("nij,nj->ni", back, u), back, log_det(back)
        x, state, last = move(state, log_twist, proposal, jax.random.fold_in(key, 1))
        log_weight = state[0] + log_r(x)
        log_evidence = state[2] + jax.nn.logsumexp(log_weight) - jnp.log(num)
        return log_evidence, x, log_weight, kept, last, arrive(log_weight, state[1])

    return jax.jit(run), weights


def compare(num_steps, num_particles, repeats):
    """Medians of throughput ours over by hand, by the clock and by processor time; ours; and how far they disagree."""
    denoise, params, net, beta = program(num_steps)
    hand, weights = by_hand(net, beta, num_particles)
    ours = smc(denoise, "x", params=params, num_particles=num_particles, twist=widened())
    compiled = jax.jit(lambda key: ours(key, Y))  # as in a loop: the checks of each call are not measured
    runs = {"ours": lambda key: compiled(key).log_evidence, "by hand": lambda key: hand(weights, key)[0]}
    keys = [jax.random.key(4 + repeat) for repeat in range(max(repeats, 7))]
    log_evidence = {name: np.array([run(key) for key in keys]) for name, run in runs.items()}  # compiles
    difference, error = np.mean(log_evidence["ours"]) - np.mean(log_evidence["by hand"]), 0.0
    error = np.sqrt(sum(np.var(values, ddof=1) / len(values) for values in log_evidence.values()))
    ratios, rates = [], []
    for repeat in range(repeats):
        seconds = {}
        for name in sorted(runs, reverse=repeat % 2 == 0):
            start = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(runs[name](keys[repeat]))
            seconds[name] = np.array([time.perf_counter(), time.process_time()]) - start
        ratios.append(seconds["by hand"] / seconds["ours"])
        rates.append(num_particles * num_steps / seconds["ours"][0])
    print(f"T = {num_steps}: {max(rates):.3g} a second; log evidences differ by {difference:.2g} +- {error:.2g}")
    clock, processor = np.sort(np.round(ratios, 3), 0).T
    print(f"  ratios by the clock {clock}, by processor time {processor}")
    return (*np.median(ratios, 0), max(rates), difference / error)


def memory(num_steps, num_particles=1000):
    """Bytes that a run takes beside its arguments and what it returns, as compiled."""
    denoise, params, *_ = program(num_steps)
    run = smc(denoise, "x", params=params, num_particles=num_particles, twist=widened())
    analysis = jax.jit(lambda key: run(key, Y)).lower(jax.random.key(0)).compile().memory_analysis()
    return analysis.temp_size_in_bytes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--particles", type=int, default=4000)
    options = parser.parse_args()
    print(describe())
    figures = {}
    clock, processor, rate, difference = compare(40, options.particles, options.repeats)
    figures["throughput_ratio"] = round(float(clock), 3)
    figures["throughput_ratio_processor_time"] = round(float(processor), 3)
    figures["particles_x_steps_per_second"] = round(rate)
    figures["difference_in_standard_errors"] = round(float(difference), 2)
    figures["memory_ratio_T10000_over_T100"] = round(memory(10_000) / memory(100), 4)
    report(figures)
