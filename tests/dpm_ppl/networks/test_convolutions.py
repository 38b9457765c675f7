"""Convolutions against sums, one output at a time; batches against one by one."""

import jax
import numpy as np
import pytest

from dpm_ppl.networks.convolutions import Convolution, over_batch, upsampled
from tests.dpm_ppl.networks.test_perceptrons import randomised

RNG = np.random.default_rng(0)


def convolved(layer, x):
    """A convolution as a sum over filter pixels, zeros outside; XLA's "SAME" pads the end more where it must."""
    weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
    size, stride = len(weight), layer.stride
    shape = [-(-side // stride) for side in x.shape[:2]]
    pad = [max((out - 1) * stride + size - side, 0) // 2 for out, side in zip(shape, x.shape[:2], strict=True)]
    found = np.tile(bias, (*shape, 1))
    for i, j, a, b in np.ndindex(*shape, size, size):
        at = (stride * i + a - pad[0], stride * j + b - pad[1])
        if 0 <= at[0] < x.shape[0] and 0 <= at[1] < x.shape[1]:
            found[i, j] += x[at] @ weight[a, b]
    return found


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_convolution_is_a_sum_over_neighbours(size, stride):
    layer = randomised(Convolution(2, 5, size=size, stride=stride, key=jax.random.key(1)))
    x = RNG.normal(size=(6, 4, 2))
    np.testing.assert_allclose(layer(x), convolved(layer, x), rtol=1e-10)


def test_weights_keep_the_scale_of_their_input():
    x = RNG.normal(size=(16, 16, 64))
    assert 0.9 < np.std(Convolution(64, 64, key=jax.random.key(0))(x)[1:-1, 1:-1]) < 1.1


def test_upsampled_pixels_become_squares():
    x = RNG.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(upsampled(x, 2), np.kron(x, np.ones((2, 2, 1))))


def test_a_batch_is_its_images_one_by_one():
    """States of steps and data, and one step for each, as chains are scored."""
    x, t = RNG.normal(size=(3, 5, 2, 2)), RNG.integers(1, 9, (3, 1))
    found = over_batch(lambda image, t: t * image[:, 0] - image[:, 1] ** 2, x, t, event_dim=2)
    for at in np.ndindex(3, 5):
        np.testing.assert_allclose(found[at], t[at[0], 0] * x[at][:, 0] - x[at][:, 1] ** 2, rtol=1e-12)
