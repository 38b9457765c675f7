"""Time of an SVI step of our programs over the same objective written by hand in JAX: same network, data and optimiser.

Both run in one process, interleaved, as jitted loops of steps; the figure is the median of the ratios of the repeats.
Usage: python tests/benchmarks/step_time.py [--repeats 5] [--steps 200]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from machine import describe, report
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, TraceMeanField_ELBO

import dpm_ppl as dpm

BATCH, SIZE, BETA_1 = 512, 8, 1e-4


def program(num_steps, beta, net):
    """The swiss roll of `models/`, with a given network and a fixed schedule."""

    def diffusion():
        kernel = dpm.GaussianKernel(beta, event_shape=(2,))
        module = eqx_module("reverse", net)

        def reverse(x, t):
            velocity, scale = jnp.split(module(x, t), [2], axis=-1)
            x0 = dpm.outputs.data_from_velocity(kernel, x, t, velocity)
            return dpm.outputs.full_normal(kernel, x, t, x0, scale)

        return dpm.Diffusion(kernel, reverse)

    pair = (dpm.subsample_steps(program, size=SIZE) for program in dpm.single_chain(diffusion))
    svi = SVI(*pair, optax.adam(1e-3), TraceMeanField_ELBO())

    def step(state, x0):
        state, loss = svi.update(state, x0)
        return state, loss

    return svi.init(jax.random.key(0), jnp.zeros((BATCH, 2))), step


def by_hand(num_steps, beta, net):
    """The same objective from its formula, with no NumPyro."""
    beta = jnp.asarray(beta)
    log_alpha_bar = jnp.pad(jnp.cumsum(jnp.log1p(-beta)), (1, 0))
    weights, static = eqx.partition(net, eqx.is_inexact_array)
    optimizer = optax.adam(1e-3)

    def loss(weights, key, x0):
        module = eqx.combine(weights, static)
        key_first, key_offset, key_at = jax.random.split(key, 3)
        offset = jax.random.uniform(key_offset, (BATCH,))
        share = (offset + jnp.arange(SIZE)[:, None] / SIZE) % 1
        t = 2 + jnp.minimum(jnp.floor(share * (num_steps - 1)).astype(int), num_steps - 2)
        b = beta[t - 1][..., None]
        signal, noise = jnp.exp(log_alpha_bar[t])[..., None], -jnp.expm1(log_alpha_bar[t])[..., None]
        signal_b, noise_b = jnp.exp(log_alpha_bar[t - 1])[..., None], -jnp.expm1(log_alpha_bar[t - 1])[..., None]
        xt = jnp.sqrt(signal) * x0 + jnp.sqrt(noise) * jax.random.normal(key_at, (SIZE, BATCH, 2))
        c0, c1, variance = jnp.sqrt(signal_b) * b / noise, jnp.sqrt(1 - b) * noise_b / noise, b * noise_b / noise
        velocity, scale = jnp.split(module(xt, t), [2], axis=-1)
        mean = c0 * (jnp.sqrt(signal) * xt - jnp.sqrt(noise) * velocity) + c1 * xt
        diagonal, lower = jnp.exp(scale[..., :2]), scale[..., 2]
        zero = jnp.zeros_like(lower)
        rows = [jnp.stack([diagonal[..., 0], zero], -1), jnp.stack([lower, diagonal[..., 1]], -1)]
        factor = jnp.sqrt(b)[..., None] * jnp.stack(rows, -2)
        shift = (c0 * x0 + c1 * xt - mean)[..., None]
        right = jnp.concatenate([jnp.sqrt(variance)[..., None] * jnp.eye(2) + jnp.zeros_like(factor), shift], -1)
        white_0 = right[..., 0, :] / factor[..., 0, 0, None]
        white_1 = (right[..., 1, :] - factor[..., 1, 0, None] * white_0) / factor[..., 1, 1, None]
        white = jnp.stack([white_0, white_1], -2)
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1) - jnp.log(variance[..., 0])
        kl = 0.5 * (jnp.sum(white**2, (-2, -1)) - 2) + log_det
        end_signal, end_noise = jnp.exp(log_alpha_bar[-1]), -jnp.expm1(log_alpha_bar[-1])
        prior = 0.5 * jnp.sum(end_noise + end_signal * x0**2 - 1 - jnp.log(end_noise))
        x1 = jnp.sqrt(1 - beta[0]) * x0 + jnp.sqrt(beta[0]) * jax.random.normal(key_first, (BATCH, 2))
        residual = (x0 - jnp.sqrt(1 - beta[0]) * x1) ** 2 / beta[0]
        reconstruction = -0.5 * jnp.sum(residual + jnp.log(2 * jnp.pi * beta[0]))
        return (num_steps - 1) / SIZE * jnp.sum(kl) + prior - reconstruction

    def step(state, x0):
        weights, optimizer_state, key = state
        key, key_step = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(weights, key_step, x0)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(weights, updates), optimizer_state, key), value

    return (weights, optimizer.init(weights), jax.random.key(0)), step


def loop(step, num_iterations):
    """A jitted run of steps on fresh data."""
    data = dpm.SwissRoll()

    def body(state, key):
        return step(state, data.sample(key, (BATCH,)))

    return jax.jit(lambda state, key: jax.lax.scan(body, state, jax.random.split(key, num_iterations)))


def compare(num_steps: int, repeats: int, num_iterations: int) -> tuple[float, list[float]]:
    """Median of the ratios ours over by hand, and the mean losses of both, which must agree."""
    beta = dpm.schedules.log_snr(num_steps, first=9.0, last=-6.0)
    net = dpm.networks.TimeMLP(2, 5, num_steps=num_steps, key=jax.random.key(1))
    runs = {}
    for name, build in (("ours", program), ("by hand", by_hand)):
        state, step = build(num_steps, beta, net)
        run = loop(step, num_iterations)
        runs[name] = (run, jax.block_until_ready(run(state, jax.random.key(2)))[0])  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, Array] = {}
    for repeat in range(repeats):
        for name in sorted(runs, reverse=repeat % 2 == 0):
            run, state = runs[name]
            start = time.perf_counter()
            _, losses[name] = jax.block_until_ready(run(state, jax.random.key(3 + repeat)))
            seconds[name].append(time.perf_counter() - start)
    ratios = sorted(ours / hand for ours, hand in zip(seconds["ours"], seconds["by hand"], strict=True))
    print(
        f"T = {num_steps}: ms a step {1e3 * min(seconds['ours']) / num_iterations:.3f} ours, "
        f"{1e3 * min(seconds['by hand']) / num_iterations:.3f} by hand; ratios {[round(r, 3) for r in ratios]}"
    )
    return ratios[len(ratios) // 2], [float(losses[name].mean()) / BATCH for name in runs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(describe())
    figures: dict[str, object] = {}
    for num_steps in (40, 2000):
        ratio, (ours, hand) = compare(num_steps, options.repeats, options.steps)
        figures[f"ratio_T{num_steps}"] = round(ratio, 3)
        figures[f"loss_T{num_steps}"] = [round(ours, 3), round(hand, 3)]
    report(figures)
