"""Swiss roll by a variational diffusion model: a learned log-SNR of fixed ends, at 1000 steps nearly continuous time.

A hierarchical VAE under three restrictions: latents have the data's dimension; steps of the encoder are fixed linear
Gaussians; the last latent is standard normal, nearly. `dpm_ppl.inference.bound` takes its bound apart: reconstruction,
prior matching, diffusion. As T grows all depend on the log-SNR's ends alone: the curve between may lower the variance.

Source: Kingma, Salimans, Poole and Ho 2021, "Variational Diffusion Models"; the restrictions as in Luo 2022, section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.lax import stop_gradient
from numpyro.contrib.module import eqx_module
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm

NUM_STEPS, FIRST, LAST = 1000, 10.5, -7.0


class LowVarianceELBO(TraceMeanField_ELBO):
    """-ELBO, except that the gradient of `log_snr` is that of half its log variance, estimated over a batch."""

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict[str, Any], model: Any, guide: Any, batch: Any, *args: Any
    ) -> dict[str, Any]:
        """The loss, every datum of the batch taken by itself."""

        def of_datum(params: dict[str, Any], key: Array, datum: Any) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], datum)
            return TraceMeanField_ELBO().loss(key, params, model, guide, alone, *args)

        keys = jax.random.split(rng_key, len(jax.tree.leaves(batch)[0]))
        losses = jax.vmap(of_datum, (None, 0, 0))
        elbo = losses({**param_map, "log_snr": stop_gradient(param_map["log_snr"])}, keys, batch)
        same = losses({**stop_gradient(param_map), "log_snr": param_map["log_snr"]}, keys, batch)
        spread = 0.5 * len(keys) * jnp.log(jnp.mean((same - jnp.mean(stop_gradient(same))) ** 2))
        return {"loss": jnp.sum(elbo) + spread - stop_gradient(spread), "mutable_state": None}


recipe = {"num_iterations": 8_000, "batch_size": 256, "num_steps_sampled": 4, "loss": LowVarianceELBO()}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


def diffusion() -> dpm.Diffusion:
    """Reverse steps are the posterior at the data that a network predicts from x^t and its log-SNR."""
    beta = dpm.schedules.learned_log_snr("log_snr", NUM_STEPS, first=FIRST, last=LAST)
    kernel = dpm.GaussianKernel(beta, event_shape=(2,))
    level = (FIRST - jnp.log(kernel.alpha_bar[1:] / kernel.one_minus_alpha_bar[1:])) / (FIRST - LAST)  # 0 to 1
    net = eqx_module("reverse", dpm.networks.TimeMLP(2, 2, num_steps=1, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        x0 = dpm.outputs.data_from_velocity(kernel, x, t, net(x, level[t - 1]))
        return dpm.outputs.data_normal(kernel, x, t, x0)

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
