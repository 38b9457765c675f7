"""The steps of a fit: what is clipped and kept of a gradient, and the default rate from end to end."""

import json
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpm_ppl.inference.fitting import runs
from dpm_ppl.inference.fitting.optimiser import Steps, rate_ends


@pytest.mark.parametrize(("clip_norm", "length"), [(None, 2.5), (3.0, 2.5), (0.5, 0.5)])
def test_a_step_is_along_the_gradient_per_datum_clipped_and_its_norm_is_kept(clip_norm, length):
    optimizer = Steps(optax.sgd(0.1), 1.0, clip_norm, (10,)).of(4)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([6.0]), "b": jnp.array([-8.0])}  # of norm 10, of four data 2.5 each
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose([*updates["a"], *updates["b"]], np.array([-0.6, 0.8]) * length * 0.1, rtol=1e-6)
    assert state[-1] == pytest.approx(2.5)


def test_the_default_rate_falls_along_a_cosine_to_each_end():
    steps = Steps(None, 0.02, 1.0, (10, 14))
    expected = [0.01 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    expected += [0.01 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
    assert [steps.rate(i + 1, ()) for i in range(15)] == pytest.approx(expected, abs=1e-9)
    assert steps.settings == {"num_iterations of the default optimizer": 10, "learning_rate": 0.02}


def test_the_rate_of_an_optimizer_of_one_s_own_is_told_where_it_is_known():
    params = {"a": jnp.zeros(2)}
    for optimizer, rate in ((optax.inject_hyperparams(optax.sgd)(0.3), 0.3), (optax.sgd(0.3), math.nan)):
        steps = Steps(optimizer, 1.0, None, (5,))
        assert steps.rate(2, steps.of(1).init(params)) == pytest.approx(rate, nan_ok=True)
        assert steps.settings == {}


def test_ends_are_those_of_the_run_and_the_new_one(tmp_path, monkeypatch):
    assert rate_ends(None, 7) == [7]
    assert rate_ends(tmp_path, 7) == [7]
    run = {"settings": {"num_iterations of the default optimizer": 10}, "num_iterations": 20, "restarts": [20]}
    (tmp_path / runs.FILE).write_text(json.dumps(run))
    monkeypatch.setattr(runs, "newest_position", lambda path: 15)
    assert rate_ends(tmp_path, 20) == [10, 20]
    assert rate_ends(tmp_path, 30) == [10, 20, 30]
    with pytest.raises(ValueError, match=r"at least 20, at which the learning rate of the run in .* ends; got 19"):
        rate_ends(tmp_path, 19)
    monkeypatch.setattr(runs, "newest_position", lambda path: 10)
    assert rate_ends(tmp_path, 13) == [10, 13]  # of what was to end at 20 nothing is kept
    (tmp_path / runs.FILE).write_text(json.dumps({"settings": {}, "num_iterations": 20}))
    assert rate_ends(tmp_path, 3) == [3]
