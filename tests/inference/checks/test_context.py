"""A context on the wrong axis, or that nothing sees, is found; one that each datum sees as its own passes."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.context import context
from dpm_ppl.inference.checks.subject import subject

BETA = np.array([0.05, 0.1, 0.2, 0.3, 0.5])
RNG = np.random.default_rng(0)
C = RNG.normal(size=(200, 2))
DATA = {"c": C, "x0": C * [0.8, -0.5] + 0.3 * RNG.normal(size=(200, 2))}


def program(*, of=lambda c: c, seen=lambda c: c, last=False, data=DATA):
    """What the model makes of the context before its chain, what its reverse steps make of it, and a last step."""

    def diffusion(c):
        kernel, gain = dpm.GaussianKernel(BETA, (2,)), numpyro.param("gain", jnp.array([0.4, -0.3]))

        def reverse(x, t, c):
            return dist.Normal(0.8 * x + gain * seen(c), 0.5 + 0.0 * x).to_event(1)

        decode = (lambda x, c: dist.Normal(x + gain * c, 0.4 + 0.0 * x).to_event(1)) if last else None
        return dpm.Diffusion(kernel, reverse, decode, context=c)

    def model(c, x0=None):
        with numpyro.plate("data", len(c)):
            return dpm.reverse_chain("x", diffusion(of(c)), obs=x0)

    def guide(c, x0):
        with numpyro.plate("data", len(c)):
            dpm.forward_chain("x", diffusion(c), x0)

    return SimpleNamespace(diffusion=diffusion, model=model, guide=guide, data=data)


def finding(**options):
    ready = subject(program(**options))
    (found,) = context(ready, ready.chains[0])
    return found


def test_each_sees_its_own():
    found = finding(last=True)
    assert found.status == "passed", found
    assert "`reverse` at 4 of 4 steps" in found.words
    assert "`decode` at 1 of 1 steps" in found.words


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"of": lambda c: jnp.roll(c, 1, 0)}, "failed", "sees the context of another"),
        ({"of": lambda c: c[::-1]}, "failed", "sees the context of another"),
        ({"of": lambda c: c - c.mean(0)}, "failed", "`reverse` scores a datum otherwise among 64 data than among 2"),
        ({"seen": lambda c: c - c.mean(-2, keepdims=True)}, "failed", "sees the context of another"),
        ({"seen": lambda c: jnp.roll(c, 1, -2)}, "failed", "sees the context of another"),
        ({"seen": lambda c: 0 * c}, "failed", "it does not see the context"),
        ({"data": {**DATA, "c": np.ones((200, 2))}}, "skipped", "that of all data is the same"),
    ],
    ids=["rolled", "turned", "centred", "mixed", "rolled in a law", "unseen", "alike"],
)
def test_what_is_not_its_own(options, status, words):
    found = finding(**options)
    assert (found.status, words in found.words) == (status, True), found


def test_a_whole_check_of_a_program_of_a_context():
    """Every check runs beside one; where the model rolls it, more than one of them says so."""
    report = dpm.check(SimpleNamespace(**vars(program()), recipe={"num_iterations": 50, "batch_size": 32}))
    assert report.passed, report
    assert {"context", "order of the bounds", "loss", "float32"} <= {f.name for f in report.findings}
    assert report["loss"].status == report["order of the bounds"].status == "passed"
    assert report["context"].status == "passed"
