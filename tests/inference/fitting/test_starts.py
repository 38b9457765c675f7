"""Several starts at once: each is the fit of its own key, and the best is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import NonFiniteLossError, fit
from dpm_ppl.inference.fitting import fits

KEY = jax.random.key(3)
DATA = 0.7 + 1.4 * np.random.default_rng(0).gamma(2.0, 0.7, size=(40, 1))
OTHERS = -DATA[:30]
STARTS = range(3)


def diffusion():
    """Reverse steps that begin somewhere else for each key."""
    kernel = dpm.GaussianKernel(np.array([0.05, 0.4, 0.8]), (1,))
    gain = numpyro.param("gain", lambda key: 2 * jax.random.normal(key, (2,)))
    scale = numpyro.param("scale", jnp.full(2, 0.7), constraint=dist.constraints.positive)

    def reverse(x, t):
        return dist.Normal(gain[t - 2][..., None] * x, scale[t - 2][..., None]).to_event(1)

    return dpm.Diffusion(kernel, reverse)


def fitted(key=KEY, **options):
    given = {"num_iterations": 30, "batch_size": 12, "num_steps_sampled": 1, "progress": False, **options}
    return fit(*dpm.single_chain(diffusion), DATA, key=key, **given)


def same(came, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), came, expected)


def test_each_is_the_fit_of_its_own_key(capfd):
    """Losses, over several epochs, and parameters; by the last tenth, of three, the best is returned, with its key."""
    together = fitted(num_starts=2, progress=True)
    assert "best bound" in capfd.readouterr().err
    alone = [fitted(jax.random.fold_in(KEY, s)) for s in range(2)]
    same(together.start_losses, np.stack([one.losses for one in alone]))
    best = alone[int(np.argmin([one.losses[-3:].mean() for one in alone]))]
    assert np.array_equal(jax.random.key_data(together.key), jax.random.key_data(best.key))
    for name in ("losses", "params", "raw_params", "best_params", "num_iterations"):
        same(getattr(together, name), getattr(best, name))


# A program without noise: normal data around one place, which begins somewhere else for each key.


def placed(*, most=9.0, failing=np.inf, **options):
    """A fit of the place, on all data each time; farther out than `most`, or at `failing`, its loss is not finite."""

    def model(x0):
        place = numpyro.param("place", lambda key: jax.random.normal(key))
        fails = (jnp.abs(place) > most) | (jnp.abs(place - failing) < 1e-9)
        with numpyro.plate("data", len(x0)):
            numpyro.sample("x", dist.Normal(jnp.where(fails, jnp.nan, place), 1), obs=x0[:, 0])

    given = {"key": KEY, "num_iterations": 2, "batch_size": 40, "optimizer": optax.sgd(0.0), "progress": False}
    return fit(model, lambda x0: None, DATA, **{**given, **options})


def loss(place, x):
    return float(-dist.Normal(place, 1).log_prob(x).mean())


@pytest.fixture(scope="module")
def places():
    """Where each start begins, by itself."""
    return [float(placed(key=jax.random.fold_in(KEY, s)).params["place"]) for s in STARTS]


def test_the_best_on_other_data_is_kept(places):
    """Which is another than on the data: they lie on the other side."""
    on_data, on_others = ([loss(place, x) for place in places] for x in (DATA, OTHERS))
    assert np.argmin(on_data) != np.argmin(on_others)
    assert float(placed(num_starts=3).params["place"]) == pytest.approx(places[np.argmin(on_data)])
    validated = placed(num_starts=3, validation=OTHERS)
    assert float(validated.best_params["place"]) == pytest.approx(places[np.argmin(on_others)])
    same(validated.validation, np.array([[2, min(on_others)]]))
    same(validated.start_losses, np.array([[loss(place, DATA)] * 2 for place in places]))


def test_a_start_that_fails_is_left_behind(places):
    """Its losses end; the others are what they are without it. Where all fail, that is said."""
    most = float(np.sort(np.abs(places))[1:].mean())  # of the three the farthest fails
    result = placed(most=most, num_starts=3)
    assert np.isnan(result.start_losses).all(1).tolist() == [abs(place) > most for place in places]
    assert np.isfinite(result.losses).all()
    with pytest.raises(NonFiniteLossError, match="all 3 failed, the last in iteration 1"):
        placed(most=0.0, num_starts=3)


@pytest.mark.parametrize("number", [0, 2])
def test_one_that_failed_is_never_the_best(places, number, monkeypatch):
    """Also where the others are worth nothing on other data: then the best of them on their own."""
    monkeypatch.setattr(fits, "_validate", lambda *args: lambda *args: np.inf)
    result = placed(failing=places[number], num_starts=3, validation=OTHERS)
    losses = [np.inf if s == number else loss(place, DATA) for s, place in enumerate(places)]
    assert float(result.params["place"]) == pytest.approx(places[int(np.argmin(losses))])
    assert np.isfinite(result.losses).all()


def test_all_begin_with_parameters_that_are_given():
    together = placed(num_starts=2, params={"place": 0.25})
    same(together.start_losses, np.full((2, 2), loss(0.25, DATA)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_dir": "somewhere"}, "no `run_dir` with several starts.*key=result.key, run_dir="),
        ({"callback": print}, "no `callback` with several starts"),
        ({"patience": 3, "validation": OTHERS}, "no `patience` with several starts"),
        ({"num_starts": 0}, "`num_starts` to be at least 1; got 0"),
    ],
)
def test_what_goes_with_one_start_only(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(**{"num_starts": 2, **options})


def test_data_that_are_read_go_with_one_start_only():
    batches = [np.asarray(DATA[:12])] * 4
    with pytest.raises(ValueError, match="`data` in memory for several starts"):
        fit(
            *(*dpm.single_chain(diffusion), iter_again(batches)),
            key=KEY,
            num_iterations=2,
            num_starts=2,
            batch_size=12,
            num_steps_sampled=1,
        )


class iter_again:  # noqa: N801
    """An iterable of batches."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)
