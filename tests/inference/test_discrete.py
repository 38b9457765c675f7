"""A learned rate of discrete draws is refused, whose gradient would be a wrong one; what is right is not."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import fit
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.subject import subject
from dpm_ppl.inference.discrete import learned_laws
from tests.oracles import GaussianOracle, data

X0 = np.random.default_rng(0).integers(0, 2, (32, 3))
PARAMS = {"rate": jnp.array(0.3), "bias": jnp.array(0.1)}


def bits(*, learned, num_steps=3):
    """A chain of bits whose first rate is a parameter, or is one that is held."""

    def diffusion():
        rate = numpyro.param("rate", 0.3, constraint=dist.constraints.unit_interval)
        rate = rate if learned else jax.lax.stop_gradient(rate)
        kernel = dpm.BernoulliKernel(jnp.append(rate, jnp.linspace(0.4, 0.9, num_steps - 1)), (3,), 0.3)
        bias = numpyro.param("bias", 0.1)
        return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.residual_bernoulli(kernel, x, t, bias * x))

    return diffusion


def test_a_parameter_in_a_law_of_discrete_draws_is_named():
    for learned, expected in ((True, {"x_chain": ["rate"]}), (False, {})):
        assert learned_laws(dpm.single_chain(bits(learned=learned))[1], PARAMS, X0) == expected
    sampled = dpm.subsample_steps(dpm.single_chain(bits(learned=True))[1], size=1)
    assert set(learned_laws(sampled, PARAMS, X0)) == {"x_first", "x_last", "x_at", "x_before"}
    assert learned_laws(sampled, PARAMS, X0, besides=("x_first", "x_last", "x_at", "x_before")) == {}


def test_continuous_states_may_have_learned_rates():
    oracle = GaussianOracle.exact(3)
    assert learned_laws(dpm.single_chain(oracle.diffusion)[1], oracle.params, data(4)) == {}


def test_the_gradient_that_is_refused_is_a_wrong_one():
    """By the mean over many draws: stock ELBOs give another number than TraceGraph_ELBO, which is right."""
    model, guide = dpm.single_chain(bits(learned=True, num_steps=2))

    def slopes(elbo):
        params = PARAMS | {"bias": jnp.array(3.0)}  # so wrong that what is drawn counts
        one = jax.grad(lambda rate, key: elbo.loss(key, params | {"rate": rate}, model, guide, X0) / len(X0))
        keys = jax.random.split(jax.random.key(1), 400)
        drawn = np.asarray(jax.jit(jax.vmap(one, (None, 0)))(PARAMS["rate"], keys))
        return drawn.mean(), drawn.std() / 20

    (wrong, wrong_error), (right, right_error) = slopes(Trace_ELBO()), slopes(TraceGraph_ELBO())
    assert abs(wrong - right) > 5 * np.hypot(wrong_error, right_error)


def test_fit_and_check_refuse_it():
    given = {"key": jax.random.key(0), "num_iterations": 2, "batch_size": 8, "num_steps_sampled": 1, "progress": False}
    message = r"'x_first' depends on rate, whose gradient.*wrong one.*TraceGraph_ELBO"
    with pytest.raises(ValueError, match=message):
        fit(*dpm.single_chain(bits(learned=True)), X0, **given)
    fit(*dpm.single_chain(bits(learned=False)), X0, **given)
    model, guide = dpm.single_chain(bits(learned=True))
    program = SimpleNamespace(model=model, guide=guide, diffusion=bits(learned=True), data=X0)
    finding = next(gradients(subject(program)))
    assert finding.name == "discrete draws"
    assert finding.status == "failed"
    assert "'x_chain' depends on rate" in finding.words


def test_a_discrete_latent_beside_a_chain_is_left_to_numpyro():
    diffusion = bits(learned=False)
    model, guide = dpm.single_chain(diffusion)

    def with_latent(x0):
        numpyro.sample("z", dist.Bernoulli(0.5))
        return model(x0)

    def with_posterior(x0):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.2)))
        return guide(x0)

    given = {"key": jax.random.key(0), "num_iterations": 2, "batch_size": 8, "num_steps_sampled": 1, "progress": False}
    with pytest.warns(UserWarning, match="discrete latent"):
        fit(with_latent, with_posterior, X0, **given)
