"""Parameters of a simulator given what it makes: a chain over them whose context is the observation (amortised).

The two moons of the benchmark of Lueckmann et al. 2021, whose posterior is known: two crescents. One fit serves every
observation: `dpm sample DIR --context FILE.npz` draws of its posterior.

Source: Lueckmann, Boelts, Greenberg, Goncalves and Macke 2021, task T.8; Geffner et al. 2023 for diffusions there.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, NUM_SIMULATIONS = 40, 10_000
recipe = {"num_iterations": 30_000, "batch_size": 256, "num_steps_sampled": 8}


def crescent(key: Array, num: int) -> Array:
    """The simulator's noise, shape (num, 2): half a ring of radius 0.1 and width 0.01."""
    angle, radius = (
        (jax.random.uniform(key, (num,)) - 0.5) * jnp.pi,
        jax.random.normal(jax.random.fold_in(key, 1), (num,)),
    )
    radius = 0.1 + 0.01 * radius
    return jnp.stack([radius * jnp.cos(angle) + 0.25, radius * jnp.sin(angle)], -1)


def simulator(theta: Array, key: Array) -> Array:
    """An observation for each theta, shape (num, 2)."""
    first, second = theta[:, 0], theta[:, 1]
    return crescent(key, len(theta)) + jnp.stack([-jnp.abs(first + second), second - first], -1) / jnp.sqrt(2.0)


def data() -> dict[str, Array]:
    """Parameters of the prior, uniform on -1..1, and what the simulator makes of each."""
    keys = jax.random.split(jax.random.key(0))
    theta = jax.random.uniform(keys[0], (NUM_SIMULATIONS, 2), minval=-1, maxval=1)
    return {"x": simulator(theta, keys[1]), "theta": theta}


def diffusion(x: Array) -> dpm.Diffusion:
    """A chain over theta, of shape (2,), that sees the observation beside it."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-5), event_shape=(2,))
    net = eqx_module("reverse", dpm.networks.TimeMLP(4, 5, num_steps=NUM_STEPS, key=numpyro.prng_key()))

    def reverse(theta: Array, t: Array, x: Array) -> dist.Distribution:
        velocity, scale = jnp.split(net(jnp.concatenate([theta, x], -1), t), [2], -1)
        theta0 = dpm.outputs.data_from_velocity(kernel, theta, t, velocity)
        return dpm.outputs.full_normal(kernel, theta, t, theta0, scale)

    return dpm.Diffusion(kernel, reverse, context=x)


def model(x: Array, theta: Array | None = None) -> Array:
    """The reverse chain beside observations of shape (num, 2): draws theta of each posterior, or observes it."""
    chain = diffusion(x)
    with numpyro.plate("data", len(x)):
        return dpm.reverse_chain("theta", chain, obs=theta)


def guide(x: Array, theta: Array) -> None:
    """The forward chain."""
    chain = diffusion(x)
    with numpyro.plate("data", len(x)):
        dpm.forward_chain("theta", chain, theta)


def posterior(x: Array, key: Array, num: int) -> Array:
    """Exact draws of theta given one observation x, shape (at most num, 2): `num` tried, those that can be kept."""
    noise = crescent(key, num) - x
    sign = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 2), shape=(num,)), 1, -1)
    total, difference = sign * noise[:, 0], -noise[:, 1]  # (theta' + theta, theta' - theta) / sqrt(2)
    theta = jnp.stack([total - difference, total + difference], -1) / jnp.sqrt(2.0)
    return theta[(noise[:, 0] >= 0) & (jnp.abs(theta) <= 1).all(-1)]
