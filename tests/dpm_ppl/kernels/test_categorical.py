"""Discrete diffusion over K states: the binomial kernel as its two-state case, and predictions averaged over the data.

The laws that every kernel keeps are in test_kernel.py, the enumerated bounds in tests/models/test_categorical.py.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl import inference
from dpm_ppl.outputs import data_bernoulli, data_categorical
from dpm_ppl.schedules import constant_fraction, linear
from tests.compiling import optimised
from tests.dpm_ppl.kernels.test_scheduled import LONG, both_precisions
from tests.oracles import STATES, BernoulliOracle

T = 4
BITS = BernoulliOracle()
RATES = (1 - BITS.rate, BITS.rate)
MASKED = (0.0, 0.0, 0.0, 1.0)


def pair(event_shape=(3,), beta=None):
    """The binomial kernel, and the same as a categorical one."""
    beta = constant_fraction(T) if beta is None else beta
    return dpm.BernoulliKernel(beta, event_shape, BITS.rate), dpm.CategoricalKernel(beta, event_shape, RATES)


# Two states are the binomial kernel


@pytest.mark.parametrize("beta", [constant_fraction(T), linear(T, first=0.1, last=0.6)], ids=["erases", "linear"])
def test_two_states_are_the_binomial_kernel(beta):
    binomial, categorical = pair(beta=beta)
    x0, xt, value = (jnp.asarray(STATES)[s] for s in np.ix_(np.arange(8), np.arange(8), np.arange(8)))
    t = jnp.arange(1, T + 1)[:, None, None, None]

    @jax.jit
    def log_probs():
        laws = [
            (k.stationary(), k.step(x0, t), k.marginal(x0, t), k.posterior(x0, xt, t)) for k in (binomial, categorical)
        ]
        return [[law.log_prob(value) for law in of_one] for of_one in laws]

    for expected, came in zip(*jax.device_get(log_probs()), strict=True):
        possible = expected > -1e30
        np.testing.assert_allclose(came[possible], expected[possible], rtol=1e-12, atol=1e-13)
        assert (came[~possible] < -1e30).all()


def test_two_states_have_the_binomial_elbo():
    """Term by term over all states x^t against the sum over all trajectories of bits."""
    _, kernel = pair()
    table, place = BITS.params["table"], np.array([4, 2, 1])

    def reverse(x, t):
        logits = table[t - 2, x @ place]
        return dist.Categorical(logits=jnp.stack([jnp.zeros_like(logits), logits], -1)).to_event(1)

    @jax.jit
    def terms(x0):
        x0, xt, t = x0[:, None], jnp.asarray(STATES), jnp.arange(2, T + 1)[:, None, None]
        reached = jnp.exp(kernel.marginal(x0, t).log_prob(xt))
        kl = jnp.sum(reached * kl_divergence(kernel.posterior(x0, xt, t), reverse(xt, t)), -1)
        first = kernel.marginal(x0, 1).log_prob(xt)
        reconstruction = jnp.sum(jnp.exp(first) * kernel.step(xt, 1).log_prob(x0), -1)
        return kl.T, reconstruction - kl_divergence(kernel.marginal(x0[:, 0], T), kernel.stationary())

    kl, rest = terms(jnp.asarray(STATES))
    np.testing.assert_allclose(kl, BITS.kl(), rtol=1e-9)
    np.testing.assert_allclose(rest - kl.sum(1), BITS.elbos(), rtol=1e-9)


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 3)])
def test_two_states_have_the_binomial_prediction(event_shape):
    rng = np.random.default_rng(0)
    binomial, categorical = pair(event_shape)
    x, t = jnp.asarray(rng.integers(0, 2, (5, *event_shape))), jnp.arange(1, T + 1)[:, None]
    logits = jnp.asarray(2 * rng.normal(size=x.shape))

    @jax.jit
    def log_probs():
        expected = data_bernoulli(binomial, x, t, logits)
        came = data_categorical(categorical, x, t, jnp.stack([jnp.full_like(logits, 0.7), logits + 0.7], -1))
        assert (came.batch_shape, came.event_shape) == ((T, 5), event_shape)
        return [jnp.stack([law.log_prob(value) for value in (x, 1 - x)]) for law in (expected, came)]

    expected, came = log_probs()
    np.testing.assert_allclose(came, expected, rtol=1e-10)


# Predictions


def test_a_letter_that_is_not_the_mask_is_kept():
    """Whatever the network says of it; a masked one is drawn from the prediction with probability 1 / t."""
    kernel = dpm.CategoricalKernel(constant_fraction(5), (4,), MASKED)
    x, logits = jnp.array([0, 3, 2, 3]), jnp.asarray(np.random.default_rng(1).normal(size=(4, 4))).at[:, 3].set(-1e9)
    for t in (1, 2, 3):
        probs = data_categorical(kernel, x, jnp.asarray(t), logits).base_dist.probs
        expected = np.asarray(jax.nn.softmax(logits)) / t  # (alpha_bar_(t-1) - alpha_bar_t) / (1 - alpha_bar_t)
        expected[:, 3] += 1 - 1 / t
        expected[[0, 2]] = np.eye(4)[[0, 2]]
        np.testing.assert_allclose(probs, expected, atol=1e-12)


@pytest.mark.parametrize("probs", [MASKED, (0.1, 0.2, 0.4, 0.3)], ids=["masked", "given"])
@pytest.mark.parametrize("t", [2, 3, T])
def test_true_prediction_gives_the_best_factorised_step(probs, t):
    """Two coordinates that depend on each other; q(x^0, x^(t-1), x^t) by products of one step's matrix."""
    kernel = dpm.CategoricalKernel(constant_fraction(T), (2,), probs)
    states = np.array(list(product(range(4), repeat=2)))
    data = np.zeros((4, 4))
    data[[0, 0, 1, 2, 2], [1, 2, 0, 1, 2]] = [0.35, 0.05, 0.3, 0.1, 0.2]

    def matrix(s):
        keep = 1 - constant_fraction(T)[s - 1]
        one = keep * np.eye(4) + (1 - keep) * np.asarray(probs)
        return np.einsum("ij,kl->ikjl", one, one).reshape(16, 16)

    before = np.linalg.multi_dot([np.eye(16), *map(matrix, range(1, t)), np.eye(16)])
    joint = data.ravel()[:, None, None] * before[:, :, None] * matrix(t)
    reached = joint.sum((0, 1)) > 0
    joint, xt = joint[:, :, reached], states[reached]
    letters = np.eye(4)[states]
    true = np.einsum("ds,dik->sik", joint.sum(1) / joint.sum((0, 1)), letters)
    expected = np.einsum("bs,bik->sik", joint.sum(0) / joint.sum((0, 1)), letters)  # marginals of q(x^(t-1) | x^t)
    logits = np.log(np.maximum(true, 1e-300))
    probs = jax.jit(lambda z: data_categorical(kernel, jnp.asarray(xt), jnp.asarray(t), z).base_dist.probs)(logits)
    np.testing.assert_allclose(probs, expected, atol=1e-10)

    def cross_entropy(logits):
        output = data_categorical(kernel, jnp.asarray(xt), jnp.asarray(t), logits)
        return -jnp.sum(jnp.where(joint.sum(0) > 0, joint.sum(0) * output.log_prob(states[:, None]), 0.0))

    gradient = jax.jit(jax.grad(cross_entropy))
    np.testing.assert_allclose(gradient(logits), 0.0, atol=1e-10)
    off = np.asarray(gradient(np.random.default_rng(2).normal(size=logits.shape)))
    assert np.isfinite(off).all()
    assert np.abs(off).max() > 1e-3


