"""Evidence chooses between three fitted priors as often as the exact answer does, on linear-Gaussian chains."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.inference import fit, smc
from tests.oracles import COV, MEAN, GaussianOracle, worst

NUM = 100  # observations from each data set
SCALE = 0.4
ORACLE = GaussianOracle.exact(8, beta_1=0.02, alpha_bar_T=0.01)
DATA = [
    dist.MultivariateNormal(mean, cov)
    for mean, cov in ((MEAN, COV), (MEAN, np.diag([0.6, 1.4])), (MEAN + [-0.9, 0.6], 0.8 * COV))
]


def fitted(data, seed):
    """The chain as it is after learning the data set, begun from wrong maps: all of it is learned."""
    model, guide = dpm.single_chain(ORACLE.spoiled().diffusion)
    options = {
        "batch_size": 128,
        "num_iterations": 600,
        "num_steps_sampled": None,
        "learning_rate": 0.02,
        "ema_decay": 0.99,
    }
    return replace(ORACLE, params=fit(model, guide, data, key=jax.random.key(seed), progress=False, **options).params)


def seen(y):
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.sample("y", dist.Normal(x, SCALE).to_event(1), obs=y)


def noisy(law):
    return dist.MultivariateNormal(law.mean, law.covariance_matrix + SCALE**2 * jnp.eye(2))


def test_the_right_prior_has_the_highest_evidence_as_often_as_the_exact_answer_says():
    priors = [fitted(data, seed) for seed, data in enumerate(DATA)]
    laws = [noisy(prior.generated()) for prior in priors]
    keys = jax.random.split(jax.random.key(10), len(DATA))
    y = jnp.concatenate([noisy(data).sample(key, (NUM,)) for data, key in zip(DATA, keys, strict=True)])
    truth = np.repeat(np.arange(len(DATA)), NUM)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None))
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def log_evidence(params, key, y):
        return smc(seen, "x", params=params, num_particles=300)(key, y).log_evidence

    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(prior.params for prior in priors))
    found = np.asarray(log_evidence(params, jax.random.split(jax.random.key(11), len(y)), y))
    exact = np.stack([law.log_prob(y) for law in laws])

    of_data = np.stack([noisy(data).log_prob(y) for data in DATA])
    right, best, ideal = (values.argmax(0) == truth for values in (found, exact, of_data))
    assert 0.4 < best.mean() < 0.9  # neither sure nor a guess
    assert abs(best.mean() - ideal.mean()) < 0.05  # the priors have learned their data
    assert worst(right.astype(float) - best, 0.0) < 3
    assert (found.argmax(0) != exact.argmax(0)).mean() < 0.05
    assert np.abs(np.median(found - exact, 1)).max() < 0.02
