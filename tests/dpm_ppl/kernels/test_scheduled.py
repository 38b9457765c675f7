"""Rates and the signal that they leave: checked, summed without loss, and learned under continuous states only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

import dpm_ppl as dpm
from dpm_ppl.schedules import constant_fraction, learned, linear, log_snr
from tests.dpm_ppl.kernels.test_kernel import KERNELS, all_steps, categorical, draw

LONG = [constant_fraction, partial(linear, first=1e-6, last=2e-3), log_snr]  # schedules for ten thousand steps


def both_precisions(evaluate):
    """What a function returns in double precision and in single, as arrays in double."""

    def as_double():
        return jax.tree.map(lambda array: np.asarray(array, np.float64), evaluate())

    exact = as_double()
    with jax.enable_x64(False):
        return exact, as_double()


@pytest.mark.parametrize("name", KERNELS)
def test_alpha_bar_is_the_product_of_what_each_step_keeps(name):
    kernel = KERNELS[name]()
    expected = np.concatenate([[1.0], np.cumprod(1 - np.asarray(kernel.beta))])
    np.testing.assert_allclose(kernel.alpha_bar, expected, rtol=1e-12, atol=1e-15)


def test_a_traced_schedule_gives_the_same_laws_and_a_gradient():
    """beta may be learned, so a kernel built under a transformation is the kernel built outside."""
    kernel = dpm.GaussianKernel(linear(4, first=0.1, last=0.8), (3,))
    x0, xt, t = draw(kernel, 15), draw(kernel, 16), all_steps(kernel)

    def log_prob(beta):
        traced = dpm.GaussianKernel(beta, kernel.event_shape)
        return traced.marginal(x0, t).log_prob(xt).sum() + traced.posterior(x0, xt, t[1:]).log_prob(x0).sum()

    traced = jax.jit(log_prob)
    fixed = jax.jit(lambda: log_prob(np.asarray(kernel.beta)))()
    np.testing.assert_allclose(traced(kernel.beta), fixed, rtol=1e-12)
    differences = [(traced(kernel.beta + e) - traced(kernel.beta - e)) / 2e-6 for e in 1e-6 * np.eye(4)]
    np.testing.assert_allclose(jax.grad(traced)(kernel.beta), differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", [dpm.GaussianKernel, dpm.BernoulliKernel, categorical])
class TestBadRates:
    @pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, np.nan, np.inf])
    def test_rate_out_of_range(self, family, bad):
        with pytest.raises(ValueError, match=rf"every `beta` in \(0, 1\]; got beta_2 = {bad}"):
            family(np.array([0.1, bad, 0.5]), (2,))

    def test_range_is_checked_where_a_program_is_traced(self, family):
        with pytest.raises(ValueError, match=r"every `beta` in \(0, 1\]; got beta_1 = 2"):
            jax.jit(lambda x: family(np.array([2.0]), ()).step(x, 1).log_prob(x))(0)

    @pytest.mark.parametrize("shape", [(10, 1), (), (0,)])
    def test_shape_of_rates(self, family, shape):
        with pytest.raises(ValueError, match=r"Expected `beta` of shape \(T,\).*got \(" + ", ".join(map(str, shape))):
            family(np.full(shape, 0.1), (2,))

    @pytest.mark.parametrize("beta", [np.array([1, 1]), np.array([True]), np.array([0.1 + 0j]), "linear", None])
    def test_rates_that_are_no_floats(self, family, beta):
        with pytest.raises(TypeError, match="Expected `beta` to be a floating-point array; got"):
            family(beta, (2,))

    def test_rates_as_a_list(self, family):
        np.testing.assert_array_equal(family([0.1, 0.5], ()).beta, [0.1, 0.5])


@pytest.mark.parametrize("changed", [lambda beta: beta, lambda beta: 1.0 * beta], ids=["as learned", "times 1"])
@pytest.mark.parametrize("family", [dpm.BernoulliKernel, categorical])
def test_no_learned_schedule_under_discrete_states(family, changed):
    name = "Bernoulli" if family is dpm.BernoulliKernel else "categorical"
    reason = f"fixed schedule under a {name} kernel.*no reparameterised gradient.*constant_fraction"
    x0 = np.array([0, 1])

    def program(x0):
        kernel = family(changed(learned("beta", 4)), (2,))
        dpm.forward_chain("x", dpm.Diffusion(kernel, kernel.step), x0)

    with handlers.seed(rng_seed=0), pytest.raises(TypeError, match=reason):
        program(x0)
    with pytest.raises(TypeError, match=reason):
        jax.jit(lambda: handlers.seed(program, 0)(x0))()
    svi = SVI(lambda x0: numpyro.sample("unused", dist.Normal()), program, Adam(1e-3), Trace_ELBO())
    with pytest.raises(TypeError, match=reason):
        svi.init(jax.random.key(0), x0)
    with pytest.raises(TypeError, match=reason):
        jax.jit(svi.init)(jax.random.key(0), x0)

    def loss(params):
        return handlers.substitute(handlers.seed(program, 0), data=params)(x0)

    with pytest.raises(TypeError, match=reason):
        jax.grad(loss)({"beta": jnp.zeros(3)})


def test_a_learned_schedule_read_back_as_numbers_is_fixed():
    """Rates that someone learned under a Gaussian kernel and saved are an ordinary schedule."""
    with handlers.seed(rng_seed=0):
        rates = np.array(learned("beta", 4))
    assert dpm.BernoulliKernel(rates, (2,)).num_steps == 4
