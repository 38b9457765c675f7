"""Frequencies are counts of the samples, against what the data say."""

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from dpm_ppl.reports.frequencies import draw_frequencies, sequence_counts, sequences_of
from tests.dpm_ppl.reports.test_fit_figure import RNG, heartbeat_samples

WORDS = np.array([[2, 0, 1], [0, 2, 2], [1, 1, 0]])


def test_sequence_counts():
    data, samples = heartbeat_samples()
    counts, num_invalid = sequence_counts(samples, data.enumerate_support())
    assert counts.tolist() == [5, 0, 12]
    assert num_invalid == 3


def test_sequences_listed_by_a_law_are_valid_ones():
    data, samples = heartbeat_samples()
    sequences = sequences_of(data, samples)
    assert sequences.listed
    np.testing.assert_allclose(sequences.probability, 1 / 3)


def test_sequences_seen_in_data_are_drawn_by_how_often_they_came():
    x0 = RNG.permutation(np.repeat(WORDS, [30, 60, 10], axis=0))
    sequences = sequences_of(x0, x0)
    assert not sequences.listed
    np.testing.assert_array_equal(sequences.states, WORDS[[1, 0, 2]])
    np.testing.assert_allclose(sequences.probability, [0.6, 0.3, 0.1])
    samples = np.concatenate([np.repeat(WORDS, [1, 2, 4], axis=0), [[2, 2, 2]]])
    axes = Figure().subplots()
    draw_frequencies(axes, samples, sequences)
    (bars,) = (bars for bars in axes.containers if isinstance(bars, BarContainer))
    np.testing.assert_allclose([bar.get_height() for bar in bars], np.array([2, 1, 4, 1]) / 8)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["022", "201", "110", "others"]
    assert axes.get_title() == "How often each sequence of the data is sampled"


def test_labels_are_sequences_of_one_state():
    x0 = np.repeat([3, 0], [40, 10])
    axes = Figure().subplots()
    draw_frequencies(axes, np.repeat([0, 3, 5], [1, 2, 1]), sequences_of(x0, x0))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "0", "others"]
    (bars,) = (bars for bars in axes.containers if isinstance(bars, BarContainer))
    np.testing.assert_allclose([bar.get_height() for bar in bars], [0.5, 0.25, 0.25])


@pytest.mark.parametrize("x0", [np.arange(80).reshape(40, 2) % 7, np.arange(2000), None], ids=["rare", "many", "none"])
def test_sequences_that_hardly_repeat_are_not_counted(x0):
    assert sequences_of(x0, x0) is None
