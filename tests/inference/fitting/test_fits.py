"""Fitting, against closed-form optima and posteriors; chunks, interruptions and resuming, bit for bit; bad input."""

import json
import math
import os
import resource
import signal
import warnings
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import RenyiELBO, Trace_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import bound, fit, read_run
from dpm_ppl.inference.fitting import runs

KEY = jax.random.key(3)


BETA = np.array([0.05, 0.3, 0.5, 0.8])


DATA = 0.7 + 1.4 * np.random.default_rng(0).gamma(
    2.0, 0.7, size=(64, 1)
)  # skewed, of neither zero mean nor unit variance


def diffusion(beta=BETA):
    """Affine reverse steps, one parameter of each kind for every step."""
    kernel = dpm.GaussianKernel(beta, (1,))
    gain, shift = (
        numpyro.param(name, jnp.full(len(beta) - 1, start)) for name, start in (("gain", 0.4), ("shift", -0.2))
    )
    scale = numpyro.param("scale", jnp.full(len(beta) - 1, 1.3), constraint=dist.constraints.positive)

    def reverse(x, t):
        at = (t - 2)[..., None]
        return dist.Normal(gain[at] * x + shift[at], scale[at]).to_event(1)

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)


def small(**options):
    """A short fit in several epochs."""
    given = {"key": KEY, "num_iterations": 60, "batch_size": 24, "num_steps_sampled": 2, "progress": False}
    return fit(
        options.pop("model", model), options.pop("guide", guide), options.pop("data", DATA), **{**given, **options}
    )


def best_affine(mean, variance):
    """Gain, shift and scale of q(x^(t-1) | x^t), t = 2..T, the regression of x^(t-1) on x^t: the best affine steps."""
    signal = np.cumprod(1 - BETA)
    keep, before = np.sqrt(1 - BETA[1:]), signal[:-1] * variance + 1 - signal[:-1]
    gain = keep * before / (keep**2 * before + BETA[1:])
    shift = np.sqrt(signal[:-1]) * mean * (1 - keep * gain)
    # The optimal variance is the expected square of what the affine mean leaves: that of the regression.
    return {"gain": gain, "shift": shift, "scale": np.sqrt(before - keep * gain * before)}


