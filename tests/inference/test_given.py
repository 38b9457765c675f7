"""Data to score that are read where they are: the numbers are those of the same data in memory."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import bound, log_likelihood
from dpm_ppl.inference import given as module
from dpm_ppl.inference.given import given
from tests.inference.many_devices import CONTEXT, DATA, KEY, START, diffusion
from tests.inference.test_sources import OnDisk, Rows

X0, C = DATA[:21], CONTEXT[:21]


@pytest.fixture
def in_parts(monkeypatch):
    """Parts of at most ten data, so three of seven."""
    monkeypatch.setattr(module, "PART_BYTES", 10 * 2 * 8)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    written = np.memmap(tmp_path_factory.mktemp("data") / "x0", X0.dtype, "w+", shape=X0.shape)
    written[:] = X0
    return written


def weights(x0, context, **options):
    given = {"params": START, "key": KEY, "num_particles": 5, "num_trajectories": 2, "progress": False}
    return log_likelihood(diffusion, x0, context=context, **given, **options)


def test_weights_of_a_source_are_those_of_an_array(in_parts, mapped):
    expected, rows = weights(X0, C), Rows(C)
    found = weights(mapped, rows)
    np.testing.assert_array_equal(found.log_weight, expected.log_weight)
    np.testing.assert_array_equal(found.trajectories, expected.trajectories)
    np.testing.assert_allclose(found.reverse_cross_entropy, expected.reverse_cross_entropy, rtol=1e-13)
    assert [len(asked) for asked in rows.asked] == [3, 7, 7, 7]  # what it is of, and the parts


def test_the_bound_of_a_source_is_that_of_an_array(mapped):
    expected = bound(diffusion, X0, context=C, params=START, key=KEY, block_size=8)
    rows = Rows(X0)
    for x0, context in ((rows, C), (mapped, Rows(C))):
        found = bound(diffusion, x0, context=context, params=START, key=KEY, block_size=8)
        np.testing.assert_array_equal(found.elbo, expected.elbo)
        np.testing.assert_array_equal(found.kl, expected.kl)
    assert [len(asked) for asked in rows.asked] == [3, 7, 7, 7]


def test_an_array_is_neither_copied_nor_cut():
    data = given(diffusion, START, X0, C)
    (part,) = data.parts()
    assert part == (0, data.x0, data.context)


def test_a_context_may_be_a_tree_of_sources(in_parts):
    def definition(c):
        kernel = dpm.GaussianKernel(np.array([0.1, 0.3]), (1,))
        gain = numpyro.param("gain", jnp.ones(1))
        return dpm.Diffusion(kernel, lambda x, t, c: dist.Normal(gain * c["a"], c["b"]).to_event(1), context=c)

    tree = {"a": OnDisk(C), "b": np.exp(C)}
    data = given(definition, {"gain": jnp.ones(1)}, OnDisk(X0), tree)
    parts = list(data.parts())
    assert [first for first, _, _ in parts] == [0, 6, 12, 18]  # three numbers a datum
    np.testing.assert_array_equal(np.concatenate([x0 for _, x0, _ in parts]), X0)
    np.testing.assert_array_equal(np.concatenate([c["a"] for _, _, c in parts]), C)
    np.testing.assert_array_equal(np.concatenate([c["b"] for _, _, c in parts]), np.exp(C))


def with_bad(value):
    return Rows(np.where(np.arange(21)[:, None] == 16, value, X0))


@pytest.mark.parametrize(
    ("x0", "context", "error", "message"),
    [
        (with_bad(np.nan), C, ValueError, "NaN or infinity in 1 data, the first at 16"),
        (Rows(X0), C[:20], ValueError, r"one length.*\{0: 21, 1: 20\}"),
        (Rows(X0[:0]), C[:0], ValueError, "at least one datum"),
        (Rows(X0[:, 0]), C, ValueError, r"event shape \(1,\)"),
        (iter([X0]), C, TypeError, "length and an index"),
        (Rows(np.ones((21, 1), int)), C, TypeError, "floating-point numbers"),
    ],
)
@pytest.mark.parametrize("of", ["bound", "log_likelihood"])
def test_bad_sources(in_parts, of, x0, context, error, message):
    with pytest.raises(error, match=message):
        weights(x0, context) if of == "log_likelihood" else bound(
            diffusion, x0, context=context, params=START, key=KEY, block_size=8
        )


def test_a_term_that_is_no_number_is_told_by_the_number_of_its_datum(in_parts):
    """Datum 16 is the third of the third part."""

    def definition(c):
        kernel = dpm.GaussianKernel(np.array([0.1, 0.3]), (1,))
        numpyro.param("gain", jnp.ones(1))

        def reverse(x, t, c):
            return dist.Normal(jnp.where(c > 9, jnp.nan, x), 1.0, validate_args=False).to_event(1)

        return dpm.Diffusion(kernel, reverse, context=c)

    marked = Rows(np.where(np.arange(21)[:, None] == 16, 10.0, C))
    with pytest.raises(ValueError, match="datum 16"):
        log_likelihood(
            definition, X0, context=marked, params={"gain": jnp.ones(1)}, key=KEY, num_particles=2, progress=False
        )
