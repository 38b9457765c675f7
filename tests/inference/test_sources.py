"""Data that stay where they are."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dpm_ppl.inference import sources

DATA = np.random.default_rng(0).gamma(2.0, 0.7, size=(23, 2))


class Rows:
    """What has a length and an index, and notes what it is asked for."""

    def __init__(self, array=DATA):
        self.array, self.asked = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, indices):
        self.asked.append(indices)
        return self.array[indices]


class OnDisk(Rows):
    """As h5py has it: a shape and a type, and what would read all of it."""

    shape, dtype = DATA.shape, DATA.dtype

    def __iter__(self):
        raise AssertionError("all of it was read")

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all of it was read")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DATA, False),
        (DATA.tolist(), False),
        ({"x0": DATA}, False),
        (3.0, False),
        ("ab", False),
        (Rows(), True),
        (OnDisk(), True),
        (iter([DATA]), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_read(data, expected):
    assert sources.is_source(data) is expected


def test_a_memory_mapped_array_is_read_and_what_is_made_of_it_is_not(tmp_path):
    mapped = np.memmap(tmp_path / "data", DATA.dtype, "w+", shape=DATA.shape)
    assert sources.is_source(mapped)
    assert not sources.is_source(np.asarray(mapped))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_mapped_file_is_read_again_after_its_pages_are_given_back(tmp_path, mode):
    np.save(tmp_path / "data.npy", DATA)
    mapped = np.load(tmp_path / "data.npy", mmap_mode=mode)
    if mode != "r":
        mapped[5] = [8.0, 9.0]
    expected = np.array(mapped)
    for _ in range(2):
        np.testing.assert_array_equal(sources.rows_at(mapped, np.arange(23), 23), expected)
    assert (expected[5] == [8.0, 9.0]).all() == (mode != "r")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_were_read_are_not_ours_for_long(tmp_path):
    """Of 64 MiB that are read from a sparse file no more than a few stay resident."""
    written = np.memmap(tmp_path / "data", np.float32, "w+", shape=(2**14, 2**10))
    before = resident()
    for begin in range(0, 2**14, 2**10):
        sources.rows_at(written, np.arange(begin, begin + 2**10), 2**14)
    assert resident() - before < 16 * 2**20


def resident():
    """Bytes of mapped files that are resident."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", status)[1])


def test_rows_are_asked_for_in_order_and_once():
    rows, indices = Rows(), np.array([7, 2, 22, 7, 0])
    np.testing.assert_array_equal(sources.rows_at(rows, indices, 23), DATA[indices])
    assert [asked.tolist() for asked in rows.asked] == [[0, 2, 7, 22]]


@pytest.mark.parametrize("kind", [tuple, dict])
def test_parts_stay_together(kind):
    parts = {"a": OnDisk(), "b": (3 * DATA).tolist()}
    data = sources.indexable(parts if kind is dict else tuple(parts.values()))
    found = list(sources.in_order(data, 10))
    assert [len(indices) for _, indices in found] == [10, 10, 3]
    for rows, indices in found:
        first, second = rows.values() if kind is dict else rows
        np.testing.assert_array_equal(first, DATA[indices])
        np.testing.assert_array_equal(second, 3 * DATA[indices])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (iter([DATA]), TypeError, "length and an index; got list_iterator"),
        (Rows(DATA[:0]), ValueError, "at least one datum; Rows has none"),
        ({"a": Rows(), "b": Rows(DATA[:7])}, ValueError, r"one length.*\{'a': 23, 'b': 7\}"),
        (Rows(np.where(np.arange(46).reshape(23, 2) == 9, np.nan, DATA)), ValueError, "NaN or infinity in 1 .*at 4"),
        (Rows(np.array(["a"] * 23)), TypeError, "numeric array"),
    ],
)
def test_what_cannot_be_read(data, error, message):
    with pytest.raises(error, match=message):
        list(sources.in_order(data, 10))


def test_rows_of_a_source_are_one(tmp_path):
    written = np.memmap(tmp_path / "data", DATA.dtype, "w+", shape=DATA.shape)
    written[:] = DATA
    some = sources.Rows(written, np.array([2, 3, 7, 11]))
    assert sources.is_source(some)
    assert (len(some), some.shape, some.dtype, np.ndim(some)) == (4, (4, *DATA.shape[1:]), DATA.dtype, DATA.ndim)
    np.testing.assert_array_equal(sources.rows_at(some, np.array([3, 0]), 4), DATA[[11, 2]])
    np.testing.assert_array_equal(some[1:3], DATA[[3, 7]])
    np.testing.assert_array_equal(some[1], DATA[3])
    np.testing.assert_array_equal(some[[0, 2], 1], DATA[[2, 7], 1])
    np.testing.assert_array_equal(np.asarray(some), DATA[[2, 3, 7, 11]])
