"""A page of images as its tests take it: on a screen, small where it runs, and at its own size where its files are."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.commands import find
from dpm_ppl.data import fresh_data, support_of
from dpm_ppl.datasets import files
from dpm_ppl.inference import bound, fit
from dpm_ppl.reports.floor import independent_floor
from tests.compiling import optimised


def fits_on_a_screen(name, *, most=80):
    page = find.load(name)
    assert len(page.path.read_text().splitlines()) <= most
    assert page.summary.endswith(".")


def asks_for(what, part, folder, monkeypatch):
    """Without its files a part of a page says which is missing, and what names their folder."""
    monkeypatch.setenv(files.VARIABLE, str(folder))
    with pytest.raises(FileNotFoundError, match=rf"{what}.*{files.VARIABLE}"):
        part()


@optimised()
def learns(name, *, num_iterations=200, num_data=16):
    """A short fit by the recipe, in single precision, is above the floor of independent pixels on held-out images."""
    page = find.load(name)
    data, held_out = page.data(), np.asarray(page.held_out())
    assert isinstance(data, dist.Distribution)
    with jax.enable_x64(False):
        options = {**page.recipe, "num_iterations": num_iterations, "ema_decay": 0.98, "progress": False}
        params = fit(page.model, page.guide, data, key=jax.random.key(0), **options).params
        x0 = fresh_data(held_out, key=jax.random.key(1), num_data=num_data)
        elbo = np.asarray(bound(page.diffusion, x0, params=params, key=jax.random.key(2)).elbo)
    levels_of = getattr(data, "levels_of", None)
    floor = independent_floor(held_out[:2000], support_of(held_out, held_out), levels_of=levels_of)
    assert elbo.mean() - 3 * elbo.std(ddof=1) / np.sqrt(num_data) > floor, (elbo.mean(), floor)


def are_dequantised(held_out, images, scale):
    """Held-out numbers stand for these levels; in single precision one of 10,000 may round to the next."""
    off = scale.quantise(held_out) - images.astype(int)
    assert np.abs(off).max() <= 1
    assert (off != 0).mean() < 1e-4
