"""Programs run quietly: nothing reaches the handlers around, nothing is computed that was not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from dpm_ppl.tracing import shapes_of, trace_quietly, trace_shapes


def program(x, *, offset=0.0):
    """Two sites and what is computed of them."""
    slope = numpyro.param("slope", jnp.array([2.0, -1.0]))
    noise = numpyro.sample("noise", dist.Exponential(3.0))
    return slope * x + noise + offset


def test_what_it_returns_and_its_sites():
    result, sites = trace_quietly(program, 3.0, offset=0.25)
    assert {name: site["type"] for name, site in sites.items()} == {"slope": "param", "noise": "sample"}
    np.testing.assert_array_equal(sites["slope"]["value"], [2, -1])
    np.testing.assert_allclose(result, sites["noise"]["value"] + np.array([6.25, -2.75]), rtol=1e-14)


def test_nothing_reaches_the_handlers_around():
    with handlers.trace() as around, handlers.substitute(data={"slope": 5.0, "noise": 7.0}):
        quiet, _ = trace_quietly(program, 3.0)
        assert around == {}
        loud = program(3.0)
    assert set(around) == {"slope", "noise"}
    np.testing.assert_array_equal(loud, 22)
    np.testing.assert_array_equal(quiet, trace_quietly(program, 3.0)[0])


def test_a_seed_is_a_draw():
    drawn = [float(trace_quietly(program, 0.0, seed=seed)[1]["noise"]["value"]) for seed in (4, 4, 5, 0)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert trace_quietly(program, 0.0, seed=jax.random.key(4))[1]["noise"]["value"] == drawn[0]
    assert trace_quietly(program, 0.0)[1]["noise"]["value"] == drawn[3]


def test_parameters_are_put_in_by_name():
    result, sites = trace_quietly(program, 3.0, params={"slope": jnp.array([0.5, 4.0]), "other": 9.0})
    np.testing.assert_array_equal(sites["slope"]["value"], [0.5, 4])
    np.testing.assert_allclose(result - sites["noise"]["value"], [1.5, 12], rtol=1e-14)


def test_a_handler_within_is_applied_and_seen_in_the_trace():
    result, sites = trace_quietly(program, 3.0, within=handlers.substitute(data={"noise": 0.125}))
    assert sites["noise"]["value"] == 0.125
    np.testing.assert_array_equal(result, [6.125, -2.875])
    _, sites = trace_quietly(program, 3.0, within=handlers.mask(mask=False))
    assert not sites["noise"]["fn"].log_prob(1.0)


def test_shapes_alone_compute_nothing():
    ran = []

    def costly(x, *, num):
        def count(x):
            ran.append(x)
            return np.ones(num)

        numpyro.param("slope", jnp.array([2.0, -1.0]))
        drawn = numpyro.sample("noise", dist.Normal(x, 1.0).to_event(1))
        return jax.pure_callback(count, jax.ShapeDtypeStruct((num,), float), drawn)

    def read(result, sites):
        noise = sites["noise"]
        assert noise["value"].shape == struct.shape
        assert noise["fn"].base_dist.loc.dtype == struct.dtype
        assert noise["fn"].event_shape == (2,)
        assert sites["slope"]["value"].shape == (2,)
        assert isinstance(result, jax.core.Tracer)
        return shapes_of(result)

    struct = jax.ShapeDtypeStruct((10**12, 2), jnp.float32)  # 8 TB, were it made
    result = trace_shapes(read, costly, struct, num=10**12)
    assert (result.shape, result.dtype) == ((10**12,), jnp.float64)
    assert ran == []
    trace_quietly(costly, jnp.zeros((3, 2)), num=3)
    assert len(ran) == 1


def test_shapes_alone_know_parameters_and_handlers():
    fixed = handlers.substitute(data={"noise": jnp.zeros(5, jnp.float32)})
    params = {"slope": jnp.ones(5)}
    result, values = trace_shapes(
        lambda result, sites: shapes_of((result, {name: site["value"] for name, site in sites.items()})),
        *(program, jnp.ones((4, 1))),
        params=params,
        within=fixed,
        offset=0.5,
    )
    assert values["slope"].shape == (5,)
    assert values["noise"].dtype == jnp.float32
    assert result.shape == (4, 5)
