"""A likelihood with all that it can hold."""

from typing import Any

import jax
import pytest

from dpm_ppl.inference.likelihoods.likelihood import Likelihood, log_likelihood
from tests.oracles import GaussianOracle, data


@pytest.fixture(scope="module")
def likelihood() -> Likelihood:
    """Of six data under spoiled reverse steps, T = 5, with the trajectories of three particles."""
    oracle = GaussianOracle.exact(5).spoiled()
    options: dict[str, Any] = {"num_particles": 100, "num_trajectories": 3, "progress": False}
    return log_likelihood(oracle.diffusion, data(6), params=oracle.params, key=jax.random.key(0), **options)
