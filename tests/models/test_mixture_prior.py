"""A chain as a prior: a linear-Gaussian model with likelihood and bound in closed form, and the page's own data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import importance_weights
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from dpm_ppl.models import mixture_prior as program
from tests.oracles import GaussianOracle, estimates, worst

# A value with the chain's normal prior p(z), two measurements of its first and one of its sum of coordinates.
CHAIN = GaussianOracle.exact(4).spoiled()
DESIGN, NOISE = np.array([[1.0, 0.0], [1.0, 0.0], [0.7, 1.2]]), 0.5
X = jnp.array([[0.3, -0.1, 0.8], [1.4, 1.1, -0.5]])
GAIN, SHIFT, COV = (
    np.array([[0.3, 0.3, 0.1], [-0.2, 0.0, 0.4]]),
    np.array([0.1, -0.2]),
    np.array([[0.3, 0.1], [0.1, 0.5]]),
)


def model(x):
    with numpyro.plate("data", len(x)):
        z = dpm.reverse_chain("z", CHAIN.diffusion())
        numpyro.sample("x", dist.Normal(z @ DESIGN.T, NOISE).to_event(1), obs=x)


def guide(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.MultivariateNormal(x @ GAIN.T + SHIFT, COV))
        dpm.forward_chain("z", CHAIN.diffusion(), z)


def log_likelihood():
    """log p(x) of each datum, by the chain's own marginal of z."""
    prior = CHAIN.generated()
    cov = DESIGN @ prior.covariance_matrix @ DESIGN.T + NOISE**2 * np.eye(3)
    return np.asarray(dist.MultivariateNormal(DESIGN @ prior.loc, cov).log_prob(X))


def elbo():
    """ELBO of both data: measurements and entropy in the mean over q(z|x), and the chain's ELBO of such a z."""
    total = 0.0
    for x in np.asarray(X):
        mean = GAIN @ x + SHIFT
        square = np.sum((x - DESIGN @ mean) ** 2) + np.trace(DESIGN @ COV @ DESIGN.T)
        total += -0.5 * square / NOISE**2 - 3 * math.log(NOISE * math.sqrt(2 * math.pi))
        total += 0.5 * np.linalg.slogdet(2 * math.pi * math.e * COV)[1] + float(CHAIN.elbo(mean, COV))
    return total


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
@pytest.mark.parametrize(
    ("loss", "size"),
    [(Trace_ELBO(), "plain"), (TraceMeanField_ELBO(), 2), (TraceMeanField_ELBO(), None)],
    ids=["plain", "sampled", "all"],
)
def test_bound_of_the_linear_gaussian_model(loss, size):
    programs = (model, guide) if size == "plain" else (dpm.subsample_steps(f, size=size) for f in (model, guide))
    losses, _ = estimates(loss, *programs, CHAIN.params, X, num=6000)
    assert worst(np.asarray(losses), -elbo()) < 3
    assert losses.std() / math.sqrt(len(losses)) < 0.1


def test_importance_weights_reach_the_likelihood():
    weights = importance_weights(
        model, guide, X, params=CHAIN.params, key=jax.random.key(0), num_particles=20_000, progress=False
    )
    result = Likelihood(weights, np.zeros(0))
    assert (np.abs(result.estimate - log_likelihood()) < 3.5 * result.standard_error).all()
    assert (result.standard_error < 0.05).all()
    gap = log_likelihood().sum() - elbo()
    error = weights.sum(1).std() / math.sqrt(len(weights))
    assert abs(weights.sum(1).mean() - elbo()) < 3.5 * error
    assert gap > 10 * error  # which the weights close


def test_data_are_measurements_of_two_groups():
    """By quadrature over the value."""
    x = np.array([[0.3, -0.8, -0.2], [1.0, 1.9, 1.2], [0.2, 0.4, 0.3]])
    z = np.linspace(-6, 6, 4001)
    prior = sum(
        weight * np.exp(dist.Normal(centre, width).log_prob(z))
        for weight, centre, width in zip(program.WEIGHT, program.CENTRE, program.WIDTH, strict=True)
    )
    measured = np.exp(dist.Normal(z[:, None, None], program.NOISE).log_prob(x).sum(-1))
    np.testing.assert_allclose(np.exp(program.data().log_prob(x)), prior @ measured * (z[1] - z[0]), rtol=1e-9)
