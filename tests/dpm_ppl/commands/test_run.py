"""What is read of a run."""

import jax
import numpy as np

from dpm_ppl.commands import find
from dpm_ppl.commands.run import fitted_params
from dpm_ppl.inference import fit
from tests.dpm_ppl.reports.test_objective import NOISE


def test_parameters_of_model_and_guide_are_read_back(latent):
    program = find.load(latent[0].parent / "mine.py")
    params = fitted_params(latent[0], program, program.data())
    assert set(params) == {"gain", "noise", "slope"}
    np.testing.assert_allclose(params["noise"], NOISE)
    again = fit(program.model, program.guide, program.data(), key=jax.random.key(0), progress=False, **program.recipe)
    assert set(again.params) == set(params)
