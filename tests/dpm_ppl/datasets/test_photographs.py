"""Patches: each from its own part of a photograph, grey by the weights of its channels; what is refused."""

import numpy as np
import pytest
from matplotlib.image import imsave
from PIL import Image

from dpm_ppl.datasets import bark
from dpm_ppl.datasets.photographs import read_photographs

RNG = np.random.default_rng(0)


def photograph(where, name, picture):
    """A file of its pixels, without loss."""
    where.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(picture, np.uint8)).save(where / name)


@pytest.fixture
def folder(named):
    """Two photographs of 20 x 60 in grey that name the column of each pixel, the second 100 above; and a note."""
    for i, name in enumerate(("a.png", "b.PNG")):
        photograph(named / "bark", name, np.tile(np.arange(60) + 100 * i, (20, 1)))
    (named / "bark" / "licence.txt").write_text("CC0")
    return named / "bark"


def test_no_column_is_in_two_parts(folder):
    images = bark(4, num_train=400, num_validation=50, num_test=50)
    parts = {"train": (0, 48), "validation": (48, 54), "test": (54, 60)}
    for name, (begin, end) in parts.items():
        patches = getattr(images, name).astype(int)
        column, picture = patches[:, 0, 0] % 100, patches[:, 0, 0] // 100
        np.testing.assert_array_equal(patches, np.broadcast_to(patches[:, :1, :1] + np.arange(4), patches.shape))
        assert set(column) == set(range(begin, end - 3))
        assert set(picture) == {0, 1}


def test_patches_are_drawn_by_the_seed(folder):
    given = {"num_train": 30, "num_validation": 5, "num_test": 5}
    np.testing.assert_array_equal(bark(3, **given).train, bark(3, **given).train)
    assert not np.array_equal(bark(3, **given).train, bark(3, **given, seed=1).train)


def test_colours_become_grey(tmp_path):
    """PNG exactly; JPEG of one colour to a level."""
    colours = RNG.integers(0, 256, (6, 5, 3))
    photograph(tmp_path / "png", "a.png", colours)
    expected = np.rint(colours @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(read_photographs(tmp_path / "png")[0], expected)
    photograph(tmp_path / "jpeg", "a.jpg", np.tile([200, 30, 90], (16, 16, 1)))
    np.testing.assert_allclose(read_photographs(tmp_path / "jpeg")[0], 0.299 * 200 + 0.587 * 30 + 0.114 * 90, atol=1.5)


def test_a_folder_must_be_there_and_hold_photographs(named):
    with pytest.raises(FileNotFoundError, match=r"folder of photographs at .*bark; there is none.*DPM_DATA"):
        bark()
    (named / "bark").mkdir()
    (named / "bark" / "readme.txt").write_text("nothing")
    with pytest.raises(
        FileNotFoundError, match=r"photographs, files in \.png, \.jpg, \.jpeg, in .*bark; there is none"
    ):
        bark()


def test_photographs_of_other_sizes_are_refused(folder):
    photograph(folder, "c.png", np.zeros((20, 61)))
    with pytest.raises(ValueError, match=r"one size in .*; got a\.png of 20 x 60 and c\.png of 20 x 61 pixels"):
        bark(4)


def deep(path):
    Image.fromarray(RNG.integers(0, 2**16, (20, 60)).astype(np.uint16)).save(path)


def transparent(path):
    imsave(path, RNG.random((20, 60, 4)))


@pytest.mark.parametrize(("save", "said"), [(deep, "1 channels of more than 8"), (transparent, "4 channels of 8 bits")])
def test_other_modes_are_refused(folder, save, said):
    save(folder / "c.png")
    with pytest.raises(ValueError, match=rf"in grey or RGB, 8 bits a channel, at .*c\.png; got {said}"):
        bark(4)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_files_are_refused(folder, suffix):
    photograph(folder, f"c.{suffix}", RNG.integers(0, 256, (20, 60)))
    path = folder / f"c.{suffix}"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"PNG or JPEG file at .*c\.{suffix}; it is damaged"):
        bark(4)


@pytest.mark.parametrize(("size", "part"), [(7, "validation of .*, 20 x 6"), (21, "train of .*, 20 x 48")])
def test_patches_larger_than_their_part_are_refused(folder, size, part):
    with pytest.raises(
        ValueError, match=rf"{size} x {size} pixels, to fit into the part for {part} of 20 x 60; it is larger"
    ):
        bark(size)


@pytest.mark.data
def test_real_bark(real):
    images = bark(64, num_train=500, num_validation=50, num_test=50)
    assert images.train.shape == (500, 64, 64)
    assert 20 < images.train.std() < 90
    # Photographs are smooth: neighbouring pixels are nearly the same, those of patches apart are not.
    x = images.train - images.train.mean()
    assert np.mean(x[:, 1:] * x[:, :-1]) > 0.6 * x.var()
