"""The numbers of a fit: data to evaluate on, the limit, and what is reported."""

import math

import numpy as np
import pytest

from dpm_ppl.reports.fit import metrics, problems, table


def summary(**changed):
    names = ("elbo", "K", "L_null", "K_minus_L_null", "kl", "prior_matching", "reconstruction")
    values = {f"{name}_bits": -1.0 - i for i, name in enumerate(names)}
    errors = {f"{name}_bits_se": 0.1 for name in names}
    return {**values, **errors, "elbo_bits_per_dimension": -0.5, "num_data": 50, **changed}


def test_gap_is_limit_minus_elbo():
    result = metrics(summary(), limit=-0.25 * math.log(2), about={"model": "m"})
    assert next(iter(result)) == "model"
    assert result["entropy_limit_bits"] == pytest.approx(-0.25)
    assert result["gap_bits"] == pytest.approx(0.75)
    assert (result["gap_bits_se"], result["K_bits"], result["L_null_bits"]) == (0.1, -2.0, -3.0)


def test_a_bound_stands_beside_the_floor_of_independent_coordinates():
    about = {"model": "m", "iterations": 5, "seconds": 1.0}
    result = metrics(summary(), limit=None, about=about, floor=-4 * math.log(2))
    assert (result["independent_bits"], result["above_independent_bits"]) == pytest.approx((-4.0, 3.0))
    shown = " ".join(table(result).split())
    assert "independent floor -4.0000" in shown
    assert "a fit near it has found no structure" in shown
    assert "independent" not in table(metrics(summary(), limit=None, about=about))


def test_what_is_not_known_is_none():
    result = metrics(summary(K_bits=math.nan, elbo_bits_se=math.inf), limit=None, about={})
    assert result["K_bits"] is None
    assert result["elbo_bits_se"] is None
    assert "gap_bits" not in result
    assert "entropy_limit_bits" not in result


def test_table_shows_what_is_known_with_its_error():
    about = {"model": "m", "iterations": 12_000, "seconds": 61.0}
    known = table(metrics(summary(), limit=-0.25 * math.log(2), about=about))
    assert "m: 12,000 iterations in 61 s; bits per datum, on 50 data" in known
    assert "ELBO                    -1.0000 ± 0.1000" in known
    assert "gap to the limit         0.7500 ± 0.1000" in known
    words = " ".join(known.split())
    for word in (
        "ELBO: a lower bound",
        "K: the bound in the form of",
        "L_null: the log",
        "Entropy limit: the data's own",
    ):
        assert word in words
    assert max(map(len, known.splitlines())) <= 110
    unknown = table(metrics(summary(K_bits=math.nan), limit=None, about=about))
    assert "gap" not in unknown
    assert "K: " not in unknown
    assert "Entropy limit" not in unknown
    assert "paper's form" not in unknown


def test_a_program_that_is_no_chain_reports_what_is_known():
    about = {"model": "m", "iterations": 5, "seconds": 1.0}
    known = {"elbo_bits": -3.0, "elbo_bits_se": 0.1, "num_data": 50}
    result = metrics(known, limit=-math.log(2), about=about)
    assert (result["elbo_bits"], result["gap_bits"]) == (-3.0, 2.0)
    assert not {"K_bits", "L_null_bits", "objective_nats"} & set(result)
    assert "K (the paper's form)" not in table(result)
    unscored = metrics({"objective_nats": -1.25, "objective_nats_se": 0.5, "num_data": 5}, limit=None, about=about)
    assert "No likelihood. Objective -1.2500 ± 0.5000 nats." in table(unscored)


def test_a_bound_below_what_no_learning_gives_is_said_with_its_steps():
    known = {"elbo_nats": -9.0, "elbo_nats_se": 0.2, "L_null_nats": -4.0}
    kl = np.full((7, 5), 0.1)
    kl[:, [1, 4]] = 2.0  # steps 3 and 6
    (found,) = problems(known, kl)
    assert found.startswith(f"the ELBO is {5 / math.log(2):.3f} bits below L_null")
    assert f"Of its KL, {4.3 / math.log(2):.3f} bits, steps t = 3, " in found
    assert f", 6 have {4.1 / math.log(2):.3f}" in found
    assert "their variance cannot be right" in found
    spread = np.full((7, 50), 0.1)  # no step has much of it; and bits have no variance
    for told in (problems(known, spread)[0], problems(known, kl, is_continuous=False)[0]):
        assert "variance" not in told
        assert told.endswith("fit for longer.")
    about = {"model": "m", "iterations": 5, "seconds": 1.0, "problems": [found]}
    assert "Warning: the ELBO is" in table(metrics(summary(), limit=None, about=about))
    for better in ({"elbo_nats": -3.9}, {"elbo_nats": -4.5}, {"L_null_nats": -math.inf}):
        assert problems(known | better, kl) == []
    assert problems(known, kl[:, :0])[0].endswith("learned nothing.")
