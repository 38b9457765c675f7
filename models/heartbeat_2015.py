"""Binary heartbeat as in 2015: T = 2000, sigmoid units 20-50-50-50, a readout for every step."""

import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, LENGTH, PERIOD = 2000, 20, 5

recipe = {"num_iterations": 20_000, "batch_size": 256, "num_steps_sampled": 8, "learning_rate": 1e-2}


def data() -> dist.Distribution:
    """A one in every fifth bin, its phase unknown: five sequences, equally likely."""
    return dpm.Heartbeat(length=LENGTH, period=PERIOD)


def diffusion() -> dpm.Diffusion:
    """A shared trunk and a readout per step, whose sigmoid is the rate of every bin."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(NUM_STEPS), event_shape=(LENGTH,), rate=1 / PERIOD)
    net = eqx_module("reverse", dpm.networks.StepMLP(LENGTH, LENGTH, num_steps=NUM_STEPS, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        return dpm.outputs.residual_bernoulli(kernel, x, t, net(x.astype(float), t))

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
