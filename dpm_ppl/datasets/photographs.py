"""Patches of photographs: one folder of PNG or JPEG files, made grey, its parts from different parts of every one."""

from pathlib import Path

import numpy as np

from dpm_ppl.arguments import require_count
from dpm_ppl.datasets.files import VARIABLE, folder
from dpm_ppl.datasets.images import Images

SUFFIXES = (".png", ".jpg", ".jpeg")
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # of the width of every photograph


def bark(
    size: int = 32,
    *,
    num_train: int = 20_000,
    num_validation: int = 1000,
    num_test: int = 1000,
    seed: int = 0,
    photographs: Path | None = None,
) -> Images:
    """Square patches of a folder of photographs, in grey, at places drawn by a seed.

    Of every photograph the left 80 in 100 of the width are to fit, the next 10 for validation and the rest to test, so
    that no pixel is in two parts. Numbers on different photographs are not comparable.

    Args:
        size: Height and width of a patch, pixels.
        num_train: Number of patches to fit; they may overlap.
        num_validation: Number of patches for validation.
        num_test: Number of patches to test.
        seed: Seed of the places.
        photographs: The folder; by default `bark` in the folder that DPM_DATA names.

    Returns:
        The three parts, arrays of shape (num, size, size).

    Raises:
        FileNotFoundError: there is no such folder, or no photograph in it.
        TypeError: a number is no integer.
        ValueError: a photograph is damaged, neither grey nor RGB of 8 bits a channel, or of another size than the
            first; a patch is larger than the part of a photograph that it is to come from.
    """
    numbers = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, number in (("size", size), *((f"num_{part}", number) for part, number in numbers.items())):
        require_count(name, number)
    pictures = read_photographs(folder() / "bark" if photographs is None else photographs)
    height, width = pictures.shape[1:]
    parts = {}
    for place, (name, (begin, end)) in enumerate(SHARES.items()):
        strip = pictures[:, :, round(begin * width) : round(end * width)]
        if size > min(strip.shape[1:]):
            raise ValueError(
                f"Expected a patch, of {size} x {size} pixels, to fit into the part for {name} of every photograph, "
                f"{strip.shape[1]} x {strip.shape[2]} of {height} x {width}; it is larger. Give a smaller `size`, or "
                "larger photographs."
            )
        parts[name] = _patches(strip, size, numbers[name], np.random.default_rng([seed, place]))
    return Images(parts["train"], parts["validation"], parts["test"])


def _patches(strip: np.ndarray, size: int, number: int, rng: np.random.Generator) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(strip, (size, size), (1, 2))
    return windows[tuple(rng.integers(0, windows.shape[:3], (number, 3)).T)]


def read_photographs(where: Path) -> np.ndarray:
    """All photographs of a folder as grey levels.

    Args:
        where: The folder; files that are neither PNG nor JPEG by their names are left alone.

    Returns:
        Levels 0..255, shape (num, height, width), in the order of the files' names.

    Raises:
        FileNotFoundError, ValueError: as in `bark`.
    """
    if not where.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of photographs at {where}; there is none. Put PNG or JPEG files there, or set "
            f"{VARIABLE} to the folder that holds it."
        )
    paths = sorted(path for path in where.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"Expected photographs, files in {', '.join(SUFFIXES)}, in {where}; there is none.")
    pictures = [_grey(path) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"Expected photographs of one size in {where}; got {paths[0].name} of {_size(pictures[0])} and "
                f"{path.name} of {_size(picture)} pixels. Crop them to one size."
            )
    return np.stack(pictures)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[0]} x {picture.shape[1]}"


def _grey(path: Path) -> np.ndarray:
    """Grey levels of a file of 8 bits a channel, shape (height, width)."""
    from matplotlib.image import imread  # of JPEG through Pillow, which Matplotlib requires; imported where needed

    try:
        picture = np.asarray(imread(path))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow says SyntaxError of a damaged PNG
        raise ValueError(f"Expected a PNG or JPEG file at {path}; it is damaged: {error}") from error
    if np.issubdtype(picture.dtype, np.floating):  # a PNG, as shares of the largest level
        levels = picture.astype(np.float64) * 255
        picture = np.rint(levels)
        known = bool(np.abs(levels - picture).max() < 1e-3)
    else:
        known = picture.dtype == np.uint8
    channels = 1 if picture.ndim == 2 else picture.shape[-1]
    if not known or channels not in (1, 3):
        depth = "8 bits" if known else "more than 8 bits"
        raise ValueError(
            f"Expected a photograph in grey or RGB, 8 bits a channel, at {path}; got {channels} channels of {depth}. "
            "Convert it: without transparency, palette or higher depth."
        )
    grey = picture if picture.ndim == 2 else np.rint(picture.reshape(*picture.shape[:2], channels) @ LUMA[:channels])
    return grey.astype(np.uint8)
