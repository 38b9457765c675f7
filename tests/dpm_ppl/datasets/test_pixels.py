"""Images with fresh noise: their laws given each image, and that each is drawn as often as the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.datasets import Binarised, Dequantised, Scale

# Two images of one row, told apart by their first pixel whatever the noise; the last is neither black nor white.
IMAGES = np.array([[[0, 255, 51, 20]], [[255, 0, 204, 140]]], np.uint8)
NUM = 20_000


def test_bits_have_the_probability_of_their_grey():
    x = np.asarray(jax.jit(lambda key: Binarised(IMAGES).sample(key, (NUM,)))(jax.random.key(0)))
    assert x.dtype == int
    second = x[:, 0, 0] == 1
    np.testing.assert_allclose(second.mean(), 0.5, atol=4.5 * np.sqrt(0.25 / NUM))
    for image, chosen in zip(IMAGES, (~second, second), strict=True):
        probability = image / 255
        error = np.sqrt(probability * (1 - probability) / chosen.sum())
        assert (np.abs(x[chosen].mean(0) - probability) <= 4.5 * error).all()


def test_levels_are_spread_over_their_intervals():
    scale = Scale(shift=100.5, width=40.0)
    law = Dequantised(IMAGES, scale)
    x = np.asarray(jax.jit(lambda key: law.sample(key, (NUM // 10, 10)))(jax.random.key(1))).reshape(NUM, 1, 4)
    images = IMAGES[(x[:, 0, 0] > 0).astype(int)]
    np.testing.assert_array_equal(scale.quantise(x), images)
    share = np.sort((x * 40 + 100.5 - images).ravel())
    assert np.abs(share - (np.arange(share.size) + 0.5) / share.size).max() < 2 / np.sqrt(share.size)  # Kolmogorov
    assert jnp.all(law.support(x))


@pytest.mark.parametrize("law", [Binarised, lambda images: Dequantised(images, Scale(0.0, 1.0))])
def test_they_take_levels_alone(law):
    with pytest.raises(TypeError, match=r"integers 0\.\.255.*got float64 from 0 to 1\. Images that are scaled"):
        law(IMAGES / 255)
