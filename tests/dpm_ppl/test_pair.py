"""`single_chain`: the pair written out, bit for bit."""

import jax
import numpy as np
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.models import swiss_roll
from tests.oracles import GaussianOracle, data

ORACLE = GaussianOracle.exact(4)
PAIR, WRITTEN = dpm.single_chain(swiss_roll.diffusion), (swiss_roll.model, swiss_roll.guide)
X0 = data(3)


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


def test_what_is_no_definition():
    built = handlers.seed(ORACLE.diffusion, 0)()
    with pytest.raises(TypeError, match="function that declares parameters and returns .*; got Diffusion"):
        dpm.single_chain(built)
    with pytest.raises(
        TypeError, match="function without arguments; got one with missing a required argument: 'label'"
    ):
        dpm.single_chain(lambda label, width=3: built)
    model, guide = dpm.single_chain(lambda: built.kernel)
    for program in (model, guide):
        with pytest.raises(TypeError, match=r"Expected a dpm_ppl.Diffusion; got GaussianKernel"):
            handlers.seed(program, 0)(X0)
