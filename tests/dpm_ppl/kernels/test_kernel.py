"""Laws that hold for every kernel, by quadrature over a coordinate's states (Gaussian) or enumeration (the others)."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl import inference
from dpm_ppl.schedules import constant_fraction, cosine, linear, log_snr

KERNELS = {
    "gaussian_constant_fraction": lambda: dpm.GaussianKernel(constant_fraction(6), ()),  # beta_T = 1, alpha_bar_T = 0
    "gaussian_cosine": lambda: dpm.GaussianKernel(cosine(5), (3,)),
    "gaussian_log_snr": lambda: dpm.GaussianKernel(log_snr(4, first=2.5, last=-5.0), (2, 2, 3)),
    "bernoulli_constant_fraction": lambda: dpm.BernoulliKernel(constant_fraction(5), (3,), 0.2),
    "bernoulli_linear": lambda: dpm.BernoulliKernel(linear(6, first=0.05, last=0.7), ()),
    "bernoulli_cosine": lambda: dpm.BernoulliKernel(cosine(4), (2, 2, 3), 0.7),
    "categorical_uniform": lambda: dpm.CategoricalKernel(constant_fraction(5), (3,), np.full(4, 1 / 4)),
    "categorical_given": lambda: dpm.CategoricalKernel(linear(4, first=0.1, last=0.8), (2, 3), [0.2, 0.1, 0.4, 0.3]),
    "categorical_absorbing": lambda: dpm.CategoricalKernel(constant_fraction(5), (2, 2), [0.0, 0.0, 0.0, 1.0]),
}


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request):
    return KERNELS[request.param]()


def is_gaussian(kernel):
    return isinstance(kernel, dpm.GaussianKernel)


def states(kernel):
    """Nodes and weights of a sum over one coordinate's states; to rounding the trapezoid rule is exact for normals."""
    if is_gaussian(kernel):
        nodes = np.linspace(-8.0, 8.0, 129)
        return nodes, np.full(nodes.shape, nodes[1] - nodes[0])
    return np.arange(num_states(kernel)), np.ones(num_states(kernel))


def num_states(kernel):
    return kernel.num_states if isinstance(kernel, dpm.CategoricalKernel) else 2


def grid(kernel):
    """The nodes as states, every coordinate at the same node: shape (nodes, *event)."""
    nodes, _ = states(kernel)
    return np.broadcast_to(nodes.reshape(-1, *(1,) * len(kernel.event_shape)), (len(nodes), *kernel.event_shape))


def all_steps(kernel, *, batch_dims=0):
    """Steps 1..T, to broadcast against a batch: shape (T, 1, ..., 1)."""
    return np.arange(1, kernel.num_steps + 1).reshape(-1, *(1,) * batch_dims)


def per_coordinate(distribution):
    return getattr(distribution, "base_dist", distribution)


def density(kernel, law, *states_and_t):
    """Each coordinate's own density under a law at every node, as they are independent: (nodes, *batch, *event)."""
    nodes, _ = states(kernel)

    def evaluate(nodes, *args):
        distribution = law(*args)
        assert distribution.event_shape == kernel.event_shape
        return jnp.exp(per_coordinate(distribution).log_prob(nodes.reshape(-1, *(1,) * len(distribution.shape()))))

    return np.asarray(jax.jit(evaluate)(nodes, *states_and_t))


@cache
def transitions(kernel):
    """T_t(y | x) of each coordinate for all t: shape (y, t, x, *event)."""
    return density(kernel, kernel.step, grid(kernel), all_steps(kernel, batch_dims=1))


@cache
def stationary(kernel):
    """pi of each coordinate: shape (nodes, *event)."""
    return density(kernel, kernel.stationary)


def draw(kernel, key, shape=()):
    """Data, different in every coordinate, and not from pi."""
    rng, shape = np.random.default_rng(key), (*shape, *kernel.event_shape)
    if isinstance(kernel, dpm.CategoricalKernel):
        return rng.integers(0, kernel.num_states, shape)
    return 0.6 + rng.normal(size=shape) if is_gaussian(kernel) else rng.binomial(1, 0.4, shape)


