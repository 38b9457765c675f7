"""What an accelerator makes of training, sampling and likelihoods: rates, share of its peak, memory.

Training is `fit` beside a step of stock SVI jitted by hand, dispatched one at a time and as a compiled loop, for the
swiss roll and for a U-Net on 28 x 28 bits that computes in float32 and in bfloat16. On a CPU the paths are run.
Usage: python tests/benchmarks/accelerator.py [--peak-tflops 989] [--iterations 300] [--small]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpyro
from fit_loop import NUM_STEPS, SHAPE, bits, by_hand
from machine import describe, report
from numpyro.contrib.module import eqx_module
from numpyro.infer import Predictive

import dpm_ppl as dpm
from dpm_ppl.models import swiss_roll


def unet(num_steps, dtype):
    """The U-Net of `models/mnist_binary.py`, in a type to compute in."""

    def diffusion():
        kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(num_steps), event_shape=SHAPE, rate=0.13)
        net = dpm.networks.UNet(SHAPE, num_steps=num_steps, dtype=dtype, key=numpyro.prng_key())
        net = eqx_module("reverse", net)
        return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.data_bernoulli(kernel, x, t, net(2.0 * x - 1.0, t)))

    return diffusion


def seconds(run, repeats=3):
    """The least time of a call, its results waited for."""
    jax.block_until_ready(run(0))
    times = []
    for repeat in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(1 + repeat))
        times.append(time.perf_counter() - start)
    return min(times)


def training(pair, source, *, batch_size, size, num_iterations):
    """Iterations a second of `fit`, of steps by hand, and of a loop by hand; and the FLOPs of a step, as XLA counts."""
    marks = []
    dpm.inference.fit(
        *pair,
        source,
        key=jax.random.key(3),
        batch_size=batch_size,
        num_steps_sampled=size,
        num_iterations=3 * num_iterations,
        every=num_iterations,
        callback=lambda so_far: marks.append(time.perf_counter()),
        progress=False,
    )
    step, carry = by_hand(pair, source, batch_size=batch_size, size=size)
    flops = (step.lower(carry).compile().cost_analysis() or {}).get("flops", float("nan"))
    loop = jax.jit(lambda carry: jax.lax.fori_loop(0, num_iterations, lambda i, carry: step(carry), carry))
    looped = seconds(lambda repeat: loop(carry))

    def steps(repeat):
        nonlocal carry
        for _ in range(num_iterations):
            carry = step(carry)
        return carry

    one_by_one = seconds(steps)
    return {
        "fit": round(num_iterations / (marks[2] - marks[1]), 1),
        "steps_by_hand": round(num_iterations / one_by_one, 1),
        "loop_by_hand": round(num_iterations / looped, 1),
        "gflop_a_step": round(flops / 1e9, 3),
    }


def sampling(model, params, num_samples):
    """Samples a second."""
    draw = jax.jit(
        lambda key: Predictive(model, params=params, num_samples=1, parallel=True)(key, size=num_samples)["x"]
    )
    return round(num_samples / seconds(lambda repeat: draw(jax.random.key(repeat))), 1)


def likelihood(diffusion, params, x0, num_particles, num_steps):
    """States of trajectories that are weighted in a second."""

    def run(repeat):
        key = jax.random.key(repeat)
        return dpm.inference.log_likelihood(diffusion, x0, params=params, key=key, num_particles=num_particles).estimate

    return round(len(x0) * num_particles * num_steps / seconds(run), 1)


def params_of(pair, x0):
    """First parameters of a program."""
    options = {"num_iterations": 1, "batch_size": len(x0), "num_steps_sampled": 1, "progress": False}
    return dpm.inference.fit(*pair, x0, key=jax.random.key(0), **options).params


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-tflops", type=float, help="of the device, in the type of its fastest matrix products")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU: the paths are run, the rates say little")
    options = parser.parse_args()
    print(describe())
    many = 1 if options.small else 16
    figures: dict[str, dict[str, float]] = {}
    roll, data = (swiss_roll.model, swiss_roll.guide), swiss_roll.data()
    figures["swiss_roll"] = training(roll, data, batch_size=512, size=8, num_iterations=options.iterations)
    params = params_of(roll, data.sample(jax.random.key(0), (64,)))
    figures["swiss_roll"]["samples"] = sampling(roll[0], params, 6_000 * many)
    x0 = data.sample(jax.random.key(0), (50 * many,))
    figures["swiss_roll"]["weighted_states"] = likelihood(swiss_roll.diffusion, params, x0, 100, 40)
    num_steps, images = (10, 2) if options.small else (NUM_STEPS, 64)
    for dtype in (None, jnp.bfloat16):
        name = f"unet_{'float32' if dtype is None else 'bfloat16'}"
        diffusion = unet(num_steps, dtype)
        pair = dpm.single_chain(diffusion)
        count = max(options.iterations // (100 if options.small else 3), 1)
        figures[name] = training(pair, bits(0.13), batch_size=8 * many, size=2, num_iterations=count)
        x0 = bits(0.13).sample(jax.random.key(0), (images,))
        params = params_of(pair, x0)
        figures[name]["samples"] = sampling(pair[0], params, images)
        figures[name]["weighted_states"] = likelihood(diffusion, params, x0, 4, num_steps)
    if options.peak_tflops:
        for values in figures.values():
            values["share_of_peak"] = round(values["fit"] * values["gflop_a_step"] / 1e3 / options.peak_tflops, 4)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    columns = list(figures["swiss_roll"])
    print(f"{'':<16}" + "".join(f"{column:>17}" for column in columns))
    for name, values in figures.items():
        print(f"{name:<16}" + "".join(f"{values[column]:>17,}" for column in columns))
    print("peak memory: " + ("not measured" if memory is None else f"{memory / 2**30:.2f} GiB"))
    report({**figures, "peak_bytes": memory})
