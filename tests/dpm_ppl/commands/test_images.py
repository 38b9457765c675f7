"""What a fit of images draws besides: grids within a share of its time, which never change it nor end it; strips."""

import inspect
import json
import re

import jax
import matplotlib.image
import numpy as np
import pytest

from dpm_ppl.commands import find, images
from dpm_ppl.commands.images import with_grids
from dpm_ppl.inference import load_params
from tests.command_line import GAUSSIAN, dpm

IMAGES = '''"""Images, each pixel by itself."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import dpm_ppl as dpm

recipe = {"num_iterations": 60, "batch_size": 8, "num_steps_sampled": 2}
data = np.random.default_rng(0).normal([[0.5, 2.0], [1.0, -1.0], [0.0, 0.3]], 0.4, size=(40, 3, 2))

def diffusion():
    kernel = dpm.GaussianKernel(dpm.schedules.linear(5, first=0.1, last=0.6), (3, 2))
    x0 = numpyro.param("x0", jnp.zeros((3, 2)))
    def reverse(x, t):
        return dpm.outputs.data_normal(kernel, x, t, jnp.broadcast_to(x0, x.shape), variance=jnp.asarray(0.3))
    return dpm.Diffusion(kernel, reverse)

model, guide = dpm.single_chain(diffusion)
'''


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.py"
    path.write_text(IMAGES)
    return path


def fitted(path, run_dir, *options):
    done = dpm("fit", path, "--run-dir", run_dir, *options)
    assert done.exit_code == 0, done.output
    return done


def grids_in(run_dir):
    return sorted(int(re.fullmatch(r"samples-(\d{6}).png", path.name)[1]) for path in run_dir.glob("samples*"))


def test_grids_come_ever_later_and_change_nothing(page, tmp_path, monkeypatch):
    """At the default share a fit of seconds has none; with all of its time, each after 1.4 times the one before."""
    fitted(page, tmp_path / "plain")
    assert grids_in(tmp_path / "plain") == []
    monkeypatch.setattr(images, "SHARE", 1e6)
    fitted(page, tmp_path / "drawn")
    assert grids_in(tmp_path / "drawn") == [1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56]
    picture = matplotlib.image.imread(tmp_path / "drawn" / "samples-000056.png")
    assert min(picture.shape[:2]) > 300
    diffusion = find.load(page).diffusion
    params = [load_params(tmp_path / name, diffusion) for name in ("plain", "drawn")]
    np.testing.assert_array_equal(params[0]["x0"], params[1]["x0"])
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "drawn")]
    assert figures[0]["elbo_bits"] == figures[1]["elbo_bits"]


def test_strips_are_written_at_the_end(page, tmp_path):
    done = fitted(page, tmp_path / "run")
    assert str(tmp_path / "run" / "strips.png") in done.stdout
    picture = matplotlib.image.imread(tmp_path / "run" / "strips.png")
    assert picture.shape[1] > picture.shape[0] > 200


@pytest.mark.parametrize("what", ["start", "law", "figure", "disk"])
def test_a_grid_that_fails_is_said_once_and_costs_no_fit(page, tmp_path, monkeypatch, what):
    from dpm_ppl.reports import samples

    def broken(*_args, **_options):
        raise RuntimeError("no such law")

    def full(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(images, "SHARE", 1e6)
    if what == "start":
        monkeypatch.setattr(images, "Grids", broken)
    elif what == "law":
        monkeypatch.setattr(images.Grids, "_samples", broken)
    elif what == "figure":
        monkeypatch.setattr(samples, "samples_figure", broken)
    else:
        monkeypatch.setattr(images, "save_figure", full)
        monkeypatch.setattr(images, "save_strips", full)
        monkeypatch.setattr("dpm_ppl.commands.fit.save_strips", lambda *_args, **_options: [])
    done = fitted(page, tmp_path / "run")
    assert grids_in(tmp_path / "run") == []
    (said,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert ("disk full" if what == "disk" else "no such law") in said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["iterations"] == 60


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def test_grids_take_no_more_than_their_share(page, tmp_path, monkeypatch):
    """Of a sampler that takes 3 s to compile and 0.2 s a step of 50, 13 s in all, then 10: at 1 s an iteration."""
    clock, program, seen, num_steps = Clock(), find.load(page), [], 50

    class State:
        def block_until_ready(self):
            seen.append(clock.now)

    def walk(_params):
        for t in range(num_steps, -1, -1):
            if t == num_steps - 1 and not compiled:
                clock.now += 3.0
                compiled.append(True)
            clock.now += 0.2
            yield t, State()

    compiled, drawn, begun = [], [], clock.now
    monkeypatch.setattr(images, "time", clock)
    callback = with_grids({"num_iterations": 4000}, program, program.data(), tmp_path, key=jax.random.key(0))[
        "callback"
    ]
    grids = inspect.getclosurevars(callback).nonlocals["grids"]
    assert isinstance(grids, images.Grids)
    grids.walk, grids.num_steps = walk, num_steps
    monkeypatch.setattr(grids, "_save", lambda _samples, iteration: drawn.append(iteration))
    spent = 0.0
    for iteration in range(50, 4001, 50):
        clock.now += 50.0
        before = clock.now
        grids(Namespace(num_iterations=iteration, seconds=clock.now - begun, params={}))
        spent += clock.now - before
        assert spent <= 0.05 * (clock.now - begun)
    assert drawn[0] > 250
    assert len(drawn) >= 5
    assert all(later >= 1.4 * earlier for earlier, later in zip(drawn, drawn[1:], strict=False))


def test_a_process_that_does_not_draw_looks_as_often(page, tmp_path):
    program = find.load(page)
    given = {"num_iterations": 4000}, program, program.data(), tmp_path
    one, other = (with_grids(*given, key=jax.random.key(0), draws=draws) for draws in (True, False))
    assert one["every"] == other["every"]
    inspect.getclosurevars(other["callback"]).nonlocals["grids"].walk = None  # which to draw would fail
    other["callback"](Namespace(num_iterations=4000, seconds=1e6, params={}))
    assert list(tmp_path.glob("samples-*")) == []


class Namespace:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_a_program_of_no_images_has_its_recipe_as_it_is(tmp_path):
    (tmp_path / "points.py").write_text(GAUSSIAN)
    program = find.load(tmp_path / "points.py")
    recipe = {"num_iterations": 3, "batch_size": 4}
    assert with_grids(recipe, program, program.data(), tmp_path, key=jax.random.key(0)) == recipe
    assert images.save_strips(tmp_path, program, program.data(), {}, key=jax.random.key(0)) == []
    assert list(tmp_path.glob("*.png")) == []


def test_what_a_recipe_watches_already_stays(page, tmp_path):
    """Its own callback is called, as often as it asked; else the fit is looked at a tenth of the way at the latest."""
    program, called = find.load(page), []

    def options(recipe):
        return with_grids(recipe, program, program.data(), tmp_path, key=jax.random.key(0))

    own = options({"num_iterations": 2500, "every": 7, "callback": called.append})
    assert own["every"] == 7
    fit = Namespace(num_iterations=7, seconds=0.0)
    own["callback"](fit)
    assert called == [fit]
    assert "every" not in options({"num_iterations": 2500, "validation": np.zeros((2, 3, 2))})
    everies = [options({"num_iterations": num})["every"] for num in (1, 60, 999, 2500, 25_000)]
    assert everies == [1, 1, 10, 100, 1000]
