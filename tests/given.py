"""A program of a context in text, with the exact reverse of its data: every number of it is known."""

import numpy as np

# x0 | c is normal with mean (c0, -2 c1) + SHIFT and deviations SCALE; contexts are normal, and 0.4 on average.
GIVEN = '''"""Normal data around what is given beside them, and the exact reverse of their diffusion."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
import dpm_ppl as dpm

SHIFT, SCALE, BETA = np.array([0.7, -0.3]), np.array([0.5, 1.2]), np.linspace(0.1, 0.6, 5)
recipe = {"num_iterations": 20, "batch_size": 16, "num_steps_sampled": 3, "optimizer": optax.sgd(0.0)}

def data():
    c = np.random.default_rng(0).normal(0.4, 1.0, size=(400, 2))
    return {"c": c, "x0": dist.Normal(jnp.asarray(c * [1, -2] + SHIFT), jnp.asarray(SCALE)).to_event(1)}

def diffusion(c):
    kernel = dpm.GaussianKernel(BETA, (2,))
    offset = numpyro.param("offset", jnp.zeros(2))
    signal = np.append(1, np.cumprod(1 - BETA))[:, None]
    variance = signal * SCALE**2 + 1 - signal
    gain = np.sqrt(1 - BETA[:, None]) * variance[:-1] / variance[1:]
    pull = np.sqrt(signal[:-1]) - gain * np.sqrt(signal[1:])
    gain, pull, scale = (jnp.asarray(a) for a in (gain, pull, np.sqrt(variance[:-1] - gain**2 * variance[1:])))
    def reverse(x, t, c):
        mean = c * jnp.array([1.0, -2.0]) + SHIFT + offset
        return dist.Normal(gain[t - 1] * x + pull[t - 1] * mean, scale[t - 1]).to_event(1)
    return dpm.Diffusion(kernel, reverse, lambda x, c: reverse(x, jnp.array(1), c), context=c)

def model(c, x0=None):
    with numpyro.plate("data", len(c)):
        return dpm.reverse_chain("x", diffusion(c), obs=x0)

def guide(c, x0):
    with numpyro.plate("data", len(c)):
        dpm.forward_chain("x", diffusion(c), x0)
'''
SHIFT, SCALE, BETA = np.array([0.7, -0.3]), np.array([0.5, 1.2]), np.linspace(0.1, 0.6, 5)
