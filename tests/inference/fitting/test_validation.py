"""Validation of a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import bound
from dpm_ppl.inference.fitting.validation import nothing_validated
from tests.inference.fitting.test_fits import DATA, diffusion, identical, model, small

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


@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_plate_in_full_stands_for_all_data(batch_size):
    """The same chain with its plate in full has the same loss per datum, whatever the sizes of batches and parts.

    But for the noise, where the plate draws its own indices: taken wrongly, it would be 64/20 as large.
    """

    def in_full(program):
        def given(x0):
            with numpyro.plate("data", 64, subsample_size=len(x0)):
                return program("x", diffusion(), x0)

        return given

    full = {"model": in_full(lambda *at: dpm.reverse_chain(*at[:2], obs=at[2])), "guide": in_full(dpm.forward_chain)}
    still = {**OPTIONS, "num_iterations": 1, "optimizer": optax.sgd(0.0), "batch_size": batch_size}
    plain = small(validation=DATA[:20], **still).validation
    np.testing.assert_allclose(small(validation=DATA[:20], **full, **still).validation, plain, rtol=0.2)


def test_other_validation_data_begin_anew(tmp_path):
    options = {**OPTIONS, "every": 5, "run_dir": tmp_path}
    small(validation=OTHERS, **{**options, "num_iterations": 10})
    other = small(validation=OTHERS + 5, resume=True, **{**options, "num_iterations": 15})
    np.testing.assert_array_equal(other.validation[:, 0], [10, 15])
    without = small(resume=True, **{**options, "num_iterations": 20})
    assert without.validation.shape == (0, 2)
    assert identical(without.best_params, without.params)


def test_mutable_state_is_that_of_the_fit():
    """A state that counts the iterations, and shifts the loss by as much."""

    def counting(x0=None, size=1):
        count = numpyro.primitives.mutable("count", {"of": jnp.array(0.0)})
        numpyro.factor("counted", -count["of"] * 5)
        count["of"] = count["of"] + 1.0
        return model(x0, size)

    still = {**OPTIONS, "optimizer": optax.sgd(0.0), "num_iterations": 3, "every": 1, "batch_size": 5}
    losses = small(model=counting, data=OTHERS, validation=OTHERS, **still).validation[:, 1]
    np.testing.assert_allclose(np.diff(losses), [1.0, 1.0], rtol=1e-9)


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
        ({"callback": 3}, TypeError, "`callback` to be a function of the fit so far; got int"),
        ({"patience": 3}, ValueError, "`validation`, data by which `patience` is measured"),
        ({"validation": OTHERS, "every": 0}, ValueError, "`every`"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        small(**{**OPTIONS, **options})
