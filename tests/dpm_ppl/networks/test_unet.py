"""The U-Net against the same written out in NumPy, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.networks import UNet
from tests.dpm_ppl.networks.test_convolutions import convolved
from tests.dpm_ppl.networks.test_perceptrons import randomised

RNG = np.random.default_rng(0)
T, SHAPE = 10, (8, 4, 2)


def small(**options):
    given = {"num_steps": T, "widths": (8, 4), "num_blocks": (1, 1, 1), "num_frequencies": 2, "key": jax.random.key(0)}
    return UNet(SHAPE, **{**given, **options})


@pytest.fixture(scope="module")
def net():
    return randomised(small(num_outputs=3))


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(lambda net, x, t: net(x, t))


def silu(x):
    return x / (1 + np.exp(-x))


def normalised(x):
    """Groups of neighbouring channels, eight or as many as there are, over the image."""
    groups = np.split(x, min(8, x.shape[-1]), -1)
    return np.concatenate([(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in groups], -1)


def linear(layer, x):
    return np.asarray(layer.weight) @ x + np.asarray(layer.bias)


def block(net, x, time):
    scale, shift = np.split(linear(net.of_time, time), 2)
    hidden = convolved(net.first, silu(normalised(x)))
    hidden = convolved(net.second, silu(normalised(hidden) * (1 + scale) + shift))
    return hidden + (x if net.shortcut is None else convolved(net.shortcut, x))


def formula(net, x, t):
    angle = np.pi * t / T * np.array([1, 2])
    time = np.concatenate([np.sin(angle), np.cos(angle)])
    for layer in net.time:
        time = silu(linear(layer, time))
    folded = np.array([[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() for j in range(2)] for i in range(4)])
    beside = block(net.down[0], convolved(net.enter, folded), time)
    hidden = block(net.middle[0], convolved(net.halve, beside), time)
    hidden = convolved(net.double, np.kron(hidden, np.ones((2, 2, 1))))
    hidden = block(net.up[0], np.concatenate([hidden, beside], -1), time)
    out = convolved(net.leave, silu(normalised(hidden))).reshape(4, 2, 2, 2, -1)
    return np.concatenate([np.concatenate(row, 1) for row in out]).reshape(*SHAPE, 3)


def test_network_is_its_formula(net, compiled):
    """For a batch of data and steps, two of them by hand; with a shortcut, and blocks without one."""
    x, t = RNG.normal(size=(2, 3, *SHAPE)), np.array([[2], [9]])
    found = compiled(net, x, t)
    assert found.shape == (2, 3, *SHAPE, 3)
    for at in ((0, 1), (1, 2)):
        np.testing.assert_allclose(found[at], formula(net, x[at], t[at[0], 0]), rtol=1e-9, atol=1e-9)


def test_outputs_are_zero_at_first():
    np.testing.assert_array_equal(small()(RNG.normal(size=SHAPE), jnp.asarray(3)), np.zeros(SHAPE))


def test_bfloat16_is_near_and_leaves_outputs_in_their_type(net, compiled):
    """Within a few of its roundings, 2^-8 of the outputs' scale, and no nearer: it was used."""
    x = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
    t = np.array([2, 5, 7, 9])
    rough = randomised(small(num_outputs=3, dtype=jnp.bfloat16))
    rough = jax.tree.unflatten(jax.tree.structure(rough), jax.tree.leaves(net))
    rough, net = (jax.tree.map(lambda a: a.astype(np.float32), each) for each in (rough, net))
    found, exact = compiled(rough, x, t), compiled(net, x, t)
    assert found.dtype == np.float32
    error = np.std(found - exact) / np.std(exact)
    assert 2**-12 < error < 2**-4


@pytest.mark.parametrize("shape", [(8,), (6, 8), (8, 10, 3), (8, 8, 1, 1)])
def test_events_must_be_images_that_halve(shape):
    with pytest.raises(ValueError, match=r"both sides divisible by 2 fold = 4; got \("):
        UNet(shape, num_steps=T, key=jax.random.key(0))
