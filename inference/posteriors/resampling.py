"""Which particles survive: resampling in proportion to their weights."""

import jax
import jax.numpy as jnp
from jax import Array


def systematic(share: Array, key: Array, num: int) -> Array:
    """Rows drawn with the expected numbers `num * share`, from one uniform draw, shape (num,)."""
    places = (jnp.arange(num) + jax.random.uniform(key)) / num
    total = jnp.cumsum(share)
    # The last row with a weight, should rounding leave the total below the last place.
    return jnp.minimum(jnp.searchsorted(total / total[-1], places, side="right"), len(share) - 1)


def multinomial(share: Array, key: Array, num: int) -> Array:
    """Independent rows with probabilities `share`, in order, shape (num,)."""
    gaps = jax.random.exponential(key, (num + 1,), share.dtype)
    places = jnp.cumsum(gaps)[:-1] / jnp.sum(gaps)  # uniform draws, sorted
    total = jnp.cumsum(share)
    return jnp.minimum(jnp.searchsorted(total / total[-1], places, side="right"), len(share) - 1)
