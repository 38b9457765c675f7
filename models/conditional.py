"""Points with a label, p(y) p(x|y): one chain per class, sharing a network, and class posteriors p(y|x) by Bayes' rule.

Source: Ho and Salimans 2022, section 2 for label-conditional diffusion; Li et al. 2023 for classifying by likelihoods.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, NUM_CLASSES = 30, 3
SPOTS = (((-1.3, 0.4), (0.3, 1.2)), ((0.2, -1.2), (1.4, 0.5)), ((-0.5, -0.3), (0.4, 0.1)))  # two in each class
recipe = {"num_iterations": 4_000, "batch_size": 256, "num_steps_sampled": 8}


def data() -> Array:
    """20,000 points with their labels, rows (x, x', label): classes of 50%, 30% and 20%, two spots in each."""
    label_key, spot_key, key = jax.random.split(jax.random.key(0), 3)
    label = dist.Categorical(jnp.array([0.5, 0.3, 0.2])).sample(label_key, (20_000,))
    x = dist.Normal(jnp.array(SPOTS)[label, dist.Bernoulli(0.4).sample(spot_key, label.shape)], 0.35).sample(key)
    return jnp.concatenate([x, label[:, None]], -1)


def chains() -> list[dpm.Diffusion]:
    """A diffusion for each class; the network sees the class beside the point."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-3), event_shape=(2,))
    net = dpm.networks.TimeMLP(2 + NUM_CLASSES, 4, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key())
    net = eqx_module("reverse", net)

    def reverse(label: int, x: Array, t: Array) -> dist.Distribution:
        seen = jnp.broadcast_to(jnp.eye(NUM_CLASSES, dtype=x.dtype)[label], (*x.shape[:-1], NUM_CLASSES))
        mean, variance = jnp.split(net(jnp.concatenate([x, seen], -1), t), 2, -1)
        return dpm.outputs.residual_normal(kernel, x, t, mean, variance)

    return [dpm.Diffusion(kernel, partial(reverse, label)) for label in range(NUM_CLASSES)]


def of_class(label: int) -> dpm.Diffusion:
    """The diffusion of one class: `dpm_ppl.inference.class_log_probs` takes `partial(of_class, y)` for each y."""
    return chains()[label]


def model(x0: Array | None = None, size: int = 1) -> Array:
    """Label, then the chain of its class: x0 of shape (num_data, 3), or (num_data, 2) where labels are latent."""
    x, label = (None, None) if x0 is None else (x0[:, :2], x0[:, 2].astype(int) if x0.shape[1] == 3 else None)
    each, probs = chains(), numpyro.param("probs", jnp.full(3, 1 / 3), constraint=dist.constraints.simplex)
    with numpyro.plate("data", size if x0 is None else len(x0)):
        label = numpyro.sample("label", dist.Categorical(probs), obs=label)
        drawn = []
        for number, chain in enumerate(each):
            with handlers.mask(mask=label == number):  # of the chains one counts
                drawn.append(dpm.reverse_chain(f"x{number}", chain, obs=x))
    own = jnp.take_along_axis(jnp.stack(drawn), label[None, :, None], 0)[0]
    return jnp.concatenate([own, label[:, None]], -1)


def guide(x0: Array) -> None:
    """The forward chains; a latent label is drawn evenly, for importance weights."""
    x, label = x0[:, :2], x0[:, 2].astype(int) if x0.shape[1] == 3 else None
    each = chains()
    with numpyro.plate("data", len(x0)):
        if label is None:
            label = numpyro.sample("label", dist.Categorical(jnp.full(NUM_CLASSES, 1 / NUM_CLASSES)))
        for number, chain in enumerate(each):
            with handlers.mask(mask=label == number):
                dpm.forward_chain(f"x{number}", chain, x)
