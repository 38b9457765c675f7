"""Simulation-based calibration: with x^0 from the program and y from x^0, x^0's rank in its posterior is uniform.

The nets are not fitted, but random: calibration is of the program's own p(x^0), whatever it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.inference import calibrate, smc


def net(size, num_outputs, num_steps):
    """A perceptron whose last layer is not zero, nor so large that the chain runs away."""
    net = dpm.networks.TimeMLP(size, num_outputs, num_steps=num_steps, width=16, depth=2, key=jax.random.key(1))
    last = net.layers.layers[-1].weight
    noise = 0.3 * jax.random.normal(jax.random.key(2), last.shape)
    return eqx.tree_at(lambda net: net.layers.layers[-1].weight, net, noise)


def parameters(program):
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        program()
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


def calibration(model, statistic, num_particles):
    """Ranks of statistic(x^0), each simulation with its own key."""
    params = parameters(model)
    run = smc(model, "x", params=params, num_particles=num_particles)

    def posterior(key, y):
        key, draw_key = jax.random.split(key)
        found = run(key, y)
        return jnp.where(found.num_nan.sum() == 0, found.resample(draw_key, 19), jnp.nan)

    options = {"key": jax.random.key(0), "num_simulations": 200, "params": params}
    return calibrate(model, "x", "y", posterior, quantities=lambda x, y: {"statistic": statistic(x)}, **options)


def test_swiss_roll_posteriors_are_calibrated():
    """The program of `models/swiss_roll.py` in 12 steps, seen through a curved and noisy glass."""

    def model(y=None):
        kernel = dpm.GaussianKernel(dpm.schedules.log_snr(12, first=5.0, last=-5.0), event_shape=(2,))
        module = eqx_module("reverse", net(2, 5, 12))

        def reverse(x, t):
            velocity, scale = jnp.split(module(x, t), [2], axis=-1)
            x0 = dpm.outputs.data_from_velocity(kernel, x, t, velocity)
            return dpm.outputs.full_normal(kernel, x, t, x0, 0.3 * scale)

        x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse))
        numpyro.sample("y", dist.Normal(jnp.sin(x[0]) + 0.5 * x[1] ** 2, 0.4), obs=y)

    assert calibration(model, lambda x: x[0] - 0.3 * x[1], 300).p_value > 0.01


def test_heartbeat_posteriors_are_calibrated():
    """The program of `models/heartbeat.py` in 6 steps, every bin flipped with probability 0.2."""

    def model(y=None):
        kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(6), event_shape=(20,), rate=0.2)
        module = eqx_module("reverse", net(20, 20, 6))

        def reverse(x, t):
            return dpm.outputs.data_bernoulli(kernel, x, t, module(x.astype(float), t))

        x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse))
        numpyro.sample("y", dist.Bernoulli(0.2 + 0.6 * x).to_event(1), obs=y)

    assert calibration(model, lambda x: jnp.sum(x * (jnp.arange(20) % 3)), 300).p_value > 0.01
