"""Numbers stand where a figure fails; nothing is replaced unasked."""

import json

import pytest
from matplotlib.figure import Figure

from dpm_ppl.commands.files import free_directory, save_figure
from dpm_ppl.reports import fit as fit_report
from tests.command_line import GAUSSIAN, dpm


def test_a_figure_that_fails_is_a_warning(tmp_path, capsys):
    def draw():
        raise NotImplementedError("no mean\nof it")

    assert save_figure(tmp_path / "a.png", draw) == []
    assert capsys.readouterr().err == (
        "Warning: no a.png, as drawing it failed (NotImplementedError: no mean of it). The numbers are not touched by "
        "it.\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert save_figure(tmp_path / "b.png", Figure) == [tmp_path / "b.png"]
    assert (tmp_path / "b.png").stat().st_size > 100


def test_a_figure_that_fails_does_not_cost_the_numbers_of_a_fit(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GAUSSIAN)

    def fails(*args, **kwargs):
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(fit_report, "fit_figure", fails)
    done = dpm("fit", tmp_path / "mine.py", "--run-dir", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "Warning: no figure.png, as drawing it failed (ValueError: Axis limits" in done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["elbo_bits"] < 0
    assert "metrics.json" in done.stdout
    assert not (tmp_path / "run" / "figure.png").exists()


def test_nothing_is_replaced_unasked(run, tmp_path):
    given = ("sample", run[0], "-n", 5, "--out", tmp_path / "a" / "b")
    assert dpm(*given).exit_code == 0
    before = (tmp_path / "a" / "b" / "samples.npz").read_bytes()
    done = dpm(*given, "--seed", 2)
    assert done.exit_code == 1
    assert "samples.npz, samples.png are there. --overwrite replaces, --out DIR writes elsewhere." in done.stderr
    assert (tmp_path / "a" / "b" / "samples.npz").read_bytes() == before
    assert dpm(*given, "--seed", 2, "--overwrite").exit_code == 0
    assert (tmp_path / "a" / "b" / "samples.npz").read_bytes() != before


@pytest.mark.parametrize("names", [["a.json"], ["b.nc", "c.png"]])
def test_one_file_that_is_there_is_enough_to_stop(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
        with pytest.raises(FileExistsError, match=rf"Expected to write {', '.join(names)} into .*; {name} is there"):
            free_directory(tmp_path, None, names, overwrite=False)
        assert free_directory(tmp_path, None, names, overwrite=True) == tmp_path
        assert free_directory(tmp_path, tmp_path / "new", names, overwrite=False) == tmp_path / "new"
        (tmp_path / name).unlink()
    assert list(tmp_path.glob(".probe")) == []
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="Expected to write into .*file; that fails"):
        free_directory(tmp_path, tmp_path / "file", names, overwrite=True)
