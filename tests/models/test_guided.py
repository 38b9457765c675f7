"""Guidance with exact networks of normal classes: by `smc` what quadrature says, by the heuristic something else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.chains import reverse_states
from dpm_ppl.inference import smc, unguided
from dpm_ppl.models import guided as program

STRENGTH, LABEL, NUM = 2.0, 1, 8000
PROBS, CENTRES, SCALES = (np.array(a) for a in (program.PROBS, program.CENTRES, program.SCALES))
AXIS = np.linspace(-6, 6, 601)
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1)


def log_given(x):
    """log p(x|y) of the data, shape (*batch, 3)."""
    off = (x[..., None, :] - CENTRES) / SCALES
    return -0.5 * (off**2 + np.log(2 * np.pi * SCALES**2)).sum(-1)


def exact_network(name, net):
    """E x^0 as a velocity, and the deviation of the best reverse step, of a class or of all."""
    with handlers.seed(rng_seed=0), handlers.block():
        kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", program.NUM_STEPS, beta_1=1e-3), (2,))

    def output(seen, t):
        x, label = seen[..., :2], seen[..., 2:]
        signal, noise = kernel.alpha_bar[t][..., None, None], kernel.one_minus_alpha_bar[t][..., None, None]
        spread = signal * SCALES**2 + noise
        off = x[..., None, :] - jnp.sqrt(signal) * CENTRES
        each = CENTRES + jnp.sqrt(signal) * SCALES**2 / spread * off
        log_prob = jnp.log(PROBS) - 0.5 * jnp.sum(off**2 / spread + jnp.log(spread), -1)
        known = label.sum(-1, keepdims=True) > 0
        share = jnp.where(known, label, jax.nn.softmax(log_prob, -1))
        x0, left = ((share[..., None] * value).sum(-2) for value in (each, SCALES**2 * noise / spread))
        from_data, _, least = kernel.posterior_coefficients(t)
        variance = least + from_data**2 * left
        velocity = (jnp.sqrt(signal[..., 0]) * x - x0) / jnp.sqrt(noise[..., 0])
        log_scale = 0.5 * jnp.log(variance / kernel.beta[t - 1][..., None])
        return jnp.concatenate([velocity, log_scale], -1)

    return output


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(program, "eqx_module", exact_network)
    trace = handlers.trace(handlers.seed(program.diffusion, 0)).get_trace(jnp.zeros(1, int))
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


def quadrature(strength):
    """Log of the integral of p(x|y) p(y|x)^strength, and the mean of x under it."""
    log_joint = log_given(GRID) + np.log(PROBS)
    log_class = log_joint[..., LABEL] - np.logaddexp.reduce(log_joint, -1)
    weight = np.exp(log_given(GRID)[..., LABEL] + strength * log_class) * (AXIS[1] - AXIS[0]) ** 2
    return np.log(weight.sum()), (weight[..., None] * GRID).sum((0, 1)) / weight.sum()


def test_weights_are_exact_and_the_heuristic_is_not(exact):
    log_evidence, mean = quadrature(STRENGTH)
    posterior = jax.jit(smc(program.guided, "x", params=exact, num_particles=NUM, twist=unguided()))(
        jax.random.key(0), jnp.array(LABEL), STRENGTH
    )
    assert abs(posterior.log_evidence - log_evidence) < 4 * posterior.log_evidence_se + 0.01
    drawn = np.asarray(posterior.resample(jax.random.key(1), NUM))
    error = drawn.std(0) / np.sqrt(min(posterior.ess[0], NUM / 2))
    assert (np.abs(drawn.mean(0) - mean) < 4 * error + 0.01).all()

    @partial(jax.jit, static_argnums=0)
    def heuristic(strength):
        with handlers.seed(rng_seed=0), handlers.substitute(data=exact):
            chain = program.diffusion(jnp.full(NUM, LABEL), strength)
        return reverse_states(chain, key=jax.random.key(2), num_samples=NUM)[0]

    plain, guided = (np.asarray(heuristic(strength)) for strength in (0.0, STRENGTH))
    error = plain.std(0) / np.sqrt(NUM)
    assert (np.abs(plain.mean(0) - CENTRES[LABEL]) < 4 * error + 0.01).all()
    assert (np.abs(plain.std(0) / SCALES[LABEL] - 1) < 0.05).all()
    # What it draws is further out than what it stands for, by many standard errors: its bias.
    bias = (guided.mean(0) - mean) / (guided.std(0) / np.sqrt(NUM))
    assert np.abs(bias).max() > 10
    assert (np.sign(bias) == np.sign(mean - CENTRES[LABEL])).all()


def test_labels_are_dropped_at_random():
    drawn = program.data()
    dropped = np.asarray(drawn["label"] == program.UNKNOWN)
    assert abs(dropped.mean() - program.DROPPED) < 4 * np.sqrt(0.15 * 0.85 / 20_000)
    expected = PROBS @ CENTRES
    for rows in (dropped, ~dropped):  # whichever is dropped does not depend on the point
        x = np.asarray(drawn["x0"])[rows]
        assert (np.abs(x.mean(0) - expected) < 4 * x.std(0) / np.sqrt(len(x))).all()
    own = np.asarray(drawn["x0"])[np.asarray(drawn["label"]) == LABEL]
    assert (np.abs(own.mean(0) - CENTRES[LABEL]) < 4 * SCALES[LABEL] / np.sqrt(len(own))).all()


def test_classes_are_by_bayes_rule():
    x = np.array([[0.3, -0.8], [1.1, 0.2]])
    expected = log_given(x) + np.log(PROBS)
    expected -= np.logaddexp.reduce(expected, -1)[:, None]
    np.testing.assert_allclose(program.log_classes(jnp.asarray(x)), expected, rtol=1e-10)
