"""A run is read wherever it lies; a program that was edited is told by the names that changed."""

import functools
import json
import shutil

import numpy as np
import pytest

from dpm_ppl import inference
from dpm_ppl.commands.copies import edited_since, files_of, kept_program
from dpm_ppl.commands.find import load
from dpm_ppl.inference.fitting.runs import write_files
from tests.command_line import GAUSSIAN, dpm
from tests.dpm_ppl.commands.test_fit import assert_error

BESIDE = "MEAN = 3.0\n\ndef half(x):\n    return x / 2\n"
PROGRAM = '''"""Nothing but names, some of them of files beside it."""
import numpy as np
import numpyro.distributions as dist
from beside_copies import half
import parts_of_copies.of
import dpm_ppl.schedules

A, B = 1, 2

def diffusion(x=0):
    """It is not called."""
    return half(x) + A

model = guide = diffusion
data = dist.Normal(parts_of_copies.of.MEAN, 1.0)
'''


@pytest.fixture
def kept(tmp_path):
    """A program of several files, and the run that keeps it."""
    folder = tmp_path / "mine"
    (folder / "parts_of_copies").mkdir(parents=True)
    (folder / "mine.py").write_text(PROGRAM)
    (folder / "beside_copies.py").write_text(BESIDE)
    (folder / "unused.py").write_text("")
    (folder / "dpm_ppl").mkdir()  # as beside a program at the root of a checkout
    (folder / "dpm_ppl" / "schedules.py").write_text("")
    (folder / "parts_of_copies" / "__init__.py").write_text("")
    (folder / "parts_of_copies" / "of.py").write_text("from .deep import MEAN\n")
    (folder / "parts_of_copies" / "deep.py").write_text("MEAN = 3.0\n")
    (tmp_path / "run").mkdir()
    write_files(tmp_path / "run", files_of(load(folder / "mine.py"), tmp_path / "run"))
    return folder, tmp_path / "run"


def test_a_copy_has_the_files_that_the_program_imports_and_no_other(kept):
    folder, run_dir = kept
    copied = {path.relative_to(run_dir / "program").as_posix() for path in (run_dir / "program").rglob("*.py")}
    deep = {f"parts_of_copies/{name}.py" for name in ("__init__", "of", "deep")}
    assert copied == {"mine.py", "beside_copies.py", *deep}
    assert kept_program(run_dir) == run_dir / "program" / "mine.py"
    assert (run_dir / "program" / "mine.py").read_text() == PROGRAM
    assert str(folder) not in (run_dir / "program" / "program.json").read_text()
    assert kept_program(folder) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("mine.py", "+ A", "- A", ["diffusion"]),
        ("mine.py", "A, B = 1, 2", "A, B = 1, 3", ["A", "B"]),
        ("mine.py", "import numpy as np\n", "", ["np"]),
        ("mine.py", "model = guide = diffusion", "model = guide = diffusion\nprint(A)", ["(statements)"]),
        ("mine.py", "+ A", "+ A  # so much", []),
        ("mine.py", "It is not called", "It is called", []),
        ("beside_copies.py", "x / 2", "x * 0.5", ["beside_copies.py: half"]),
        ("parts_of_copies/deep.py", "3.0", "4.0", ["parts_of_copies/deep.py: MEAN"]),
    ],
)
def test_what_was_edited_is_told_by_name(kept, file, old, new, changed):
    folder, run_dir = kept
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert edited_since(run_dir) == edited_since(run_dir, folder / "mine.py") == changed


def test_a_program_that_is_gone_was_not_edited(kept):
    folder, run_dir = kept
    shutil.rmtree(folder)
    assert edited_since(run_dir) == []
    assert kept_program(run_dir) is not None


def test_a_copy_that_was_edited_is_refused(kept):
    _, run_dir = kept
    (run_dir / "program" / "beside_copies.py").write_text("")
    with pytest.raises(ValueError, match=r"Expected beside_copies.py in .* as the fit left it.*--force"):
        kept_program(run_dir)
    assert kept_program(run_dir, force=True) is not None
    (run_dir / "program" / "program.json").write_text("{}")
    with pytest.raises(ValueError, match=r"readable .*program.json; it is damaged"):
        kept_program(run_dir, force=True)


