"""Discrete data in a list: the bound that the best factorised reverse steps reach, by sums over every state."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

import dpm_ppl as dpm


def forward(x, pi, kept):
    """P(state | x) of each coordinate, kept with a probability and redrawn from pi otherwise, shape (*x.shape, K)."""
    return kept * np.eye(len(pi))[x] + (1 - kept) * pi


def best_elbos(data, weights, pi, num_steps):
    """ELBO of each datum in nats under the true P(x^0_i | x^t), beta_t = 1 / (T - t + 1), p(x^0|x^1) included.

    Plain sums in probabilities, over all K^L states of x^t, shape (num_data,).
    """
    data, weights, pi, num_states = np.asarray(data), np.asarray(weights), np.asarray(pi), len(pi)
    states, place = np.array(list(product(range(num_states), repeat=data.shape[1]))), np.arange(data.shape[1])
    letters = np.eye(num_states)[data]  # (data, L, K)
    elbos = np.zeros(len(data))
    for t in range(1, num_steps + 1):
        now, before, keep = 1 - t / num_steps, 1 - (t - 1) / num_steps, 1 - 1 / (num_steps - t + 1)
        reached = np.prod(forward(data, pi, now)[:, place, states], -1)  # (data, states)
        possible = weights @ reached > 0
        xt, likely = states[possible], reached[:, possible]
        true = (weights[:, None] * likely / (weights @ likely)).T  # P(x^0 | x^t), (states, data)
        # q(x^(t-1) | x^t, x^0) of each coordinate, (x^0, x^t, x^(t-1)); 0 where x^0 cannot lead to x^t
        joint = forward(np.arange(num_states), pi, before)[:, None] * forward(np.arange(num_states), pi, keep).T
        total = joint.sum(-1, keepdims=True)
        posterior = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
        given = posterior[:, xt]  # (x^0, states, L, x^(t-1))
        p = np.einsum("sd,dik,ksij->sij", true, letters, given)
        for d, x0 in enumerate(data):
            led = likely[d] > 0  # to the others x0 does not lead
            q = given[x0[place], :, place].swapaxes(0, 1)[led]
            divergence = (q * (np.log(np.where(q > 0, q, 1)) - np.log(np.where(q > 0, p[led], 1)))).sum((1, 2))
            elbos[d] -= likely[d, led] @ divergence  # at t = 1, q being certain, it is -log p(x^0|x^1)
    return elbos


def best_diffusion(data, weights, kernel):
    """The same reverse steps as a program: the true P(x^0_i | x^t) through the posterior."""
    data, log_weight = jnp.asarray(data), jnp.log(jnp.asarray(weights))
    letters = jax.nn.one_hot(data, kernel.num_states)

    def reverse(x, t):
        t = jnp.asarray(t)
        likely = kernel.marginal(data, t[..., None]).log_prob(x[..., None, :])
        true = jax.nn.softmax(log_weight + likely)
        return dpm.outputs.data_categorical(
            kernel, x, t, jnp.log(jnp.einsum("...d,dik->...ik", true, letters) + 1e-300)
        )

    return dpm.Diffusion(kernel, reverse, decode=lambda x1: reverse(x1, 1))
