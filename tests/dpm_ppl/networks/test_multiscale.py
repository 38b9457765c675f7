"""The paper's network of images against the same in NumPy; what it leaves as it is, and what moves with its input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.networks import MultiScaleNetwork
from dpm_ppl.networks.multiscale import MultiScaleConvolution, bumps
from tests.dpm_ppl.networks.test_convolutions import convolved
from tests.dpm_ppl.networks.test_perceptrons import randomised

RNG = np.random.default_rng(0)
T, SHAPE = 12, (8, 4)


def small(**options):
    given = {"num_scales": 2, "num_bumps": 3, "width": 4, "depth": 2, "dense_width": 5, "dense_channels": 2}
    return MultiScaleNetwork(SHAPE, num_steps=T, key=jax.random.key(0), **{**given, **options})


def softplus(x):
    return np.log1p(np.exp(x))


def multiscale(net, x):
    """Means of squares, a convolution of them, each of its pixels repeated in the square."""
    total = 0
    for scale, layer in enumerate(net.layers):
        side = 2**scale
        rows, columns = x.shape[0] // side, x.shape[1] // side
        pooled = np.array(
            [
                [x[side * i : side * i + side, side * j : side * j + side].mean((0, 1)) for j in range(columns)]
                for i in range(rows)
            ]
        )
        total = total + np.kron(convolved(layer, pooled), np.ones((side, side, 1)))
    return softplus(total)


def formula(net, x, t):
    hidden = x[..., None]
    for layer in net.convolutions:
        hidden = multiscale(layer, hidden)
    dense = x.ravel()
    for i, layer in enumerate(net.dense.layers):
        dense = np.asarray(layer.weight) @ dense + np.asarray(layer.bias)
        dense = softplus(dense) if i < 2 else dense
    hidden = np.concatenate([hidden, dense.reshape(*SHAPE, 2)], -1)
    for layer in net.meet:
        hidden = softplus(convolved(layer, hidden))
    share = np.exp(-((t - np.array([2, 6, 10])) ** 2) / (2 * 4**2))
    return convolved(net.leave, hidden).reshape(*SHAPE, 2, 3) @ (share / share.sum())


def test_network_is_its_formula():
    net = randomised(small())
    x, t = RNG.normal(size=(2, 3, *SHAPE)), np.array([[2], [9]])
    found = eqx.filter_jit(net)(x, t)
    for at in ((0, 1), (1, 2)):
        np.testing.assert_allclose(found[at], formula(net, x[at], t[at[0], 0]), rtol=1e-9)


def test_bumps_are_shares_that_move_with_time():
    found = np.asarray(bumps(np.arange(0, 13), num_steps=12, num_bumps=3))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(found.argmax(-1)[[1, 6, 11]], [0, 1, 2])
    np.testing.assert_allclose(found[5, 0] / found[5, 2], np.exp((5**2 - 3**2) / 32), rtol=1e-10)


def test_zero_output_gives_back_the_forward_kernel():
    kernel = dpm.GaussianKernel(dpm.schedules.linear(T, first=0.05, last=0.6), event_shape=SHAPE)
    x, t = RNG.normal(size=(3, *SHAPE)), np.array([2, 5, 11])
    mean, variance = jnp.moveaxis(small()(x, t), -1, 0)
    found, expected = dpm.outputs.residual_normal(kernel, x, t, mean, variance), kernel.step(x, t)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-12)


def test_what_moves_in_moves_out():
    """By the largest pool, away from the edges, which a filter at the second scale sees from four pixels away."""
    layer = randomised(MultiScaleConvolution(1, 3, num_scales=2, key=jax.random.key(0)))
    x = RNG.normal(size=(16, 12, 1))
    still, moved = (np.asarray(layer(image)) for image in (x, np.roll(x, (4, 2), (0, 1))))
    np.testing.assert_allclose(moved[8:12, 6:8], still[4:8, 4:6], rtol=1e-10)
    assert np.abs(moved[8:12, 6:8] - still[8:12, 6:8]).max() > 0.1


def test_every_pool_must_divide_the_image():
    with pytest.raises(ValueError, match=r"divisible by the largest pool, 8; got \(8, 4\)\. Fewer `num_scales`"):
        small(num_scales=4)
