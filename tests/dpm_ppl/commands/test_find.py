"""Programs are found by name and by path; what is wrong with a file is said before any work."""

import ast
from pathlib import Path

import pytest

import dpm_ppl as dpm
from dpm_ppl.commands import find

MODELS = Path(__file__).parents[3] / "models"


WHOLE = '''"""Nothing but names.

More of it.
"""
import numpyro.distributions as dist

diffusion = model = guide = lambda *args: "called"
data = dist.Normal(0.0, 1.0)
'''


def test_known_programs_are_the_files_of_models():
    expected = {path.stem: path for path in MODELS.glob("*.py") if path.stem != "__init__"}
    known = find.known()
    assert list(known) == sorted(expected)
    assert {"swiss_roll", "heartbeat", "swiss_roll_2015", "heartbeat_2015"} <= set(known)
    for name, path in expected.items():
        assert known[name] == ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]


def test_a_new_file_in_models_is_known_and_loads(written, tmp_path, monkeypatch):
    from dpm_ppl import models

    written(WHOLE, name="a_new_one.py")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(models.__spec__, "submodule_search_locations", models.__path__)
    assert find.known()["a_new_one"] == "Nothing but names."
    assert find.load("a_new_one").path == tmp_path / "a_new_one.py"


def test_a_name_loads_the_program_of_that_name():
    program = find.load("heartbeat_2015")
    from dpm_ppl.models import heartbeat_2015

    assert program.name == "heartbeat_2015"
    assert program.summary == find.known()["heartbeat_2015"]
    assert [getattr(program, part) for part in ("diffusion", "model", "guide", "recipe")] == [
        getattr(heartbeat_2015, part) for part in ("diffusion", "model", "guide", "recipe")
    ]
    assert isinstance(program.data(), dpm.Heartbeat)


def test_a_path_loads_a_file_of_ones_own(written):
    written("LENGTH = 3\n", name="beside_mine.py")
    path = written(WHOLE + "from beside_mine import LENGTH\nrecipe = {'num_iterations': LENGTH}\n")
    program = find.load(path)
    assert program.name == str(path)
    assert program.summary == "Nothing but names."
    assert program.diffusion() == "called"
    assert program.recipe == {"num_iterations": 3}
    assert find.load(program.name).path == path  # what a run notes of its program loads it again


def test_a_relative_path_is_made_absolute(written, monkeypatch):
    path = written(WHOLE)
    monkeypatch.chdir(path.parent)
    assert find.load("mine.py").name == str(path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=rf"got 'swiss_rol'\. Did you mean swiss_roll\? .*{', '.join(find.known())}\."):
        find.load("swiss_rol")


def test_a_path_without_its_ending_is_recognised(written):
    path = written(WHOLE)
    with pytest.raises(ValueError, match=rf"Did you mean {path}\?"):
        find.load(path.with_suffix(""))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is none at .*nowhere\.py"):
        find.load(tmp_path / "nowhere.py")


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
        find.load(written(text))
