"""Which particles survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.inference.posteriors.resampling import systematic
from tests.inference.posteriors.test_cloud import SHARE
from tests.oracles import worst


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_systematic_draws_the_expected_numbers_and_no_row_without_weight(dtype):
    keys = jax.random.split(jax.random.key(0), 4000)
    rows = jax.jit(jax.vmap(lambda key: systematic(jnp.asarray(SHARE, dtype), key, 30)))(keys)
    counts = np.asarray(jax.nn.one_hot(rows, 8).sum(1))
    assert worst(counts, 30 * SHARE) < 3
    assert (np.abs(counts - 30 * SHARE) < 1).all()  # never off by a whole one, which multinomial draws are
    assert (counts[:, SHARE == 0] == 0).all()


def test_a_weightless_last_row_is_not_drawn_where_rounding_leaves_places_over():
    share = jnp.concatenate([jnp.full(3000, 1 / 3000, jnp.float32), jnp.zeros(5, jnp.float32)])
    keys = jax.random.split(jax.random.key(1), 200)
    assert jax.jit(jax.vmap(lambda key: systematic(share, key, 100_000).max()))(keys).max() < 3000