def identical(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def at(position, act):
    """Acts once, after that many iterations."""
    left = [position]

    def check(done):
        if left and done >= left[0]:
            left.clear()
            act()

    return check


def interrupt():
    signal.raise_signal(signal.SIGINT)


@contextmanager
def full_disk(num_bytes=64):
    """No file can grow beyond num_bytes, for root as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Closed forms.


@pytest.mark.parametrize("num_steps_sampled", [1, None])
def test_affine_steps_reach_the_optimum_for_the_data_s_two_moments(num_steps_sampled):
    result = small(num_iterations=3000, batch_size=64, num_steps_sampled=num_steps_sampled, optimizer=cosine(3000))
    for name, expected in best_affine(DATA.mean(), DATA.var()).items():
        np.testing.assert_allclose(result.params[name], expected, atol=0.03)
    assert abs(elbo_nats(result.params) - elbo_nats(best_affine(DATA.mean(), DATA.var()))) < 1e-3


def test_losses_estimate_the_bound_per_datum():
    # With a rate of 0 every iteration estimates the same bound; an epoch of full batches has each datum once.
    start = small(num_iterations=400, batch_size=16, optimizer=optax.sgd(0.0))
    expected = -elbo_nats({"gain": np.full(3, 0.4), "shift": np.full(3, -0.2), "scale": np.full(3, 1.3)})
    epochs = start.losses.reshape(-1, 4).mean(1)
    assert abs(epochs.mean() - expected) < 3 * epochs.std() / math.sqrt(len(epochs))
    assert epochs.std() / math.sqrt(len(epochs)) < 0.02 * expected


def test_a_chain_shorter_than_the_default_is_summed():
    options = {"num_iterations": 3, "batch_size": 24, "key": KEY, "progress": False}
    by_default = fit(model, guide, DATA, **options)
    np.testing.assert_array_equal(by_default.losses, fit(model, guide, DATA, num_steps_sampled=None, **options).losses)


def late(kernel, t):
    """A weight that differs in every step."""
    return (t / kernel.num_steps) ** 3


def test_a_weight_changes_the_objective_and_the_optimum_stays_where_every_step_is_its_own(capfd):
    # Affine steps share no parameters, so each step's optimum is the same under any weight; a loss is not.
    options = {"num_iterations": 400, "batch_size": 16, "optimizer": optax.sgd(0.0), "num_steps_sampled": None}
    weighted, plain = small(weight=late, progress=True, **options), small(**options)
    result = bound(diffusion, DATA, params=plain.params, key=KEY, num_samples=200)
    less = float(((1 - (np.arange(2, 5) / 4) ** 3) * result.kl.mean(0)).sum())
    difference = plain.losses - weighted.losses  # of the same draws
    assert abs(difference.mean() - less) < 3 * difference.std() / math.sqrt(len(difference))
    assert less > 10 * difference.std() / math.sqrt(len(difference))
    assert f"weighted bound {-weighted.losses[-40:].mean() / math.log(2):.3f} bits" in capfd.readouterr().err
    fitted = small(num_iterations=3000, batch_size=64, weight=late, optimizer=cosine(3000))
    for name, expected in best_affine(DATA.mean(), DATA.var()).items():
        np.testing.assert_allclose(fitted.params[name], expected, atol=0.04)


def test_a_global_latent_has_its_posterior_where_its_plate_has_the_full_size():
    # y_i ~ N(mu, 2), mu ~ N(0, 3), beside a chain; scaled by the batch of 16 instead of 64 the posterior would be
    # twice as wide.
    y = 1.5 + 2 * np.random.default_rng(1).normal(size=64)
    both = np.stack([DATA[:, 0], y], -1)

    def with_mean(x0):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        chain = diffusion()
        with numpyro.plate("data", 64, subsample_size=len(x0)):
            numpyro.sample("y", dist.Normal(mu, 2), obs=x0[:, 1])
            dpm.reverse_chain("x", chain, obs=x0[:, :1])

    def with_posterior(x0):
        scale = numpyro.param("mu_scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("mu", dist.Normal(numpyro.param("mu_loc", 0.0), scale))
        chain = diffusion()
        with numpyro.plate("data", 64, subsample_size=len(x0)):
            dpm.forward_chain("x", chain, x0[:, :1])

    result = small(
        model=with_mean, guide=with_posterior, data=both, num_iterations=4000, batch_size=16, optimizer=cosine(4000)
    )
    precision = 1 / 9 + 64 / 4
    assert float(result.params["mu_scale"]) == pytest.approx(precision**-0.5, rel=0.05)
    assert float(result.params["mu_loc"]) == pytest.approx(y.sum() / 4 / precision, abs=0.03)
    # The loss is per datum: the chain's, the likelihood's, and 1/64 of what mu costs.
    chain = -elbo_nats(result.params)
    likelihood = 0.5 * np.log(2 * np.pi * 4) + (np.mean((y - result.params["mu_loc"]) ** 2) + 1 / precision) / 8
    cost = float(dist.kl_divergence(dist.Normal(result.params["mu_loc"], precision**-0.5), dist.Normal(0, 3))) / 64
    assert abs(result.losses[-400:].mean() - (chain + likelihood + cost)) < 0.05


def test_gradients_are_clipped_per_datum():
    one = small(num_iterations=1, optimizer=optax.sgd(0.5), clip_norm=0.01, ema_decay=0.0).params
    start = {"gain": np.full(3, 0.4), "shift": np.full(3, -0.2), "scale": np.log(np.full(3, 1.3))}
    moved = [np.asarray(np.log(one[name]) if name == "scale" else one[name]) - start[name] for name in start]
    assert np.sqrt(np.sum(np.square(moved))) == pytest.approx(0.5 * 0.01)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    assert identical(small().params, small(run_dir=tmp_path / "new" / "run", resume=True).params)


def test_more_iterations_extend_a_run(tmp_path):
    rate = {"optimizer": optax.adam(0.01)}
    small(num_iterations=25, run_dir=tmp_path, **rate)
    assert identical(small(**rate).params, small(run_dir=tmp_path, resume=True, **rate).params)
    assert read_run(tmp_path)["num_iterations"] == 60
    with pytest.raises(ValueError, match=r"`num_iterations` of at least 60.*got 59"):
        small(num_iterations=59, run_dir=tmp_path, resume=True, **rate)


def test_more_iterations_restart_the_default_rate(tmp_path, capfd):
    small(num_iterations=25, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"`num_iterations` of at least 25, at which the learning rate.*got 24"):
        small(num_iterations=24, run_dir=tmp_path, resume=True)
    falls = [optax.cosine_decay_schedule(3e-3, length) for length in (25, 15, 20)]
    rate = optax.adam(optax.join_schedules(falls, [25, 40]))
    small(num_iterations=40, run_dir=tmp_path, resume=True)
    extended = small(run_dir=tmp_path, resume=True, progress=True)
    assert "After 40 iterations the learning rate starts anew at 0.003." in capfd.readouterr().err
    assert identical(small(optimizer=rate).params, extended.params)
    assert identical(extended.params, small(run_dir=tmp_path, resume=True).params)
    run = read_run(tmp_path)
    assert (run["num_iterations"], run["restarts"]) == (60, [40, 60])


def test_a_number_of_iterations_that_was_a_slip_does_not_stay(tmp_path, monkeypatch):
    small(num_iterations=25, run_dir=tmp_path)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dpm_ppl.inference.fitting.fits.advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small(num_iterations=100_000, run_dir=tmp_path, resume=True)
    extended = small(num_iterations=40, run_dir=tmp_path, resume=True)
    assert read_run(tmp_path)["restarts"] == [40]
    assert extended.num_iterations == 40


def test_files_are_kept_with_a_run_that_began(tmp_path):
    files = {"program/of/it.py": b"one", "notes.txt": b"two"}
    small(num_iterations=5, run_dir=tmp_path, files=files)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    with pytest.raises(ValueError, match="this one differs"):
        small(num_iterations=5, run_dir=tmp_path, resume=True, batch_size=12, files={"notes.txt": b"another"})
    assert (tmp_path / "notes.txt").read_bytes() == b"two"


def test_checkpoints_are_kept_to_a_number(chunks, tmp_path):
    small(run_dir=tmp_path, checkpoint_every=0, num_checkpoints=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [50, 60]


# The directory of a run.


def test_a_directory_with_a_run_is_never_overwritten(tmp_path):
    small(num_iterations=5, run_dir=tmp_path)
    with pytest.raises(FileExistsError, match=r"holds one. resume=True continues it"):
        small(run_dir=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileExistsError, match="holds one"):
        small(run_dir=tmp_path)
    with pytest.raises(ValueError, match="run.json beside the checkpoints"):
        small(run_dir=tmp_path, resume=True)


def another(x0=None):
    numpyro.param("another", jnp.zeros((2, 3)))
    return model(x0)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"batch_size": 12}, "batch_size was 24 and is now 12"),
        ({"num_steps_sampled": None}, "num_steps_sampled was 2 and is now null"),
        ({"weight": late}, 'weight was not there and is now "late"'),
        ({"key": jax.random.key(5)}, r"key was \[0, 3\] and is now \[0, 5\]"),
        ({"data": DATA + 1}, r"data was \"float64\[64, 1\] sha256 \w+\" and is now \"float64\[64, 1\] sha256"),
        (
            {"data": dist.Normal().expand([1]).to_event(1)},
            r"data was .* and is now \"Independent of event shape \[1\]\"",
        ),
        ({"model": another}, r"parameters.\['another'\] was not there and is now \"float64\[2, 3\]\""),
        ({"fingerprint": {"model": "b", "seed": 1}}, 'fingerprint.model was "a" and is now "b"'),
        ({"loss": Trace_ELBO()}, 'loss was "TraceMeanField_ELBO" and is now "Trace_ELBO"'),
        ({"frozen_noise": True}, "frozen_noise was false and is now true"),
    ],
)
def test_a_directory_of_another_run(tmp_path_factory, options, difference):
    run_dir = tmp_path_factory.getbasetemp() / "of_another_run"
    given = {"fingerprint": {"model": "a", "seed": 1}, "run_dir": run_dir, "num_iterations": 5}
    if not run_dir.exists():
        small(**given)
    written = (run_dir / "run.json").read_text()
    with pytest.raises(ValueError, match=rf"this one differs: {difference}"):
        small(**{**given, **options}, resume=True)
    assert (run_dir / "run.json").read_text() == written


def test_another_optimizer_is_told_by_its_state(tmp_path):
    small(num_iterations=5, run_dir=tmp_path, optimizer=optax.adam(1e-3))
    with pytest.raises(ValueError, match=r"checkpoint of this program and optimiser.*at \['optim_state'\].*trace"):
        small(run_dir=tmp_path, resume=True, optimizer=optax.sgd(1e-3, momentum=0.9))


def test_a_directory_that_cannot_be_written_is_told_before_any_work(tmp_path):
    def never(x0):
        raise AssertionError("work began")

    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "run", "/proc/run"]
    if os.geteuid() != 0:  # whom permissions do not stop
        (tmp_path / "read_only").mkdir(mode=0o500)
        places.append(tmp_path / "read_only")
    for place in places:
        with pytest.raises(OSError, match="directory that can be written"):
            small(model=never, guide=never, run_dir=place)
    with (
        full_disk(),
        pytest.raises(OSError, match=r"directory that can be written, with room for checkpoints.*too large"),
    ):
        small(model=never, guide=never, run_dir=tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_a_disk_that_fills_up_later_leaves_the_older_checkpoints(chunks, after_chunk, tmp_path):
    with full_disk(1 << 22):
        after_chunk(at(40, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))))
        with pytest.raises(OSError, match=r"(to save iteration 40|metrics\.csv).*heckpoints are kept"):
            small(run_dir=tmp_path, checkpoint_every=0)
    assert runs.newest_checkpoint(tmp_path).position == 30
    after_chunk(lambda _: None)
    assert identical(small().params, small(run_dir=tmp_path, resume=True, checkpoint_every=0).params)
    assert all(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_a_directory_says_whose_it_is(tmp_path):
    small(num_iterations=5, run_dir=tmp_path, fingerprint={"model": "affine", "seed": 3})
    run = read_run(tmp_path)
    assert run["settings"]["fingerprint"] == {"model": "affine", "seed": 3}
    assert run["settings"]["parameters"]["['gain']"] == "float64[3]"
    with pytest.raises(FileNotFoundError, match=r"directory of a fit, with run\.json"):
        read_run(tmp_path / "elsewhere")
    (tmp_path / "run.json").write_text(json.dumps(run)[:-20])
    with pytest.raises(ValueError, match=r"run\.json; it is damaged"):
        small(run_dir=tmp_path, resume=True)


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": 3}, TypeError, "`model` to be a function"),
        ({"guide": None}, TypeError, "`guide` to be a function"),
        ({"key": 0}, TypeError, "`key` to be one random key"),
        ({"key": jax.random.split(KEY)}, TypeError, "`key` to be one random key"),
        ({"num_iterations": 0}, ValueError, "`num_iterations` to be at least 1; got 0"),
        ({"num_iterations": 1e3}, TypeError, "`num_iterations` to be an integer; got 1000.0"),
        ({"batch_size": -1}, ValueError, "`batch_size` to be at least 1"),
        ({"batch_size": True}, TypeError, "`batch_size` to be an integer"),
        ({"batch_size": 65}, ValueError, "`batch_size` to be at most the number of data, 64; got 65"),
        ({"num_steps_sampled": 0}, ValueError, "`size` to be at least 1"),
        ({"weight": 2.0}, TypeError, "`weight` to be a function"),
        ({"num_checkpoints": 0}, ValueError, "`num_checkpoints` to be at least 1"),
        ({"checkpoint_every": -1}, ValueError, "`checkpoint_every`, in seconds"),
        ({"clip_norm": 0.0}, ValueError, "`clip_norm` to be positive"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` to be positive"),
        ({"clip_norm": "1"}, TypeError, "`clip_norm` to be a number"),
        ({"ema_decay": 1.0}, ValueError, r"`ema_decay` in \[0, 1\)"),
        ({"ema_decay": math.nan}, ValueError, r"`ema_decay` in \[0, 1\)"),
        ({"resume": True}, ValueError, "`run_dir`, the directory of the run to resume"),
        ({"resume": "yes"}, TypeError, "`resume` to be True or False"),
        ({"run_dir": 3}, TypeError, "`run_dir` to be a path"),
        ({"args": 3}, TypeError, "`args`.* to be a tuple"),
        ({"optimizer": numpyro.optim.Adam(1e-3)}, TypeError, "`optimizer` to be one of Optax"),
        ({"loss": "elbo"}, TypeError, "`loss` to be an ELBO"),
        ({"loss": RenyiELBO()}, ValueError, "RenyiELBO, which needs the weights of whole trajectories"),
        ({"fingerprint": "name"}, TypeError, "`fingerprint` to be a dictionary"),
        ({"fingerprint": {"key": KEY}}, TypeError, "as JSON does"),
        ({"data": "swiss_roll"}, TypeError, "`data` to be a numeric array or a NumPyro distribution"),
        ({"data": [[1.0], [2.0, 3.0]]}, TypeError, "`data` to be an array"),
        ({"data": DATA.astype(object)}, TypeError, "`data` to be a numeric array"),
        ({"data": np.zeros((0, 1))}, ValueError, "at least one datum"),
        ({"data": 1.0}, ValueError, "a single number"),
        (
            {"data": np.where(np.arange(64)[:, None] == 63, np.nan, DATA)},
            ValueError,
            "finite; got NaN.* in 1 data, the first at 63",
        ),
        ({"data": np.zeros((64, 2))}, ValueError, r"event shape \(1,\); got \(24, 2\)"),
        ({"data": np.zeros((64, 1), int)}, TypeError, "floating-point numbers"),
        (
            {"data": dist.Normal(jnp.zeros(3), 1)},
            ValueError,
            r"one distribution, of batch shape \(\); got batch shape \(3,\)",
        ),
        ({"data": dist.Normal().expand([2]).to_event(1)}, ValueError, r"event shape \(1,\); got \(24, 2\)"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        small(**options)


def test_further_arguments_reach_model_and_guide():
    def scaled(program):
        return lambda x0, scale, *, _program=program: _program(x0 * scale)

    doubled = small(model=scaled(model), guide=scaled(guide), args=(jnp.asarray(2.0),))
    assert np.allclose(doubled.losses, small(data=2 * DATA).losses)


def test_nothing_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(num_iterations=2, run_dir=tmp_path)


# Oracles.


def cosine(num_iterations, rate=0.03):
    return optax.adam(optax.cosine_decay_schedule(rate, num_iterations))


def elbo_nats(params, data=DATA):
    """The exact bound per datum, every expectation a sum over data and Gauss-Hermite nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    signal = np.concatenate([[1.0], np.cumprod(1 - BETA)])
    total = np.zeros(len(data))
    x0 = data[:, 0]
    for t in range(2, len(BETA) + 1):
        b, before, after = BETA[t - 1], signal[t - 1], signal[t]
        xt = np.sqrt(after) * x0[:, None] + np.sqrt(1 - after) * nodes
        mean = (np.sqrt(before) * b * x0[:, None] + np.sqrt(1 - b) * (1 - before) * xt) / (1 - after)
        variance = b * (1 - before) / (1 - after)
        gain, shift, scale = (np.asarray(params[name])[t - 2] for name in ("gain", "shift", "scale"))
        square = (variance + (mean - gain * xt - shift) ** 2) / scale**2
        total -= (0.5 * (square - 1) + np.log(scale) - 0.5 * np.log(variance)) @ weights
    total -= 0.5 * (signal[-1] * x0**2 - signal[-1] - np.log(1 - signal[-1]))
    x1 = np.sqrt(signal[1]) * x0[:, None] + np.sqrt(1 - signal[1]) * nodes
    total += (
        -0.5 * (x0[:, None] - np.sqrt(1 - BETA[0]) * x1) ** 2 / BETA[0] - 0.5 * np.log(2 * np.pi * BETA[0])
    ) @ weights
    return total.mean()


def test_an_optimizer_that_adds_up_several_batches():
    several = optax.MultiSteps(optax.adam(0.01), every_k_schedule=3)
    assert identical(small(optimizer=several).params, small(optimizer=several.gradient_transformation()).params)
