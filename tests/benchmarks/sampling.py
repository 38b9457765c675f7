"""Time of sampling images by `ReverseChain`, compiled whole, over that of a Python loop over the compiled step.

The small U-Net of `fit_loop.py` on 28 x 28 bits, as it begins; in turns, in one process.
Usage: python tests/benchmarks/sampling.py [--num-images 64] [--num-steps 100] [--repeats 5]
"""

import argparse
import statistics
import time

import fit_loop
import jax
import jax.numpy as jnp
from machine import describe, report

import dpm_ppl as dpm
from dpm_ppl.inference import instantiate


def timed(run, key):
    """Seconds of a call, its result waited for, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(run(key))
    return time.perf_counter() - began, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(describe())
    fit_loop.NUM_STEPS, num = options.num_steps, options.num_images
    data = fit_loop.bits(0.13).sample(jax.random.key(1), (16,))
    fitted = dpm.inference.fit(
        *dpm.single_chain(fit_loop.unet),
        data,
        key=jax.random.key(0),
        num_iterations=1,
        batch_size=16,
        num_steps_sampled=1,
        progress=False,
    )
    params = fitted.params

    @jax.jit
    def whole(params, key):
        diffusion, (key, last_key) = instantiate(fit_loop.unet, params), jax.random.split(key)
        x1 = dpm.ReverseChain(diffusion).sample(key, (num,))[:, 0]
        return diffusion.decode(x1).sample(last_key)

    @jax.jit
    def first(params, key):
        stationary = instantiate(fit_loop.unet, params).kernel.stationary()
        return stationary.sample(key, (num,))

    @jax.jit
    def step(params, x, t, key):
        return instantiate(fit_loop.unet, params).reverse(x, jnp.full(num, t)).sample(key)

    @jax.jit
    def last(params, x, key):
        return instantiate(fit_loop.unet, params).decode(x).sample(key)

    def by_hand(key):
        """A key for each step, the step one program for all."""
        keys = jax.random.split(key, options.num_steps + 1)
        x = first(params, keys[-1])
        for t in range(options.num_steps, 1, -1):
            x = step(params, x, t, keys[t - 1])
        return last(params, x, keys[0])

    ready = [timed(run, jax.random.key(2))[0] for run in (lambda key: whole(params, key), by_hand)]
    ours, hand = [], []
    for repeat in range(options.repeats):
        seconds, x = timed(lambda key: whole(params, key), jax.random.key(3 + repeat))
        ours.append(seconds)
        seconds, y = timed(by_hand, jax.random.key(3 + repeat))
        hand.append(seconds)
    ratios = [a / b for a, b in zip(ours, hand, strict=True)]
    print(
        f"{num} images at T = {options.num_steps}: {min(ours):.2f} s, by hand {min(hand):.2f} s; ratios "
        f"{[round(ratio, 3) for ratio in ratios]}; compiled in {ready[0]:.1f} s, by hand {ready[1]:.1f} s; share of "
        f"ones {float(jnp.mean(x)):.3f}, by hand {float(jnp.mean(y)):.3f}"
    )
    report({"ratio_sampling": round(statistics.median(ratios), 3), "images_a_second": round(num / min(ours), 2)})
