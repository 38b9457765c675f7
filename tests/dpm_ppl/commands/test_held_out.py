"""What is said of a fit to an array is of data that it has not seen; else it says that it has."""

import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.commands.held_out import split
from dpm_ppl.commands.run import open_run
from dpm_ppl.inference.sources import Rows
from dpm_ppl.programs import program_of
from dpm_ppl.reports.fit import report
from tests.command_line import GAUSSIAN, dpm
from tests.dpm_ppl.commands.test_fit import assert_error

ROWS = np.arange(120.0).reshape(60, 2)


def program(data, **names):
    module = ModuleType("mine")
    module.__dict__.update({"model": print, "guide": print, "data": data, **names})
    return program_of("mine", Path("mine.py"), module)


def parts(data, *, share=0.1, seed=0, **names):
    return split(program(data, **names), data, share=share, seed=seed)


def test_a_share_of_an_array_is_kept_back_by_the_seed():
    fitted, evaluated = parts(ROWS)
    assert evaluated.called == "held-out data"
    assert (len(fitted), len(evaluated.data)) == (54, 6)
    together = np.concatenate([fitted, evaluated.data])
    np.testing.assert_array_equal(together[np.argsort(together[:, 0])], ROWS)
    np.testing.assert_array_equal(parts(ROWS)[1].data, evaluated.data)
    assert not np.array_equal(parts(ROWS, seed=1)[1].data, evaluated.data)
    assert len(parts(ROWS, share=0.25)[1].data) == 15


def test_parts_are_kept_back_together():
    data = {"c": np.arange(60), "x0": ROWS}
    fitted, evaluated = parts(data)
    assert (len(fitted["c"]), len(evaluated.data["c"])) == (54, 6)
    for some in (fitted, evaluated.data):
        np.testing.assert_array_equal(some["x0"], ROWS[some["c"]])
    np.testing.assert_array_equal(np.sort(np.concatenate([fitted["c"], evaluated.data["c"]])), data["c"])


def test_rows_of_a_mapped_file_stay_there(tmp_path):
    written = np.lib.format.open_memmap(tmp_path / "x0.npy", "w+", np.float64, ROWS.shape)
    written[:] = ROWS
    mapped = {"c": np.arange(60), "x0": np.load(tmp_path / "x0.npy", mmap_mode="r")}
    some, same = parts(mapped), parts({"c": np.arange(60), "x0": ROWS})
    for one, other in ((some[0], same[0]), (some[1].data, same[1].data)):
        np.testing.assert_array_equal(one["c"], other["c"])
        assert isinstance(one["x0"], Rows)
        assert one["x0"].of is mapped["x0"]
        np.testing.assert_array_equal(one["x0"], other["x0"])


