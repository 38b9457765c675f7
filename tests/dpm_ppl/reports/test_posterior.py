"""A posterior in words: trusted where its weights stayed even, and what speaks against it where not."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.inference import Posterior
from dpm_ppl.reports.posterior import MOST_ROWS, headline, report, table

RNG = np.random.default_rng(0)
NUM, NUM_STEPS = 500, 40
ABOUT = {"model": "mine", "seconds": 3.0}


def made(*, heavy=(), resampled=(), least_ess=300.0, num_ancestors=400, num=NUM, last_ess=400.0):
    """A posterior whose weights are heavy-tailed at some steps, and that was resampled at some."""
    tail = np.zeros((NUM_STEPS + 1, 68))
    light = -np.sort(-RNG.normal(size=(NUM_STEPS + 1, num)), -1)[:, : tail.shape[1]]
    wild = -np.sort(-2 * RNG.exponential(size=(NUM_STEPS + 1, num)), -1)[:, : tail.shape[1]]
    tail = np.where(np.isin(np.arange(NUM_STEPS + 1), heavy)[:, None], wild, light)
    ess = np.full(NUM_STEPS + 1, 400.0)
    ess[0], ess[30] = last_ess, least_ess
    again = jnp.isin(jnp.arange(NUM_STEPS + 1), jnp.asarray([*resampled, -1]))
    ancestors = jnp.full(NUM_STEPS + 1, num_ancestors)
    numbers = (jnp.asarray(-2.0), jnp.asarray(0.1), {}, jnp.asarray(ess), jnp.asarray(tail))
    return Posterior(jnp.zeros((num, 2)), jnp.zeros(num), *numbers, ancestors, 0 * ancestors, again)


def words(*posteriors):
    figures = report(posteriors, about=ABOUT)
    return figures, " ".join(figures["verdict"])


def test_even_weights_are_trusted():
    figures, said = words(made())
    row = figures["data"][0]
    assert row["trusted"]
    assert row["problems"] == []
    assert figures["trusted_share"] == 1
    assert row["log_evidence_bits"] == pytest.approx(-2 / np.log(2))
    assert said == ("The posterior can be trusted, and so can the evidence: at every step enough particles count.")
    assert headline(row) == "log Z = -2.00 ± 0.10 nats\nto be trusted"
    assert "NOT" not in table(figures)
    assert "k-hat at 0, largest" in table(figures)
    assert "At 0 is of the weights of the datum itself; the least and the largest are over all steps" in table(figures)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"heavy": [0], "last_ess": 49.9}, "k-hat is "),
        ({"heavy": [20, 30], "resampled": [20, 30], "least_ess": 49.9}, "k-hat is "),
        ({"least_ess": 9.94}, "at its worst step 9.9 of 500 particles are effective"),
        ({"num_ancestors": 9}, "all particles descend from 9 of those that started"),
    ],
    ids=["k-hat", "k-hat at a resampling", "effective", "ancestors"],
)
def test_what_speaks_against_a_posterior_is_said(given, problem):
    figures, said = words(made(**given))
    (found,) = figures["data"][0]["problems"]
    assert found.startswith(problem)
    assert said.startswith(f"The posterior can NOT be trusted: {problem}")
    assert "--particles 5000" in said
    assert headline(figures["data"][0]).endswith("NOT to be trusted")
    assert "NOT trusted" in table(figures)


@pytest.mark.parametrize(
    "given", [{"heavy": [0]}, {"heavy": [20, 25], "resampled": [20, 30], "least_ess": 49.9}], ids=["last", "resampling"]
)
def test_heavy_tails_where_many_particles_count_are_a_caution(given):
    figures, said = words(made(**given))
    row = figures["data"][0]
    assert row["trusted"]
    tail = f"k-hat is {row['khat_used']:.2f}, over 0.7,"
    assert row["cautions"] == [f"{tail} so that now and then a particle counts for many"]
    assert row["khat_used"] > 1
    assert said.startswith("The posterior can be trusted, but the error of the evidence less: k-hat is ")
    assert "error uncertain" in table(figures)
    assert "less (1): of datum 1, k-hat is " in words(made(), made(**given))[1]


@pytest.mark.parametrize("error", [0.51, 0.49])
def test_a_large_error_is_a_caution(error):
    figures, said = words(replace(made(), log_evidence_se=jnp.asarray(error)))
    caution = "an error of 0.51 nats is too large to be known well: it is never given as more than 1"
    assert figures["data"][0]["trusted"]
    assert figures["data"][0]["cautions"] == ([caution] if error > 0.5 else [])
    assert (error < 0.5) == ("the error of the evidence less" not in said)


def test_an_error_that_is_not_known_is_never_nought_nor_trusted():
    figures, said = words(replace(made(), log_evidence_se=jnp.asarray(np.nan)))
    assert not figures["data"][0]["trusted"]
    assert "NOT be trusted: the error of the evidence is not known" in said
    assert "-2.000 ± unknown" in table(figures)
    assert headline(figures["data"][0]) == "log Z = -2.00 ± unknown nats\nNOT to be trusted"
    assert figures["data"][0]["log_evidence_nats_se"] is None


@pytest.mark.parametrize("given", [{"heavy": [20, 30], "least_ess": 49.9}, {"least_ess": 10.0}, {"num_ancestors": 10}])
def test_what_does_not_matter_is_not_said(given):
    row = words(made(**given))[0]["data"][0]
    assert row["trusted"]
    assert row["cautions"] == []


def test_too_few_particles_for_k_hat_are_said():
    posterior = made(num=20)
    assert "k-hat is not known" in words(posterior)[1]
    assert json.dumps(report([posterior], about=ABOUT), allow_nan=False)


def test_of_a_batch_the_bad_are_named():
    figures, said = words(*[made(num_ancestors=3 if i in (1, 4) else 300) for i in range(MOST_ROWS + 5)])
    assert figures["trusted_share"] == 23 / 25
    assert "2 of 25 posteriors can NOT be trusted (1, 4): of datum 1, all particles descend from 3" in said
    lines = table(figures).splitlines()
    assert lines[0] == "mine: posterior of 25 data, 500 particles each, in 3 s"
    assert [line.split()[0] for line in lines[2 : 2 + MOST_ROWS]] == [str(i) for i in range(MOST_ROWS)]
    assert lines[2 + MOST_ROWS] == "  and 5 more, in posterior.json"
    assert "The 2 posteriors can be trusted" in words(made(), made())[1]
