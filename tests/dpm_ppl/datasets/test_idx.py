"""MNIST's files, small ones made here; the real ones where they are."""

import hashlib

import numpy as np
import pytest

from dpm_ppl.datasets import idx, mnist, mnist_binary
from tests.dpm_ppl.datasets.conftest import idx_bytes, write

RNG = np.random.default_rng(0)


@pytest.fixture
def digits(named, monkeypatch):
    """Fourteen training images and three test images, not square, in files of their own checksums; the first plain."""
    images = {idx.TRAIN: RNG.integers(0, 256, (14, 5, 3)), idx.TEST: RNG.integers(0, 256, (3, 5, 3))}
    sums = {}
    for name, array in images.items():
        content = idx_bytes(array)
        packed = name == idx.TEST
        write(named / "mnist" / (f"{name}.gz" if packed else name), content, packed=packed)
        sums[name] = ("", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(idx, "MD5", sums)
    return images


def test_every_image_is_in_one_part_in_its_place(digits):
    images = mnist(num_validation=4)
    assert images.train.dtype == np.uint8
    np.testing.assert_array_equal(images.train, digits[idx.TRAIN][:10])
    np.testing.assert_array_equal(images.validation, digits[idx.TRAIN][10:])
    np.testing.assert_array_equal(images.test, digits[idx.TEST])


def test_bits_are_drawn_once_by_image_and_seed(digits):
    some, other = mnist_binary(num_validation=4), mnist_binary(num_validation=9)
    np.testing.assert_array_equal(some.train[:5], other.train)
    np.testing.assert_array_equal(some.test, other.test)
    assert set(np.unique(some.train)) == {0, 1}
    assert not np.array_equal(some.train, mnist_binary(num_validation=4, seed=1).train)
    assert some.levels == 2


def test_bits_have_the_probabilities_of_their_levels():
    """Every level of a large image: frequencies within 4.5 standard errors, black and white without exception."""
    image = np.tile(np.arange(256, dtype=np.uint8), (20_000, 1))
    found = idx.binarise(image, seed=3).mean(0)
    probability = np.arange(256) / 255
    error = np.sqrt(probability * (1 - probability) / len(image))
    assert (np.abs(found - probability) <= 4.5 * error).all()


@pytest.mark.parametrize("number", [0, 14, 20])
def test_validation_leaves_something_to_fit(digits, number):
    with pytest.raises(ValueError, match="Expected `num_validation`"):
        mnist(num_validation=number)


CONTENT = idx_bytes(np.arange(30).reshape(2, 3, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], r"to hold 46 bytes, 2 images of 3 x 5, as it says; got 45: it is truncated"),
        (CONTENT + b"\0", r"got 47"),
        (CONTENT[:9], r"truncated"),
        (b"", r"begin with the magic number 00000803 of idx images; got \."),
        (idx_bytes(np.arange(4)), r"magic number 00000803 of idx images; got 00000801\. It is another file: of labels"),
        (CONTENT[:-1] + b"\0", r"published md5 \w{32}; got \w{32} \(46 bytes\)\. It is damaged"),
    ],
)
def test_damaged_and_other_files_are_refused(tmp_path, content, message):
    md5 = hashlib.md5(CONTENT).hexdigest()
    path = write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=message) as refused:
        idx.read_idx(path, md5=md5)
    assert str(path) in str(refused.value)
    assert md5 in str(refused.value)


@pytest.mark.parametrize("end", [-9, 15])
def test_a_truncated_gzip_file_is_refused(tmp_path, end):
    path = write(tmp_path / "file.gz", CONTENT, packed=True)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"to be a whole gzip file; it is damaged: .* md5, unpacked, is abc\."):
        idx.read_idx(path, md5="abc")


@pytest.mark.data
def test_the_real_digits(real):
    """Known of them: their mean, the best independent pixels of their bits, -206 nats, and that no part is another."""
    images, bits = mnist(), mnist_binary()
    assert [len(part) for part in (images.train, images.validation, images.test)] == [55_000, 5_000, 10_000]
    every = np.concatenate([images.train, images.validation])
    np.testing.assert_allclose([every.mean() / 255, every.std() / 255], [0.1307, 0.3081], atol=5e-5)
    rate = np.clip(np.concatenate([bits.train, bits.validation]).mean(0), 1e-6, 1 - 1e-6)
    nats = np.where(bits.test, np.log(rate), np.log1p(-rate)).sum((1, 2))
    np.testing.assert_allclose(nats.mean(), -206, atol=1.5)
