"""Programs are found by name and by path; what is wrong with a file is said before any work."""

import ast
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl import programs

MODELS = Path(__file__).parents[2] / "models"
WHOLE = '''"""Nothing but names.

More of it.
"""
import numpyro.distributions as dist

diffusion = model = guide = lambda *args: "called"
data = dist.Normal(0.0, 1.0)
'''


@pytest.fixture
def written(tmp_path):
    """Writes a program's file and gives its path."""

    def write(text, *, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_known_programs_are_the_files_of_models():
    expected = {path.stem: path for path in MODELS.glob("*.py") if path.stem != "__init__"}
    known = programs.known()
    assert list(known) == sorted(expected)
    assert {"swiss_roll", "heartbeat", "swiss_roll_2015", "heartbeat_2015"} <= set(known)
    for name, path in expected.items():
        assert known[name] == ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]


def test_a_new_file_in_models_is_known_and_loads(written, tmp_path, monkeypatch):
    from dpm_ppl import models

    written(WHOLE, name="a_new_one.py")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(models.__spec__, "submodule_search_locations", models.__path__)
    assert programs.known()["a_new_one"] == "Nothing but names."
    assert programs.load("a_new_one").path == tmp_path / "a_new_one.py"


def test_a_name_loads_the_program_of_that_name():
    program = programs.load("heartbeat_2015")
    from dpm_ppl.models import heartbeat_2015

    assert program.name == "heartbeat_2015"
    assert program.summary == programs.known()["heartbeat_2015"]
    assert [getattr(program, part) for part in ("diffusion", "model", "guide", "recipe")] == [
        getattr(heartbeat_2015, part) for part in ("diffusion", "model", "guide", "recipe")
    ]
    assert isinstance(program.data(), dpm.Heartbeat)


def test_a_path_loads_a_file_of_ones_own(written):
    written("LENGTH = 3\n", name="beside_mine.py")
    path = written(WHOLE + "from beside_mine import LENGTH\nrecipe = {'num_iterations': LENGTH}\n")
    program = programs.load(path)
    assert program.name == str(path)
    assert program.summary == "Nothing but names."
    assert program.diffusion() == "called"
    assert program.recipe == {"num_iterations": 3}
    assert programs.load(program.name).path == path  # what a run notes of its program loads it again


def test_a_relative_path_is_made_absolute(written, monkeypatch):
    path = written(WHOLE)
    monkeypatch.chdir(path.parent)
    assert programs.load("mine.py").name == str(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data = dist.Normal(0.0, 1.0)", dist.Normal),
        ("def data():\n    return dist.Normal(0.0, 1.0)", dist.Normal),
        ("import numpy as np\ndata = np.ones((4, 2))", np.ndarray),
        ("data = __import__('jax').numpy.ones", None),
    ],
)
def test_data_are_one_thing_however_they_are_given(written, text, kind):
    program = programs.load(written(WHOLE + text))
    if kind is None:  # a function that cannot be called without arguments fails when the data are asked for, not before
        with pytest.raises(TypeError):
            program.data()
    else:
        assert isinstance(program.data(), kind)


def test_data_are_not_made_by_loading(written):
    program = programs.load(written(WHOLE + "def data():\n    raise RuntimeError('a long download')"))
    with pytest.raises(RuntimeError, match="a long download"):
        program.data()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=rf"got 'swiss_rol'\. Did you mean swiss_roll\? .*{', '.join(programs.known())}\."
    ):
        programs.load("swiss_rol")


def test_a_path_without_its_ending_is_recognised(written):
    path = written(WHOLE)
    with pytest.raises(ValueError, match=rf"Did you mean {path}\?"):
        programs.load(path.with_suffix(""))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is none at .*nowhere\.py"):
        programs.load(tmp_path / "nowhere.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nimport no_such_library", "line 2: ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = 1\nx = 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("def data(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_import_shows_its_error(written, text, message):
    with pytest.raises(ImportError, match=message):
        programs.load(written(text))


def test_a_file_without_the_names_says_which(written):
    path = written("def model():\n    pass\n")
    with pytest.raises(ValueError, match=r"model, guide, data; it lacks guide, data\."):
        programs.load(path)


@pytest.mark.parametrize(
    ("text", "is_chain"),
    [
        ("", True),
        ("def diffusion(width=3): ...", True),
        ("def diffusion(label): ...", False),
        ("def diffusion(*, label, width=3): ...", False),
        ("del diffusion", False),
    ],
)
def test_diffusion_is_that_of_a_single_chain(written, text, is_chain):
    """One that needs a label makes several chains, and there is none without a label."""
    program = programs.load(written(WHOLE + text))
    assert (program.diffusion is not None) == is_chain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("diffusion = 3", "Expected `diffusion` in .* to be a function; got int"),
        ("model = 3", "Expected `model` in .* to be a function; got int"),
        ("recipe = 3", "Expected `recipe` in .* to be a dict .*; got int"),
    ],
)
def test_names_of_the_wrong_kind(written, text, message):
    with pytest.raises(TypeError, match=message):
        programs.load(written(WHOLE + text))


def test_data_of_the_wrong_kind(written):
    program = programs.load(written(WHOLE + "data = 'files/*.png'"))
    with pytest.raises(TypeError, match="Expected `data` in .* NumPyro distribution or an array .*; got str"):
        program.data()
