"""A program as its checks see it."""

from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_checklist import ORACLE, program


def test_a_chain_and_its_trajectories_are_made_once():
    ready = subject(program(ORACLE.diffusion))
    (chain,) = ready.chains
    assert chain is ready.chains[0]
