"""The heartbeat where its prediction of the data is a constant: Bayes' rule by matrices of two states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from dpm_ppl.models import heartbeat
from dpm_ppl.programs import instantiate
from tests.models.test_swiss_roll import last_layer, start, with_bias

T = 6


def posterior_rates(t):
    """P(x^(t-1) = 1 | x^t, x^0) by (x^0, x^t): the chain of one bit, multiplied out."""
    beta = 1 / np.arange(T, 0, -1)
    step = (1 - beta)[:, None, None] * np.eye(2) + beta[:, None, None] * [0.8, 0.2]  # (from, to)
    before = np.linalg.multi_dot([np.eye(2), *step[: t - 1], np.eye(2)])
    joint = before[:, :, None] * step[t - 1]  # (x^0, x^(t-1), x^t)
    return joint[:, 1] / joint.sum(1)


@pytest.mark.parametrize("scale", [0.0, 1.5], ids=["zero", "constants"])
def test_reverse_steps_of_all_t(scale, monkeypatch):
    """The kernel's posterior averaged over x^0 ~ B(1/2) at zero logits, and over B(sigmoid) at others."""
    monkeypatch.setattr(heartbeat, "NUM_STEPS", T)
    output = scale * np.random.default_rng(0).normal(size=20)
    params = with_bias(start(heartbeat.diffusion), last_layer, output)
    x = np.random.default_rng(1).binomial(1, 0.3, (4, 20))
    reverse = instantiate(heartbeat.diffusion, params).reverse
    states, t = jnp.broadcast_to(x, (T - 1, *x.shape)), jnp.arange(2, T + 1)[:, None]
    found = jax.jit(lambda: reverse(states, t).mean)()
    rates = np.stack([posterior_rates(t) for t in range(2, T + 1)])[:, :, x]  # (t, x^0, row, bit)
    one = expit(output)
    np.testing.assert_allclose(found, one * rates[:, 1] + (1 - one) * rates[:, 0], rtol=1e-10)
