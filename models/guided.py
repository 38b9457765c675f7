"""Classifier-free guidance: the usual heuristic, and what it stands for, p(x|y) p(y|x)^w, exactly.

One network is the chain of each class and, where the label is dropped, of all points. The heuristic moves every reverse
step of a class further away from that of all; what it draws has no density that is known, and is not what it stands
for. As a reweighting of the chain, by `dpm_ppl.inference.smc`, it is.

Source: Ho and Salimans 2022; Bradley and Nakkiran 2024 for the bias.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, PROBS, DROPPED = 40, (0.5, 0.3, 0.2), 0.15
CENTRES, SCALES = ((-1.1, 0.5), (0.4, -0.9), (1.2, 0.8)), ((0.7, 0.9), (0.8, 0.5), (0.5, 0.7))  # normal classes
UNKNOWN = len(PROBS)  # the label of a point whose label is dropped
recipe = {"num_iterations": 4_000, "batch_size": 256, "num_steps_sampled": 8}


def data() -> dict[str, Array]:
    """20,000 points of three normal classes that overlap, and their labels, of which 15% are dropped."""
    keys = jax.random.split(jax.random.key(0), 3)
    label = dist.Categorical(jnp.array(PROBS)).sample(keys[0], (20_000,))
    x0 = dist.Normal(jnp.array(CENTRES)[label], jnp.array(SCALES)[label]).sample(keys[1])
    dropped = dist.Bernoulli(DROPPED).sample(keys[2], label.shape)
    return {"label": jnp.where(dropped == 1, UNKNOWN, label), "x0": x0}


def diffusion(label: Array, strength: float = 0.0) -> dpm.Diffusion:
    """The chain of a label, or of `UNKNOWN`; with a strength, what guidance does to its steps."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-3), event_shape=(2,))
    net = dpm.networks.TimeMLP(2 + len(PROBS), 4, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key())
    net = eqx_module("reverse", net)

    def output(x: Array, t: Array, label: Array) -> Array:
        return net(jnp.concatenate([x, jax.nn.one_hot(label, len(PROBS), dtype=x.dtype)], -1), t)

    def reverse(x: Array, t: Array, label: Array) -> dist.Distribution:
        velocity, log_scale = jnp.split(output(x, t, label), 2, -1)
        if strength:
            velocity += strength * (velocity - output(x, t, jnp.full_like(label, UNKNOWN))[..., :2])
        x0 = dpm.outputs.data_from_velocity(kernel, x, t, velocity)
        variance = kernel.beta[t - 1][..., None] * jnp.exp(2 * log_scale)
        return dpm.outputs.data_normal(kernel, x, t, x0, variance=variance)

    return dpm.Diffusion(kernel, reverse, context=label)


model, guide = dpm.single_chain(diffusion)


def log_classes(x: Array) -> Array:
    """Log p(y|x) of the data, here known, shape (*batch, 3): elsewhere that of a classifier."""
    log_prob = dist.Normal(jnp.array(CENTRES), jnp.array(SCALES)).to_event(1).log_prob(x[..., None, :])
    return jax.nn.log_softmax(log_prob + jnp.log(jnp.array(PROBS)), -1)


def guided(label: Array, strength: float) -> None:
    """p(x|label) p(label|x)^strength of one point, for `dpm_ppl.inference.smc`; the label is one of the classes."""
    x = dpm.reverse_chain("x", diffusion(label))
    numpyro.factor("guidance", strength * log_classes(x)[..., label])