def test_single_precision_keeps_an_absorbing_chain_finite():
    """Log probabilities of what cannot be stand for -inf, yet values, divergences and gradients are numbers."""
    with jax.enable_x64(False):
        kernel = dpm.CategoricalKernel(constant_fraction(1000), (3,), MASKED)
        x0, xt = jnp.array([0, 1, 2]), jnp.array([3, 1, 3])

        @jax.jit
        @jax.value_and_grad
        def divergence(logits, t):
            return kl_divergence(kernel.posterior(x0, xt, t), data_categorical(kernel, xt, t, logits))

        for t in (2, 999, 1000):
            value, gradient = divergence(jnp.arange(12.0).reshape(3, 4), jnp.asarray(t))
            assert value.dtype == jnp.float32
            assert np.isfinite(value)
            assert value >= 0
            assert np.isfinite(gradient).all()
        assert kl_divergence(kernel.marginal(x0, 1000), kernel.stationary()) == 0
        assert np.isfinite(kernel.marginal(x0, 7).base_dist.entropy()).all()


def categorical_log_probs(beta):
    """Log probabilities of the three laws for two data and three states, the posterior's from step 2."""
    kernel, t = dpm.CategoricalKernel(beta, (), [0.2, 0.1, 0.7]), np.arange(1, len(beta) + 1)
    x = [jnp.full((len(beta),), state) for state in range(3)]
    laws = [law(x[state], t) for law in (kernel.step, kernel.marginal) for state in (0, 1)]
    laws += [kernel.posterior(x[0][1:], xt[1:], t[1:]) for xt in x]
    return [jax.nn.log_softmax(law.logits) for law in laws]


@pytest.mark.parametrize("schedule", LONG)
def test_single_precision_holds_over_ten_thousand_steps(schedule):
    beta = schedule(10_000)
    exact, single = both_precisions(lambda: jax.jit(lambda: categorical_log_probs(beta))())
    for a, b in zip(exact, single, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-6)


