"""Labels beside chains: class posteriors with the exact reverse of normal classes, and what masks leave of a loss."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import bound, class_log_probs, importance_weights
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from dpm_ppl.models import conditional as program

T = 5
PROBS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([[0.7, -0.4], [-0.5, 0.9], [0.1, 0.2]])
COVS = np.array([[[1.0, 0.6], [0.6, 0.8]], [[0.5, -0.2], [-0.2, 0.9]], [[1.6, 0.1], [0.1, 0.3]]])
X = np.array([[0.3, -0.8], [1.1, 0.2], [-0.9, 1.4], [0.0, 0.1], [2.0, -1.0]])


def normal_chains(off=0.0):
    """q(x^(t-1) | x^t) of a normal class, a chain for each: weights of no variance, unless the means are off."""
    kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(T), (2,))
    laws = [normal_reverse(label, off) for label in range(3)]
    return [dpm.Diffusion(kernel, law, decode=lambda x1, law=law: law(x1, 1)) for law in laws]


def normal_reverse(label, off):
    mean, cov = MEANS[label], COVS[label]
    gains, shifts, factors = [], [], []
    for t in range(1, T + 1):
        signal, beta = 1 - (t - 1) / T, 1 / (T - t + 1)
        before = signal * cov + (1 - signal) * np.eye(2)
        gain = math.sqrt(1 - beta) * before @ np.linalg.inv((1 - beta) * before + beta * np.eye(2))
        gains.append(gain)
        shifts.append(math.sqrt(signal) * (np.eye(2) - math.sqrt(1 - beta) * gain) @ mean + off)
        factors.append(np.linalg.cholesky(before - math.sqrt(1 - beta) * gain @ before))
    gains, shifts, factors = (jnp.asarray(np.stack(parts)) for parts in (gains, shifts, factors))

    def reverse(x, t):
        t = jnp.asarray(t)
        loc = jnp.einsum("...ij,...j->...i", gains[t - 1], x) + shifts[t - 1]
        return dpm.FullNormal(loc, scale_tril=jnp.broadcast_to(factors[t - 1], (*loc.shape, 2)))

    return reverse


def log_joint(x):
    """log p(y) + log p(x | y), shape (num_data, 3)."""
    off = np.asarray(x)[:, None] - MEANS
    square = np.einsum("nci,cij,ncj->nc", off, np.linalg.inv(COVS), off)
    return np.log(PROBS) - 0.5 * (square + np.linalg.slogdet(2 * np.pi * COVS)[1])


def labelled(x, label):
    return jnp.concatenate([jnp.asarray(x), jnp.asarray(label)[:, None] * 1.0], -1)


@pytest.fixture
def exact(monkeypatch):
    built = normal_chains()
    monkeypatch.setattr(program, "chains", lambda: built)


@pytest.fixture
def spoiled(monkeypatch):
    built = normal_chains(0.1)
    monkeypatch.setattr(program, "chains", lambda: built)


OPTIONS = {"params": {"probs": jnp.asarray(PROBS)}, "key": jax.random.key(0), "progress": False}


@pytest.mark.usefixtures("exact")
def test_class_posteriors_of_normal_classes():
    expected = log_joint(X) - np.logaddexp.reduce(log_joint(X), 1, keepdims=True)
    definitions = [partial(program.of_class, label) for label in range(3)]
    log_prior = np.log(OPTIONS["params"]["probs"]) + 0.7  # of any scale
    came = class_log_probs(definitions, X, log_prior=log_prior, num_particles=2, **OPTIONS)
    np.testing.assert_allclose(came, expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        class_log_probs(definitions, X, log_prior=log_prior[:2], num_particles=2, **OPTIONS)
    assert 0.1 < np.exp(expected).max(1).min() < 0.9


@pytest.mark.usefixtures("exact")
def test_a_label_is_observed_or_latent():
    label = np.array([0, 1, 2, 0, 1])
    known = importance_weights(program.model, program.guide, labelled(X, label), num_particles=3, **OPTIONS)
    np.testing.assert_allclose(known, np.broadcast_to(log_joint(X)[np.arange(5), label], (3, 5)), atol=1e-9)
    # Drawn evenly, the weight of a latent label is 3 p(x, y), of which the mean is p(x).
    latent = importance_weights(program.model, program.guide, jnp.asarray(X), num_particles=400, **OPTIONS)
    off = np.abs(latent[..., None] - (log_joint(X) + np.log(3)))
    np.testing.assert_allclose(off.min(-1), 0.0, atol=1e-9)
    result = Likelihood(latent, np.zeros(0))
    expected = np.logaddexp.reduce(log_joint(X), 1)
    assert (np.abs(result.estimate - expected) < 3.5 * result.standard_error).all()
    assert (result.standard_error < 0.1).all()


@pytest.mark.usefixtures("exact")
def test_generated_points_are_of_their_labels():
    drawn = np.asarray(handlers.seed(handlers.substitute(program.model, OPTIONS["params"]), 1)(size=30_000))
    for label in range(3):
        x = drawn[drawn[:, 2] == label, :2]
        error = math.sqrt(PROBS[label] * (1 - PROBS[label]) / len(drawn))
        assert abs(len(x) / len(drawn) - PROBS[label]) < 3.5 * error
        assert (np.abs(x.mean(0) - MEANS[label]) < 3.5 * x.std(0) / math.sqrt(len(x))).all()
        product, expected = (x - MEANS[label]).prod(1), COVS[label, 0, 1]
        assert abs(product.mean() - expected) < 3.5 * product.std() / math.sqrt(len(x))
    assert np.isin(drawn[:, 2], [0, 1, 2]).all()


@pytest.mark.usefixtures("spoiled")
def test_a_loss_counts_the_own_class_alone():
    """The bound of each datum's own chain and its label's log probability; of the chains masked away, nothing."""
    label = np.array([2, 1, 0, 1, 2])
    x0, (model, guide) = labelled(X, label), (dpm.subsample_steps(f, size=2) for f in (program.model, program.guide))

    @jax.jit
    @jax.vmap
    def elbo(key):
        return -TraceMeanField_ELBO().loss(key, OPTIONS["params"], model, guide, x0)

    losses = np.asarray(elbo(jax.random.split(jax.random.key(3), 4000)))
    expected, variance = 0.0, losses.var() / len(losses)
    for number in range(3):
        x, chain = X[label == number], lambda number=number: program.chains()[number]
        own = bound(chain, x, params={}, key=jax.random.key(4), num_samples=1000)
        expected += float(own.elbo.sum()) + (label == number).sum() * math.log(PROBS[number])
        variance += float(own.elbo_variance.sum()) / 1000
    assert abs(losses.mean() - expected) < 3.5 * math.sqrt(variance)
    assert math.sqrt(variance) < 0.2
    assert expected < log_joint(X)[np.arange(5), label].sum() - 0.3  # spoiled, so that the terms are there


def test_points_of_another_shape():
    with pytest.raises(ValueError, match=r"event shape \(2,\); got \(4, 1\)"):
        handlers.seed(program.guide, 0)(jnp.zeros((4, 1)))


def page_log_joint(x):
    """Of the page's own data: two spots in each class."""
    square = ((x[:, None, None] - np.array(program.SPOTS)) ** 2).sum(-1) / (2 * 0.35**2)
    log_prob = np.logaddexp(np.log(0.6) - square[..., 0], np.log(0.4) - square[..., 1])
    return np.log([0.5, 0.3, 0.2]) + log_prob - np.log(2 * np.pi * 0.35**2)
