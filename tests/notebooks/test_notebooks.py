"""Every notebook runs from top to bottom, on little of everything, and is kept without outputs."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    monkeypatch.setenv("DPM_SMALL", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook shows pictures"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs_and_holds_no_logic(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    cells = [cell for cell in cells if not cell.source.startswith("%%writefile")]  # a program's own file
    lines = [line for cell in cells for line in cell.source.splitlines() if not line.startswith("%")]
    defined = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, DEFINITIONS)]
    assert [node.name for node in defined if not is_program(node)] == []


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
