"""The API reference is built from the docstrings, without a warning, and its chapters are the faces of the wings."""

import re
import warnings
from pathlib import Path
from types import ModuleType

import pdoc
import pytest

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
WINGS = ("checks", "fitting", "likelihoods", "posteriors", "samples")
CHAPTERS = ("dpm_ppl.kernels", "dpm_ppl.inference", *(f"dpm_ppl.inference.{wing}" for wing in WINGS))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    pdoc.render.configure(docformat="google", math=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("dpm_ppl", output_directory=folder)
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_holds_what_the_face_shows(built, chapter):
    module = __import__(chapter, fromlist=["__all__"])
    text = (built / f"{chapter.replace('.', '/')}.html").read_text()
    shown = set(re.findall(r'id="(\w+)"', text))
    names = {name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}
    assert names
    assert names <= shown


def test_the_command_is_the_one_that_is_documented():
    assert "pdoc -d google --math -o build/reference dpm_ppl" in CONTRIBUTING.read_text()