def test_a_mapped_file_is_fitted_and_evaluated_as_an_array_is(tmp_path, monkeypatch):
    """And what is fitted is never read as a whole."""
    whole = Rows.__array__

    def of_few(self, *args, **options):
        return whole(self, *args, **options) if len(self) == 50 else pytest.fail("read as a whole")

    np.save(tmp_path / "x0.npy", np.random.default_rng(1).normal(size=(200, 2)))
    load = f"np.load({str(tmp_path / 'x0.npy')!r}, mmap_mode={{mode}})"
    for name, mode in (("mapped", "'r'"), ("array", "None")):
        text = (
            GAUSSIAN.replace("def data():", "def unused():") + f"\ndef data():\n    return {load.format(mode=mode)}\n"
        )
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(Rows, "__array__", of_few)
    figures = {}
    for name in ("mapped", "array"):
        done = dpm("fit", tmp_path / f"{name}.py", "--run-dir", tmp_path / name, "--held-out", 0.25, "--iterations", 12)
        assert done.exit_code == 0, done.output
        figures[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert figures["mapped"]["num_data"] == 50
    for name, value in figures["array"].items():
        if isinstance(value, float) and name != "seconds":
            assert figures["mapped"][name] == pytest.approx(value, rel=1e-9), name
    losses = [(tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",")[2] for name in figures]
    assert losses[0] == losses[1]


def test_what_is_not_kept_back_is_called_what_it_is():
    for fitted, evaluated in (parts(ROWS[:19]), parts(ROWS, share=0.0)):
        assert fitted is evaluated.data
        assert evaluated.called == "training data"
    normal = dist.Normal(0.0, 1.0)
    assert parts(normal) == (normal, parts(normal)[1]) or parts(normal)[0] is normal
    assert parts(normal)[1].called == "fresh data"
    fitted, evaluated = parts(ROWS, held_out=lambda: ROWS[:3] + 1)
    assert fitted is ROWS
    np.testing.assert_array_equal(evaluated.data, ROWS[:3] + 1)
    assert evaluated.called == "held-out data"
    with pytest.raises(ValueError, match=r"Expected --held-out, the share .* in \[0, 1\); got 1\."):
        parts(ROWS, share=1.0)
    with pytest.raises(TypeError, match="Expected `held_out` in mine.py to be a NumPyro distribution or an array"):
        parts(ROWS, held_out=3)


ARRAY = GAUSSIAN + "\ndata = np.random.default_rng(0).normal(size=(200, 2)) * SCALE + MEAN\n"


def test_an_evaluation_is_of_the_data_that_the_fit_did_not_see(tmp_path):
    (tmp_path / "mine.py").write_text(ARRAY)
    assert dpm("fit", tmp_path / "mine.py", "--run-dir", tmp_path / "run", "--seed", 3).exit_code == 0
    done = dpm("evaluate", tmp_path / "run", "--particles", 30)
    assert done.exit_code == 0, done.output
    assert "mine.py: 20 held-out data, 30 particles each" in done.stdout
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (figures["data"], figures["num_data"]) == ("held-out data", 20)
    run = open_run(tmp_path / "run")
    fitted, evaluated = split(run.program, run.data, share=0.1, seed=3)
    np.testing.assert_array_equal(run.evaluated.data, evaluated.data)

    given = {"source": run.data, "about": {"data": "held-out data"}, "key": jax.random.key(0)}
    fit = SimpleNamespace(params=run.params, losses=np.ones(9))
    figure = report(run.program, evaluated.data, fit, **given)[1]()  # the figure is of all data, and says both
    assert re.search(r"bits per datum, on 20 held-out data\nshown: all 200 data of the program$", figure.get_suptitle())
    shown = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(shown, 0), np.sort(run.data, 0), rtol=1e-6)
    assert len(fitted) == 180
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["data"].startswith("float64[180, 2]")
    assert settings["fingerprint"] == {"model": "mine.py", "seed": 3, "held_out": 0.1}
    assert_error(
        dpm("fit", tmp_path / "mine.py", "--run-dir", tmp_path / "run", "--seed", 3, "--resume", "--held-out", 0.2),
        "fingerprint.held_out was 0.1 and is now 0.2",
    )


def test_few_data_and_a_plate_of_all_say_what_to_do(tmp_path):
    (tmp_path / "mine.py").write_text(ARRAY)
    assert dpm("fit", tmp_path / "mine.py", "--run-dir", tmp_path / "run", "--iterations", 2).exit_code == 0
    done = dpm("evaluate", tmp_path / "run", "--particles", 5, "--discriminator")
    assert_error(done, "Expected at least 40 data for --discriminator; got 20 of held-out data.")
    plate = ARRAY.replace('"data", len(x0))', '"data", 200, subsample_size=len(x0))')
    plate = plate.replace('"data", size if x0 is None else len(x0))', '"data", 200, subsample_size=len(x0))')
    (tmp_path / "plate.py").write_text(plate)
    given = ("fit", tmp_path / "plate.py", "--iterations", 2, "--run-dir", tmp_path / "plate")
    done = dpm(*given)
    assert done.exit_code == 1
    assert "With --held-out 0 all 200 data are fitted." in done.stderr
    assert "With --held-out 0" not in dpm(*given, "--held-out", 0).stderr


def test_data_of_a_file_are_evaluated(run, tmp_path):
    np.save(tmp_path / "far.npy", np.full((7, 2), 4.0))
    given = ("evaluate", run[0], "--particles", 30, "--out", tmp_path, "--data")
    done = dpm(*given, tmp_path / "far.npy")
    assert done.exit_code == 0, done.output
    assert "7 data of far.npy" in done.stdout
    far = json.loads((tmp_path / "evaluation.json").read_text())
    assert far["num_data"] == 7
    near = np.load(tmp_path / "far.npy") * 0 + [1.0, -0.5]
    np.save(tmp_path / "near.npy", near)
    assert dpm(*given, tmp_path / "near.npy", "--overwrite").exit_code == 0
    # The program is exact: normal with mean (1, -0.5) and scale (0.5, 1.3), of which `far` is (6, 3.46) scales away.
    difference = json.loads((tmp_path / "evaluation.json").read_text())["estimate_bits"] - far["estimate_bits"]
    assert difference == pytest.approx((6**2 + (4.5 / 1.3) ** 2) / 2 / np.log(2), rel=0.2)
    np.save(tmp_path / "wrong.npy", np.zeros((7, 3)))
    assert_error(dpm(*given, tmp_path / "wrong.npy", "--overwrite"), "event shape (2,)")
    assert_error(dpm(*given, tmp_path / "none.npy", "--overwrite"), "Expected --data to be a file with an array")
