"""Each network against its formula in NumPy, one example and one step at a time, with randomised weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.networks import RBFNetwork, StepMLP, StepReadout, TimeMLP
from dpm_ppl.schedules import linear

IN, OUT, T = 3, 2, 4


def randomised(net, key=0):
    """The network with every weight drawn anew: no output is zero and no two weights are alike."""
    rng = np.random.default_rng(key)
    return jax.tree.map(lambda a: 0.6 * rng.normal(size=a.shape) if eqx.is_inexact_array(a) else a, net)


def rbf():
    return RBFNetwork(IN, OUT, num_steps=T, num_units=5, key=jax.random.key(0))


def step_mlp():
    return StepMLP(IN, OUT, num_steps=T, width=6, depth=3, key=jax.random.key(1))


def time_mlp():
    return TimeMLP(IN, OUT, num_steps=T, width=6, depth=2, num_frequencies=3, key=jax.random.key(2))


def readout(net, hidden, t):
    return np.asarray(net.readout.weight)[t - 1] @ hidden + np.asarray(net.readout.bias)[t - 1]


def rbf_formula(net, x, t):
    """SD15 D.1.1: units exp(-|x - c|^2 / (2 w^2)), normalised to sum to one."""
    square_distance = np.array([np.sum((x - centre) ** 2) for centre in net.centres])
    units = np.exp(-square_distance / (2 * np.exp(net.log_width) ** 2))
    return readout(net, units / units.sum(), t)


def perceptron(layers, x, activation, *, last_is_hidden):
    for i, layer in enumerate(layers):
        x = np.asarray(layer.weight) @ x + np.asarray(layer.bias)
        if last_is_hidden or i < len(layers) - 1:
            x = activation(x)
    return x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_mlp_formula(net, x, t):
    """Three hidden layers of sigmoid units, then the readout of step t."""
    assert len(net.trunk.layers) == 3
    return readout(net, perceptron(net.trunk.layers, x, sigmoid, last_is_hidden=True), t)


def time_mlp_formula(net, x, t):
    """Two hidden layers of x sigmoid(x), on x, sin and cos of pi t / T at frequencies 1, 2, 4."""
    assert len(net.layers.layers) == 3
    angle = np.pi * t / T * np.array([1, 2, 4])
    inputs = np.concatenate([x, np.sin(angle), np.cos(angle)])
    return perceptron(net.layers.layers, inputs, lambda z: z * sigmoid(z), last_is_hidden=False)


NETWORKS = {
    "rbf": (rbf, rbf_formula),
    "step_mlp": (step_mlp, step_mlp_formula),
    "time_mlp": (time_mlp, time_mlp_formula),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


# Batch shapes of x and t as chains and handlers use them: a scan, whole trajectories, steps shared or per datum
BATCHES = [((), ()), ((5,), ()), ((5, T), (T,)), ((3, 5), (3, 1)), ((3, 5), (3, 5)), ((2, 3, 5), (3, 1))]


@pytest.mark.parametrize(("batch", "steps"), BATCHES)
def test_network_is_its_formula_for_every_batch(network, batch, steps):
    make, formula = network
    net, rng = randomised(make()), np.random.default_rng(3)
    x, t = rng.normal(size=(*batch, IN)), rng.integers(1, T + 1, steps)
    each_t = np.broadcast_to(t, batch)
    expected = np.zeros((*batch, OUT))
    for at in np.ndindex(*batch):
        expected[at] = formula(net, x[at], int(each_t[at]))
    np.testing.assert_allclose(eqx.filter_jit(net)(x, t), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64])
def test_bits_are_seen_as_the_real_numbers_that_they_are(network, dtype):
    """The time beside them too, of which whole numbers would leave nothing."""
    make, _ = network
    net, x, t = randomised(make()), np.random.default_rng(0).integers(0, 2, (5, IN)), np.array([1, 2, 3, 4, 4])
    np.testing.assert_array_equal(net(jnp.asarray(x, dtype), t), net(jnp.asarray(x, float), t))


def test_outputs_are_zero_at_first_and_differ_by_step_later(network):
    make, _ = network
    x, t = np.random.default_rng(4).normal(size=(T, IN)), np.arange(1, T + 1)
    np.testing.assert_array_equal(make()(x, t), 0.0)
    outputs = randomised(make())(np.broadcast_to(x[:1], (T, IN)), t)
    assert (abs(np.diff(outputs, axis=0)) > 1e-3).all()


def test_defaults_are_the_papers():
    """Swiss roll, 16 units; heartbeat, 20-50-50-50 sigmoid, a readout per step."""
    assert RBFNetwork(2, 4, num_steps=40, key=jax.random.key(0)).centres.shape == (16, 2)
    net = StepMLP(20, 20, num_steps=7, key=jax.random.key(0))
    assert [layer.weight.shape for layer in net.trunk.layers] == [(50, 20), (50, 50), (50, 50)]
    assert net.readout.weight.shape == (7, 20, 50)
    x = np.random.default_rng(5).normal(size=20)
    hidden = perceptron(net.trunk.layers, x, sigmoid, last_is_hidden=True)
    net = eqx.tree_at(lambda net: net.readout.weight, net, jnp.ones((7, 20, 50)))
    np.testing.assert_allclose(net(x, jnp.asarray(3)), np.full(20, hidden.sum()), rtol=1e-10)


def test_far_from_every_centre_the_units_stay_normalised():
    """exp underflows for all 5 units at once; the nearest centre must win, not 0 / 0."""
    net = randomised(rbf())
    x = 300 * np.ones(IN)
    exponent = -np.sum((x - net.centres) ** 2, -1) / (2 * np.exp(2 * net.log_width))
    hidden = np.eye(5)[np.argmax(exponent)]
    np.testing.assert_allclose(net(x, jnp.asarray(2)), readout(net, hidden, 2), rtol=1e-10)


def test_readout_of_each_step_learns_from_its_own_steps_alone():
    readout_net = StepReadout(3, 2, num_steps=T)
    hidden, t = np.random.default_rng(6).normal(size=(2, 3)), np.array([2, 4])
    gradient = jax.grad(lambda net: jnp.sum(net(hidden, t) * np.array([1.0, -3.0])))(readout_net)
    expected = np.zeros((T, 2, 3))
    expected[1], expected[3] = np.outer([1, -3], hidden[0]), np.outer([1, -3], hidden[1])
    np.testing.assert_allclose(gradient.weight, expected, rtol=1e-12)
    np.testing.assert_array_equal(gradient.bias, [[0, 0], [1, -3], [0, 0], [1, -3]])


def programs(net):
    """A chain whose reverse mean a network makes, on data with a mean and a scale of their own."""
    kernel = dpm.GaussianKernel(linear(T, first=0.2, last=0.8), (IN,))

    def diffusion():
        module = eqx_module("net", net)

        def reverse(x, t):
            return dist.Normal(module(x, t) @ jnp.array([[1.0, -0.5, 2.0], [0.3, 1.0, 0.2]]) + 0.5 * x, 0.8).to_event(1)

        return dpm.Diffusion(kernel, reverse)

    def model(x0):
        chain = diffusion()
        with numpyro.plate("data", len(x0)):
            dpm.reverse_chain("x", chain, obs=x0)

    def guide(x0):
        with numpyro.plate("data", len(x0)):
            dpm.forward_chain("x", dpm.Diffusion(kernel, kernel.step), x0)

    return model, guide


def test_every_weight_learns_in_svi(network):
    """Gradients of the stock ELBO are the explicit objective's, and none is dead but the unused readout of step 1."""
    net = randomised(network[0]())
    model, guide = programs(net)
    x0 = np.random.default_rng(7).normal(size=(16, IN)) @ np.diag([0.3, 1.0, 2.0]) + [1.0, -2.0, 0.5]
    elbo, key = Trace_ELBO(), jax.random.key(8)
    static = eqx.filter(net, eqx.is_inexact_array, inverse=True)

    @jax.jit
    def loss(params):
        return elbo.loss(key, {"net$params": params}, model, guide, x0)

    params = eqx.filter(net, eqx.is_inexact_array)
    gradient = jax.grad(loss)(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        live = leaf[1:] if "readout" in jax.tree_util.keystr(path) else leaf
        assert (live != 0).all(), path
        if live is not leaf:
            np.testing.assert_array_equal(leaf[0], 0.0)

    @jax.jit
    def explicit(params):  # the same draw of the guide, the reverse steps written out
        trajectory = jax.lax.stop_gradient(drawn)
        module, t = eqx.combine(params, static), jnp.arange(2, T + 1)
        mean = module(trajectory[:, 1:], t) @ jnp.array([[1.0, -0.5, 2.0], [0.3, 1.0, 0.2]]) + 0.5 * trajectory[:, 1:]
        return 0.5 * jnp.sum((trajectory[:, :-1] - mean) ** 2) / 0.8**2

    guide_key = jax.random.split(key)[1]  # as ELBO splits it
    trace = numpyro.handlers.trace(numpyro.handlers.seed(guide, guide_key)).get_trace(x0)
    drawn = trace["x_chain"]["value"]
    expected = jax.grad(explicit)(params)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("network", ["rbf", "time_mlp"], indirect=True)
def test_a_few_steps_of_svi_move_every_weight(network):
    """From the zero output on: the readout learns first, and through it the rest."""
    model, guide = programs(network[0]())
    x0 = np.random.default_rng(9).normal(size=(16, IN)) @ np.diag([0.3, 1.0, 2.0]) + [1.0, -2.0, 0.5]
    model, guide = (dpm.subsample_steps(program, size=None) for program in (model, guide))
    svi = SVI(model, guide, optax.adam(1e-2), TraceMeanField_ELBO())
    result = svi.run(jax.random.key(10), 60, x0, progress_bar=False)
    before = jax.tree.leaves(eqx.filter(network[0](), eqx.is_inexact_array))
    after = jax.tree.leaves(result.params["net$params"])
    for a, b in zip(before, after, strict=True):
        moved = np.asarray(a) != np.asarray(b)
        assert moved[1:].all() if a.shape[0] == T and not np.any(a) else moved.all()
    assert np.mean(result.losses[-10:]) < np.mean(result.losses[:10]) - 1.0
