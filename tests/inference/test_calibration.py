"""Calibration: a conjugate normal and its spoiled posteriors, enumerated laws of the p-value and the band, ties."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from scipy.stats import binom

from dpm_ppl.inference import Calibration, calibrate
from dpm_ppl.inference.calibration import TARP

MEAN = jnp.array([0.7, -0.4])
TRIL = jnp.array([[1.3, 0.0], [-0.5, 0.6]])
ROWS = jnp.array([[1.0, 0.4], [-0.3, 0.8]])
NOISE = jnp.array([0.5, 0.9])


def normal(y=None):
    x = numpyro.sample("x", dist.MultivariateNormal(MEAN, scale_tril=TRIL))
    numpyro.sample("y", dist.Normal(ROWS @ x, NOISE).to_event(1), obs=y)


def drawn(key, y, *, num=99, scale=1.0, shift=0.0, prior=False):
    """Draws of the conjugate posterior, or of what is wrong with it."""
    covariance = TRIL @ TRIL.T
    gain = covariance @ ROWS.T @ jnp.linalg.inv(ROWS @ covariance @ ROWS.T + jnp.diag(NOISE**2))
    mean, tril = MEAN + gain @ (y - ROWS @ MEAN), jnp.linalg.cholesky(covariance - gain @ ROWS @ covariance)
    if prior:
        mean, tril = MEAN, TRIL
    e = jax.random.normal(key, (num, 2))
    return mean + shift * jnp.sqrt(jnp.diag(tril @ tril.T)) * jnp.array([1.0, 0.0]) + scale * e @ tril.T


def log_likelihood(x, y):
    return {"x": x, "fit": dist.Normal(ROWS @ x, NOISE).log_prob(y).sum()}


def calibration_of(posterior, **options):
    given = {"key": jax.random.key(0), "num_simulations": 300, **options}
    return calibrate(normal, "x", "y", posterior, **given)


@pytest.fixture(scope="module")
def exact():
    return calibration_of(drawn, quantities=log_likelihood)


def test_an_exact_posterior_has_uniform_ranks_and_covers_what_it_says(exact):
    assert exact.ranks["x"].shape == (300, 2)
    assert exact.num_draws == 99
    assert exact.p_value > 0.05
    for level in (0.5, 0.9, 0.95):
        for covered in exact.coverage(level).values():
            assert (np.abs(covered - level) < 3.3 * np.sqrt(level * (1 - level) / 300)).all()


@pytest.mark.parametrize("wrong", [{"scale": 0.7}, {"scale": 1.4}, {"shift": 0.5}], ids=str)
def test_a_posterior_too_narrow_too_wide_or_off_is_caught(wrong):
    found = calibration_of(partial(drawn, **wrong))
    assert found.p_values["x"][0] < 1e-3
    assert found.p_value < 0.01
    if "shift" not in wrong:
        for covered in (found.coverage(0.9)["x"], found.coverage(0.9)[TARP]):
            assert (covered < 0.85 if wrong["scale"] < 1 else covered > 0.95).all()


def test_the_prior_as_posterior_passes_for_its_values_and_is_caught_by_what_goes_with_the_observation():
    found = calibration_of(partial(drawn, prior=True), quantities=log_likelihood)
    assert (found.p_values["x"] > 0.05).all()
    assert found.p_values["fit"] < 1e-3
    assert found.p_values[TARP] < 1e-3


def test_ties_are_broken_at_random_and_names_are_kept():
    """A bit and a count, of which the exact posterior is enumerated, and drawn in a dictionary."""
    rate = jnp.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])

    def program(y=None):
        bit = numpyro.sample("bit", dist.Bernoulli(0.3))
        level = numpyro.deterministic("level", 2 * bit + 1)
        numpyro.sample("y", dist.Categorical(rate[bit]), obs=y)
        numpyro.sample("z", dist.Normal(level, 2.0))

    def posterior(key, observation, *, power=1.0):
        y, z = observation["y"], observation["z"]
        log_p = jnp.log(jnp.array([0.7, 0.3])) + power * jnp.log(rate[:, y])
        log_p = log_p + power * dist.Normal(jnp.array([1.0, 3.0]), 2.0).log_prob(z)
        bit = jax.random.categorical(key, log_p, shape=(19,))
        return {"bit": bit, "level": 2 * bit + 1}

    given = {"key": jax.random.key(1), "num_simulations": 400, "batch_size": 100}
    found = calibrate(program, ["bit", "level"], ["y", "z"], posterior, **given)
    assert set(found.ranks) == {"bit", "level", TARP}
    assert found.p_value > 0.05
    sure = calibrate(program, ["bit", "level"], ["y", "z"], partial(posterior, power=4.0), **given)
    assert sure.p_values["bit"] < 1e-3


# p-values, the band and coverage, of ranks made by hand.


def test_the_p_value_is_that_of_all_sets_of_ranks():
    num, num_draws = 4, 4
    every = np.array(list(product(range(num_draws + 1), repeat=num)))
    z = np.arange(1, num_draws + 1) / (num_draws + 1)

    def far(ranks):
        counts = [(ranks < k).sum() for k in range(1, num_draws + 1)]
        tails = [min(binom.cdf(c, num, p), binom.sf(c - 1, num, p)) for c, p in zip(counts, z, strict=True)]
        return round(min(tails), 12)

    law = np.array([far(ranks) for ranks in every])
    for ranks in ([0, 0, 0, 1], [4, 4, 3, 4], [0, 1, 3, 4], [2, 2, 2, 2]):
        p = np.mean(law <= far(np.array(ranks)))
        found = Calibration({TARP: np.array(ranks)}, num_draws).p_value
        assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / 10_000) + 2e-4


def inside(lower, upper, z, num):
    """Exact probability that an empirical distribution of `num` uniform values stays within counts, place by place."""
    counts = np.arange(num + 1)
    law = np.where(counts == 0, 1.0, 0.0)
    for low, high, before, here in zip(lower, upper, [0.0, *z[:-1]], z, strict=True):
        step = binom.pmf(counts[None] - counts[:, None], num - counts[:, None], (here - before) / (1 - before))
        law = (law @ step) * ((counts >= low) & (counts <= high))
    return law.sum()


@pytest.mark.parametrize(("num", "num_draws"), [(40, 7), (150, 19), (100, 399)])
def test_the_band_holds_uniform_ranks_as_often_as_it_says(num, num_draws):
    found = Calibration({TARP: np.zeros(num, int)}, num_draws)
    z, lower, upper = found.band(0.9)
    counts = np.round([lower * num, upper * num]).astype(int)
    np.testing.assert_allclose(counts / num, [lower, upper], atol=1e-12)
    assert 0.89 < inside(*counts, z, num) < 0.94  # counts are whole numbers
    narrower = np.array(counts) + np.array([[1], [-1]])
    assert inside(*narrower, z, num) < 0.89


def test_ranks_leave_the_band_where_their_p_value_is_small():
    rng = np.random.default_rng(0)
    num, left = 60, 0
    for _ in range(200):
        ranks = np.minimum(rng.integers(0, 20, num), rng.integers(0, 40, num))
        found = Calibration({TARP: ranks}, 19)
        z, lower, upper = found.band(0.95)
        share = np.mean(ranks[:, None] < z * 20 - 1e-9, 0)
        out = ((share < lower - 1e-9) | (share > upper + 1e-9)).any()
        p = found.p_values[TARP]
        assert out == (p < 0.05) or abs(p - 0.05) < 1e-3
        left += out
    assert 20 < left < 190


def test_coverage_counts_whole_ranks_and_parts_of_them():
    ranks = {"x": np.array([0, 4, 9, 5]), TARP: np.array([0, 8, 9, 1])}
    found = Calibration(ranks, 9)
    assert found.coverage(0.8) == {"x": 0.5, TARP: 0.5}
    np.testing.assert_allclose([*found.coverage(0.9).values()], [(0.5 + 1 + 0.5 + 1) / 4, 0.75])
    np.testing.assert_allclose([*found.coverage(0.0).values()], 0, atol=1e-12)
    np.testing.assert_allclose([*found.coverage(1.0).values()], 1)


def test_it_prints_as_a_few_lines(exact):
    text = repr(exact)
    assert len(text.splitlines()) == 5
    assert "300 simulations, 99 draws" in text
    assert f"all together: p = {exact.p_value:.2g}" in text


def test_arviz_has_ranks_and_probabilities(exact):
    data = exact.to_arviz()
    groups = data.children if isinstance(data, xr.DataTree) else {name: data[name] for name in data.groups()}
    pit, ranks = groups["prior_sbc"], groups["sample_stats"]
    assert ranks["x"].dims == ("chain", "draw", "x_0")
    for name in ("x", "fit", TARP):
        np.testing.assert_array_equal(ranks[name].values[0], exact.ranks[name])
        np.testing.assert_allclose(pit[name].values, (ranks[name].values + 0.5) / 100)


def test_errors_come_before_any_work():
    def never(*args):
        raise AssertionError("called")

    def seen(y):
        normal(y)

    def named(x, y):
        return {TARP: x[0]}

    with pytest.raises(ValueError, match=r"shape of what is simulated, \(2,\); got \(99, 1\)"):
        calibration_of(lambda key, y: drawn(key, y)[:, :1])
    with pytest.raises(ValueError, match=r"\(2,\); got \{'x': \(99, 2\)\}"):
        calibration_of(lambda key, y: {"x": drawn(key, y)})
    with pytest.raises(ValueError, match=r"\(2,\); got \(\)"):
        calibration_of(lambda key, y: y[0])
    with pytest.raises(ValueError, match="at least one draw"):
        calibration_of(partial(drawn, num=0))
    with pytest.raises(ValueError, match="no quantity called TARP"):
        calibration_of(drawn, quantities=named)
    options = {"key": jax.random.key(0), "num_simulations": 10}
    with pytest.raises(ValueError, match="one of x, y; got 'z'"):
        calibrate(normal, "x", "z", never, **options)
    with pytest.raises(ValueError, match="to draw 'y'; it observes it"):
        calibrate(partial(seen, jnp.zeros(2)), "x", "y", never, **options)
    with pytest.raises(TypeError, match="`posterior` to be a function; got str"):
        calibrate(normal, "x", "y", "smc", **options)
    with pytest.raises(TypeError, match="one random key"):
        calibrate(normal, "x", "y", never, key=0, num_simulations=10)
    with pytest.raises(ValueError, match="`num_simulations` to be at least 2; got 1"):
        calibrate(normal, "x", "y", never, key=jax.random.key(0), num_simulations=1)


def test_missing_parameters_and_nan_are_told():
    def declared(y=None):
        x = numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.5), 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def failing(key, y):
        return jnp.where(y > 0, jnp.nan, jax.random.normal(key, (9,)))

    options = {"key": jax.random.key(0), "num_simulations": 20}
    with pytest.raises(ValueError, match="every parameter of the model; got none for loc"):
        calibrate(declared, "x", "y", failing, **options)
    with pytest.raises(ValueError, match=r"[1-9]\d* of 20 simulations have NaN"):
        calibrate(declared, "x", "y", failing, params={"loc": jnp.array(0.5)}, **options)
