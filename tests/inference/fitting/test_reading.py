"""Batches that are read as they are needed."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.fitting import reading
from tests.inference.fitting.test_fits import DATA, KEY, small

OPTIONS = {"num_iterations": 12, "batch_size": 16, "optimizer": optax.adam(1e-2)}


class Rows:
    """An indexable source that notes what it is asked for."""

    def __init__(self, array=DATA, spoil=lambda rows, indices: rows):
        self.array, self.spoil, self.asked = array, spoil, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, indices):
        self.asked.append((indices, threading.current_thread()))
        return self.spoil(self.array[indices], indices)


class Epochs:
    """Batches of the data in their order, anew with each `iter`."""

    def __init__(self, batch_size=16, array=DATA):
        self.batch_size, self.array = batch_size, array

    def __iter__(self):
        return iter([self.array[i : i + self.batch_size] for i in range(0, len(self.array), self.batch_size)])


@pytest.fixture(scope="module")
def in_memory():
    return small(**OPTIONS)


def test_a_memory_mapped_array_is_fitted_as_one_in_memory(in_memory, tmp_path):
    written = np.memmap(tmp_path / "data", DATA.dtype, "w+", shape=DATA.shape)
    written[:] = DATA
    written.flush()
    mapped = np.memmap(tmp_path / "data", DATA.dtype, "r", shape=DATA.shape)
    np.testing.assert_array_equal(small(data=mapped, **OPTIONS).losses, in_memory.losses)


def test_a_source_is_read_in_order_of_its_index_beside_the_iterations(in_memory):
    rows = Rows()
    np.testing.assert_array_equal(small(data=rows, **OPTIONS).losses, in_memory.losses)
    assert all((np.diff(indices) > 0).all() for indices, _ in rows.asked)
    readers = {thread for _, thread in rows.asked[-12:]}
    assert threading.main_thread() not in readers
    epochs = np.concatenate([indices for indices, _ in rows.asked[-12:]]).reshape(3, 64)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(64), (3, 1)))


def test_a_source_resumes_where_it_was(in_memory, chunks, tmp_path):
    chunks(5)
    small(data=Rows(), run_dir=tmp_path, **{**OPTIONS, "num_iterations": 7})
    rows = Rows()
    resumed = small(data=rows, run_dir=tmp_path, resume=True, **OPTIONS)
    np.testing.assert_array_equal(resumed.losses, in_memory.losses)
    assert len(rows.asked) == 1 + 5  # the first batch, and those that were missing


def test_batches_made_elsewhere_begin_anew_each_epoch(tmp_path):
    """Those of the data in their order: the fit of all at once has each of them four times as its mean loss."""
    whole = small(data=Epochs(), **OPTIONS, run_dir=tmp_path / "whole")
    cut = {**OPTIONS, "run_dir": tmp_path / "cut"}
    small(data=Epochs(), **{**cut, "num_iterations": 6})
    resumed = small(data=Epochs(), resume=True, **cut)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    read = reading.read_batches(Epochs(), batch_size=16, key=None)
    with read.feed(9) as feed:
        for i in (0, 1, 6, 2):
            np.testing.assert_array_equal(feed(i)[0], np.asarray(DATA[16 * (i % 4) :][:16]))


class OneBuffer(Epochs):
    """The same, each batch in the memory of the one before."""

    def __iter__(self):
        buffer = np.empty((self.batch_size, 1))
        for batch in super().__iter__():
            buffer[:] = batch
            yield buffer


class Shuffled(Epochs):
    """The same, in another order each time."""

    rng = np.random.default_rng(0)

    def __iter__(self):
        self.array = self.rng.permutation(self.array)
        return super().__iter__()


def test_memory_that_is_used_again_is_read_before():
    read = reading.read_batches(OneBuffer(), batch_size=16, key=None)
    with read.feed(4) as feed:
        batches = [feed(i)[0] for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(batches), DATA)


def test_batches_in_another_order_cannot_be_resumed(tmp_path):
    small(data=Shuffled(), run_dir=tmp_path, **{**OPTIONS, "num_iterations": 2})
    with pytest.raises(ValueError, match="data was .*Shuffled, the first batch"):
        small(data=Shuffled(), run_dir=tmp_path, resume=True, **OPTIONS)


@pytest.mark.parametrize("rows", [dict, tuple])
def test_a_source_may_give_parts(rows):
    def give(array, indices):
        parts = {"x0": array.tolist(), "c": (3 * array).tolist()}
        return parts if rows is dict else tuple(parts.values())

    read = reading.read_batches(Rows(spoil=give), batch_size=16, key=jax.random.key(0))
    batch, indices = read.source
    x0, c = (batch["x0"], batch["c"]) if rows is dict else batch
    np.testing.assert_array_equal(x0, DATA[np.asarray(indices)])
    np.testing.assert_array_equal(c, 3 * DATA[np.asarray(indices)])


def test_sources_beside_arrays_stay_together():
    read = reading.read_batches({"x0": Rows(), "c": 3 * DATA}, batch_size=16, key=jax.random.key(7))
    with read.feed(4) as feed:
        for i in range(4):
            batch, indices = feed(i)
            np.testing.assert_array_equal(batch["x0"], DATA[np.asarray(indices)])
            np.testing.assert_array_equal(batch["c"], 3 * DATA[np.asarray(indices)])


def nan_at(bad):
    return lambda rows, indices: np.where((indices == bad)[:, None], np.nan, rows)


def broken(rows, indices):
    raise OSError("the disk is gone")


class Shrinking(Rows):
    def __len__(self):
        return 64 - (len(self.asked) > 2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Rows(spoil=nan_at(37)), ValueError, "finite; got NaN or infinity in 1 data, the first at 37"),
        (Rows(spoil=broken), RuntimeError, "rows of Rows .*OSError: the disk is gone, at "),
        (Rows(spoil=lambda rows, indices: rows[1:]), ValueError, r"each of 16 indices; got shape \(15, 1\)"),
        (Rows(spoil=lambda rows, indices: rows if 0 in indices else rows[:, [0, 0]]), ValueError, "like the first"),
        (Rows(np.array(["a"] * 64)), TypeError, "numeric array"),
        (Shrinking(), ValueError, "source of 64 data, as at first; Shrinking now has 63"),
        (Rows(DATA[:10]), ValueError, "at most the number of data, 10; got 16"),
        ((Rows(), Rows(DATA[:40])), ValueError, r"arrays of one length.*got \{0: 64, 1: 40\}"),
        (Epochs(24), ValueError, r"batches of 16 data.*batch 1 has shape \(24, 1\)"),
        (Epochs(16, DATA[:40]), ValueError, r"batch 3 has shape \(8, 1\)"),
        (iter(Epochs()), TypeError, "begins anew with each `iter`"),
        (Epochs(16, DATA[:0]), ValueError, "at least one batch"),
    ],
)
def test_bad_sources(data, error, message):
    def read_all():
        batches = reading.read_batches(data, batch_size=16, key=jax.random.key(7))
        with batches.feed(8) as feed:
            for i in range(8):
                feed(i)

    with pytest.raises(error, match=message):
        read_all()


def test_values_that_come_later_are_held_against_the_support_too():
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(4), (1,), rate=0.3)

    def definition():
        logits = numpyro.param("logits", jnp.zeros((3, 1)))
        return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.residual_bernoulli(kernel, x, t, logits[t - 2]))

    bits_model, bits_guide = dpm.single_chain(definition)
    first = reading.read_batches(Rows(), batch_size=16, key=jax.random.split(KEY, 3)[1]).source[1]
    bad = int(np.setdiff1d(np.arange(64), np.asarray(first))[0])
    bits = np.where(np.arange(64)[:, None] == bad, 2, np.arange(64)[:, None] % 2)
    with pytest.raises(ValueError, match="support of the kernel's states.* from 0 to 2"):
        small(model=bits_model, guide=bits_guide, data=Rows(bits), **OPTIONS)
    with pytest.raises(ValueError, match="support of the kernel's states.* from 0 to 2"):
        small(model=bits_model, guide=bits_guide, data=bits.astype(np.uint8), **OPTIONS)
    with pytest.raises(ValueError, match="support of the kernel's states.* from 0 to 2") as caught:
        small(model=bits_model, guide=bits_guide, data=bits % 2, validation=bits, **OPTIONS)
    assert "`validation` data" in caught.value.__notes__[-1]