def draw_noisy(kernel, key, shape=()):
    """States that every datum can lead to: under an absorbing kernel, the mask."""
    if isinstance(kernel, dpm.CategoricalKernel):
        return np.asarray(kernel.stationary().sample(jax.random.key(key), shape))
    return draw(kernel, key, shape)


@cache
def composed(kernel):
    """One datum, and q(x^t | x^0) by composing `step`: shape (nodes, T, *event)."""
    x0, (_, weights), matrix = draw(kernel, 3), states(kernel), transitions(kernel)
    after = [density(kernel, kernel.step, x0, 1)]
    for t in range(2, kernel.num_steps + 1):
        after.append(np.einsum("yx...,x...,x->y...", matrix[:, t - 1], after[-1], weights))
    return x0, np.stack(after, 1)


# Laws


def test_step_keeps_the_stationary_distribution(kernel):
    _, weights = states(kernel)
    pi = stationary(kernel)
    after = np.einsum("ytx...,x...,x->ty...", transitions(kernel), pi, weights)
    np.testing.assert_allclose(after, np.broadcast_to(pi, after.shape), atol=1e-10)


def test_stationary_and_step_are_the_papers(kernel):
    """SD15 table App.1 written out: the other laws would all pass with another beta."""
    x, beta = draw(kernel, 1), np.asarray(kernel.beta).reshape(-1, *(1,) * len(kernel.event_shape))
    pi, step = per_coordinate(kernel.stationary()), per_coordinate(kernel.step(x, all_steps(kernel)))
    shape = (kernel.num_steps, *kernel.event_shape)
    if is_gaussian(kernel):
        np.testing.assert_array_equal([pi.loc, pi.scale], [np.zeros(kernel.event_shape), np.ones(kernel.event_shape)])
        np.testing.assert_allclose(step.loc, np.sqrt(1 - beta) * x, rtol=1e-12)
        np.testing.assert_allclose(np.broadcast_to(step.scale**2, shape), np.broadcast_to(beta, shape), rtol=1e-12)
    elif isinstance(kernel, dpm.CategoricalKernel):
        np.testing.assert_allclose(pi.probs, np.broadcast_to(kernel.probs, pi.probs.shape), rtol=1e-12)
        expected = (1 - beta)[..., None] * np.eye(kernel.num_states)[x] + beta[..., None] * kernel.probs
        np.testing.assert_allclose(step.probs, expected, rtol=1e-12)
    else:
        np.testing.assert_allclose(pi.probs, np.full(kernel.event_shape, kernel.rate), rtol=1e-12)
        np.testing.assert_allclose(step.probs, (1 - beta) * x + beta * kernel.rate, rtol=1e-12)


def test_composed_steps_are_the_marginal(kernel):
    x0, expected = composed(kernel)
    np.testing.assert_allclose(density(kernel, kernel.marginal, x0, all_steps(kernel)), expected, atol=1e-9)


def test_posterior_is_bayes_rule(kernel):
    _, weights = states(kernel)
    at = [40, 64, 81] if is_gaussian(kernel) else states(kernel)[0]  # x^t = -3, 0, 2.125, or every state
    x0, before = composed(kernel)
    # (x^(t-1), t, x^t, *event)
    joint = transitions(kernel)[at, 1:].swapaxes(0, 2) * before[:, :-1, None]
    evidence = np.einsum("xtk...,x->tk...", joint, weights)
    possible = np.broadcast_to(evidence > 0, joint.shape)  # an absorbing kernel leads from x^0 to it or to the mask
    expected = joint / np.where(evidence > 0, evidence, 1)
    posterior = density(kernel, kernel.posterior, x0, grid(kernel)[at], all_steps(kernel, batch_dims=1)[1:])
    np.testing.assert_allclose(posterior[possible], expected[possible], atol=1e-9)
    assert np.isfinite(posterior).all()


def test_detailed_balance(kernel):
    flow = np.moveaxis(transitions(kernel), 1, 0) * stationary(kernel)  # (t, y, x, *event): pi(x) T(y | x)
    np.testing.assert_allclose(flow, np.swapaxes(flow, 1, 2), atol=1e-13)


