"""Batches of a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from tests.inference.fitting.test_fits import DATA, best_affine, cosine, guide, model, small


def test_fresh_batches_of_a_distribution_reach_its_optimum():
    data = dist.Normal(0.7, 1.6).expand([1]).to_event(1)
    result = small(data=data, num_iterations=4000, batch_size=128, optimizer=cosine(4000))
    for name, expected in best_affine(0.7, 1.6**2).items():
        np.testing.assert_allclose(result.params[name], expected, atol=0.03)


def test_every_datum_is_seen_once_an_epoch():
    seen = []

    def spy(x0):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)[:, 0]), x0, ordered=True)
        guide(x0)

    small(guide=spy, num_iterations=6, batch_size=20, num_steps_sampled=1)
    jax.effects_barrier()
    epochs = np.concatenate(seen[-6:]).reshape(2, 60)  # of 64 data, 3 batches of 20
    assert [len(np.unique(epoch)) for epoch in epochs] == [60, 60]
    assert np.isin(epochs, DATA).all()
    assert not np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_parts_of_a_batch_stay_together_and_change_nothing(kind):
    """A factor that only rows out of place would move, beside the fit of the data alone."""
    beside = 2 * DATA[:, 0] - 0.3

    def together(program):
        def with_c(x0, c):
            numpyro.factor("apart", -1e6 * jnp.sum((c - (2 * x0[:, 0] - 0.3)) ** 2))
            return program(x0)

        return with_c

    data = (DATA, beside) if kind is tuple else {"c": beside, "x0": DATA}
    parts = small(model=together(model), guide=lambda x0, c: guide(x0), data=data)
    np.testing.assert_allclose(parts.losses, small().losses, rtol=1e-9)


def test_a_context_is_learned_beside_its_data():
    """x = 2 c + noise: with c given, the last step's offset is its slope; the optimum of a regression."""
    rng = np.random.default_rng(1)
    c = rng.normal(size=(512, 1))
    x0 = 2 * c + 0.1 * rng.normal(size=(512, 1)) - 0.5

    def of(c):
        slope, shift = numpyro.param("slope", jnp.array(0.0)), numpyro.param("shift", jnp.array(0.0))
        kernel = dpm.GaussianKernel(np.array([0.9, 0.9]), (1,))

        def reverse(x, t, c):
            return dist.Normal(0.3 * c + 0.0 * x, 1.0).to_event(1)

        def decode(x, c):
            return dist.Normal(slope * c + shift + 0.0 * x, 0.2).to_event(1)

        return dpm.Diffusion(kernel, reverse, decode, context=c)

    def given(c, x0=None):
        with numpyro.plate("data", len(c)):
            return dpm.reverse_chain("x", of(c), obs=x0)

    def from_data(c, x0):
        with numpyro.plate("data", len(c)):
            dpm.forward_chain("x", of(c), x0)

    result = small(
        model=given,
        guide=from_data,
        data={"c": c, "x0": x0},
        num_iterations=400,
        batch_size=256,
        num_steps_sampled=1,
        optimizer=cosine(400, 0.1),
    )
    slope, shift = np.polyfit(c[:, 0], x0[:, 0], 1)
    np.testing.assert_allclose(result.params["slope"], slope, atol=0.01)
    np.testing.assert_allclose(result.params["shift"], shift, atol=0.01)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((DATA, DATA[:-1]), ValueError, r"arrays of one length.*got \{0: 64, 1: 63\}"),
        ({"x0": DATA, "c": np.full(64, np.nan)}, ValueError, "finite; got NaN"),
        ({"x0": DATA, "c": np.array(["a"] * 64)}, TypeError, "numeric array"),
    ],
)
def test_parts_that_do_not_fit(data, error, message):
    with pytest.raises(error, match=message):
        small(data=data)
