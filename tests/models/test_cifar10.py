"""CIFAR-10 by the chain of `mnist`: its files, its scale, and that it learns."""

import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.models import cifar10
from tests.models.images import asks_for, fits_on_a_screen, learns


def test_fits_on_a_screen():
    fits_on_a_screen("cifar10")


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    asks_for(r"cifar-10-batches-bin/data_batch_1\.bin", cifar10.data, tmp_path, monkeypatch)


@pytest.mark.data
def test_the_scale_is_near_that_of_the_training_images():
    images = dpm.datasets.cifar10(partial=True)
    np.testing.assert_allclose(cifar10.SCALE.dequantise(images.train, seed=0).std(), 1, atol=0.02)
    np.testing.assert_allclose(cifar10.SCALE.dequantise(images.train, seed=0).mean(), 0, atol=0.02)
    np.testing.assert_array_equal(cifar10.SCALE.quantise(cifar10.held_out()), images.test)


@pytest.mark.data
def test_it_learns():
    learns("cifar10")