def test_posterior_of_the_first_step_is_a_point_mass_at_the_data(kernel):
    x0, x1 = draw(kernel, 5, (40,)), draw_noisy(kernel, 6, (40,))
    other = None if is_gaussian(kernel) else (x0 + 1) % num_states(kernel)

    @jax.jit
    def draw_and_score(key):
        posterior = kernel.posterior(x0, x1, 1)
        base = per_coordinate(posterior)
        return posterior.sample(key, (3,)), None if other is None else (base.log_prob(x0), base.log_prob(other))

    drawn, scores = draw_and_score(jax.random.key(0))
    np.testing.assert_allclose(drawn, np.broadcast_to(x0, drawn.shape), atol=1e-14)
    if scores is not None:
        certain, impossible = scores
        np.testing.assert_array_equal(certain, 0.0)
        assert (np.isfinite(impossible) & (impossible < -1e30)).all()  # an infinity would make gradients NaN


def test_divergence_of_the_posterior_from_itself_is_zero(kernel):
    x0, xt = draw(kernel, 7), draw_noisy(kernel, 8)
    t = all_steps(kernel)[is_gaussian(kernel) :]  # a normal of scale 0 at t = 1

    @jax.jit
    def divergence(t, other):
        return kl_divergence(kernel.posterior(x0, xt, t), kernel.posterior(x0, xt, other))

    np.testing.assert_allclose(divergence(t, t), 0.0, atol=1e-13)
    assert (divergence(t[1:], t[:-1]) > 1e-6).all()  # another step's is another distribution


@pytest.mark.parametrize("family", [dpm.GaussianKernel, dpm.BernoulliKernel])
def test_finite_where_no_signal_is_left(family):
    """Gradients in the states too, which may be rates of bits."""
    kernel = family(constant_fraction(4), (3,))
    assert kernel.beta[-1] == 1
    assert kernel.alpha_bar[-1] == 0
    x0, xt = draw(kernel, 9) * 1.0, draw(kernel, 10) * 1.0  # floating: also where a bit is read as a rate

    @jax.jit
    def log_probs(x0, xt):
        before = kernel.posterior(x0, xt, 4)
        return jnp.stack([kernel.step(x0, 4).log_prob(xt), kernel.marginal(x0, 4).log_prob(xt), before.log_prob(xt)])

    assert np.isfinite(log_probs(x0, xt)).all()
    assert all(np.isfinite(gradient).all() for gradient in jax.jit(jax.jacrev(log_probs, (0, 1)))(x0, xt))
    # What has forgotten its past is pi, and the last state says nothing of the one before.
    np.testing.assert_allclose(log_probs(x0, xt)[:2], kernel.stationary().log_prob(xt), rtol=1e-12)
    np.testing.assert_allclose(log_probs(x0, xt)[2], kernel.marginal(x0, 3).log_prob(xt), rtol=1e-12)


def test_steps_broadcast_against_the_batch(kernel):
    """t of shape (T - 1, 1) with x of shape (5, *event) is each t with each x."""
    x0, xt, t = draw(kernel, 13, (5,)), draw(kernel, 14, (5,)), all_steps(kernel, batch_dims=1)[1:]

    def laws(x0, xt, t):
        together = kernel.step(x0, t), kernel.marginal(x0, t), kernel.posterior(x0, xt, t)
        return jnp.stack([law.log_prob(xt) for law in together])

    one = jax.jit(laws)
    one_by_one = np.array([[one(x0[i], xt[i], int(step)) for i in range(5)] for step in t[:, 0]])
    np.testing.assert_allclose(one(x0, xt, t), np.moveaxis(one_by_one, -1, 0), rtol=1e-12)
    eager = kernel.marginal(x0[2], 2).log_prob(xt[2])  # t a Python integer
    np.testing.assert_allclose(eager, one_by_one[0, 2, 1], rtol=1e-12)


# Bad input


