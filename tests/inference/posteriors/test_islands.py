"""Islands: evidence and unnormalised moments stay unbiased, and what is told of the weights is told of all of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc
from dpm_ppl.inference.posteriors.twists import defended, tempered, unguided
from dpm_ppl.inference.psis import psis, tail_size
from tests.oracles import GaussianOracle, worst

ORACLE = GaussianOracle.exact(6, beta_1=0.05, alpha_bar_T=0.01)
P = ORACLE.generated()
MEAN, COV = np.asarray(P.loc), np.asarray(P.covariance_matrix)
ROW, NOISE, Y = np.array([1.0, 0.6]), 0.3, jnp.asarray(float(np.array([1.0, 0.6]) @ MEAN) + 1.7)
VARIANCE = ROW @ COV @ ROW + NOISE**2
OFF = float(Y) - ROW @ MEAN
LOG_EVIDENCE = -0.5 * (OFF**2 / VARIANCE + math.log(2 * math.pi * VARIANCE))
POSTERIOR_MEAN = MEAN + COV @ ROW * OFF / VARIANCE
EDGE = 1.0  # standard deviations of the first coordinate


def observed(y):
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.sample("y", dist.Normal(jnp.asarray(ROW) @ x, NOISE), obs=y)


def beyond():
    """An r that is 0 or 1, and mostly 0."""
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.factor("beyond", jnp.where(x[0] > MEAN[0] + EDGE * math.sqrt(COV[0, 0]), 0.0, -jnp.inf))


def many(program, *args, num_runs, **options):
    run = smc(program, "x", params=ORACLE.params, **options)
    keys = jax.random.split(jax.random.key(2), num_runs)
    return jax.device_get(jax.jit(jax.vmap(lambda key: run(key, *args)))(keys))


@pytest.fixture(scope="module")
def runs():
    """Twelve islands of ten, guided badly, so that they disagree and resample: 4,000 runs."""
    return many(
        observed, Y, num_runs=4000, num_particles=120, num_islands=12, twist=defended(tempered(), 0.6), threshold=0.9
    )


def test_the_evidence_is_unbiased(runs):
    assert worst(np.exp(runs.log_evidence - LOG_EVIDENCE), 1.0) < 3
    assert 0.1 < np.std(runs.log_evidence) < 0.6


def test_an_island_counts_by_its_evidence():
    """Z_hat times the mean of x^0 is unbiased for Z times the mean; islands of three hear of the observation late."""
    p = many(observed, Y, num_runs=3000, num_particles=60, num_islands=20, twist=unguided())
    evidence = np.exp(p.log_evidence - LOG_EVIDENCE)[:, None]
    weight = np.exp(p.log_weight)
    mean = np.einsum("rn,rni->ri", weight / weight.sum(-1, keepdims=True), p.samples)
    assert worst(evidence * mean, POSTERIOR_MEAN) < 3
    weight = weight.reshape(3000, 20, 3)
    alike = np.einsum("rkn,rkni->ri", weight / weight.sum(-1, keepdims=True), p.samples.reshape(3000, 20, 3, 2)) / 20
    assert worst(evidence * alike, POSTERIOR_MEAN) > 10  # where each counts the same, it is seen


def test_the_error_told_is_the_spread(runs):
    spread, known = np.std(np.exp(runs.log_evidence - LOG_EVIDENCE)), ~np.isnan(runs.log_evidence_se)
    assert known.mean() > 0.99
    told = np.sqrt(np.mean(np.exp(2 * (runs.log_evidence - LOG_EVIDENCE))[known] * runs.log_evidence_se[known] ** 2))
    assert 0.8 < told / spread < 1.25


def test_what_is_told_of_the_weights_is_of_all(runs):
    weight = np.exp(runs.log_weight - runs.log_weight.max(-1, keepdims=True))
    np.testing.assert_allclose(runs.ess[:, 0], weight.sum(-1) ** 2 / (weight**2).sum(-1), rtol=1e-9)
    num_tail = tail_size(120) + 1
    tail = -np.sort(-runs.log_weight, -1)[:, :num_tail]
    assert runs.tail.shape == (4000, 7, num_tail)
    np.testing.assert_allclose(
        runs.tail[:, 0] - runs.tail[:, 0].max(-1, keepdims=True), tail - tail.max(-1, keepdims=True), atol=1e-9
    )
    one = jax.tree.map(lambda leaf: leaf[0], runs)
    assert one.khat[0] == pytest.approx(psis(one.log_weight[:, None])[1][0])
    assert runs.resampled.any()
    assert (runs.num_ancestors <= 120).all()
    assert runs.num_ancestors[:, -1].min() == 120  # of every island


def test_without_resampling_islands_are_one_run_of_all():
    p = many(observed, Y, num_runs=3, num_particles=40, num_islands=5, twist=unguided(), threshold=0.0)
    weight = np.exp(p.log_weight)
    offset = p.log_evidence - np.log(weight.mean(-1))
    np.testing.assert_allclose(offset, 0, atol=1e-9)
    error = np.std(weight, axis=-1, ddof=1) / weight.mean(-1) / math.sqrt(40)
    # Each island's own variance is about its own mean: the mean of theirs is not that of all, but near it.
    np.testing.assert_allclose(p.log_evidence_se, error, rtol=0.35)


def test_islands_without_a_survivor_count_as_nothing():
    p = many(beyond, num_runs=1500, num_particles=40, num_islands=8, twist=unguided())
    dead = (p.log_weight.reshape(1500, 8, 5) == -np.inf).all(-1)
    assert 0.05 < dead.mean() < 0.8
    share = 0.5 * math.erfc(EDGE / math.sqrt(2))
    assert worst(np.exp(p.log_evidence), share) < 3
    assert not np.isnan(p.log_weight).any()
    alive = ~dead.all(-1)
    assert np.isfinite(p.ess[alive]).all()
    weight = np.exp(p.log_weight[alive] - p.log_weight[alive].max(-1, keepdims=True))
    np.testing.assert_allclose(p.ess[alive, 0], weight.sum(-1) ** 2 / (weight**2).sum(-1), rtol=1e-9)


def test_latents_and_the_default_twist_come_along():
    def program(y):
        scale = numpyro.sample("scale", dist.Gamma(3.0, 10.0))
        x = dpm.reverse_chain("x", ORACLE.diffusion())
        numpyro.sample("y", dist.Normal(jnp.asarray(ROW) @ x, scale), obs=y)

    p = smc(program, "x", params=ORACLE.params, num_particles=600, num_islands=3)(jax.random.key(0), Y)
    assert p.samples.shape == (600, 2)
    assert p.latents["scale"].shape == (600,)
    assert 0 < p.acceptance["last"] < 1
    assert p.verdict().startswith("The posterior can be trusted")


@pytest.mark.parametrize(
    ("num_islands", "error", "message"),
    [
        (7, ValueError, "`num_islands` to divide the 60 particles into at least 2 for each; got 7"),
        (60, ValueError, "at least 2 for each; got 60"),
        (0, ValueError, "`num_islands` to be at least 1; got 0"),
        (2.0, TypeError, "`num_islands`.*got 2.0"),
    ],
)
def test_islands_that_are_none(num_islands, error, message):
    with pytest.raises(error, match=message):
        smc(observed, "x", params=ORACLE.params, num_particles=60, num_islands=num_islands)
