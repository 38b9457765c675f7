"""A page of images as its tests take it: on a screen, small where it runs, and at its own size where its files are."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.commands import find
from dpm_ppl.data import fresh_data
from dpm_ppl.datasets import files
from dpm_ppl.inference import bound, fit
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


def independent_log_prob(x0, held_out, *, levels_of=None):
    """Each image's log likelihood under the best law of independent pixels of the held-out ones, nats.

    Whose mean over all of them is `dpm_ppl.reports.floor.independent_floor`.
    """
    if levels_of is None and np.issubdtype(held_out.dtype, np.floating):
        mean, variance = (moment(held_out, axis=0, dtype=float) for moment in (np.mean, np.var))
        each = -0.5 * (np.log(2 * np.pi * variance) + (x0 - mean) ** 2 / variance)
        return each.reshape(len(x0), -1).sum(-1)
    of = np.asarray if levels_of is None else levels_of
    states, seen = (of(x).reshape(len(x), -1).astype(int) for x in (held_out, x0))
    frequencies = [np.bincount(column, minlength=seen.max() + 1) / len(states) for column in states.T]
    return sum(np.log(frequency[column]) for frequency, column in zip(frequencies, seen.T, strict=True))


@optimised()
def learns(name, *, num_iterations=200, num_data=16):
    """A short fit by the recipe, in single precision, is above the floor of independent pixels on held-out images.

    Image by image: how likely they are differs more between digits than between these two laws of them. The floor's law
    is chosen on all held-out images, these among them.
    """
    page = find.load(name)
    data, held_out = page.data(), np.asarray(page.held_out())
    assert isinstance(data, dist.Distribution)
    with jax.enable_x64(False):
        options = {**page.recipe, "num_iterations": num_iterations, "ema_decay": 0.98, "progress": False}
        params = fit(page.model, page.guide, data, key=jax.random.key(0), **options).params
        x0 = fresh_data(held_out, key=jax.random.key(1), num_data=num_data)
        elbo = np.asarray(bound(page.diffusion, x0, params=params, key=jax.random.key(2)).elbo)
    floor = independent_log_prob(np.asarray(x0), held_out, levels_of=getattr(data, "levels_of", None))
    gap = elbo - floor
    error = gap.std(ddof=1) / np.sqrt(num_data)
    print(f"{name}: {elbo.mean():.1f} nats an image, {gap.mean():.1f} ± {error:.1f} above the floor")
    assert gap.mean() > 3 * error


def are_dequantised(held_out, images, scale):
    """Held-out numbers stand for these levels; in single precision one of 10,000 may round to the next."""
    off = scale.quantise(held_out) - images.astype(int)
    assert np.abs(off).max() <= 1
    assert (off != 0).mean() < 1e-4
