"""CIFAR-10's binary batches, small ones made here; the real ones where they are."""

import numpy as np
import pytest

from dpm_ppl.datasets import cifar, cifar10
from tests.dpm_ppl.datasets.conftest import write

RNG = np.random.default_rng(0)


def batch(images, label=7):
    """Records of a label and three planes."""
    planes = np.asarray(images, np.uint8).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.full((len(images), 1), label, np.uint8), planes], 1).tobytes()


@pytest.fixture
def batches(named):
    images = {name: RNG.integers(0, 256, (2, 32, 32, 3)) for name in (*cifar.TRAIN, *cifar.TEST)}
    for name, array in images.items():
        write(named / cifar.FOLDER / f"{name}.bin", batch(array))
    return images


def test_images_come_in_the_order_of_the_batches(batches):
    images = cifar10(num_validation=3)
    every = np.concatenate([batches[name] for name in cifar.TRAIN])
    np.testing.assert_array_equal(images.train, every[:7])
    np.testing.assert_array_equal(images.validation, every[7:])
    np.testing.assert_array_equal(images.test, batches["test_batch"])


def test_fewer_batches_only_where_that_is_said(batches, named):
    (named / cifar.FOLDER / "data_batch_4.bin").unlink()
    (named / cifar.FOLDER / "test_batch.bin").rename(named / cifar.FOLDER / "test_batch_first2.bin")
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin in .*DPM_DATA.*cifar10\(partial=True\) takes"):
        cifar10(num_validation=1)
    images = cifar10(num_validation=1, partial=True)
    assert len(images.train) == 7
    np.testing.assert_array_equal(images.validation[0], batches["data_batch_5"][-1])
    np.testing.assert_array_equal(images.test, batches["test_batch"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "records of 3,073 bytes, at least one; got 0 bytes"),
        (batch(np.zeros((2, 32, 32, 3)))[:-1], "got 6,145 bytes: it is truncated"),
        (batch(np.zeros((1, 32, 32, 3)), label=10), r"labels 0\.\.9 in .*; got 10: it is damaged"),
    ],
)
def test_damaged_batches_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        cifar.read_batch(write(tmp_path / "data_batch_1.bin", content))
    assert cifar.MD5 in str(refused.value)


@pytest.mark.data
def test_the_real_photographs(real):
    """The mean of each channel is known, of all 50,000; of two fifths within what so many differ by."""
    images = cifar10(partial=True)
    every = np.concatenate([images.train, images.validation])
    np.testing.assert_allclose(every.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.005)
    assert len(images.test) >= 1000
