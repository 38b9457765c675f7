"""Batches of a fit."""

import jax
import numpy as np
import numpyro.distributions as dist

from tests.inference.fitting.test_fits import DATA, best_affine, cosine, guide, small


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
