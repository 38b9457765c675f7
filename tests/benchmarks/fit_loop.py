"""Time of an iteration of `fit` over the same step of SVI jitted by hand: batch, update, average and loss kept.

Both run in one process, in turns: the callback of the fit does as many steps by hand as the fit did since the last one.
Usage: python tests/benchmarks/fit_loop.py [--repeats 7] [--only unet]
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import optax
from machine import describe, report
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.models import swiss_roll

NUM_STEPS, SHAPE = 1000, (28, 28)


def unet():
    """Bits of 28 x 28 pixels, as `models/mnist_binary.py` has them."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(NUM_STEPS), event_shape=SHAPE, rate=0.13)
    net = eqx_module("reverse", dpm.networks.UNet(SHAPE, num_steps=NUM_STEPS, key=numpyro.prng_key()))
    return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.data_bernoulli(kernel, x, t, net(2.0 * x - 1.0, t)))


def by_hand(pair, source, *, batch_size, size):
    """A step, its state given away, and the state that it begins with."""
    optimizer = optax.chain(optax.scale(1 / batch_size), optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    sampled = (dpm.subsample_steps(program, size=size) for program in pair)
    svi = SVI(*sampled, optimizer, TraceMeanField_ELBO())
    x0 = source.sample(jax.random.key(1), (batch_size,))
    _, transforms = jax.jit(lambda key: (svi.init(key, x0), svi.constrain_fn.args[0]))(jax.random.key(0))
    state = jax.jit(lambda key: svi.init(key, x0))(jax.random.key(0))
    svi.constrain_fn = partial(svi.constrain_fn.func, transforms)

    @partial(jax.jit, donate_argnums=0)
    def step(carry):
        state, average, losses, i = carry
        x0 = source.sample(jax.random.fold_in(jax.random.key(2), i), (batch_size,))
        state, loss = svi.update(state, x0)
        params = svi.optim.get_params(state.optim_state)
        average = jax.tree.map(lambda a, p: 0.999 * a + 0.001 * p, average, params)
        return state, average, losses.at[i % len(losses)].set(loss), i + 1

    average = jax.tree.map(jnp.copy, svi.optim.get_params(state.optim_state))
    return step, (state, average, jnp.zeros(4096), jnp.asarray(0))


def compare(name, pair, source, *, batch_size, size, every, repeats):
    """Median of the ratios of `fit` over by hand; and the seconds before the first iteration over those by hand."""
    began = time.perf_counter()
    step, carry = by_hand(pair, source, batch_size=batch_size, size=size)
    carry = jax.block_until_ready(step(carry))
    by_hand_ready = time.perf_counter() - began
    ours, hand, mark = [], [], time.perf_counter()

    def turn(so_far):
        nonlocal carry, mark
        ours.append(time.perf_counter() - mark)
        start = time.perf_counter()
        for _ in range(every):
            carry = step(carry)
        jax.block_until_ready(carry)
        hand.append(time.perf_counter() - start)
        mark = time.perf_counter()

    given = {"batch_size": batch_size, "num_steps_sampled": size, "num_iterations": every * (repeats + 1)}
    dpm.inference.fit(*pair, source, key=jax.random.key(3), every=every, callback=turn, progress=False, **given)
    ratios = [a / b for a, b in zip(ours[1:], hand[1:], strict=True)]
    first = ours[0] - hand[0]
    print(
        f"{name}: ms an iteration {1e3 * min(ours[1:]) / every:.3f} in fit, {1e3 * min(hand[1:]) / every:.3f} by hand; "
        f"ratios {[round(ratio, 3) for ratio in ratios]}; ready after {first:.1f} s, by hand {by_hand_ready:.1f} s"
    )
    return {f"ratio_{name}": round(statistics.median(ratios), 3), f"ready_{name}": round(first / by_hand_ready, 3)}


def bits(rate):
    """Independent bits: their values do not matter here."""
    return numpyro.distributions.Bernoulli(jnp.full(SHAPE, rate)).to_event(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["unet", "swiss_roll"])
    options = parser.parse_args()
    print(describe())
    figures: dict[str, float] = {}
    if options.only != "unet":
        roll = (swiss_roll.model, swiss_roll.guide), swiss_roll.data()
        figures |= compare("swiss_roll", *roll, batch_size=512, size=8, every=500, repeats=options.repeats)
    if options.only != "swiss_roll":
        images = dpm.single_chain(unet), bits(0.13)
        figures |= compare("unet", *images, batch_size=16, size=1, every=3, repeats=options.repeats)
    report(figures)
