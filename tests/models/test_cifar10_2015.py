"""CIFAR-10 by the chain of `mnist_2015`: its files, and that it learns."""

import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.datasets import files
from dpm_ppl.models import cifar10_2015
from tests.models.images import fits_on_a_screen, learns


def test_fits_on_a_screen():
    fits_on_a_screen("cifar10_2015")


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin/data_batch_1\.bin.*DPM_DATA"):
        cifar10_2015.data()


@pytest.mark.data
def test_held_out_images_are_the_test_images_on_the_scale_of_the_others():
    images, held_out = dpm.datasets.cifar10(partial=True), cifar10_2015.held_out()
    np.testing.assert_array_equal(images.scale.quantise(held_out), images.test)


@pytest.mark.data
def test_it_learns():
    learns("cifar10_2015")