def test_greys_of_whole_images_take_memory_of_the_order_of_their_logits():
    with optimised(), jax.enable_x64(False):
        kernel = dpm.CategoricalKernel(constant_fraction(10), (28, 28), np.full(256, 1 / 256))

        def cost(logits, x, t):
            return data_categorical(kernel, x, t, logits).log_prob(x).sum()

        shapes = [
            jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((64, 28, 28, 256), jnp.float32), ((64, 28, 28), int))
        ]
        compiled = jax.jit(jax.grad(cost)).lower(*shapes, jax.ShapeDtypeStruct((64,), int)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2**30  # logits alone are 2**25.6


# Integers too narrow for the states, or just wide enough: 256 greys and a mask


GREYS = np.array([[0, 127, 128, 255]])


def greys():
    return dpm.CategoricalKernel(constant_fraction(3), (4,), np.append(np.zeros(256), 1.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("double", [True, False])
def test_states_of_any_integers_have_the_same_laws(dtype, double):
    with jax.enable_x64(double):
        kernel, x0 = greys(), GREYS.astype(dtype)
        np.testing.assert_allclose(kernel.marginal(x0, 1).base_dist.probs[0, :, 256], 1 / 3, rtol=1e-6)
        np.testing.assert_allclose(kernel.step(x0, 2).log_prob(x0), 4 * np.log(1 / 2), rtol=1e-6)
        np.testing.assert_allclose(kernel.posterior(x0, x0, 2).log_prob(x0), 0, atol=1e-6)


def test_data_of_narrow_integers_have_the_same_bounds_and_weights():
    def any_grey(x):
        return jnp.broadcast_to(jnp.append(jnp.zeros(256), -1e9), (*x.shape, 257))

    with jax.enable_x64(False):
        kernel = greys()

        def diffusion():
            numpyro.param("level", 0.0)
            return dpm.Diffusion(
                kernel,
                lambda x, t: data_categorical(kernel, x, t, any_grey(x)),
                lambda x1: data_categorical(kernel, x1, 1, any_grey(x1)),
            )

        given = {"params": {"level": 0.0}, "key": jax.random.key(0)}
        terms = inference.bound(diffusion, GREYS.astype(np.uint8), num_samples=1000, **given)
        # A letter is masked at one step and told by none: with even greys it costs log 256, whenever that is.
        error = np.sqrt(terms.elbo_variance[0] / 1000)
        assert abs(terms.elbo[0] + 4 * np.log(256)) < 4 * error < 1
        model, guide = dpm.single_chain(diffusion)
        losses, weights = [], []
        for x in (GREYS.astype(np.uint8), GREYS):
            losses.append(TraceMeanField_ELBO().loss(jax.random.key(1), {"level": 0.0}, model, guide, x))
            weights.append(inference.log_likelihood(diffusion, x, num_particles=5, **given).log_weight)
        assert losses[0] == losses[1]
        np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_bits_of_any_type_have_the_same_laws(dtype):
    binomial, _ = pair()
    x0, t = np.array([[0, 1, 1]], dtype), np.array([2])
    reference = np.array([[0, 1, 1]])
    for law in (binomial.step, binomial.marginal, lambda x, t: binomial.posterior(x, x, t)):
        np.testing.assert_array_equal(law(x0, t).log_prob(reference), law(reference, t).log_prob(reference))


# Bad input


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (0.5, ValueError, r"`probs` of shape \(K,\).*got \(\)"),
        ([1.0], ValueError, r"K >= 2 states; got \(1,\)"),
        (np.full((2, 2), 0.5), ValueError, r"got \(2, 2\)"),
        ([0.5, 0.4], ValueError, "sum of 1; got a least of 0.4 and a sum of 0.9"),
        ([1.2, -0.2], ValueError, "at least 0 with a sum of 1; got a least of -0.2"),
        ([np.nan, 1.0], ValueError, "at least 0 with a sum of 1"),
        ("even", TypeError, "`probs` to be an array of numbers; got 'even'"),
    ],
)
def test_bad_probabilities(probs, error, message):
    with pytest.raises(error, match=message):
        dpm.CategoricalKernel(constant_fraction(3), (2,), probs)


def test_probabilities_are_fixed():
    with pytest.raises(TypeError, match="`probs` to be known numbers; got a tracer"):
        jax.jit(lambda p: dpm.CategoricalKernel(constant_fraction(3), (2,), p).probs)(jnp.array([0.5, 0.5]))


def test_a_chain_that_cannot_end_in_pi():
    reason = r"leaves no signal, beta_T = 1.*got beta_T = 0.6 with 3 states that pi lacks.*constant_fraction"
    with pytest.raises(ValueError, match=reason):
        dpm.CategoricalKernel(linear(T, first=0.1, last=0.6), (2,), MASKED)


def test_states_that_are_no_integers():
    kernel, good = dpm.CategoricalKernel(constant_fraction(3), (2,), MASKED), np.array([0, 1])
    for law in (kernel.step, kernel.marginal, lambda x, t: kernel.posterior(good, x, t)):
        with pytest.raises(TypeError, match=r"states to be integers 0\.\.3; got dtype float64"):
            law(np.array([0.0, 1.0]), 2)


def test_data_out_of_range():
    kernel = dpm.CategoricalKernel(constant_fraction(3), (2,), MASKED)
    diffusion = dpm.Diffusion(kernel, kernel.step)
    reason = "within the support of the kernel's states.*got values from 0 to 4"
    with handlers.seed(rng_seed=0), numpyro.plate("data", 1), pytest.raises(ValueError, match=reason):
        dpm.reverse_chain("x", diffusion, obs=np.array([[0, 4]]))
