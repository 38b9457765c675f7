"""Weighing and resampling: expected counts, and estimates that resampling leaves as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference.posteriors.cloud import (
    UNKNOWN,
    Cloud,
    Descent,
    Step,
    arrive,
    as_told,
    finish,
    log_mean,
    resample,
    with_prior,
)
from dpm_ppl.inference.posteriors.proposals import BernoulliMove, Unguided
from dpm_ppl.inference.psis import psis
from tests.oracles import worst

SHARE = np.array([0.0, 0.31, 0.02, 0.0, 0.45, 0.13, 0.09, 0.0])


def cloud(log_weight, **changes):
    log_weight = jnp.asarray(log_weight)
    num = len(log_weight)
    x = jnp.arange(float(num))[:, None]
    whole = Cloud(x, {}, log_weight, jnp.zeros(()), jnp.arange(num), jnp.zeros((), int))
    return whole._replace(**changes)


def steps(log_r):
    log_r = jnp.asarray(log_r)
    p = jax.vmap(lambda log_r: dist.Normal(log_r[None], 1.0, validate_args=False).to_event(1))(log_r)
    return Step(log_r, Unguided(p))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_resampling_leaves_the_estimates_as_they_are(threshold):
    log_weight, value = jnp.log(SHARE[SHARE > 0]) + 2.0, jnp.array([3.0, -1.0, 0.5, 2.0, 7.0])
    start = cloud(log_weight, log_evidence=jnp.asarray(0.7))
    ess = 1 / (SHARE**2).sum()
    assert 0.5 < ess / 5 < 1

    def one(key):
        after, moved, needed = resample(start, steps(value), key=key, threshold=threshold)
        weight = jnp.exp(after.log_weight + after.log_evidence)
        return jnp.mean(weight), jnp.mean(weight * moved.log_r), (after, moved, needed)

    total, of_value, (after, moved, needed) = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 4000))
    weight = np.exp(log_weight + 0.7)
    np.testing.assert_allclose(total, weight.mean(), rtol=1e-9)
    assert worst(of_value, (weight * value).mean()) < 3
    assert (needed == (threshold == 1)).all()
    assert (after.num_resampled == needed).all()
    if threshold < 1:
        np.testing.assert_array_equal(after.log_weight, np.broadcast_to(log_weight, after.log_weight.shape))
    np.testing.assert_array_equal(
        moved.move.p.base_dist.loc[..., 0], value[after.eve]
    )  # rows of moves and states go together
    np.testing.assert_array_equal(after.x[..., 0], after.eve)


def descent(arrived, diagnosis):
    """Of two times alike."""
    return Descent(arrived, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), diagnosis), jnp.zeros(2, bool), {})


@pytest.mark.parametrize("num", [20, 50, 400])
@pytest.mark.parametrize("tail", [0.0, 0.3, 1.2])
def test_khat_and_ess_of_the_kept_tail_are_those_of_all_weights(num, tail):
    rng = np.random.default_rng(num)
    log_weight = tail * rng.exponential(size=num) + 3.0 if tail else np.full(num, -2.0)
    arrived, diagnosis = arrive(cloud(np.zeros(num)), jnp.asarray(log_weight))
    p = finish(descent(arrived, diagnosis))
    np.testing.assert_allclose(p.khat, np.repeat(psis(log_weight[:, None])[1], 2), rtol=1e-9)
    weight = np.exp(log_weight)
    np.testing.assert_allclose(p.ess, weight.sum() ** 2 / (weight**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(p.log_evidence, np.log(weight.mean()), rtol=1e-9, atol=1e-12)
    # Without resampling the standard error is that of a mean, by the delta method.
    error = np.std(weight, ddof=1) / np.mean(weight) / np.sqrt(num)
    np.testing.assert_allclose(p.log_evidence_se, error, rtol=1e-6, atol=1e-7)


def test_an_error_that_is_not_known_is_no_nan_until_it_leaves_compiled_code():
    """Which `jax_debug_nans` would take for a mistake. Equal weights of all ancestors, resampled: variance < 0."""
    arrived, diagnosis = arrive(cloud(np.zeros(4), num_resampled=jnp.asarray(3)), jnp.zeros(4))
    p = jax.jit(finish)(descent(arrived, diagnosis))
    assert p.log_evidence_se == UNKNOWN
    for run in (as_told, jax.jit(as_told)):
        np.testing.assert_array_equal(run(jnp.array([UNKNOWN, 0.3])), [np.nan, 0.3])


def test_nan_weights_are_counted_and_do_not_spread():
    arrived, diagnosis = arrive(cloud(np.zeros(4)), jnp.array([0.3, jnp.nan, jnp.inf, -jnp.inf]))
    np.testing.assert_array_equal(arrived.log_weight, [0.3, -np.inf, -np.inf, -np.inf])
    assert (int(diagnosis.num_nan), float(diagnosis.ess), int(diagnosis.num_ancestors)) == (2, 1.0, 1)
    _, diagnosis = arrive(cloud(np.zeros(4)), jnp.full(4, -jnp.inf))
    assert (int(diagnosis.num_nan), float(diagnosis.ess), int(diagnosis.num_ancestors)) == (0, 0.0, 0)


def test_ancestors_are_counted_by_those_with_a_weight():
    arrived = cloud(np.zeros(4), eve=jnp.array([2, 2, 0, 3]))
    _, diagnosis = arrive(arrived, jnp.array([0.0, -1.0, 0.5, -jnp.inf]))
    assert int(diagnosis.num_ancestors) == 2


def test_a_twist_has_its_share_of_the_prior():
    """(1 - share) r / E r + share, E r being the run's estimate; what is NaN stays so, and says so."""
    log_r, weight = np.array([1.0, -np.inf, -3.0, np.nan]), np.array([2.0, 0.5, 1.0, 3.0])
    before = cloud(np.log(weight), log_evidence=jnp.asarray(0.7))
    mean = log_mean(before, jnp.asarray(log_r))
    expected = np.exp(0.7) * (2 * np.exp(1.0) + np.exp(-3.0)) / 4
    np.testing.assert_allclose(np.exp(mean), expected)
    after = with_prior(steps(log_r), mean, 0.3, defends=True)
    np.testing.assert_allclose(np.exp(after.log_r)[:3], 0.7 * np.exp(log_r[:3]) / expected + 0.3)
    assert np.isnan(after.log_r[3])
    only_where_zero = with_prior(steps(log_r), mean, 0.01, defends=False).log_r
    np.testing.assert_allclose(np.exp(only_where_zero)[:3], [np.exp(1.0) / expected, 0.01, np.exp(-3.0) / expected])
    assert np.isnan(only_where_zero[3])
    nothing = jnp.full(4, -jnp.inf)
    np.testing.assert_allclose(
        with_prior(steps(nothing), log_mean(before, nothing), 0.3, defends=False).log_r, np.log(0.3)
    )


def test_moves_go_with_their_twist():
    """Where a share of the twist is the prior's, so many steps are the reverse step."""
    p = dist.Bernoulli(logits=jnp.zeros((3, 1))).to_event(1)
    move = jax.vmap(lambda p: BernoulliMove(p, jnp.ones(1), jnp.zeros(1), 0.1))(p)
    log_r = jnp.array([0.0, -30.0, 2.0])
    after = with_prior(Step(log_r, move), jnp.asarray(0.5), 0.3, defends=True)
    of_prior = 0.3 / (0.7 * np.exp(log_r - 0.5) + 0.3)
    np.testing.assert_allclose(after.move.defence, 1 - 0.9 * (1 - of_prior))
    assert after.move.defence[1] > 0.999
