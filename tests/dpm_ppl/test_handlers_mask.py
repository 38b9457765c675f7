"""What masks leave of the loss of chains beside each other: of those masked away, nothing."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import bound
from tests.models.test_conditional import X, normal_diffusion

LABEL = np.array([2, 1, 0, 1, 2])


def chain_of(label):
    """The chain of one class, as a definition without a context; its means are off, so that the terms are there."""
    chain = normal_diffusion(0.1)(jnp.asarray(label))
    one = jnp.full((), label)

    def of(law):
        return lambda x, *t: law.function(x, *t, jnp.broadcast_to(one, x.shape[:-1]))

    return dpm.Diffusion(chain.kernel, of(chain.reverse), of(chain.decode))


def model(x0):
    with numpyro.plate("data", len(x0)):
        for number in range(3):
            with handlers.mask(mask=LABEL == number):
                dpm.reverse_chain(f"x{number}", chain_of(number), obs=x0)


def guide(x0):
    with numpyro.plate("data", len(x0)):
        for number in range(3):
            with handlers.mask(mask=LABEL == number):
                dpm.forward_chain(f"x{number}", chain_of(number), x0)


def test_a_loss_counts_the_own_chain_alone():
    few = [dpm.subsample_steps(program, size=2) for program in (model, guide)]

    @jax.jit
    @jax.vmap
    def elbo(key):
        return -TraceMeanField_ELBO().loss(key, {}, *few, jnp.asarray(X))

    losses = np.asarray(elbo(jax.random.split(jax.random.key(3), 4000)))
    expected, variance = 0.0, losses.var() / len(losses)
    for number in range(3):
        x = X[LABEL == number]
        own = bound(partial(chain_of, number), x, params={}, key=jax.random.key(4), num_samples=1000)
        expected += float(own.elbo.sum())
        variance += float(own.elbo_variance.sum()) / 1000
    assert abs(losses.mean() - expected) < 3.5 * math.sqrt(variance)
    assert math.sqrt(variance) < 0.2
