"""Whether a likelihood is trusted, and what is said of it."""

import math

import numpy as np
import pytest

from dpm_ppl.reports.evaluation import particle_counts, problems, sandwich_at, verdict

# Verdicts.

FINE = {
    "num_particles": 1000,
    "estimate_bits": -1.25,
    "estimate_bits_se": 0.02,
    "estimate_bits_mc_se": 0.001,
    "gap_bits": 0.05,
    "gap_bits_se": 0.01,
    "khat_over_share": 0.05,
    "khat_unknown_share": 0.05,
    "khat_90_percent": 0.6,
    "ess_low_share": 0.05,
    "sandwich_gap_bits": 0.1,
    "work_overlap": 0.03,
}


def test_what_is_fine_is_trusted():
    assert problems(FINE) == []
    assert verdict(FINE, [])[0] == "The likelihood can be trusted: -1.2500 ± 0.0200 bits per datum."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"khat_over_share": 0.06}, "k-hat is over 0.7 for 6% of the data"),
        ({"khat_unknown_share": 0.06}, "k-hat is not known for 6% of the data"),
        ({"ess_low_share": 0.06}, "fewer than 10 particles are effective for 6% of the data"),
        ({"sandwich_gap_bits": 0.11}, "the bounds are 0.11 bits apart"),
        ({"sandwich_gap_bits": math.nan}, "the bounds are nan bits apart"),
        ({"work_overlap": 0.02}, "overlap by 2.0% only"),
        ({"gap_bits": -0.05}, "exceeds the data's own log density"),
        ({"estimate_bits_se": math.nan}, "of a single datum the error of the mean is not known"),
    ],
    ids=["k-hat", "k-hat unknown", "ESS", "gap", "gap unknown", "overlap", "above the limit", "a single datum"],
)
def test_each_fault_is_named(change, words):
    (fault,) = problems(FINE | change)
    assert words in fault
    assert words in verdict(FINE | change, [fault])[0]


@pytest.mark.parametrize(
    ("khat", "num_particles", "advice"),
    [
        (0.7, 100, "--particles 3000"),  # 10^(1 / (1 - 0.7)) = 2154
        (0.75, 1000, "--particles 10000"),
        (0.3, 2000, "--particles 20000"),  # a wide gap alone
        (0.85, 1000, "more particles will not help soon"),
        (1.2, 1000, "more particles will not help soon"),
        (None, 1000, "more particles will not help soon"),  # all infinite
    ],
)
def test_advice_is_as_many_particles_as_the_tail_needs(khat, num_particles, advice):
    figures = FINE | {"khat_90_percent": khat, "num_particles": num_particles, "khat_over_share": 0.5}
    assert advice in verdict(figures, problems(figures))[-1]


def test_particle_counts():
    assert [particle_counts(num) for num in (1, 2, 10, 11, 100, 250, 1000)] == [
        [1],
        [1, 2],
        [1, 10],
        [1, 10, 11],
        [1, 10, 100],
        [1, 10, 100, 250],
        [1, 10, 100, 1000],
    ]


def test_sandwich_at_fewer_particles_is_that_of_the_first(records):
    _, whole = records
    part = sandwich_at(whole, 7)
    np.testing.assert_allclose(part.lower, np.logaddexp.reduce(whole.forward.log_weight[:7]) - np.log(7))
    own = np.concatenate([whole.forward.log_weight[:6], whole.own_log_weight[None]])
    np.testing.assert_allclose(part.upper, np.logaddexp.reduce(own) - np.log(7))
    np.testing.assert_array_equal(sandwich_at(whole, 50).upper, whole.upper)
