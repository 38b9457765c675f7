"""Any r in 1 to 10 dimensions, Gaussian, mixtures and a swiss roll: never much worse than as many prior draws.

Truth and the prior's error are from draws of the chain itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc
from tests.compiling import optimised

NUM_STEPS = 20

KERNELS = {d: dpm.GaussianKernel(dpm.schedules.log_snr(NUM_STEPS, first=6.0, last=-6.0), (d,)) for d in (1, 2, 3, 10)}

PLACES = {d: np.random.default_rng(5).normal(scale=1.1, size=(4, d)) for d in (1, 3, 10)}
SHARES, WIDTH = np.array([0.4, 0.3, 0.2, 0.1]), 0.25


def gaussian(d):
    """The exact reverse of data N(centre, 0.7^2 I)."""
    kernel, centre, spread = KERNELS[d], np.linspace(0.9, -0.5, d), 0.49
    signal = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - kernel.beta)])

    def reverse(x, t):
        before, after = (signal[s][..., None] for s in (t - 1, t))
        variance, keep = before * spread + 1 - before, jnp.sqrt(after / before)
        gain = keep * variance / (after * spread + 1 - after)
        mean = jnp.sqrt(before) * centre + gain * (x - jnp.sqrt(after) * centre)
        return dist.Normal(mean, jnp.sqrt(variance - keep * gain * variance)).to_event(1)

    return dpm.Diffusion(kernel, reverse, lambda x: reverse(x, jnp.ones(x.shape[:-1], int)))


def mixture(d):
    return clusters(PLACES[d], SHARES, WIDTH)


def roll(d):
    """A swiss roll of narrow clusters along a spiral, thinner outside."""
    angle = 1.5 * np.pi * (1 + 2 * np.linspace(0, 1, 16))
    return clusters(np.stack([np.cos(angle), np.sin(angle)], -1) * angle[:, None] / 8, np.exp(-angle / 20), 0.15)


def clusters(places, shares, width):
    """By their exact denoiser; steps are normals, and so not quite the reverse of the forward chain."""
    kernel = KERNELS[places.shape[1]]
    signal = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - kernel.beta)])

    def denoised(x, t):
        a = signal[t][..., None, None]
        variance, off = a * width**2 + 1 - a, x[..., None, :] - jnp.sqrt(a) * places
        share = jax.nn.softmax(jnp.log(shares / shares.sum()) - 0.5 * jnp.sum(off**2 / variance, -1))
        return jnp.einsum("...k,...kd->...d", share, places + jnp.sqrt(a) * width**2 / variance * off)

    def decode(x):
        return dist.Normal(denoised(x, jnp.ones(x.shape[:-1], int)), 0.05).to_event(1)

    return dpm.Diffusion(kernel, lambda x, t: kernel.posterior(denoised(x, t), x, t), decode)


# What is observed, its value and noise, of each chain: an r that no expansion holds for.
SEEN = {
    (gaussian, 1): [(lambda x: jnp.sin(4 * x[0]), 0.7, 0.1), (lambda x: x[0] ** 2, 1.5, 0.1)],
    (mixture, 1): [(lambda x: x[0] ** 2, 1.2, 0.1), (lambda x: jnp.abs(x[0]), 0.8, 0.1)],
    (roll, 2): [(lambda x: jnp.linalg.norm(x), 1.2, 0.05), (lambda x: x[0] * x[1], 0.3, 0.1)],
    (gaussian, 3): [(jnp.prod, 0.4, 0.05), (lambda x: jnp.linalg.norm(x), 2.2, 0.1)],
    (mixture, 3): [(jnp.prod, 0.4, 0.05), (lambda x: jnp.sum(jnp.abs(x)), 2.5, 0.1)],
    (gaussian, 10): [(lambda x: jnp.linalg.norm(x), 3.0, 0.1), (lambda x: x[0] * x[5] - x[3] * x[8], 1.2, 0.1)],
}


@optimised()
@pytest.mark.parametrize("chain", SEEN, ids=lambda chain: f"{chain[0].__name__} {chain[1]}")
def test_never_much_worse_than_as_many_draws_of_the_prior(chain):
    make, d = chain
    num, num_seeds = {2: (2000, 10), 10: (1000, 10)}.get(d, (2000, 20))  # of particles, and of runs
    seen, values, noises = zip(*SEEN[chain], strict=True)

    def log_r(x, number):
        mean = jax.lax.switch(number, [lambda x, f=f: jnp.asarray(f(x)) for f in seen], x)
        return dist.Normal(mean, jnp.array(noises)[number]).log_prob(jnp.array(values)[number])

    def model(number):
        numpyro.factor("r", log_r(dpm.reverse_chain("x", make(d)), number))

    run = smc(model, "x", params={}, num_particles=num)

    @jax.jit
    def one(key, number):
        posterior = run(key, number)
        return posterior.log_evidence, posterior.mean()

    @jax.jit
    def some(key):
        path_key, key = jax.random.split(key)
        path = dpm.ReverseChain(make(d)).sample(path_key, (200_000,))
        return make(d).decode(path[:, 0]).sample(key)

    x0 = jnp.concatenate([some(key) for key in jax.random.split(jax.random.key(7), 5)])
    for number in range(len(seen)):
        weight = np.exp(np.asarray(jax.vmap(log_r, (0, None))(x0, number), np.float64))
        truth, share = np.log(weight.mean()), weight / weight.sum()
        mean = share @ x0
        spread = np.sqrt(share @ np.square(x0 - mean))
        of_prior = np.std(np.log(weight.reshape(-1, num).mean(-1)))
        keys = jax.random.split(jax.random.key(1), num_seeds)
        found, means = map(np.asarray, zip(*(one(key, jnp.asarray(number)) for key in keys), strict=True))
        error = found - truth
        # At most a quarter worse, and three standard errors of a root mean square.
        assert np.sqrt(np.mean(error**2)) < 1.25 * of_prior * (1 + 3 / np.sqrt(2 * num_seeds))
        assert abs(np.median(error)) < 0.15
        assert np.abs(error).max() < 0.5
        off = (means.mean(0) - mean) / np.sqrt(means.var(0, ddof=1) / num_seeds + spread**2 * (share @ share))
        assert np.abs(off).max() < 4.5
