"""`single_chain`: the pair written out, bit for bit."""

import jax
import numpy as np
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.models import conditional, swiss_roll
from tests.oracles import GaussianOracle, data

ORACLE = GaussianOracle.exact(4)
PAIR, WRITTEN = dpm.single_chain(swiss_roll.diffusion), (swiss_roll.model, swiss_roll.guide)
X0, LABEL = data(3), np.array([0, 2, 1])


@pytest.mark.parametrize(("which", "given"), [(0, {"x0": X0}), (0, {"size": 3}), (0, {}), (1, {"x0": X0})])
def test_sites_and_values_are_those_of_the_pair_written_out(which, given):
    def run(pair):
        traced = handlers.trace(handlers.seed(pair[which], 5))
        returned = traced(**given)
        return returned, traced.trace

    (returned, ours), (expected, written) = run(PAIR), run(WRITTEN)
    jax.tree.map(np.testing.assert_array_equal, returned, expected)
    assert list(ours) == list(written)
    for name, site in ours.items():
        kept = ("type", "is_observed", "cond_indep_stack")
        assert [site.get(part) for part in kept] == [written[name].get(part) for part in kept]
        jax.tree.map(np.testing.assert_array_equal, site["value"], written[name]["value"])


@pytest.mark.parametrize(("which", "given"), [(0, (LABEL, X0)), (0, (LABEL,)), (1, (LABEL, X0))])
def test_of_a_context_it_is_the_pair_of_one(which, given):
    """Called by position and by the names of its arguments."""
    named = dict(zip(("label", "x0"), given, strict=False))
    for call in (lambda program: program(*given), lambda program: program(**named)):
        traces = []
        for pair in (dpm.single_chain(conditional.diffusion), (conditional.model, conditional.guide)):
            traced = handlers.trace(handlers.seed(pair[which], 5))
            jax.tree.map(np.asarray, call(traced))
            traces.append({name: site["value"] for name, site in traced.trace.items()})
        jax.tree.map(np.testing.assert_array_equal, *traces)


def test_what_is_no_definition():
    built = handlers.seed(ORACLE.diffusion, 0)()
    with pytest.raises(TypeError, match="function that declares parameters and returns .*; got Diffusion"):
        dpm.single_chain(built)
    with pytest.raises(TypeError, match="or of one, the context; got one with missing a required argument: 'width'"):
        dpm.single_chain(lambda label, width: built)
    model, guide = dpm.single_chain(lambda: built.kernel)
    for program in (model, guide):
        with pytest.raises(TypeError, match=r"Expected a dpm_ppl.Diffusion; got GaussianKernel"):
            handlers.seed(program, 0)(X0)
