"""Tests of data find no files but their own: no folder is named, and the cache is an empty one."""

import gzip

import numpy as np
import pytest

from dpm_ppl.datasets import files


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The cache of downloads, empty; DPM_DATA is not set."""
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return files.folder()


@pytest.fixture
def named(monkeypatch, tmp_path):
    """An empty folder that DPM_DATA names."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(files.VARIABLE, str(folder))
    return folder


def idx_bytes(images):
    """Images as an idx file holds them."""
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    return bytes([0, 0, 8, images.ndim]) + sizes + np.asarray(images, np.uint8).tobytes()


def write(path, content, *, packed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.fixture
def real():
    """The folder of real files that DPM_DATA names."""
    return files.folder()
