"""Binary heartbeat in 2000 steps: the kernel's posterior averaged over the data that a perceptron predicts."""

import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, LENGTH, PERIOD = 2000, 20, 5

recipe = {"num_iterations": 6_000, "batch_size": 256, "num_steps_sampled": 8}


def data() -> dist.Distribution:
    """A one in every fifth bin, its phase unknown: five sequences, equally likely."""
    return dpm.Heartbeat(length=LENGTH, period=PERIOD)


def diffusion() -> dpm.Diffusion:
    """Reverse steps are factorised; with the true P(x^0 | x^t) they would be the best that factorised steps can be."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(NUM_STEPS), event_shape=(LENGTH,), rate=1 / PERIOD)
    net = eqx_module("reverse", dpm.networks.TimeMLP(LENGTH, LENGTH, num_steps=NUM_STEPS, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        return dpm.outputs.data_bernoulli(kernel, x, t, net(x.astype(float), t))

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