# The same by the command line, of a fit.


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A fit whose program and directory are elsewhere now."""
    folder = tmp_path_factory.mktemp("before")
    (folder / "mine.py").write_text(GAUSSIAN)
    done = dpm("fit", folder / "mine.py", "--run-dir", folder / "run", "--iterations", 5)
    assert done.exit_code == 0, done.output
    for file in ("run.json", "metrics.json", "program/program.json"):
        assert str(folder) not in (folder / "run" / file).read_text()
    after = tmp_path_factory.mktemp("after")
    shutil.move(folder / "run", after / "run")
    shutil.move(folder / "mine.py", after / "somewhere.py")
    return after / "run", after / "somewhere.py"


def test_a_run_is_read_without_the_file_of_its_program(moved, tmp_path):
    done = dpm("sample", moved[0], "-n", 5, "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "Note" not in done.stderr
    assert np.load(tmp_path / "new" / "samples.npz")["x0"].shape == (5, 2)
    assert not (moved[0] / "samples.npz").exists()
    versions = json.loads((moved[0] / "run.json").read_text())["versions"]
    assert {"dpm_ppl", "jax", "numpyro", "python"} <= set(versions)


def test_another_program_is_taken_and_its_changes_are_told(moved, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(GAUSSIAN.replace("MEAN, SCALE = np.array([1.0, -0.5])", "MEAN, SCALE = np.array([9.0, -0.5])"))
    done = dpm("sample", moved[0], "-n", 50, "--model", other, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Note: MEAN, SCALE changed since the fit; --model takes it as it is.\n" in done.stderr
    assert np.load(tmp_path / "samples.npz")["x0"].mean(0)[0] > 7


def test_an_edited_program_is_not_resumed_unasked(moved, tmp_path):
    run_dir, edited = tmp_path / "run", tmp_path / "mine.py"
    shutil.copytree(moved[0], run_dir)
    edited.write_text(GAUSSIAN.replace('"batch_size": 16', '"batch_size": 8 + 8'))
    again = ("fit", edited, "--run-dir", run_dir, "--iterations", 5, "--resume")
    assert_error(dpm(*again), "recipe changed. Give back")
    before = (run_dir / "program" / "mine.py").read_text()
    assert before == GAUSSIAN
    done = dpm(*again, "--force")
    assert done.exit_code == 0, done.output
    assert (run_dir / "program" / "mine.py").read_text() == edited.read_text()
    assert dpm(*again).exit_code == 0


def test_a_program_edited_while_it_is_fitted_is_kept_as_it_was(tmp_path, monkeypatch):
    file, fit = tmp_path / "mine.py", inference.fit
    file.write_text(GAUSSIAN)

    @functools.wraps(fit)  # whose options a recipe may have
    def edited_meanwhile(*args, **options):
        file.write_text(GAUSSIAN.replace("MEAN, SCALE = np.array([1.0", "MEAN, SCALE = np.array([9.0"))
        return fit(*args, **options)

    monkeypatch.setattr(inference, "fit", edited_meanwhile)
    assert dpm("fit", file, "--run-dir", tmp_path / "run", "--iterations", 2).exit_code == 0
    assert (tmp_path / "run" / "program" / "mine.py").read_text() == GAUSSIAN
    assert edited_since(tmp_path / "run") == ["MEAN", "SCALE"]


def test_a_run_behind_a_link_notices_too(tmp_path, kept):
    folder, run_dir = kept
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "far" / "away")
    run = tmp_path / "runs" / "one"
    run.mkdir()
    write_files(run, files_of(load(folder / "mine.py"), run))
    (folder / "mine.py").write_text(PROGRAM.replace("+ A", "- A"))
    assert edited_since(run) == ["diffusion"]
    assert run_dir != run


def test_a_fit_that_never_began_is_no_run_to_resume(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GAUSSIAN.replace('"batch_size": 16', '"batch_size": -1'))
    assert dpm("fit", file, "--run-dir", tmp_path / "run").exit_code == 1
    assert not (tmp_path / "run" / "program").exists()
    file.write_text(GAUSSIAN)
    done = dpm("fit", file, "--run-dir", tmp_path / "run", "--iterations", 2, "--resume")
    assert done.exit_code == 0, done.output


def test_a_run_without_a_copy_goes_on_by_its_path_and_gets_no_other_program(moved, tmp_path):
    """As runs were before they kept their programs."""
    run_dir, file = tmp_path / "run", tmp_path / "mine.py"
    shutil.copytree(moved[0], run_dir)
    shutil.rmtree(run_dir / "program")
    text = (run_dir / "run.json").read_text()
    (run_dir / "run.json").write_text(text.replace('"mine.py"', json.dumps(str(file))))
    (tmp_path / "wrong.py").write_text(GAUSSIAN)
    again = ("--run-dir", run_dir, "--iterations", 5, "--resume")
    assert dpm("fit", tmp_path / "wrong.py", *again).exit_code == 1
    assert not (run_dir / "program").exists()
    file.write_text(GAUSSIAN)
    done = dpm("fit", file, *again)
    assert done.exit_code == 0, done.output
    assert json.loads((run_dir / "metrics.json").read_text())["model"] == "mine.py"


def test_a_program_that_misses_a_file_of_data_says_how_to_go_on(tmp_path):
    file = tmp_path / "mine.py"
    np.save(tmp_path / "data.npy", np.zeros((30, 2)))
    reading = "from pathlib import Path\ndata = np.load(Path(__file__).with_name('data.npy'))\n"
    file.write_text(GAUSSIAN + reading)
    assert dpm("fit", file, "--run-dir", tmp_path / "run", "--iterations", 2).exit_code == 0
    # Where nothing has moved, they are beside the file that it came from, if that is as it was.
    assert dpm("sample", tmp_path / "run", "-n", 5, "--out", tmp_path / "as it was").exit_code == 0
    file.write_text(GAUSSIAN + reading + "more = 1\n")
    done = dpm("sample", tmp_path / "run", "-n", 5)
    assert_error(done, "--model FILE takes the program where its data are.")
    assert dpm("sample", tmp_path / "run", "-n", 5, "--model", file).exit_code == 0


def test_a_run_of_another_program_keeps_its_copy(moved, tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "other.py"
    shutil.copytree(moved[0], run_dir)
    other.write_text(GAUSSIAN)
    done = dpm("fit", other, "--run-dir", run_dir, "--iterations", 5, "--resume", "--force")
    assert_error(done, 'fingerprint.model was "mine.py" and is now "other.py"')
    assert kept_program(run_dir) == run_dir / "program" / "mine.py"
