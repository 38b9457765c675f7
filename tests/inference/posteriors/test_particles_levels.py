"""Posteriors of a chain whose last step is over levels: it has no density, so that no normal can propose it.

x^1 is exactly standard normal here, as every reverse step is Bayes' rule for such states; x^0 given it is enumerated.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.datasets import Scale
from dpm_ppl.inference import averaged, smc, unguided, widened
from tests.oracles import worst

LEVELS = Scale(2.3, 1.5, levels=6)
KERNEL = dpm.GaussianKernel(dpm.schedules.log_snr(8, first=2.0, last=-5.0), (2,))
Y, SIGMA = np.array([0.9, -0.3]), 0.25
STATES = LEVELS.centre(np.arange(6)).astype(float)
NODES, SHARES = np.polynomial.hermite_e.hermegauss(201)


def levels(x):
    return dpm.DiscretisedNormal(0.9 * x + 0.2, 0.35, levels=LEVELS).to_event(1)


def exact():
    """Log evidence and posterior mean, coordinates being independent: quadrature over x^1, a sum over x^0."""
    law = levels(NODES[:, None]).base_dist
    probs = np.exp(np.asarray(law.log_prob(STATES[:, None, None])))[..., 0] @ (SHARES / SHARES.sum())
    joint = probs[:, None] * np.exp(np.asarray(dist.Normal(STATES[:, None], SIGMA).log_prob(Y)))
    return np.log(joint.sum(0)).sum(), (joint * STATES[:, None]).sum(0) / joint.sum(0)


@pytest.mark.parametrize("twist", [None, widened, averaged, unguided], ids=lambda twist: twist and twist.__name__)
def test_evidence_and_mean_are_those_enumerated(twist):
    def program():
        x0 = dpm.reverse_chain("x", dpm.Diffusion(KERNEL, KERNEL.step, levels))
        numpyro.sample("y", dist.Normal(x0, SIGMA).to_event(1), obs=Y)

    run = smc(program, "x", params={}, num_particles=400, twist=None if twist is None else twist())

    def one(key):
        posterior = run(key)
        return posterior.log_evidence, posterior.mean(), posterior.samples

    log_evidence, means, samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 40))
    expected, mean = exact()
    assert worst(np.exp(np.asarray(log_evidence) - expected), 1.0) < 3.5
    assert worst(means, mean) < 4  # of ratios of means, which are a little biased
    assert np.abs(np.asarray(samples)[..., None] - STATES).min(-1).max() < 1e-5  # every draw is a level
