"""Evidence chooses between three priors as often as the exact answer does, on linear-Gaussian chains."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.inference import smc
from tests.oracles import GaussianOracle, worst

NUM = 100  # observations from each prior
SCALE = 0.4
EXACT = GaussianOracle.exact(8, beta_1=0.02, alpha_bar_T=0.01)
SPOILED = EXACT.spoiled()
MOVED = GaussianOracle(8, EXACT.params | {"shift": EXACT.params["shift"] + jnp.array([-0.2, 0.1])}, 0.02, 0.01)
PRIORS = [EXACT, SPOILED, MOVED]


def seen(y):
    x = dpm.reverse_chain("x", EXACT.diffusion())
    numpyro.sample("y", dist.Normal(x, SCALE).to_event(1), obs=y)


def test_the_right_prior_has_the_highest_evidence_as_often_as_the_exact_answer_says():
    laws = [prior.generated() for prior in PRIORS]
    laws = [dist.MultivariateNormal(p.loc, p.covariance_matrix + SCALE**2 * jnp.eye(2)) for p in laws]
    keys = jax.random.split(jax.random.key(0), len(laws))
    y = jnp.concatenate([law.sample(key, (NUM,)) for law, key in zip(laws, keys, strict=True)])
    truth = np.repeat(np.arange(len(laws)), NUM)

    def log_evidence(params, key, y):
        return smc(seen, "x", params=params, num_particles=300)(key, y).log_evidence

    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(prior.params for prior in PRIORS))
    every = jax.jit(jax.vmap(jax.vmap(log_evidence, (None, 0, 0)), (0, None, None)))
    found = np.asarray(every(params, jax.random.split(jax.random.key(1), len(y)), y))
    exact = np.stack([law.log_prob(y) for law in laws])

    right, best = (values.argmax(0) == truth for values in (found, exact))
    assert 0.4 < best.mean() < 0.9  # neither sure nor a guess
    assert worst(right.astype(float) - best, 0.0) < 3
    assert (found.argmax(0) != exact.argmax(0)).mean() < 0.05
