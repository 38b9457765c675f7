"""Dead leaves by the chain of `mnist`: the scale of its levels, what is held out, and that it learns."""

import jax
import numpy as np
import pytest

from dpm_ppl.models import dead_leaves
from tests.compiling import optimised
from tests.models.images import fits_on_a_screen, learns


def test_fits_on_a_screen():
    fits_on_a_screen("dead_leaves")


def test_data_are_leaves_on_the_scale_of_unit_variance():
    x = np.asarray(jax.jit(lambda key: dead_leaves.data().sample(key, (500,)))(jax.random.key(0)))
    levels = dead_leaves.SCALE.quantise(x)
    same = np.mean(levels[:, :, 1:] == levels[:, :, :-1])
    assert 0.4 < same < 0.9  # neighbours are often of one leaf
    each = x.mean((1, 2))  # images are independent, pixels are not
    assert abs(each.mean()) < 4.5 * each.std() / np.sqrt(500)
    square = (x**2).mean((1, 2))
    assert abs(square.mean() - 1) < 4.5 * square.std() / np.sqrt(500)


@optimised()
def test_what_is_held_out_is_dequantised_and_always_the_same():
    held_out = dead_leaves.held_out()
    assert held_out.shape == (1000, 16, 16)
    np.testing.assert_array_equal(held_out[:50], dead_leaves.held_out()[:50])
    share = (held_out * dead_leaves.SCALE.width + dead_leaves.SCALE.shift) % 1
    assert abs(share.mean() - 0.5) < 0.01


@pytest.mark.data  # needs no files, but minutes
def test_it_learns():
    learns("dead_leaves")