def categorical(beta, event_shape):
    return dpm.CategoricalKernel(beta, event_shape, [0.2, 0.1, 0.7])


@pytest.mark.parametrize("family", [dpm.GaussianKernel, dpm.BernoulliKernel, categorical])
class TestBadInput:
    @pytest.mark.parametrize("event_shape", [2, None, (2.0,), "ab", np.array([2])])
    def test_event_shape_that_is_no_tuple_of_integers(self, family, event_shape):
        with pytest.raises(TypeError, match="Expected `event_shape` to be a tuple of integers"):
            family(np.array([0.1]), event_shape)

    @pytest.mark.parametrize("event_shape", [(0,), (2, -1)])
    def test_event_shape_without_a_size(self, family, event_shape):
        with pytest.raises(ValueError, match="Expected every size in `event_shape` to be at least 1; got"):
            family(np.array([0.1]), event_shape)

    @pytest.mark.parametrize("t", [0, 5, -1, np.array([1, 5]), np.array([[0], [2]])])
    def test_step_outside_the_chain(self, family, t):
        kernel, x = family(constant_fraction(4), (2,)), np.ones((2, 2), int)
        for law in (kernel.step, kernel.marginal, partial(kernel.posterior, x)):
            with pytest.raises(ValueError, match=rf"Expected 1 <= t <= 4 .*got t from {np.min(t)} to {np.max(t)}"):
                law(x, t)

    @pytest.mark.parametrize("t", [1.0, np.array([1.0, 2.0]), True])
    def test_step_that_is_no_integer(self, family, t):
        kernel, x = family(constant_fraction(4), (2,)), np.ones((2, 2), int)
        for law in (kernel.step, kernel.marginal, partial(kernel.posterior, x)):
            with pytest.raises(TypeError, match="Expected the step `t` to be an integer.*got (float|bool)"):
                law(x, t)

    @pytest.mark.parametrize("shape", [(2,), (), (3, 2, 1), (2, 2)])
    def test_state_of_another_event_shape(self, family, shape):
        kernel, x, good = family(constant_fraction(4), (3, 2)), np.ones(shape, int), np.ones((3, 2), int)
        for law in (
            kernel.step,
            kernel.marginal,
            partial(kernel.posterior, good),
            lambda x, t: kernel.posterior(x, good, t),
        ):
            with pytest.raises(ValueError, match=r"event shape \(3, 2\); got \(" + ", ".join(map(str, shape))):
                law(x, 2)


# Of a kernel of one's own


class OfArrays:
    """A kernel whose laws index t, as users write them."""

    def __init__(self):
        self.inner = dpm.GaussianKernel(constant_fraction(3) * 0.9, (2,))
        self.num_steps, self.event_shape, self.stationary = 3, (2,), self.inner.stationary

    def __getattr__(self, name):
        if name not in ("step", "marginal", "posterior"):
            raise AttributeError(name)

        def law(*arguments):
            assert isinstance(arguments[-1], np.ndarray | jax.Array), type(arguments[-1])
            arguments[-1][..., None]
            return getattr(self.inner, name)(*arguments)

        return law


def test_every_law_sees_t_as_an_array():
    def diffusion():
        kernel = OfArrays()
        slope = numpyro.param("slope", 0.7)
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(slope * x, 0.1 * t[..., None] + 0.5).to_event(1))

    model, guide = dpm.single_chain(diffusion)
    x0, params = jnp.array([[0.3, -1.0], [0.1, 0.4]]), {"slope": jnp.array(0.7)}
    given = {"params": params, "key": jax.random.key(0)}
    terms = inference.bound(diffusion, x0, num_samples=2, **given)
    weights = inference.log_likelihood(diffusion, x0, num_particles=3, **given)
    inference.consistency_bound(diffusion, x0, **given)
    for size in (None, 1):
        pair = (dpm.subsample_steps(program, size=size) for program in (model, guide))
        assert jnp.isfinite(TraceMeanField_ELBO().loss(jax.random.key(1), params, *pair, x0))
    assert jnp.isfinite(terms.elbo).all()
    assert jnp.isfinite(weights.log_weight).all()
