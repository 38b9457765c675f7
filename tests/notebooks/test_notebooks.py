"""Every notebook runs from top to bottom on little of everything, and then says what it said when it was stored.

Its stored outputs are of a run in full, by the same code and in the same hour: what cannot be said any more of little
cannot of much. A cell tagged `here` has numbers that hang on the machine: times, or what a last bit decides, such as
which of a few particles are left. Of these the words are compared.
"""

import ast
import io
import re
from base64 import b64decode

import matplotlib.image
import nbformat
import numpy as np
import pytest

from tests.notebooks.store import FOLDER, MOST_HTML, WIDTH, code_cells, executed, fingerprint, said

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\b(?:nan|inf)\b")
TIME = re.compile(r"# (?:ms|s|minutes)\b")
NEAR = {"rtol": 0.05, "atol": 0.02}  # of numbers: machines round differently, and a particle is resampled or not


def differences(stored, now, *, here=False):
    """How what a cell says differs from what it said: in words, or by more in numbers than machines do; None if not."""
    words = [TIME.sub("# of time", " ".join(NUMBER.sub("#", text).split())) for text in (stored, now)]
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(text)] for text in (stored, now)]
    if words[0] == words[1] and (here or np.allclose(*numbers, **NEAR, equal_nan=True)):
        return None
    return f"stored: {stored}, now: {now}"


def pictures(cell):
    return [b64decode(output.data["image/png"]) for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_says_what_it_said(path):
    stored, notebook = nbformat.read(path, as_version=4), executed(path, small=True)
    for before, after, was, cell in zip(
        stored.metadata["said_of_little"], said(notebook), code_cells(stored), code_cells(notebook), strict=True
    ):
        here = "here" in cell.metadata.get("tags", [])
        assert differences(before, after, here=here) is None, cell.source
        assert len(pictures(was)) == len(pictures(cell)), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_with_the_outputs_of_its_code_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["outputs_of"] == fingerprint(notebook), f"run tests/notebooks/store.py {path.name} again"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    shown = [picture for cell in code_cells(notebook) for picture in pictures(cell)]
    assert shown, "a notebook shows pictures"
    assert all(matplotlib.image.imread(io.BytesIO(picture)).shape[1] <= WIDTH for picture in shown)
    assert all(len(output.get("data", {}).get("text/html", "")) <= MOST_HTML for output in outputs)
    assert path.stat().st_size < 300_000
    # Of little the same cells speak.
    assert [bool(words) for words in said(notebook)] == [bool(words) for words in notebook.metadata["said_of_little"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_holds_no_logic(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    cells = [cell for cell in cells if not cell.source.startswith("%%writefile")]  # a program's own file
    lines = [line for cell in cells for line in cell.source.splitlines() if not line.startswith("%")]
    defined = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, DEFINITIONS)]
    assert [node.name for node in defined if not is_program(node)] == []


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize(
    ("stored", "now", "same"),
    [
        ("ELBO   -1.02 ± 0.010 bits", "ELBO -1.03 ± 0.012 bits", True),
        ("ELBO -1.02 bits", "ELBO -1.02 nats", False),
        ("ELBO -1.02 bits", "ELBO -1.12 bits", False),
        ("ELBO -1.02 bits", "ELBO 1.02 bits", False),
        ("k-hat nan", "k-hat 0.5", False),
        ("at most 1,000 of 3", "at most 1,300 of 3", False),
        ("can be trusted", "", False),
    ],
)
def test_what_differs_is_seen(stored, now, same):
    assert (differences(stored, now) is None) == same


def test_numbers_that_hang_on_the_machine():
    assert differences("97 s here, 3 passed", "2 minutes here, 3 passed", here=True) is None
    assert differences("97 s here, 3 passed", "97 s here, 3 failed", here=True) is not None
    tagged = [cell for path in NOTEBOOKS for cell in code_cells(nbformat.read(path, 4)) if "tags" in cell.metadata]
    assert len(tagged) == 4


def is_program(node):
    """Whether a definition is a NumPyro program with a chain, which is what a notebook is about, and no more."""
    called = {call.func.attr for call in ast.walk(node) if isinstance(call, ast.Call) and hasattr(call.func, "attr")}
    branches = (ast.If, ast.For, ast.While, ast.Try, ast.With)
    plain = not any(isinstance(part, branches) for part in ast.walk(node))
    return isinstance(node, ast.FunctionDef) and "reverse_chain" in called and plain


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("def program(y):\n    x = dpm.reverse_chain('x', diffusion())\n    numpyro.sample('y', law(x), obs=y)", True),
        ("def square(x):\n    return x**2", False),
        ("class Program:\n    x = dpm.reverse_chain('x', diffusion())", False),
        ("def sum(x):\n    for y in x:\n        dpm.reverse_chain('x', y)", False),
    ],
)
def test_a_program_is_no_logic(source, allowed):
    assert is_program(ast.parse(source).body[0]) == allowed


def test_there_are_notebooks():
    assert NOTEBOOKS
