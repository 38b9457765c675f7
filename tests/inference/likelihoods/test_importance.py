"""Weights of any model and guide: closed forms of a conjugate model, and a chain's streamed weights, path by path."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference import importance_weights, log_likelihood
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from tests.inference.likelihoods.test_likelihood import bits
from tests.oracles import STATES, BernoulliOracle, GaussianOracle, data, worst

KEY = jax.random.key(0)
X = jnp.array([0.3, -1.2, 2.5])


def model(x, scale=1.0):
    with numpyro.plate("data", len(x)), handlers.scale(scale=scale):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.8), obs=x)


def guide(x):
    loc, width = numpyro.param("loc", 0.5), numpyro.param("width", 1.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc * x, width))


def weights(model=model, guide=guide, *args, params=None, num_particles=10, **options):
    params = {"loc": 0.5, "width": 1.0} if params is None else params
    options = {"key": KEY, "progress": False} | options
    return importance_weights(model, guide, *(args or (X,)), params=params, num_particles=num_particles, **options)


def test_conjugate_model():
    exact = dist.Normal(0.0, math.sqrt(1.64)).log_prob(X)
    result = Likelihood(weights(num_particles=20_000), np.zeros(0))
    assert result.log_weight.shape == (20_000, 3)
    assert (np.abs(result.estimate - exact) < 3 * result.standard_error).all()
    assert (result.standard_error < 0.01).all()
    posterior = {"loc": 1 / 1.64, "width": 0.8 / math.sqrt(1.64)}
    np.testing.assert_allclose(weights(params=posterior), np.broadcast_to(exact, (10, 3)), rtol=1e-12)


def test_joint_weights_are_products():
    np.testing.assert_allclose(weights(plate=None)[:, 0], weights().sum(1), rtol=1e-12)


def test_a_shared_latent_has_joint_weights_alone():
    def with_shared(x):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        model(x - shift)

    def with_shared_guide(x):
        numpyro.sample("shift", dist.Normal(0.2, 0.9))
        guide(x)

    with pytest.raises(ValueError, match=r"inside the plate 'data'.*got shift outside it.*plate=None"):
        weights(with_shared, with_shared_guide)
    result = Likelihood(weights(with_shared, with_shared_guide, num_particles=40_000, plate=None), np.zeros(0))
    exact = dist.MultivariateNormal(jnp.zeros(3), 1.64 * jnp.eye(3) + 1.0).log_prob(X)
    assert abs(result.estimate[0] - exact) < 3 * result.standard_error[0] < 0.1


def test_other_dimensions_are_summed():
    def wide(x):
        with numpyro.plate("data", len(x), dim=-2), numpyro.plate("sides", 2, dim=-1):
            numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 0.8), obs=x)

    def wide_guide(x):
        with numpyro.plate("data", len(x), dim=-2), numpyro.plate("sides", 2, dim=-1):
            numpyro.sample("z", dist.Normal(x / 1.64, 0.8 / math.sqrt(1.64)))

    x = jnp.stack([X, X**2], -1)
    exact = dist.Normal(0.0, math.sqrt(1.64)).log_prob(x)
    by_datum = weights(wide, wide_guide, x, params={})
    np.testing.assert_allclose(by_datum, np.broadcast_to(exact.sum(1), (10, 3)), rtol=1e-12)
    by_side = weights(wide, wide_guide, x, params={}, plate="sides")
    np.testing.assert_allclose(by_side, np.broadcast_to(exact.sum(0), (10, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("oracle", "x0"),
    [(GaussianOracle.exact(5).spoiled(), data(6)), (BernoulliOracle(), jnp.asarray(STATES))],
    ids=["gaussian", "bits"],
)
def test_chains_agree_with_the_streamed_weights(oracle, x0):
    options = {"params": oracle.params, "key": KEY, "progress": False}
    streamed = log_likelihood(oracle.diffusion, x0, num_particles=7, num_trajectories=7, **options)
    model, guide = dpm.single_chain(oracle.diffusion)
    trajectory = jnp.asarray(streamed.trajectories[3])
    given = handlers.substitute(guide, data={"x_chain": trajectory})
    one = importance_weights(model, given, x0, num_particles=1, **options)
    np.testing.assert_allclose(one[0], streamed.log_weight[3], rtol=1e-10)


def test_weights_of_a_chain_have_the_exact_mean():
    oracle, exact, _ = bits()
    log_weight = importance_weights(
        *dpm.single_chain(oracle.diffusion), STATES, params=oracle.params, key=KEY, num_particles=5000, progress=False
    )
    assert worst(np.exp(log_weight), np.exp(exact)) < 3
    assert worst(log_weight, oracle.elbos()) < 3


def test_independently_drawn_steps_are_refused():
    oracle = GaussianOracle.exact(5)
    for size in (2, None):
        programs_ = (dpm.subsample_steps(fn, size=size) for fn in dpm.single_chain(oracle.diffusion))
        with pytest.raises(
            ValueError, match="plain program.*under subsample_steps, with site 'x_first'.*take the handler off"
        ):
            weights(*programs_, data(3), params=oracle.params)


def test_scales_are_refused():
    with pytest.raises(ValueError, match="without a scale.*at site 'z'"):
        weights(lambda x: model(x, 0.5))

    def subsampled(x):
        with numpyro.plate("data", 30, subsample_size=3):
            numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal()), 0.8), obs=x)

    with pytest.raises(ValueError, match="at site 'x'|at site 'z'"):
        weights(subsampled)


def test_latents_must_match():
    def more(x):
        model(x)
        numpyro.sample("y", dist.Normal())

    with pytest.raises(ValueError, match="draw every latent site of the model; it does not draw y"):
        weights(more)
    with pytest.raises(ValueError, match="latent sites of the model alone; it also draws z"):
        weights(lambda x: None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "`num_particles` to be at least 1; got 0"),
        ({"params": {"loc": 0.5}}, ValueError, "value for every parameter of the model; got none for width"),
        ({"params": {"loc": jnp.zeros(4), "width": 1.0}}, ValueError, r"'loc' of shape \(\); got \(4,\)"),
        ({"params": 3}, TypeError, "`params` to be a dictionary"),
        ({"plate": 3}, TypeError, "`plate` to be the name"),
        (
            {"plate": "datum"},
            ValueError,
            "inside the plate 'datum', one density for each datum; got [zx], [zx] outside",
        ),
        ({"params": {"loc": 0.5, "width": 0.0}}, ValueError, "in 30 of 30, first at element 0 of plate 'data'"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        weights(**options)
