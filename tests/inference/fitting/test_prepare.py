"""From a program and its data to stock SVI."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import log_density

import dpm_ppl as dpm
from tests.inference.fitting.test_fits import BETA, DATA, cosine, diffusion, small


def test_a_full_plate_sees_the_indices_of_its_batch():
    def with_offsets(x0):
        offset = numpyro.param("offset", jnp.zeros(64))
        chain = diffusion()
        with numpyro.plate("data", 64, subsample_size=len(x0)) as indices:
            numpyro.sample("y", dist.Normal(offset[indices], 1), obs=x0[:, 0])
            dpm.reverse_chain("x", chain, obs=x0)

    def plain(x0):
        chain = diffusion()
        with numpyro.plate("data", 64, subsample_size=len(x0)):
            dpm.forward_chain("x", chain, x0)

    for batch_size in (16, 64):
        result = small(
            model=with_offsets, guide=plain, num_iterations=1500, batch_size=batch_size, optimizer=cosine(1500, 0.1)
        )
        np.testing.assert_allclose(result.params["offset"], DATA[:, 0], atol=0.1)


def test_bits_fit_without_a_warning_and_other_discrete_latents_with_numpyro_s():
    def definition():
        kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(4), (3,), rate=0.3)
        logits = numpyro.param("logits", jnp.zeros((3, 3)))
        return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.residual_bernoulli(kernel, x, t, logits[t - 2]))

    bits_model, bits_guide = dpm.single_chain(definition)

    def coin(program):
        def tossed(x0):
            numpyro.sample("coin", dist.Bernoulli(0.4))
            program(x0)

        return tossed

    bits = (np.random.default_rng(0).uniform(size=(40, 3)) < [0.2, 0.5, 0.9]).astype(int)
    result = small(model=bits_model, guide=bits_guide, data=bits, num_iterations=50)
    assert result.losses[-10:].mean() < result.losses[:10].mean()
    with pytest.warns(UserWarning, match="discrete latent"):
        small(model=coin(bits_model), guide=coin(bits_guide), data=bits, num_iterations=1)
    with pytest.raises(ValueError, match="support"):
        small(model=bits_model, guide=bits_guide, data=np.where(np.arange(40)[:, None] == 39, 2, bits), batch_size=2)


def test_a_plate_of_another_size_than_the_data():
    def wrong(x0):
        chain = diffusion()
        with numpyro.plate("data", 100, subsample_size=len(x0)):
            dpm.reverse_chain("x", chain, obs=x0)

    with pytest.raises(ValueError, match="plate 'data'.* full size 64 of the data; got 100"):
        small(model=wrong)


def test_a_program_without_parameters():
    kernel = dpm.GaussianKernel(BETA, (1,))
    model, guide = dpm.single_chain(lambda: dpm.Diffusion(kernel, kernel.step))
    with pytest.raises(ValueError, match="a program with parameters to fit"):
        small(model=model, guide=guide)


def test_an_optimizer_with_a_line_search():
    with pytest.raises(ValueError, match="by the gradient alone; .*'grad' and 'value_fn'.*such as optax.adam"):
        small(optimizer=optax.lbfgs())


class Weighted(ELBO):
    """An importance-weighted bound by hand, of the batch or of each particle's sum."""

    def loss(self, rng_key, param_map, model, guide, *args):
        def log_weight(key):
            keys = jax.random.split(key)
            log_q, drawn = log_density(handlers.seed(guide, keys[0]), args, {}, param_map)
            replayed = handlers.replay(handlers.seed(model, keys[1]), trace=drawn)
            return log_density(replayed, args, {}, param_map)[0] - log_q

        log_weights = jax.vmap(log_weight)(jax.random.split(rng_key, self.num_particles))
        return -(jax.nn.logsumexp(log_weights) - jnp.log(self.num_particles))


class Regularised(Trace_ELBO):
    """A sum over terms, and what has none of them."""

    def loss(self, rng_key, param_map, *args):
        return 0.5 * super().loss(rng_key, param_map, *args) + 30.0 * jnp.sum(param_map["shift"] ** 2 + 1)


@pytest.mark.parametrize("num_steps_sampled", [2, None])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_loss_that_is_no_sum_over_terms(num_steps_sampled, batch_size):
    """Of terms of the bound it makes a number that looks the better the more particles it takes."""
    options = {"num_iterations": 2, "num_steps_sampled": num_steps_sampled, "batch_size": batch_size}
    with pytest.raises(ValueError, match="`loss` that is a sum over terms; got Weighted.* weights of whole traj.*SVI"):
        small(loss=Weighted(num_particles=2), **options)
    for loss in (Weighted(num_particles=1), Regularised(), Trace_ELBO(num_particles=2)):
        assert np.isfinite(small(loss=loss, **options).losses).all()


def test_a_program_without_a_chain_may_be_weighted():
    def model(x0):
        with numpyro.plate("data", len(x0)):
            z = numpyro.sample("z", dist.Normal(numpyro.param("mean", jnp.zeros(())), 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=x0[:, 0])

    def guide(x0):
        with numpyro.plate("data", len(x0)):
            numpyro.sample("z", dist.Normal(0.5 * x0[:, 0], 1))

    assert np.isfinite(small(model=model, guide=guide, loss=Weighted(num_particles=3), num_iterations=2).losses).all()


def test_a_chain_as_prior_fits_without_a_warning():
    """Of the order of its sites, which can't be another; any other order is NumPyro's to warn of, as ever."""
    y = np.array([[0.4], [-1.1], [2.0]])

    def model(y, *others):
        with numpyro.plate("data", len(y)):
            for name in others:
                numpyro.sample(name, dist.Normal(0.0, 1.0))
            z = dpm.reverse_chain("z", diffusion())
            numpyro.sample("y", dist.Normal(z, 0.3).to_event(1), obs=y)

    def guide(y, *others):
        with numpyro.plate("data", len(y)):
            for name in reversed(others):
                numpyro.sample(name, dist.Normal(0.1, 1.0))
            dpm.forward_chain("z", diffusion(), numpyro.sample("z", dist.Normal(y, 0.5).to_event(1)))

    given = {"model": model, "guide": guide, "data": y, "batch_size": 3, "num_iterations": 1}
    assert np.isfinite(small(**given).losses).all()  # warnings are errors
    with pytest.warns(UserWarning, match="mean field restriction"):
        small(**given, args=("a", "b"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": DATA, "b": DATA}, "the model to take the parts of `data`, by name, a, b; .*An event is one array"),
        ((DATA, DATA, DATA), "the model to take the parts of `data`, one by one, 3 of them; .*An event is one array"),
    ],
)
def test_data_of_other_parts_than_the_program_takes(data, message):
    with pytest.raises(TypeError, match=message):
        small(data=data)
