"""Weights of trajectories, summed while the chain runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import log_likelihood
from dpm_ppl.inference.likelihoods import weights
from dpm_ppl.inference.likelihoods.weights import _add, _zero, forward_weights
from tests.inference.likelihoods.test_likelihood import KEY, X0, imperfect, normal_chain, run, score


class Spike(dist.Normal):
    """A normal that at scale zero has an infinite density everywhere."""

    def log_prob(self, value, intermediates=None):
        return jnp.where(self.scale == 0, jnp.inf, super().log_prob(value))


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(("law", "value"), [(dist.Normal, math.nan), (dist.Normal, 0.0), (Spike, 0.0)])
def test_nan_and_infinite_weights_name_datum_and_step(at, law, value):
    def step(x, t):  # wrong for large states, from a step onwards
        return law(x, jnp.where((jnp.abs(x) > 50) & jnp.asarray(t >= at)[..., None], value, 1.0)).to_event(1)

    diffusion = normal_chain(5, lambda x, t, _: step(x, t), lambda x: step(x, 1))
    x0 = jnp.concatenate([X0, jnp.array([[0.0, 400.0]]), X0])
    for block_size in (None, 3):
        with pytest.raises(
            ValueError, match=rf"first at step t = {at} of datum 6 \(particle 0\), in log p\(x\^{at - 1}\|"
        ):
            log_likelihood(diffusion, x0, params={}, key=KEY, num_particles=4, block_size=block_size, progress=False)


# Blocks, trajectories, precision.


def test_blocks_do_not_change_the_result(monkeypatch):
    whole = run(imperfect(), X0, 50)
    shrunk = monkeypatch.context
    for block_size in (7, 64):
        result = run(imperfect(), X0, 50, block_size=block_size)
        np.testing.assert_allclose(result.log_weight, whole.log_weight, rtol=1e-10)
        np.testing.assert_allclose(result.reverse_cross_entropy, whole.reverse_cross_entropy, rtol=1e-10)
    np.testing.assert_allclose(run(imperfect(), X0[:4], 20).log_weight[:, :1], whole.log_weight[:20, :1], rtol=1e-10)
    assert len(np.unique(whole.log_weight)) == 300  # no draw is used twice
    with shrunk() as patch:  # too large for memory is split
        patch.setattr(weights, "_MEMORY", 20_000)
        sizes = []
        call = weights.tqdm
        patch.setattr(weights, "tqdm", lambda **options: sizes.append(options["total"]) or call(**options))
        split = weights._split
        patch.setattr(weights, "_split", lambda num, size, devices: sizes.append(size) or split(num, size, devices))
        np.testing.assert_allclose(run(imperfect(), X0, 50).log_weight, whole.log_weight, rtol=1e-10)
        assert sizes[-2] < 300


def test_float32_at_ten_thousand_steps():
    def diffusion():
        kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(10_000), (2,))
        return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.data_normal(kernel, x, t, jnp.tanh(2 * x)))

    with jax.enable_x64(False):
        x0 = np.asarray(X0, np.float32)
        options = {"params": {}, "key": jax.random.key(1), "num_particles": 4, "progress": False}
        result = log_likelihood(diffusion, x0, num_trajectories=4, **options)
    assert result.trajectories.dtype == np.float32
    assert result.log_weight.dtype == np.float64
    kept, built = result.trajectories.astype(np.float64), diffusion()
    np.testing.assert_allclose(result.log_weight, score(built, kept, x0.astype(np.float64)), rtol=0, atol=1e-2)


def test_summation_is_compensated():
    terms = np.random.default_rng(0).normal(3.0, 5.0, size=(10_000, 20)).astype(np.float32)
    with jax.enable_x64(False):
        total, _ = jax.lax.scan(lambda total, term: (_add(total, term, 1), None), _zero(20), jnp.asarray(terms))
    high, low, bad = map(np.asarray, total)
    exact = terms.astype(np.float64).sum(0)
    assert np.abs(high - exact).max() > 1e-2  # what a plain sum gives
    np.testing.assert_allclose(high.astype(np.float64) + low, exact, rtol=0, atol=1e-4)
    assert not bad.any()


def test_memory_does_not_grow_with_num_steps():
    def memory(num_steps):
        index = np.arange(600, dtype=np.uint32)
        block = forward_weights.lower(normal_chain(num_steps), {}, X0, None, KEY, index, index >= 0, num_data=6)
        return block.compile().memory_analysis().temp_size_in_bytes

    assert memory(2000) < 1.1 * memory(20) + 2 * 8 * 2000  # two numbers a step, whatever the block
