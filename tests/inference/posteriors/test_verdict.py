"""A verdict in Python is the command line's, in a few lines where a posterior is printed."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from dpm_ppl.reports.posterior import report
from tests.dpm_ppl.reports.test_posterior import made


@pytest.mark.parametrize("given", [{}, {"num_ancestors": 9}, {"heavy": [0], "last_ess": 49.9}, {"heavy": [0]}])
def test_the_verdict_is_that_of_the_report(given):
    posterior = made(**given)
    assert posterior.verdict() == report([posterior], about={})["verdict"][0]
    assert repr(posterior).splitlines()[-1].strip() == posterior.verdict()


def test_a_posterior_prints_as_a_few_lines():
    posterior = replace(made(), twist=1, twists=("widened()", "unguided()"))
    lines = repr(posterior).splitlines()
    assert lines[:2] == [
        "Posterior: 500 particles of shape (2,), guided by unguided()",
        "  log evidence -2.000 ± 0.100 nats",
    ]
    assert lines[2].startswith("  400 effective, least 300; k-hat ")
    assert len(lines) == 4
    batch = replace(posterior, log_weight=jnp.zeros((3, 500)))
    assert repr(batch) == "Posterior of a batch (3,), 500 particles each"
