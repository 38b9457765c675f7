"""A label beside the chain: likelihoods and class posteriors with the exact reverse of normal classes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference import class_log_probs, log_likelihood
from dpm_ppl.models import conditional as program

T = 5
PROBS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([[0.7, -0.4], [-0.5, 0.9], [0.1, 0.2]])
COVS = np.array([[[1.0, 0.6], [0.6, 0.8]], [[0.5, -0.2], [-0.2, 0.9]], [[1.6, 0.1], [0.1, 0.3]]])
X = np.array([[0.3, -0.8], [1.1, 0.2], [-0.9, 1.4], [0.0, 0.1], [2.0, -1.0]])


def normal_diffusion(off=0.0):
    """q(x^(t-1) | x^t) of a normal class, given its label: weights of no variance, unless the means are off."""
    tables = [jnp.stack(parts) for parts in zip(*(steps_of(label, off) for label in range(3)), strict=True)]

    def reverse(x, t, label):
        gain, shift, factor = (table[label, jnp.asarray(t) - 1] for table in tables)
        loc = jnp.einsum("...ij,...j->...i", gain, x) + shift
        return dpm.FullNormal(loc, scale_tril=jnp.broadcast_to(factor, (*loc.shape, 2)))

    def diffusion(label):
        kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(T), (2,))
        return dpm.Diffusion(kernel, reverse, lambda x1, label: reverse(x1, 1, label), context=label)

    return diffusion


def steps_of(label, off):
    """Gains, shifts and Cholesky factors of the reverse steps of a normal class, t = 1..T."""
    mean, cov = MEANS[label], COVS[label]
    gains, shifts, factors = [], [], []
    for t in range(1, T + 1):
        signal, beta = 1 - (t - 1) / T, 1 / (T - t + 1)
        before = signal * cov + (1 - signal) * np.eye(2)
        gain = math.sqrt(1 - beta) * before @ np.linalg.inv((1 - beta) * before + beta * np.eye(2))
        gains.append(gain)
        shifts.append(math.sqrt(signal) * (np.eye(2) - math.sqrt(1 - beta) * gain) @ mean + off)
        factors.append(np.linalg.cholesky(before - math.sqrt(1 - beta) * gain @ before))
    return tuple(jnp.asarray(np.stack(parts)) for parts in (gains, shifts, factors))


def log_given(x):
    """log p(x | y), shape (num_data, 3)."""
    off = np.asarray(x)[:, None] - MEANS
    square = np.einsum("nci,cij,ncj->nc", off, np.linalg.inv(COVS), off)
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * COVS)[1])


OPTIONS = {"params": {}, "key": jax.random.key(0), "progress": False, "num_particles": 2}


def test_class_posteriors_of_normal_classes():
    log_joint = np.log(PROBS) + log_given(X)
    expected = log_joint - np.logaddexp.reduce(log_joint, 1, keepdims=True)
    definition, contexts = normal_diffusion(), [np.full(len(X), label) for label in range(3)]
    log_prior = np.log(PROBS) + 0.7  # of any scale
    came = class_log_probs([definition] * 3, X, log_prior=log_prior, contexts=contexts, **OPTIONS)
    np.testing.assert_allclose(came, expected, atol=1e-9)
    assert 0.1 < np.exp(expected).max(1).min() < 0.9
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        class_log_probs([definition] * 3, X, log_prior=log_prior[:2], contexts=contexts, **OPTIONS)
    with pytest.raises(ValueError, match="Expected `contexts` for 3 classes, one for each; got 2"):
        class_log_probs([definition] * 3, X, log_prior=log_prior, contexts=contexts[:2], **OPTIONS)


def test_a_point_is_scored_given_its_own_label():
    label = np.array([0, 1, 2, 0, 1])
    came = log_likelihood(normal_diffusion(), X, context=label, **OPTIONS).log_weight
    np.testing.assert_allclose(came, np.broadcast_to(log_given(X)[np.arange(5), label], (2, 5)), atol=1e-9)
    off = np.abs(log_given(X)[np.arange(5), np.roll(label, 1)] - came)
    assert (off[:, label != np.roll(label, 1)] > 0.1).all()  # another's label would be seen


def test_generated_points_are_of_their_labels(monkeypatch):
    monkeypatch.setattr(program, "diffusion", normal_diffusion())
    label = np.tile([0, 1, 2, 1], 5000)
    drawn = np.asarray(handlers.seed(program.model, 1)(label))
    for number in range(3):
        x = drawn[label == number]
        assert (np.abs(x.mean(0) - MEANS[number]) < 4 * x.std(0) / math.sqrt(len(x))).all()
        product, expected = (x - MEANS[number]).prod(1), COVS[number, 0, 1]
        assert abs(product.mean() - expected) < 4 * product.std() / math.sqrt(len(x))


def test_points_are_of_the_spots_of_their_label():
    drawn = program.data()
    points = drawn["x0"].sample(jax.random.key(1))
    for number, prob in enumerate(program.PROBS):
        x, (first, second) = points[drawn["label"] == number], np.array(program.SPOTS[number])
        assert abs(len(x) / 20_000 - prob) < 4 * math.sqrt(prob * (1 - prob) / 20_000)
        expected = 0.6 * first + 0.4 * second
        assert (np.abs(x.mean(0) - expected) < 4 * x.std(0) / math.sqrt(len(x))).all()
    assert isinstance(drawn["x0"], dist.MixtureSameFamily)


def test_points_of_another_shape():
    with pytest.raises(ValueError, match=r"event shape \(2,\); got \(4, 1\)"):
        handlers.seed(program.guide, 0)(np.zeros(4, int), jnp.zeros((4, 1)))
