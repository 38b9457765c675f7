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
from dpm_ppl.inference.pathwise import learned_laws
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
    assert finding.name == "gradient of draws"
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


# Continuous states whose draws do not move with a parameter of their law.


class Choice:
    """A kernel that shrinks, or shrinks and turns over: with a learned probability, and a learned scale."""

    num_steps, event_shape = 3, (1,)

    def __init__(self, share, scale=0.8):
        self.share, self.scale = share, scale

    def stationary(self):
        return dist.Normal(0.0, 1.0).expand((1,)).to_event(1)

    def step(self, x, t):
        x = jnp.asarray(x)
        parts = dist.Normal(jnp.stack([0.5 * x, -0.5 * x], -1), self.scale)
        shares = jnp.broadcast_to(jnp.stack([self.share, 1 - self.share]), (*x.shape, 2))
        return dist.MixtureSameFamily(dist.Categorical(probs=shares), parts).to_event(1)


class Signed(dist.Distribution):
    """A step up or down by chance, of no `arg_constraints`: `has_rsample` is True, wrongly."""

    support = dist.constraints.real

    def __init__(self, loc, share):
        self.loc, self.share = jnp.broadcast_arrays(loc, jnp.asarray(share))
        super().__init__(self.loc.shape, ())

    def sample(self, key, sample_shape=()):
        keys, shape = jax.random.split(key), sample_shape + self.batch_shape
        sign = jnp.where(jax.random.bernoulli(keys[0], self.share, shape), 1.0, -1.0)
        return self.loc + sign + 0.5 * jax.random.normal(keys[1], shape)

    def log_prob(self, value):
        up, down = (dist.Normal(self.loc + sign, 0.5).log_prob(value) for sign in (1, -1))
        return jnp.logaddexp(jnp.log(self.share) + up, jnp.log1p(-self.share) + down)


class Turns(Choice):
    """On a circle, by von Mises noise, whose sampler loops until it accepts."""

    def step(self, x, t):
        return dist.VonMises(jnp.asarray(x), self.share).to_event(1)


class Jumps(Choice):
    def step(self, x, t):
        return Signed(jnp.asarray(x), self.share).to_event(1)


def continuous(kernel_of):
    """A chain of such a kernel, of two parameters, and a reverse step that learns."""

    def diffusion():
        share = numpyro.param("share", 0.3, constraint=dist.constraints.unit_interval)
        scale = numpyro.param("scale", 0.8, constraint=dist.constraints.positive)
        bias = numpyro.param("bias", 0.1)
        step = lambda x, t: dist.Normal(0.3 * x + bias, 0.8).to_event(1)  # noqa: E731
        return dpm.Diffusion(kernel_of(share, scale), step, lambda x: dist.Normal(x, 0.5).to_event(1))

    return diffusion


MOVING = {"share": jnp.array(0.3), "scale": jnp.array(0.8), "bias": jnp.array(0.1)}
REALS = np.random.default_rng(1).normal(size=(32, 1))


@pytest.mark.parametrize(
    ("kernel_of", "expected"),
    [
        (Choice, {"x_chain": ["share"]}),
        (lambda share, scale: Jumps(share), {"x_chain": ["share"]}),
        (lambda share, scale: Turns(share), {"x_chain": ["share"]}),
        (lambda share, scale: Choice(0.3, scale), {}),
    ],
    ids=["a choice", "a sampler of one's own", "a loop", "a scale under a choice"],
)
def test_a_parameter_that_continuous_draws_do_not_follow_is_named(kernel_of, expected):
    """A learned scale is followed by whatever part was chosen, and is right; the chance of the part is not."""
    assert learned_laws(dpm.single_chain(continuous(kernel_of))[1], MOVING, REALS) == expected


def test_the_slope_of_a_choice_that_is_refused_is_a_wrong_one():
    """Against a central difference of the loss itself; the slope of the scale, which is let through, is right."""
    model, guide = dpm.single_chain(continuous(Choice))

    def one(params, key):
        return Trace_ELBO().loss(key, params, model, guide, REALS)

    loss, slope = (jax.jit(jax.vmap(f, (None, 0))) for f in (one, jax.grad(one)))
    found, keys = slope(MOVING, jax.random.split(jax.random.key(2), 2000)), jax.random.split(jax.random.key(3), 4000)

    def off(name):
        """Slope less difference, in standard errors."""
        ends = [loss(MOVING | {name: MOVING[name] + step}, keys) for step in (0.1, -0.1)]
        difference, mine = (np.asarray(ends[0]) - np.asarray(ends[1])) / 0.2, np.asarray(found[name])
        error = np.hypot(difference.std() / np.sqrt(len(difference)), mine.std() / np.sqrt(len(mine)))
        return abs(mine.mean() - difference.mean()) / error

    assert off("share") > 6
    assert off("scale") < 3.5


def test_fit_and_tracegraph_refuse_them():
    given = {"key": jax.random.key(0), "num_iterations": 2, "batch_size": 8, "num_steps_sampled": None}
    for kernel_of in (Choice, lambda share, scale: Jumps(share)):
        with pytest.raises(ValueError, match=r"'x_chain' depends on share, whose gradient.*has_rsample"):
            fit(*dpm.single_chain(continuous(kernel_of)), REALS, progress=False, **given)
    model, guide = (dpm.subsample_steps(f, size=1) for f in dpm.single_chain(continuous(Choice)))
    with pytest.raises(ValueError, match="whose steps are reparameterised, for TraceGraph_ELBO or TraceEnum"):
        TraceGraph_ELBO().loss(jax.random.key(0), MOVING, model, guide, REALS)
