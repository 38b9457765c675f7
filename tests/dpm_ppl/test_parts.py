"""Which part of a program's data is the datum is read off the program; parts are taken apart and put together."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.parts import parts_of

RNG = np.random.default_rng(0)
X, C, D = RNG.normal(size=(7, 2)), RNG.normal(size=7), np.arange(7)


def diffusion(c):
    kernel = dpm.GaussianKernel(np.array([0.1, 0.3]), (2,))
    return dpm.Diffusion(kernel, lambda x, t, c: dist.Normal(x + c[..., None], 1.0).to_event(1), context=c)


def of_two(c):
    return diffusion(c["a"] + c["b"]) if isinstance(c, dict) else diffusion(c[0] + c[1])


def program(definition=diffusion, model=None):
    return SimpleNamespace(diffusion=definition, model=dpm.single_chain(definition)[0] if model is None else model)


def shifted(c, x0=None):
    """Its chain observes something made of the data."""
    with numpyro.plate("data", len(c)):
        return dpm.reverse_chain("x", diffusion(c), obs=None if x0 is None else 2 * x0)


def first_is_the_datum(theta, c):
    with numpyro.plate("data", len(c)):
        return dpm.reverse_chain("x", diffusion(c), obs=theta)


def no_chain(c, x=None):
    with numpyro.plate("data", len(c)):
        return numpyro.sample("x", dist.Normal(c[:, None], 1.0).expand([len(c), 2]).to_event(1), obs=x)


def test_the_datum_is_what_the_chain_observes():
    for data, model, datum, context in (
        ({"c": C, "x0": X}, None, "x0", C),
        ({"x0": X, "c": C}, None, "x0", C),
        ((C, X), None, 1, C),
        ((X, C), first_is_the_datum, 0, C),
        ({"c": C, "theta": X}, first_is_the_datum, "theta", C),
        ({"c": C, "x0": X}, shifted, "x0", C),  # what it can draw, by its default
    ):
        parts = parts_of(program(model=model), data)
        assert (parts.datum, parts.given) == (datum, True)
        np.testing.assert_array_equal(parts.x0(data), X)
        np.testing.assert_array_equal(parts.context(data), context)
        assert type(parts.batch(1, 2)) is type(data)
        again = parts.batch(parts.x0(data), parts.context(data))
        assert all(again[name] is data[name] for name in parts.names)
        assert parts.from_names(parts.by_name(context)) is context
        assert parts.alone(data) is None
    assert parts_of(SimpleNamespace(model=no_chain), {"c": C, "x": X}).datum == "x"


def test_several_parts_are_beside_in_what_holds_the_data():
    def model(a, b, x0=None):
        with numpyro.plate("data", len(a)):
            return dpm.reverse_chain("x", of_two({"a": a, "b": b}), obs=x0)

    data = {"a": C, "x0": X, "b": D}
    parts = parts_of(program(of_two, model), data)
    assert (parts.datum, parts.context_names) == ("x0", ("a", "b"))
    assert parts.context(data) == {"a": C, "b": D}
    assert parts.from_names({"b": D, "a": C, "x0": X}) == {"a": C, "b": D}
    given = parts.generate(parts.context(data), 7, model=lambda a, b, x0: (a, b, x0))
    assert (given[0] is C, given[1] is D, given[2]) == (True, True, None)

    def unnamed(a, x0, b):
        with numpyro.plate("data", len(a)):
            return dpm.reverse_chain("x", of_two((a, b)), obs=x0)

    parts = parts_of(program(of_two, unnamed), (C, X, D))
    assert (parts.datum, parts.context_names) == (1, ("context_0", "context_1"))
    assert [part is other for part, other in zip(parts.batch(X, (C, D)), (C, X, D), strict=True)] == [True] * 3
    assert parts.from_names(parts.by_name((C, D))) == (C, D)


def test_a_simulator_is_read_by_a_draw():
    class Simulator(dist.Distribution):
        def sample(self, key, sample_shape=()):
            theta = dist.Normal(jnp.zeros(2), 1.0).to_event(1).sample(key, sample_shape)
            return {"c": theta.sum(-1), "x0": theta}

    parts = parts_of(program(), Simulator())
    assert (parts.datum, parts.given) == ("x0", True)
    assert parts.alone(Simulator()) is None


def test_data_without_parts_are_the_datum():
    alone = dpm.single_chain(lambda: diffusion(jnp.zeros(1)))[0]
    for data in (X, dist.Normal(jnp.zeros(2), 1.0).to_event(1)):
        parts = parts_of(SimpleNamespace(model=alone, diffusion=lambda: None), data)
        assert (parts.names, parts.given, parts.beside, parts.context(data)) == ((), False, (), None)
        assert parts.x0(data) is data
        assert parts.alone(data) is data
        assert parts.definition is not None
        assert parts_of(program(), data).definition is None  # a `diffusion` of one argument is one of several chains


def test_what_cannot_be_told_or_does_not_agree():
    def two(c, d, x0):
        with numpyro.plate("data", len(c)):
            dpm.reverse_chain("x", diffusion(c), obs=x0)
            return dpm.reverse_chain("y", diffusion(c), obs=d)

    with pytest.raises(ValueError, match=r"which part of the data, c, d, x0, is the datum .* observe d, x0"):
        parts_of(program(model=two), {"c": C, "d": X, "x0": X[::-1]})

    def wider(c, x0=None):
        kernel = dpm.GaussianKernel(np.array([0.1, 0.3]), (2,))
        wide = jnp.stack([c, c], -1)
        chain = dpm.Diffusion(kernel, lambda x, t, c: dist.Normal(x + c, 1.0).to_event(1), context=wide)
        with numpyro.plate("data", len(c)):
            return dpm.reverse_chain("x", chain, obs=x0)

    with pytest.raises(ValueError, match=r"beside the context that `diffusion` makes of .*\(3,\); got \(3, 2\)"):
        parts_of(program(model=wider), {"c": C, "x0": X})

    def scaled(c, x0=None):
        with numpyro.plate("data", len(c)):
            return dpm.reverse_chain("x", diffusion(3 * c), obs=x0)

    with pytest.raises(ValueError, match=r"\(3,\); got other values\. Let both call diffusion with the parts"):
        parts_of(program(model=scaled), {"c": C, "x0": X})

    def unpacked(*parts):
        return shifted(*parts)

    with pytest.raises(ValueError, match=r"observe none of them as they are, and 0 of its arguments"):
        parts_of(program(model=unpacked), (C, X))
