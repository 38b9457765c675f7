"""Every program in `models/`, found by itself; which laws are for it is read off the program, never its name."""

import importlib

import pytest

from dpm_ppl.reports.objective import has_likelihood
from tests.models.cases import PROGRAMS, Case


@pytest.fixture(params=PROGRAMS, scope="module")
def case(request):
    """A program as it stands; of chains no longer than the module's MOST_STEPS, where it has one."""
    page, most = importlib.import_module(f"dpm_ppl.models.{request.param}"), getattr(request.module, "MOST_STEPS", None)
    with pytest.MonkeyPatch.context() as patch:
        if most is not None and getattr(page, "NUM_STEPS", 0) > most:
            patch.setattr(page, "NUM_STEPS", most)
        yield Case(request.param)


@pytest.fixture
def program(case):
    return case.program


@pytest.fixture
def scored(case):
    """A program that scores its data."""
    if not has_likelihood(case.program, case.batch(16)):
        pytest.skip("it has no likelihood")
    return case


@pytest.fixture
def chain(case):
    """A program that is one chain of its data."""
    if case.parts.definition is None:
        pytest.skip("it is no single chain")
    return case
