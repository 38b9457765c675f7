"""CIFAR-10 in its binary version: records of a label and 32 x 32 pixels of three channels.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from pathlib import Path

import numpy as np

from dpm_ppl.datasets.files import find, folder
from dpm_ppl.datasets.images import Images

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # of the archive, as published on its page
FOLDER = "cifar-10-batches-bin"
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue, each row by row


def cifar10(*, num_validation: int = 5000, partial: bool = False) -> Images:
    """Colour photographs, 32 x 32 x 3: 50,000 less `num_validation` to fit, and 10,000 test images.

    Args:
        num_validation: How many of the training images, the last ones, are kept for validation.
        partial: Whether fewer batches will do: then those that are there are read, and a part of a batch, such as
            `test_batch_first1000.bin`, in its place. Numbers on it are not comparable.

    Returns:
        The three parts, arrays of shape (num, 32, 32, 3).

    Raises:
        FileNotFoundError: a batch is not there, nor a download (see `dpm_ppl.datasets.files.find`).
        TypeError: num_validation is no integer.
        ValueError: a file is damaged, or num_validation leaves no image to fit.
    """
    train, test = (np.concatenate([read_batch(path) for path in _batches(names, partial)]) for names in (TRAIN, TEST))
    return Images.split(train, test, num_validation=num_validation)


def _batches(names: tuple[str, ...], partial: bool) -> list[Path]:  # noqa: FBT001
    if partial:
        found = [sorted((folder() / FOLDER).glob(f"{name}*.bin"))[:1] for name in names]
        if any(found):
            return [path for paths in found for path in paths]
    try:
        return [find(f"{FOLDER}/{name}.bin", url=URL, md5=MD5, archive=True) for name in names]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} cifar10(partial=True) takes the batches that are there.") from error


def read_batch(path: Path) -> np.ndarray:
    """Images of a batch.

    Args:
        path: The file.

    Returns:
        Unsigned bytes, shape (num, 32, 32, 3).

    Raises:
        ValueError: it is no whole number of records, or a label is none of 0..9: it is truncated, damaged or another.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % RECORD:
        raise ValueError(
            f"Expected {path} to hold records of {RECORD:,} bytes, at least one; got {len(content):,} bytes: it is "
            f"truncated, or no batch of CIFAR-10's binary version. The archive {URL} has md5 {MD5}."
        )
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(
            f"Expected labels 0..9 in {path}; got {records[:, 0].max()}: it is damaged, or no batch of CIFAR-10's "
            f"binary version. The archive {URL} has md5 {MD5}."
        )
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
