"""Validation of a fit."""

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from dpm_ppl.inference import bound
from dpm_ppl.inference.fitting.validation import nothing_validated
from tests.inference.fitting.test_fits import DATA, diffusion, identical, small

OTHERS = np.array([[0.2], [1.9], [0.4], [3.1], [0.9]])
OPTIONS = {"num_iterations": 40, "batch_size": 2, "optimizer": optax.adam(3e-2), "num_steps_sampled": None}


@pytest.fixture(scope="module")
def validated():
    return small(validation=OTHERS, every=10, **OPTIONS)


def test_a_fit_is_what_it_is_without_validation(validated):
    plain = small(**OPTIONS)
    assert identical(validated.params, plain.params)
    assert plain.validation.shape == (0, 2)
    assert identical(plain.best_params, plain.params)


def test_the_loss_is_that_of_the_averaged_parameters_on_all_of_the_data(validated):
    """`bound` with many draws of each datum is independent; all steps are summed, so that little noise is left."""
    np.testing.assert_array_equal(validated.validation[:, 0], [10, 20, 30, 40])
    repeated = small(validation=np.repeat(OTHERS, 400, axis=0), every=40, **OPTIONS)
    elbo = bound(diffusion, np.repeat(OTHERS, 400, axis=0), params=repeated.params, key=jax.random.key(1)).elbo
    within = np.asarray(elbo).reshape(5, 400).var(1).mean()  # of one draw of one datum
    assert abs(-repeated.validation[-1, 1] - np.mean(elbo)) < 4 * np.sqrt(2 * within / 2000)


def test_the_best_average_is_kept_and_patience_ends_a_fit(tmp_path):
    """Data far from those that are fitted get worse sooner or later: the best is in between."""
    away = {"validation": DATA[:20] * 0 - 9.0, "every": 5, **OPTIONS, "num_iterations": 60}
    result = small(patience=2, run_dir=tmp_path, **away)
    losses = result.validation[:, 1]
    assert result.num_iterations < 60
    assert len(losses) - 1 - np.argmin(losses) == 2
    assert not identical(result.best_params, result.params)
    best = small(**{**OPTIONS, "num_iterations": int(result.validation[np.argmin(losses), 0])})
    assert identical(result.best_params, best.params)
    again = small(patience=2, run_dir=tmp_path, resume=True, **away)
    assert identical(again.best_params, result.best_params)
    assert again.num_iterations == result.num_iterations


def test_patience_counts_from_the_best():
    nothing = nothing_validated(None)
    assert not nothing.is_over(1)
    seen = nothing.then(1, 3.0, "a").then(2, 1.0, "b").then(3, 2.0, "c").then(4, np.inf, "d")
    assert seen.best == "b"
    assert seen.is_over(2)
    assert not seen.is_over(3)
    assert not seen.is_over(None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validation": OTHERS[:, [0, 0]]}, ValueError, r"event shape \(1,\); got \(2, 2\)"),
        ({"validation": np.full((3, 1), np.nan)}, ValueError, "finite; got NaN .* the first at 0"),
        ({"validation": OTHERS[:0]}, ValueError, "at least one datum"),
        ({"validation": dist.Normal(0, 1)}, TypeError, r"the same each time; got a distribution\. Draw them"),
        ({"patience": 3}, ValueError, "`validation`, data by which `patience` is measured"),
        ({"validation": OTHERS, "every": 0}, ValueError, "`every`"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        small(**{**OPTIONS, **options})
