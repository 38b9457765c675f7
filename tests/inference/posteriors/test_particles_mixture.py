"""Posteriors of a mixture of ten normals under its exact diffusion, against exact draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc

NUM_STEPS, NUM_DRAWS, NUM_OBSERVATIONS, SPREAD, NOISE = 30, 500, 3, 0.25, 0.3
LOG_SHARE = np.log(np.arange(1.0, 11.0) / 55)


def diffusion(centres):
    """Its reverse steps are mixtures too: the data are, given x^t, and x^(t-1) is normal given both."""
    kernel = dpm.GaussianKernel(dpm.schedules.log_snr(NUM_STEPS, first=6.0, last=-7.0), centres.shape[1:])

    def reverse(x, t):
        signal, noise = (a[t][..., None] for a in (kernel.alpha_bar, kernel.one_minus_alpha_bar))
        c0, c1, variance = (c[..., None] for c in kernel.posterior_coefficients(t))
        whole = signal * SPREAD**2 + noise
        off = x[..., None, :] - jnp.sqrt(signal)[..., None] * centres
        log_share = LOG_SHARE - 0.5 * jnp.sum(off**2, -1) / whole
        x0 = centres + (jnp.sqrt(signal) * SPREAD**2 / whole)[..., None] * off
        scale = jnp.sqrt(c0**2 * (SPREAD**2 * noise / whole)[..., None] + variance)
        parts = dist.Normal(c0 * x0 + c1 * x[..., None, :], scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=log_share), parts)

    return dpm.Diffusion(kernel, reverse, lambda x: reverse(x, jnp.ones((), int)))


def exact(centres, matrix, y):
    """Log shares, means and the one covariance of the posterior's parts, and the log evidence."""
    spread = SPREAD**2 * matrix @ matrix.T + NOISE**2 * np.eye(len(matrix))
    gain = np.linalg.solve(spread, SPREAD**2 * matrix).T
    off = y - centres @ matrix.T
    log_share = LOG_SHARE - 0.5 * (off * np.linalg.solve(spread, off.T).T).sum(-1)
    log_evidence = np.logaddexp.reduce(log_share)
    cov = SPREAD**2 * (np.eye(centres.shape[1]) - gain @ matrix)
    log_evidence_all = log_evidence - 0.5 * np.linalg.slogdet(2 * np.pi * spread)[1]
    return log_share - log_evidence, centres + off @ gain.T, cov, log_evidence_all


def draws(rng, log_share, means, cov):
    which = rng.choice(len(means), size=NUM_DRAWS, p=np.exp(log_share))
    return means[which] + rng.multivariate_normal(np.zeros(len(cov)), cov, size=NUM_DRAWS)


def sliced_wasserstein(a, b):
    directions = np.random.default_rng(0).normal(size=(a.shape[1], 100))
    directions /= np.linalg.norm(directions, axis=0)
    return np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean()


@pytest.mark.parametrize(("size", "num_seen", "num_particles"), [(2, 1, 2000), (16, 4, 1000)])
def test_draws_are_as_close_to_exact_ones_as_those_to_one_another(size, num_seen, num_particles):
    rng = np.random.default_rng(size)
    centres, matrix = rng.normal(size=(10, size)), rng.normal(size=(num_seen, size)) / np.sqrt(size)
    x0 = centres[rng.choice(10, size=NUM_OBSERVATIONS, p=np.exp(LOG_SHARE))]
    x0 = x0 + SPREAD * rng.normal(size=x0.shape)
    ys = x0 @ matrix.T + NOISE * rng.normal(size=(NUM_OBSERVATIONS, num_seen))

    def model(y):
        x = dpm.reverse_chain("x", diffusion(centres))
        numpyro.sample("y", dist.Normal(matrix @ x, NOISE).to_event(1), obs=y)

    run = smc(model, "x", params={}, num_particles=num_particles)

    def one(key, y):
        p = run(key, y)
        return p.resample(jax.random.fold_in(key, 1), NUM_DRAWS), p.log_evidence

    samples, log_evidence = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), NUM_OBSERVATIONS), ys)
    ours, theirs = [], []
    for drawn, estimate, y in zip(np.asarray(samples), log_evidence, ys, strict=True):
        *parts, exactly = exact(centres, matrix, y)
        assert abs(estimate - exactly) < 0.3
        truth = [draws(rng, *parts) for _ in range(3)]
        ours.append(sliced_wasserstein(drawn, truth[0]))
        theirs.append(sliced_wasserstein(*truth[1:]))
    assert np.mean(ours) < 1.5 * np.mean(theirs)
