"""A user's own handler, on this page: chains read at fewer steps, against the chain that is built of them directly."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.util import log_density
from numpyro.primitives import Messenger

import dpm_ppl as dpm
from tests.oracles import GaussianOracle, data, estimates, worst


class respace(Messenger):  # noqa: N801 - named like NumPyro's handlers
    """Reads every chain inside as one of fewer steps: those at `times`, of which the first is 1 and the last T.

    A normal reverse step says where x^0 is expected given x^t, and how surely; by that the kernel of the times alone
    makes its own step.

    Source: Nichol and Dhariwal 2021, section 4; Song, Meng and Ermon 2021 for what the network keeps.
    """

    def __init__(self, fn=None, *, times):
        self.times = jnp.asarray(times)
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] in ("forward_chain", "reverse_chain"):
            msg["statement"] = replace(msg["statement"], diffusion=self.respaced(msg["statement"].diffusion))

    def respaced(self, whole):
        alpha_bar = whole.kernel.alpha_bar[jnp.append(0, self.times)]
        kernel = dpm.GaussianKernel(1 - alpha_bar[1:] / alpha_bar[:-1], whole.event_shape)
        identity = jnp.eye(*whole.event_shape)

        def reverse(x, i):
            step = whole.reverse(x, self.times[i - 1])
            from_data, from_state, variance = whole.kernel.posterior_coefficients(self.times[i - 1])
            x0 = (step.mean - from_state * x) / from_data
            spread = (step.covariance_matrix - variance[..., None] * identity) / from_data[..., None] ** 2
            from_data, from_state, variance = kernel.posterior_coefficients(i)
            covariance = variance[..., None] * identity + from_data[..., None] ** 2 * spread
            return dist.MultivariateNormal(from_data * x0 + from_state * x, covariance)

        return dpm.Diffusion(kernel, reverse, whole.decode)


TIMES = np.array([1, 2, 5, 10])
WHOLE = GaussianOracle.exact(10)
SIGNAL = np.asarray(WHOLE.schedule()[1])
FEWER = GaussianOracle.exact(4, share=jnp.log(-jnp.diff(jnp.log(SIGNAL[TIMES]))))  # the reverse of these times alone
SPOILED = WHOLE.spoiled()
X0 = data(3)


def respaced(pair):
    return tuple(respace(program, times=TIMES) for program in pair)


def subsampled(pair, size):
    return tuple(dpm.subsample_steps(program, size=size) for program in pair)


PLAIN = dpm.single_chain(SPOILED.diffusion)
OURS = respaced(PLAIN)


def posterior(s, t):
    """Weights of x^0 and x^t in the mean of q(x^s | x^t, x^0), and its variance, each of shape (num, 1, 1)."""
    before, after = SIGNAL[s, None, None], SIGNAL[t, None, None]
    keep, beta = np.sqrt(after / before), 1 - after / before
    return np.sqrt(before) * beta / (1 - after), keep * (1 - before) / (1 - after), beta * (1 - before) / (1 - after)


@jax.jit
def loss_of(params):
    """-ELBO of the respaced chain in closed form, of the whole chain's parameters."""
    at, identity = TIMES[1:] - 2, jnp.eye(2)
    one, other = posterior(TIMES[1:] - 1, TIMES[1:]), posterior(TIMES[:-1], TIMES[1:])
    share, factor = other[0] / one[0], params["factor"][at]
    covariance = share**2 * (jnp.tril(factor) @ jnp.tril(factor).mT - one[2] * identity) + other[2] * identity
    respaced = {
        "map": share * (params["map"][at] - one[1] * identity) + other[1] * identity,
        "shift": share[..., 0] * params["shift"][at],
        "factor": jnp.linalg.cholesky(covariance),
    }
    return -FEWER.elbos(X0, FEWER.params | respaced).sum()


def test_with_exact_steps_it_is_the_exact_reverse_of_fewer():
    """Density and samples are those of the chain that is built directly; and such a bound is the same at any times."""
    trajectory = np.random.default_rng(1).normal(size=(3, 4, 2)) @ np.diag([1.5, 0.7]) + [0.4, -0.3]

    @partial(jax.jit, static_argnums=(0, 1))
    def seen(pair, oracle):
        values = {"x_chain": trajectory}
        drawn = Predictive(pair[0], params=oracle.params, num_samples=1)(jax.random.key(2), size=50)
        return [log_density(program, (X0,), {}, oracle.params | values)[0] for program in pair], drawn

    ours, direct = respaced(dpm.single_chain(WHOLE.diffusion)), dpm.single_chain(FEWER.diffusion)
    (densities, drawn), (expected, built) = seen(ours, WHOLE), seen(direct, FEWER)
    np.testing.assert_allclose(densities, expected, rtol=1e-9)
    assert drawn["x_chain"].shape == (1, 50, 4, 2)
    for name in ("x_chain", "x"):
        np.testing.assert_allclose(drawn[name], built[name], rtol=1e-7, atol=1e-9)
    for oracle in (WHOLE, FEWER):
        np.testing.assert_allclose(loss_of(WHOLE.params), -jax.jit(oracle.elbos)(X0).sum(), rtol=1e-9)


@pytest.mark.parametrize("size", ["plain", 2])
def test_loss_and_its_gradient_are_the_closed_form(size):
    """Also as terms of the bound: `subsample_steps` reads the statement that an inner handler has put in."""
    elbo, pair = (Trace_ELBO(), OURS) if size == "plain" else (TraceMeanField_ELBO(), subsampled(OURS, size))
    losses, gradients = estimates(elbo, *pair, SPOILED.params, X0, num=2000)
    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(SPOILED.params)
    assert worst(losses, loss) < 3
    assert losses.std() < 12  # so it is sharp
    assert abs(loss + jax.jit(SPOILED.elbos)(X0).sum()) > 1  # that of all steps is another
    for name in ("map", "shift", "factor"):
        assert worst(gradients[name], gradient[name]) < 3
        left_out = np.setdiff1d(np.arange(2, 11), TIMES) - 2
        np.testing.assert_array_equal(gradients[name][:, left_out], 0.0)


def test_the_order_of_handlers_does_not_matter():
    @jax.jit
    def losses(key):
        orders = (subsampled(OURS, 2), respaced(subsampled(PLAIN, 2)))
        return [TraceMeanField_ELBO().loss(key, SPOILED.params, *pair, X0) for pair in orders]

    np.testing.assert_allclose(*losses(jax.random.key(3)), rtol=1e-12)


def test_svi_fits_the_respaced_chain():
    """Shifts of the times come to the least of the closed form, which is quadratic; the others stay."""
    fixed = {name: value for name, value in SPOILED.params.items() if name != "shift"}
    definition = handlers.block(handlers.substitute(SPOILED.diffusion, data=fixed), hide=list(fixed))
    pair = respaced(dpm.single_chain(definition))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 400))
    fitted = SVI(*pair, optimizer, Trace_ELBO()).run(jax.random.key(4), 400, X0, progress_bar=False).params
    assert set(fitted) == {"shift"}
    start, at = SPOILED.params["shift"], TIMES[1:] - 2

    @jax.jit
    def newton(shift):
        def loss(shift):
            return loss_of(fixed | {"shift": start.at[at].set(shift)})

        hessian, gradient = jax.hessian(loss)(shift).reshape(6, 6), jax.grad(loss)(shift).reshape(6)
        return shift - jnp.linalg.solve(hessian, gradient).reshape(3, 2)

    np.testing.assert_allclose(fitted["shift"], start.at[at].set(newton(start[at])), atol=0.03)
