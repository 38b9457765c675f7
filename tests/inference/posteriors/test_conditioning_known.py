"""Which coordinates of a chain's value are known exactly, as NumPyro's masks say, and what contradicts itself."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference import smc
from dpm_ppl.inference.posteriors.conditioning import Conditioned
from tests.oracles import BernoulliOracle, GaussianOracle

ORACLE = GaussianOracle.exact(3)
BITS = BernoulliOracle()


def chain():
    return dpm.reverse_chain("x", ORACLE.diffusion())


@pytest.mark.parametrize("masks", [(True,), ([True, False],), ([True, True], [False, True])])
def test_known_coordinates_are_those_that_every_mask_leaves(masks):
    def program():
        x, y = chain(), jnp.array([7.0, 8.0])
        known = dist.Delta(x)
        for mask in masks:
            known = known.mask(jnp.asarray(mask))
        numpyro.sample("known", known.to_event(1), obs=y)
        numpyro.sample("other", dist.Normal(x[0], 1.0), obs=0.0)

    mask, value = Conditioned(program, "x", ORACLE.params).target({}).known
    expected = np.logical_and.reduce([np.broadcast_to(np.asarray(m), 2) for m in masks])
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(value, np.where(expected, [7.0, 8.0], 0.0))


SQUARE = np.arange(9.0).reshape(3, 3)
ROWS = np.array([True, False, True])


def square():
    kernel = dpm.GaussianKernel([0.1, 0.3, 0.6], (3, 3))
    return dpm.reverse_chain("x", dpm.Diffusion(kernel, kernel.step))


def masked_rows():
    numpyro.sample("y", dist.Delta(square()).to_event(1).mask(ROWS).to_event(1), obs=SQUARE)


def rows_in_a_plate():
    x = square()
    with numpyro.plate("row", 3), handlers.mask(mask=ROWS):
        numpyro.sample("y", dist.Delta(x).to_event(1), obs=SQUARE)


def masked_columns():
    numpyro.sample("y", dist.Delta(square()).mask(ROWS).to_event(2), obs=SQUARE)


@pytest.mark.parametrize(
    ("program", "known"), [(masked_rows, ROWS[:, None]), (rows_in_a_plate, ROWS[:, None]), (masked_columns, ROWS)]
)
def test_a_mask_goes_with_the_batch_of_what_it_masks_as_in_numpyro(program, known):
    known = np.broadcast_to(known, (3, 3))
    mask, value = Conditioned(program, "x", {}).target({}).known
    np.testing.assert_array_equal(mask, known)
    # Stock NumPyro agrees: a datum is possible as long as it differs from the known one outside the mask alone.
    for i, j in np.ndindex(3, 3):
        data = {"x": SQUARE.copy(), "x_chain": np.zeros((3, 3, 3))}
        data["x"][i, j] += 1.0
        log_density, _ = numpyro.infer.util.log_density(handlers.seed(program, 0), (), {}, data)
        assert np.isfinite(log_density) == (not known[i, j])
    np.testing.assert_array_equal(value, np.where(known, SQUARE, 0.0))


def twice(one, other):
    x = chain()
    numpyro.sample("one", dist.Delta(x).mask(jnp.array([True, False])).to_event(1), obs=jnp.array([one, 3.0]))
    numpyro.sample("other", dist.Delta(x).to_event(1), obs=jnp.array([other, -0.3]))


def bit(value):
    x = dpm.reverse_chain("x", BITS.diffusion())
    numpyro.sample("known", dist.Delta(x).mask(jnp.array([True, False, False])).to_event(1), obs=jnp.full(3, value))


@pytest.mark.parametrize(
    ("program", "params", "args"),
    [(twice, ORACLE.params, (0.5, 0.6)), (bit, BITS.params, (0.9,)), (bit, BITS.params, (2.0,))],
    ids=["contradiction", "no bit", "too large"],
)
def test_what_cannot_be_known_has_no_evidence(program, params, args):
    run = smc(program, "x", params=params, num_particles=20)
    with pytest.raises(ValueError, match="all weights are zero at t = 0.*impossible"):
        run(jax.random.key(0), *args)
    log_evidence = jax.vmap(lambda *args: run(jax.random.key(0), *args).log_evidence)(*map(jnp.atleast_1d, args))
    assert log_evidence[0] == -np.inf


def test_two_sites_that_agree_are_one_piece_of_knowledge():
    p = smc(twice, "x", params=ORACLE.params, num_particles=50)(jax.random.key(0), 0.5, 0.5)
    np.testing.assert_array_equal(p.samples, np.broadcast_to([0.5, -0.3], (50, 2)))
    assert jnp.isfinite(p.log_evidence)
