"""Bark by the chain of `mnist`: its files, and that it learns."""

import numpy as np
import pytest

from dpm_ppl.models import bark
from tests.models.images import are_dequantised, asks_for, fits_on_a_screen, learns


def test_fits_on_a_screen():
    fits_on_a_screen("bark")


def test_without_photographs_it_says_what_is_missing(tmp_path, monkeypatch):
    bark.patches.cache_clear()
    asks_for(r"Expected a folder of photographs at .*bark", bark.data, tmp_path, monkeypatch)


@pytest.mark.data
def test_held_out_patches_are_of_other_parts_on_the_scale_of_those_to_fit():
    bark.patches.cache_clear()
    patches = bark.patches()
    are_dequantised(bark.held_out(), patches.test, patches.scale)
    np.testing.assert_allclose(patches.scale.dequantise(patches.train, seed=0).std(), 1, atol=2e-3)


@pytest.mark.data
def test_it_learns():
    learns("bark")
