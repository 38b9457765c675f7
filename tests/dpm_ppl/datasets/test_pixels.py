"""Images with fresh noise: their laws given each image, and that each is drawn as often as the other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.datasets import Binarised, Centred, Dequantised, Scale

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


def test_centred_levels_are_the_middles_of_their_intervals():
    scale = Scale(shift=100.5, width=40.0)
    law = Centred(IMAGES, scale)
    x = np.asarray(jax.jit(lambda key: law.sample(key, (100,)))(jax.random.key(1)))
    images = IMAGES[(x[:, 0, 0] > 0).astype(int)]
    np.testing.assert_allclose(x, (images + 0.5 - 100.5) / 40, rtol=1e-6)
    np.testing.assert_array_equal(law.levels_of(x), images)
    np.testing.assert_allclose(scale.centre(images), x, rtol=1e-6)


def test_a_law_of_levels_takes_the_place_of_a_set():
    """Independent levels, binomial: noise is added to draws of the law itself."""
    scale, levels = Scale(3.0, 2.0, levels=8), dist.Binomial(7, np.array([0.2, 0.9])).to_event(1)
    x = np.asarray(jax.jit(lambda key: Dequantised(levels, scale).sample(key, (NUM,)))(jax.random.key(2)))
    share = x * 2 + 3.0 - scale.quantise(x)
    np.testing.assert_allclose(scale.quantise(x).mean(0), [1.4, 6.3], atol=4.5 * np.sqrt(7 * 0.16 / NUM))
    np.testing.assert_allclose(share.mean(0), 0.5, atol=4.5 / np.sqrt(12 * NUM))
    with pytest.raises(ValueError, match=r"Expected a distribution of `images` to be over whole levels.*Real"):
        Dequantised(dist.Normal(np.zeros(2), 1.0).to_event(1), scale)


def test_bits_per_dimension_of_levels():
    """Eight equally likely levels, dequantised: the log density of x is -log 8 + log width, and they are three bits."""
    images, scale = np.arange(8, dtype=np.uint8).reshape(8, 1, 1), Scale(1.5, 5.0, levels=8)
    assert Dequantised(images, scale).bits_per_dimension(np.log(5 / 8)) == pytest.approx(3)
    for law in (Centred(images, scale), Binarised(images)):
        assert law.bits_per_dimension(-np.log(8)) == pytest.approx(3)
    four = np.zeros((1, 2, 2), np.uint8)
    assert Binarised(four).bits_per_dimension(-np.log(8)) == pytest.approx(3 / 4)
