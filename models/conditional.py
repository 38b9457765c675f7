"""Points given a label, p(x|y): one chain whose context is the label, and class posteriors p(y|x) by Bayes' rule.

Source: Ho and Salimans 2022, section 2 for label-conditional diffusion; Li et al. 2023 for classifying by likelihoods.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, PROBS = 30, (0.5, 0.3, 0.2)
SPOTS = (((-1.3, 0.4), (0.3, 1.2)), ((0.2, -1.2), (1.4, 0.5)), ((-0.5, -0.3), (0.4, 0.1)))  # two in each class
recipe = {"num_iterations": 4_000, "batch_size": 256, "num_steps_sampled": 8}


def data() -> dict[str, Any]:
    """20,000 labels, and a point for each: one of the two spots of its class, the first in 60%."""
    label = dist.Categorical(jnp.array(PROBS)).sample(jax.random.key(0), (20_000,))
    spots = dist.Normal(jnp.array(SPOTS)[label], 0.35).to_event(1)
    return {"label": label, "x0": dist.MixtureSameFamily(dist.Categorical(jnp.array([0.6, 0.4])), spots)}


def diffusion(label: Array) -> dpm.Diffusion:
    """The network sees the label of each point beside it; for `dpm_ppl.inference.class_log_probs`, any label."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-3), event_shape=(2,))
    size = 2 + len(PROBS)
    net = dpm.networks.TimeMLP(size, 4, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key())
    net = eqx_module("reverse", net)

    def reverse(x: Array, t: Array, label: Array) -> dist.Distribution:
        seen = jnp.concatenate([x, jax.nn.one_hot(label, len(PROBS), dtype=x.dtype)], -1)
        mean, variance = jnp.split(net(seen, t), 2, -1)
        return dpm.outputs.residual_normal(kernel, x, t, mean, variance)

    return dpm.Diffusion(kernel, reverse, context=label)


def model(label: Array, x0: Array | None = None) -> Array:
    """The reverse chain beside labels of shape (num_data,): generates a point for each, or observes x0."""
    chain = diffusion(label)
    with numpyro.plate("data", len(label)):
        return dpm.reverse_chain("x", chain, obs=x0)


def guide(label: Array, x0: Array) -> None:
    """The forward chain."""
    chain = diffusion(label)
    with numpyro.plate("data", len(label)):
        dpm.forward_chain("x", chain, x0)
