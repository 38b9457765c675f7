"""Arguments: what passes comes back as it is used, and what is refused is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.arguments import require_batch, require_flags, require_pair

POINTS = dpm.GaussianKernel(np.array([0.1, 0.5]), (2,))
BITS = dpm.BernoulliKernel(np.array([0.1, 0.5]), ())


def test_flags():
    require_flags(progress=True, antithetic=np.False_)
    for value in (1, 0.0, "no", None, np.array([True])):
        with pytest.raises(TypeError, match="Expected `progress` to be True or False; got"):
            require_flags(antithetic=False, progress=value)


@pytest.mark.parametrize(
    "x0", [[[0.5, -2.0]], np.array([[0.5, -2.0], [3.0, 0.25], [-1.0, 7.0]])], ids=["list", "array"]
)
def test_a_batch_passes_as_an_array(x0):
    batch = require_batch(POINTS, x0)
    assert isinstance(batch, jax.Array)
    np.testing.assert_array_equal(batch, x0)
    np.testing.assert_array_equal(require_batch(BITS, [1, 0, 1]), [1, 0, 1])


@pytest.mark.parametrize(
    ("kernel", "x0", "error", "message"),
    [
        (POINTS, [0.5, -2.0], ValueError, r"\(num_data, \*event\).*event shape \(2,\); got \(2,\)\. Use x0\[None\]"),
        (POINTS, np.ones((4, 3, 2)), ValueError, r"got \(4, 3, 2\)\. Use x0\[None\].*x0\.reshape\(-1, \*event\)"),
        (BITS, 1, ValueError, r"event shape \(\); got \(\)"),
        (POINTS, np.ones((4, 3)), ValueError, r"event shape \(2,\); got \(4, 3\)"),
        (POINTS, np.ones((4, 2), int), TypeError, "floating-point"),
    ],
    ids=["a single datum", "two batch dimensions", "a single bit", "another event", "integers"],
)
def test_a_batch_that_is_none(kernel, x0, error, message):
    with pytest.raises(error, match=message):
        require_batch(kernel, x0)


def test_a_pair_passes_as_two_arrays_of_numpy():
    given = jnp.array([[0.5, -2.0], [3.0, 0.25]]), [[True, False]] * 3
    pair = require_pair(*given, at_least=2)
    for x, expected in zip(pair, given, strict=True):
        assert isinstance(x, np.ndarray)
        np.testing.assert_array_equal(x, expected)


GOOD = np.array([[0.5, -2.0], [3.0, 0.25], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("data", "samples", "error", "message"),
    [
        (GOOD, [["a", "b"]] * 3, TypeError, "Expected `samples` to be a numeric array; got <U1"),
        (np.array([None] * 3), GOOD, TypeError, "Expected `data` to be a numeric array; got object"),
        (GOOD, GOOD[:1], ValueError, r"Expected `samples` .*at least 2 of them; got shape \(1, 2\)"),
        (3.0, GOOD, ValueError, r"Expected `data` .*at least 2 of them; got shape \(\)"),
        (GOOD[:, :0], GOOD, ValueError, r"Expected `data` .*got shape \(3, 0\)"),
        (GOOD, np.where(GOOD > 0.9, np.nan, np.inf), ValueError, "Expected `samples` to be finite; .* in 3 of 3"),
        (np.where(GOOD > 2, -np.inf, GOOD), GOOD, ValueError, "Expected `data` to be finite; .* in 1 of 3"),
        (GOOD, GOOD[:, :1], ValueError, r"of one event shape; got \(2,\) and \(1,\)"),
    ],
    ids=["text", "objects", "too few", "a number", "empty", "all infinite", "one infinite", "shapes"],
)
def test_a_pair_that_is_none(data, samples, error, message):
    with pytest.raises(error, match=message):
        require_pair(data, samples, at_least=2)
