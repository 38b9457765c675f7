"""MNIST, from files in LeCun's idx format, plain or gzip; grey, and binarised once by a seed.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from dpm_ppl.datasets.files import find, require_md5
from dpm_ppl.datasets.images import Images

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
# Published checksums of each file as it is at URL, and unpacked.
MD5 = {
    TRAIN: ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    TEST: ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
}
UNSIGNED_BYTE = 0x08


def mnist(*, num_validation: int = 5000) -> Images:
    """Handwritten digits, 28 x 28 grey levels: 60,000 less `num_validation` to fit, and 10,000 test images.

    Args:
        num_validation: How many of the training images, the last ones, are kept for validation.

    Returns:
        The three parts, arrays of shape (num, 28, 28).

    Raises:
        FileNotFoundError: there are no files, and no download (see `dpm_ppl.datasets.files.find`).
        TypeError: num_validation is no integer.
        ValueError: a file is damaged or another, by its checksum; num_validation leaves no image to fit.
    """
    return Images.split(_read(TRAIN), _read(TEST), num_validation=num_validation)


def mnist_binary(*, num_validation: int = 5000, seed: int = 0) -> Images:
    """MNIST in black and white: each pixel 1 with probability level / 255, drawn once, by the seed.

    The bits of an image depend on the seed and its place in its file alone. To fit, fresh bits may be better
    (`dpm_ppl.datasets.Binarised`). Numbers on other binarisations, such as the published static one, differ.

    Args:
        num_validation: As in `mnist`.
        seed: Seed of NumPy's default generator.

    Returns:
        The three parts, of two levels, arrays of shape (num, 28, 28).

    Raises:
        FileNotFoundError, TypeError, ValueError: as in `mnist`.

    Source: Salakhutdinov and Murray 2008, section 6.1.
    """
    train, test = (binarise(_read(name), seed=[seed, place]) for place, name in enumerate((TRAIN, TEST)))
    return Images.split(train, test, num_validation=num_validation, levels=2)


def binarise(images: np.ndarray, *, seed: int | list[int]) -> np.ndarray:
    """Bits, each 1 with probability level / 255, by a seed; uint8 of the images' shape."""
    # Of 255 equally likely numbers below a level there are `level`.
    return (np.random.default_rng(seed).integers(0, 255, images.shape, np.uint8) < images).astype(np.uint8)


def _read(name: str) -> np.ndarray:
    packed, unpacked = MD5[name]
    return read_idx(find(f"mnist/{name}.gz", url=f"{URL}{name}.gz", md5=packed), md5=unpacked)


def read_idx(path: Path, *, md5: str | None = None) -> np.ndarray:
    """Images of an idx file, plain or gzip.

    Args:
        path: The file.
        md5: Checksum of its content, unpacked; by default it is not compared.

    Returns:
        Unsigned bytes, shape (num, height, width).

    Raises:
        ValueError: it is truncated or damaged, of another format, or of another checksum.
    """
    content = path.read_bytes()
    expected = "" if md5 is None else f" Its published md5, unpacked, is {md5}."
    again = f"{expected} Delete it and get it again."
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"Expected {path} to be a whole gzip file; it is damaged: {error}.{again}") from error
    magic = bytes([0, 0, UNSIGNED_BYTE, 3])
    if content[:4] != magic:
        raise ValueError(
            f"Expected {path} to begin with the magic number {magic.hex()} of idx images; got {content[:4].hex()}. It "
            f"is another file: of labels, perhaps.{expected}"
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in (4, 8, 12))
    if len(content) != 16 + math.prod(shape):
        raise ValueError(
            f"Expected {path} to hold {16 + math.prod(shape):,} bytes, {shape[0]:,} images of {shape[1]} x {shape[2]}, "
            f"as it says; got {len(content):,}: it is truncated, or has too much.{again}"
        )
    if md5 is not None:
        require_md5(path, content, md5)
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)
