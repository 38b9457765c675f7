"""What a posterior says of its particles, and where it says that they failed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.inference import Posterior
from tests.oracles import worst

SAMPLES = np.array([[[0.5], [-1.0]], [[2.0], [0.3]], [[-0.7], [1.1]]])  # three of shape (2, 1)
LOG_WEIGHT = np.log([0.5, 0.2, 0.3]) + 4.0


def posterior(**changes):
    fields = {
        "samples": SAMPLES,
        "log_weight": LOG_WEIGHT,
        "log_evidence": -1.5,
        "log_evidence_se": 0.25,
        "latents": {},
        "ess": [2.0, 1.5, 3.0],
        "tail": np.zeros((3, 2)),
        "num_ancestors": [2, 3, 3],
        "num_nan": [0, 0, 0],
        "resampled": [False, True, False],
    }
    return Posterior(**jax.tree.map(jnp.asarray, fields | changes, is_leaf=lambda leaf: isinstance(leaf, list)))


def test_moments_are_weighted():
    p, flat, share = posterior(), SAMPLES[..., 0], np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(p.mean()[:, 0], share @ flat, rtol=1e-12)
    np.testing.assert_allclose(p.covariance(), np.cov(flat.T, aweights=share, ddof=0), rtol=1e-12)
    assert p.num_particles == 3


def test_a_batch_is_taken_one_by_one():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), posterior())
    for ask in (lambda p: p.resample(jax.random.key(0), 2), lambda p: p.mean(), lambda p: p.covariance()):
        with pytest.raises(ValueError, match=r"got a batch of \(2,\). Take one.*jax.vmap"):
            ask(batch)
    with pytest.raises(ValueError, match="got a batch"):
        batch.summary()
    np.testing.assert_allclose(jax.vmap(lambda p: p.mean())(batch)[1], posterior().mean() + 1, rtol=1e-12)


def test_the_share_of_moves_that_were_taken_is_printed():
    moved = replace(posterior(), acceptance={"last": jnp.asarray(0.4), "paths": jnp.asarray(0.07)})
    assert "2 ancestors; 40% of moves taken (last); 7% of moves taken (paths)\n" in repr(moved)
    assert "moves" not in repr(posterior())


def test_draws_come_in_proportion_to_the_weights():
    draws = posterior().resample(jax.random.key(0), 20_000)
    which = (draws[:, None, 0, 0] == SAMPLES[:, 0, 0]).astype(float)
    assert worst(which, np.array([0.5, 0.2, 0.3])) < 3
    with pytest.raises(ValueError, match="Expected `num` to be at least 1; got 0"):
        posterior().resample(jax.random.key(0), 0)


def test_the_step_at_which_all_weights_are_zero_is_named():
    posterior().check()
    with pytest.raises(ValueError, match=r"all weights are zero at t = 1 of 2\. .*tempered\(\)"):
        posterior(ess=[0.0, 0.0, 3.0]).check()
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), posterior(), posterior(ess=[0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="all weights are zero at t = 0 of 2"):
        batch.check()


def test_the_step_at_which_weights_are_nan_is_named():
    with pytest.raises(ValueError, match="2 of 3 particles have NaN at t = 1 of 2.*a log or a root of 0"):
        posterior(num_nan=[3, 2, 0], ess=[0.0, 0.0, 3.0]).check()


def test_the_summary_is_in_nats_and_bits():
    summary = posterior().summary()
    assert summary["log_evidence_nats"] == -1.5
    assert summary["log_evidence_bits"] == pytest.approx(-1.5 / np.log(2))
    assert summary["log_evidence_bits_se"] == pytest.approx(0.25 / np.log(2))
    assert (summary["ess"], summary["least_ess"], summary["num_ancestors"], summary["num_resampled"]) == (2, 1.5, 2, 1)
