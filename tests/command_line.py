"""The command line as a function, and programs in text that its tests fit."""

from typer.testing import CliRunner

from dpm_ppl.__main__ import app


def dpm(*args):
    """Runs the command in this process: warnings are errors here too."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


# The exact reverse of a Gaussian's diffusion, with a parameter that never moves: every number of it is known.
GAUSSIAN = '''"""Two Gaussians, and the exact reverse of their diffusion."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
import dpm_ppl as dpm

MEAN, SCALE = np.array([1.0, -0.5]), np.array([0.5, 1.3])
BETA = dpm.schedules.linear(6, first=0.05, last=0.6)
recipe = {"num_iterations": 30, "batch_size": 16, "num_steps_sampled": 3, "optimizer": optax.sgd(0.0)}

def data():
    return dist.Normal(jnp.asarray(MEAN), jnp.asarray(SCALE)).to_event(1)

def diffusion():
    kernel = dpm.GaussianKernel(BETA, (2,))
    offset = numpyro.param("offset", jnp.zeros(2))
    signal = jnp.asarray(np.append(1, np.cumprod(1 - BETA)))
    def reverse(x, t):
        keep = 1 - jnp.asarray(BETA)[t - 1][..., None]
        before, after = signal[t - 1][..., None], signal[t][..., None]
        variance_before, variance_after = (s * SCALE**2 + 1 - s for s in (before, after))
        gain = jnp.sqrt(keep) * variance_before / variance_after
        mean = jnp.sqrt(before) * MEAN + gain * (x - jnp.sqrt(after) * MEAN) + offset
        return dist.Normal(mean, jnp.sqrt(variance_before - gain**2 * variance_after)).to_event(1)
    return dpm.Diffusion(kernel, reverse)

def model(x0=None, size=1):
    chain = diffusion()
    with numpyro.plate("data", size if x0 is None else len(x0)):
        return dpm.reverse_chain("x", chain, obs=x0)

def guide(x0):
    chain = diffusion()
    with numpyro.plate("data", len(x0)):
        dpm.forward_chain("x", chain, x0)
'''


# x = GAIN z + OFFSET + NOISE e, and a guide that is not the posterior: everything of it is a normal.
LATENT = '''"""A latent variable."""
import jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax

recipe = {"num_iterations": 5, "batch_size": 16, "optimizer": optax.sgd(0.0)}
data = dist.Normal(jnp.array([0.7, -0.2]), jnp.array([1.5, 0.4])).to_event(1)

def model(x0=None, size=1):
    gain = numpyro.param("gain", jnp.array([1.2, -0.3]))
    noise = numpyro.param("noise", jnp.array([0.8, 0.5]), constraint=dist.constraints.positive)
    with numpyro.plate("data", size if x0 is None else len(x0)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        return numpyro.sample("x", dist.Normal(gain * z[:, None] + 0.5, noise).to_event(1), obs=x0)

def guide(x0):
    slope = numpyro.param("slope", jnp.array(0.4))
    with numpyro.plate("data", len(x0)):
        numpyro.sample("z", dist.Normal(slope * x0[:, 0], 0.7))
'''


GAN = '''"""Real or generated."""
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist

recipe = {"num_iterations": 5, "batch_size": 16}
data = dist.Normal(jnp.array([0.7, -0.2]), jnp.array([1.5, 0.4])).to_event(1)

def model(x0=None, size=1):
    shift, slope = (numpyro.param(name, jnp.full(2, start)) for name, start in (("shift", 0.3), ("slope", 0.2)))
    with numpyro.plate("data", size if x0 is None else len(x0)):
        x = shift + numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        if x0 is None:
            return x
        numpyro.sample("is_real", dist.Bernoulli(logits=x0 @ slope), obs=jnp.ones(len(x0)))
        numpyro.sample("is_generated", dist.Bernoulli(logits=-x @ slope), obs=jnp.ones(len(x0)))
        return x0

def guide(x0):
    with numpyro.plate("data", len(x0)):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
'''
