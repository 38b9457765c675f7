"""Bounds from both sides on simulated data, against the exact log likelihoods of both oracles."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference import sandwich
from tests.inference.likelihoods.test_likelihood import bits, imperfect, normal_chain
from tests.oracles import worst

KEY = jax.random.key(0)


def run(oracle, num_data, num_particles, **options):
    options = {"params": oracle.params, "key": KEY, "progress": False} | options
    return sandwich(oracle.diffusion, num_data=num_data, num_particles=num_particles, **options)


@cache
def simulated(case, num_particles):
    """A sandwich of 4000 data of an oracle, and the exact log likelihoods of the data."""
    if case == "gaussian":
        oracle = imperfect()
        log_prob = oracle.generated().log_prob
    else:
        oracle, exact, _ = bits()
        log_prob = lambda x0: exact[place(x0)]  # noqa: E731
    result = run(oracle, 4000, num_particles)
    return result, np.asarray(log_prob(result.x0))


def place(x0):
    return x0 @ np.array([4, 2, 1])


@pytest.mark.parametrize("case", ["gaussian", "bits"])
def test_bounds_hold_the_exact_value_and_close(case):
    gaps = []
    for num_particles in (4, 16, 64):
        result, exact = simulated(case, num_particles)
        below, above, between = (getattr(result, n) - exact for n in ("lower", "upper", "estimate"))
        error = {n: v.std(ddof=1) / math.sqrt(4000) for n, v in (("below", below), ("above", above), ("mid", between))}
        assert below.mean() < 3 * error["below"]
        assert above.mean() > -3 * error["above"]
        if num_particles < 64:  # where the bounds are far from tight, that they hold is no matter of errors
            assert below.mean() < -3 * error["below"]
            assert above.mean() > 3 * error["above"]
        else:
            assert abs(between.mean()) < 3 * error["mid"]
        np.testing.assert_allclose(result.gap, above - below, atol=1e-12)
        gaps.append(result.gap.mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_upper_bound_by_its_definition():
    result = run(imperfect(), 10, 5)
    log_weight = np.concatenate([-result.forward_work[:4], -result.reverse_work[None]])
    np.testing.assert_allclose(result.upper, np.log(np.exp(log_weight).mean(0)))
    np.testing.assert_allclose(result.lower, np.log(np.exp(-result.forward_work).mean(0)))
    one = run(imperfect(), 10, 1)
    np.testing.assert_allclose(one.upper, one.own_log_weight)


def test_data_are_the_models():
    x0, p = np.asarray(simulated("gaussian", 16)[0].x0), imperfect().generated()
    assert worst(x0, p.loc) < 3
    off = x0 - np.asarray(p.loc)
    assert worst(off[:, :, None] * off[:, None, :], p.covariance_matrix) < 3
    x0 = simulated("bits", 16)[0].x0
    assert worst(place(x0)[:, None] == np.arange(8), np.exp(bits()[1])) < 3


@pytest.mark.parametrize("case", ["gaussian", "bits"])
def test_own_trajectories_are_exact_posterior_draws(case):
    result, exact = simulated(case, 16)  # E 1/w = 1/p(x0) under the posterior, and so for x0 ~ p
    assert worst(np.exp(exact - result.own_log_weight), 1.0) < 3


def test_constant_weights_leave_no_gap():
    result = sandwich(normal_chain(6), params={}, key=KEY, num_data=50, num_particles=8, progress=False)
    np.testing.assert_allclose(result.upper, result.lower, rtol=1e-12)
    np.testing.assert_allclose(result.own_log_weight, -0.5 * (result.x0**2).sum(-1) - math.log(2 * math.pi), rtol=1e-12)


def test_blocks_do_not_change_the_result():
    whole, split = (run(imperfect(), 20, 3, block_size=size) for size in (None, 7))
    for name in ("x0", "own_log_weight", "lower"):
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), rtol=1e-10)


def test_summary():
    result = run(imperfect(), 50, 4)
    summary = result.summary()
    assert summary["gap_nats"] == pytest.approx(summary["upper_nats"] - summary["lower_nats"])
    assert summary["gap_nats_se"] == pytest.approx(np.std(result.gap, ddof=1) / math.sqrt(50))
    assert summary["lower_bits"] == pytest.approx(result.lower.mean() / math.log(2))
    assert summary["estimate_bits_se"] == pytest.approx(np.std(result.estimate, ddof=1) / math.sqrt(50) / math.log(2))
    assert math.isnan(run(imperfect(), 1, 4).summary()["gap_nats_se"])


def test_nan_weights_name_datum_and_step():
    def spoil(x, t, step):
        return dist.Normal(x, jnp.where(jnp.asarray(t)[..., None] == 3, jnp.nan, 1.0)).to_event(1)

    with pytest.raises(ValueError, match=r"first at step t = 3 of datum 0 \(particle 0\), in log p\(x\^2\|x\^3\)"):
        sandwich(normal_chain(5, spoil), params={}, key=KEY, num_data=4, num_particles=2, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_data": 0}, ValueError, "`num_data` to be at least 1; got 0"),
        ({"num_particles": 0}, ValueError, "`num_particles` to be at least 1; got 0"),
        ({"num_data": 2.0}, TypeError, "`num_data` to be an integer"),
        ({"block_size": -1}, ValueError, "`block_size` to be at least 1"),
        ({"params": {}}, ValueError, "a value for every parameter"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        run(imperfect(), **({"num_data": 3, "num_particles": 2} | options))
