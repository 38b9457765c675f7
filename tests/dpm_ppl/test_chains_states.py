"""States at chosen times are those of the chains: closed forms of a linear-Gaussian chain and of the kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.chains import forward_states, reverse_states

NUM = 20_000
GAUSSIAN = dpm.GaussianKernel(dpm.schedules.linear(7, first=0.1, last=0.5), (2,))
BERNOULLI = dpm.BernoulliKernel(dpm.schedules.constant_fraction(5), (3,), rate=0.3)
SHIFT = np.array([0.3, -0.1])


def affine_reverse(x, t):
    """p(x^(t-1)|x^t) that differs by step, so that steps taken twice, left out or in the wrong order show."""
    gain = 0.5 + 0.05 * t[..., None]
    return dist.Normal(gain * x + SHIFT * t[..., None], 0.2 + 0.1 * gain).to_event(1)


def reverse_moments(time):
    """Mean and variance of x^time under the affine reverse chain."""
    mean, variance = np.zeros(2), np.ones(2)
    for t in range(GAUSSIAN.num_steps, max(time, 1), -1):
        gain = 0.5 + 0.05 * t
        mean, variance = gain * mean + SHIFT * t, gain**2 * variance + (0.2 + 0.1 * gain) ** 2
    if time == 0:
        keep = float(1 - GAUSSIAN.beta[0])
        mean, variance = np.sqrt(keep) * mean, keep * variance + 1 - keep
    return mean, variance


def assert_moments(x, mean, variance):
    x = np.asarray(x)
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(variance / len(x)))
    assert np.all(np.abs(x.var(0) / variance - 1) < 4 * np.sqrt(2 / len(x)))


@pytest.mark.parametrize("times", [(0,), (1,), (7,), (0, 3, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_reverse_states_have_the_moments_of_the_chain(times):
    diffusion = dpm.Diffusion(GAUSSIAN, affine_reverse)
    draw = jax.jit(lambda key: reverse_states(diffusion, key=key, num_samples=NUM, times=times))
    states = draw(jax.random.key(0))
    assert sorted(states) == sorted(times)
    for time, x in states.items():
        assert_moments(x, *reverse_moments(time))


def test_reverse_states_are_of_one_trajectory():
    diffusion = dpm.Diffusion(GAUSSIAN, affine_reverse)
    states = reverse_states(diffusion, key=jax.random.key(1), num_samples=NUM, times=(3, 4))
    gain = 0.5 + 0.05 * 4
    correlation = np.corrcoef(states[3][:, 0], states[4][:, 0])[0, 1]
    expected = gain * np.sqrt(reverse_moments(4)[1][0] / reverse_moments(3)[1][0])
    assert abs(correlation - expected) < 4 / np.sqrt(NUM)


def test_forward_states_are_the_kernels_marginals():
    x0 = jnp.broadcast_to(jnp.array([2.0, -1.0]), (NUM, 2))
    states = jax.jit(lambda x0: forward_states(_plain(), x0, key=jax.random.key(2), times=(0, 1, 3, 7)))(x0)
    np.testing.assert_array_equal(states[0], x0)
    for t in (1, 3, 7):
        marginal = GAUSSIAN.marginal(x0[0], t)
        assert_moments(states[t], marginal.mean, marginal.variance)


def _plain():
    return dpm.Diffusion(GAUSSIAN, affine_reverse)


@pytest.mark.parametrize("dtype", [int, float, bool])
def test_binary_data_of_any_type_run_forward(dtype):
    x0 = jnp.broadcast_to(jnp.array([1, 0, 0], dtype), (NUM, 3))
    diffusion = dpm.Diffusion(BERNOULLI, BERNOULLI.step)
    states = jax.jit(lambda x0: forward_states(diffusion, x0, key=jax.random.key(3), times=(0, 2, 5)))(x0)
    for t in (2, 5):
        rate = np.asarray(BERNOULLI.marginal(x0[0], t).mean)
        assert np.all(np.abs(np.asarray(states[t]).mean(0) - rate) < 4 * np.sqrt(rate * (1 - rate) / NUM))


def test_samples_need_memory_for_one_state_alone():
    sizes = {}
    for num_steps in (10, 1000):
        kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps), (2,))
        diffusion = dpm.Diffusion(kernel, kernel.step)
        draw = jax.jit(lambda key, d=diffusion: reverse_states(d, key=key, num_samples=500)[0])
        sizes[num_steps] = draw.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes
    assert sizes[1000] - sizes[10] < 500 * 2 * 8 * 10  # far from 990 further states; the rates themselves are there


def test_one_step():
    kernel = dpm.GaussianKernel(np.array([0.4]), (2,))
    diffusion = dpm.Diffusion(kernel, kernel.step)
    states = reverse_states(diffusion, key=jax.random.key(0), num_samples=NUM, times=(0, 1))
    assert_moments(states[0], np.zeros(2), np.ones(2))


@pytest.mark.parametrize("times", [(), (-1,), (0, 8)])
def test_times_out_of_range(times):
    with pytest.raises(ValueError, match=r"Expected times in 0\.\.7"):
        reverse_states(_plain(), key=jax.random.key(0), num_samples=1, times=times)


def test_no_samples():
    with pytest.raises(ValueError, match="Expected `num_samples` to be at least 1; got 0"):
        reverse_states(_plain(), key=jax.random.key(0), num_samples=0)
