"""CIFAR-10 by the chain of `mnist_2015`: its files, and that it learns."""

import pytest

import dpm_ppl as dpm
from dpm_ppl.models import cifar10_2015
from tests.models.images import are_dequantised, asks_for, fits_on_a_screen, learns


def test_fits_on_a_screen():
    fits_on_a_screen("cifar10_2015")


def test_without_files_it_says_what_is_missing(tmp_path, monkeypatch):
    asks_for(r"cifar-10-batches-bin/data_batch_1\.bin", cifar10_2015.data, tmp_path, monkeypatch)


@pytest.mark.data
def test_held_out_images_are_the_test_images_on_the_scale_of_the_others():
    images = dpm.datasets.cifar10(partial=True)
    are_dequantised(cifar10_2015.held_out(), images.test, images.scale)


@pytest.mark.data
def test_it_learns():
    learns("cifar10_2015")
