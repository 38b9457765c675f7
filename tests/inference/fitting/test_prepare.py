"""From a program and its data to stock SVI."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

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
