"""Records of an evaluation."""

import jax
import pytest

from dpm_ppl.inference import log_likelihood, sandwich
from tests.oracles import GaussianOracle, data

# Figures.


@pytest.fixture(scope="module")
def records():
    oracle = GaussianOracle.exact(6).spoiled()
    given = {"params": oracle.params, "num_particles": 50, "progress": False}
    likelihood = log_likelihood(oracle.diffusion, data(20), key=jax.random.key(0), **given)
    return likelihood, sandwich(oracle.diffusion, key=jax.random.key(1), num_data=30, **given)
