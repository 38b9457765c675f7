"""Linear inverse problems of a Gaussian mixture: sliced Wasserstein distance of `smc`'s draws to exact ones.

The protocol of MCGdiff (Cardoso, Janati, Le Corff and Moulines 2023), which later papers took over: 25 unit normals
whose means repeat (8 i, 8 j), i and j from -2 to 2, weighed by squared normal draws; y = A x + noise, the singular
values of A uniform in [0, 1] and the noise's scale uniform up to the largest of them; 20 problems, 1,000 slices. The
reverse steps are in closed form, mixtures too, so that all that is measured is `smc`. It is given the problem in the
basis of A's singular vectors, as MCGdiff is, where r is of a few coordinates, and in units of the data's deviation.
Beside each distance stands that of two exact sets of draws to each other, which is the least to expect. Published
tables are not repeated here, as they could not be looked up.
Usage: python tests/benchmarks/gaussian_mixture.py [--sizes 8 80 800] [--seen 1 2 4] [--steps 20 100] [--problems 20]
"""

import argparse
import time
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe, report

import dpm_ppl as dpm
from dpm_ppl.inference import smc, widened

GRID = np.array(list(product(range(-2, 3), repeat=2)), float) * 8
UNIT = 8 * np.sqrt(2)  # the deviation of the grid
NUM_SLICES = 1000


def model(y, log_share, centres, singular, noise, *, num_steps):
    """The mixture's exact diffusion: given x^t and a part, x^0 and x^(t-1) are normal. y sees the first coordinates."""
    kernel = dpm.GaussianKernel(dpm.schedules.log_snr(num_steps, first=9.0, last=-7.0), centres.shape[1:])

    def reverse(x, t):
        signal, rest = (a[t][..., None] for a in (kernel.alpha_bar, kernel.one_minus_alpha_bar))
        c0, c1, variance = (c[..., None] for c in kernel.posterior_coefficients(t))
        whole = signal / UNIT**2 + rest
        off = x[..., None, :] - jnp.sqrt(signal)[..., None] * centres
        x0 = centres + (jnp.sqrt(signal) / UNIT**2 / whole)[..., None] * off
        scale = jnp.broadcast_to(jnp.sqrt(c0**2 * (rest / UNIT**2 / whole)[..., None] + variance), x0.shape)
        parts = dist.Normal(c0 * x0 + c1 * x[..., None, :], scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=log_share - 0.5 * jnp.sum(off**2, -1) / whole), parts)

    x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse, lambda x: reverse(x, jnp.ones((), int))))
    numpyro.sample("y", dist.Normal(UNIT * singular * x[: len(y)], noise).to_event(1), obs=y)


def problem(rng, size, num_seen):
    """y in the basis of A's left singular vectors, log shares, centres in that of the right ones, and singular values.

    And the noise's scale. The basis of what is not seen is any.
    """
    share = rng.normal(size=25) ** 2
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    singular = np.sort(rng.random(num_seen))[::-1]
    noise = rng.random() * singular[0]
    centres = np.tile(GRID, size // 2) @ basis
    x = centres[rng.choice(25, p=share / share.sum())] + rng.normal(size=size)
    return (
        singular * x[:num_seen] + noise * rng.normal(size=num_seen),
        np.log(share / share.sum()),
        centres,
        singular,
        noise,
    )


def exact(rng, y, log_share, centres, singular, noise, *, num):
    """Draws of the posterior, and its log evidence: coordinates are independent given the part."""
    seen = len(y)
    variance, off = singular**2 + noise**2, y - singular * centres[:, :seen]
    log_joint = log_share - 0.5 * np.sum(off**2 / variance + np.log(2 * np.pi * variance), -1)
    log_evidence = np.logaddexp.reduce(log_joint)
    which = rng.choice(25, size=num, p=np.exp(log_joint - log_evidence))
    draws = centres[which] + rng.normal(size=(num, centres.shape[1]))
    gain = singular / variance
    draws[:, :seen] = (centres[:, :seen] + gain * off)[which] + noise / np.sqrt(variance) * rng.normal(size=(num, seen))
    return draws, log_evidence


def sliced_wasserstein(a, b):
    """Mean distance of two sets of as many draws along random directions."""
    directions = np.random.default_rng(0).normal(size=(a.shape[1], NUM_SLICES))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean())


def row(size, num_seen, num_steps, options):
    """Mean distances over the problems with their standard errors, and the errors of the log evidence."""
    twist = None if options.pilots else widened(full=False)
    program = partial(model, num_steps=num_steps)

    @jax.jit
    def draws(key, *given):
        y, log_share, centres, *rest = given
        run_key, draw_key = jax.random.split(key)
        run = smc(program, "x", params={}, num_particles=options.particles, twist=twist)
        posterior = run(run_key, y, log_share, centres / UNIT, *rest)
        return UNIT * posterior.resample(draw_key, options.draws), posterior.log_evidence

    ours, least, off = [], [], []
    start = time.perf_counter()
    for number in range(options.problems):
        rng = np.random.default_rng([size, num_seen, number])
        given = problem(rng, size, num_seen)
        samples, log_evidence = draws(jax.random.key(number), *given)
        (truth, expected), (other, _) = (exact(rng, *given, num=options.draws) for _ in range(2))
        ours.append(sliced_wasserstein(np.asarray(samples), truth))
        least.append(sliced_wasserstein(other, truth))
        off.append(abs(float(log_evidence) - expected))
    error = np.std(ours, ddof=1) / np.sqrt(len(ours)) if len(ours) > 1 else np.nan
    print(
        f"{size:>5} {num_seen:>5} {num_steps:>6}   {np.mean(ours):.3f} ± {error:.3f}   {np.mean(least):.3f}   "
        f"{np.median(off):.3f}, {np.max(off):.3f}   {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return {
        "sliced_wasserstein": round(float(np.mean(ours)), 4),
        "standard_error": round(float(error), 4),
        "of_exact_draws": round(float(np.mean(least)), 4),
        "median_error_of_log_evidence": round(float(np.median(off)), 4),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 80, 800])
    parser.add_argument("--seen", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--pilots", action="store_true", help="the twist by pilots, in place of widened()")
    options = parser.parse_args()
    print(describe())
    print(" size  seen  steps   distance        of exact draws   |log Z error|, median and largest")
    cases = product(options.sizes, options.seen, options.steps)
    report({"-".join(map(str, case)): row(*case, options) for case in cases})


if __name__ == "__main__":
    main()
