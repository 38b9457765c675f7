"""Data and the kernel that they meet."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.data import data
from tests.inference.checks.test_checklist import BETA, chain_of, found
from tests.oracles import data as gaussian_data


@pytest.mark.parametrize(
    ("values", "name", "status", "words"),
    [
        (lambda x: 10 * x, "data's moments", "failed", "Scale the data"),
        (lambda x: 0.3 * x, "data's moments", "note", "looser"),
        (lambda x: np.round(2 * x) / 2, "data", "note", "dequantise"),
        (lambda x: np.round(x).astype(int), "data", "failed", "floating-point"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), "data", "failed", "finite"),
        (lambda x: x, "data", "passed", "finite and within"),
    ],
    ids=["scale", "small", "quantised", "integers", "NaN", "right"],
)
def test_data(values, name, status, words):
    x0 = values(np.asarray(gaussian_data(500)))
    chain = chain_of(dpm.GaussianKernel(BETA, (2,)), x0=jnp.asarray(x0)[:7])
    report = found(data(SimpleNamespace(x0=chain.x0, data=x0, key=jax.random.key(1)), chain))
    assert report[name].status == status, report
    assert words in report[name].words
