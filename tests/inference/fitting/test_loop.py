"""The loop of a fit: chunks, interrupts, failures change nothing."""

import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from dpm_ppl.inference import NonFiniteLossError, load_params
from dpm_ppl.inference.fitting import runs
from tests.inference.fitting.test_fits import DATA, KEY, at, identical, interrupt, model, small


def test_averages_are_those_of_the_raw_parameters():
    # By hand, from fits that stop after each iteration: unconstrained, with the decay warmed up.
    raws = [small(num_iterations=n, batch_size=64, optimizer=optax.adam(0.1)).raw_params for n in range(1, 5)]
    result = small(num_iterations=4, batch_size=64, optimizer=optax.adam(0.1), ema_decay=0.3)
    for name, free in (("gain", lambda x: x), ("scale", np.log)):
        average = free({"gain": np.full(3, 0.4), "scale": np.full(3, 1.3)}[name])
        for i, raw in enumerate(raws):
            decay = min(0.3, (1 + i) / (10 + i))
            average = decay * average + (1 - decay) * free(np.asarray(raw[name]))
        np.testing.assert_allclose(free(np.asarray(result.params[name])), average, rtol=1e-12)
        np.testing.assert_allclose(result.raw_params[name], raws[-1][name], rtol=1e-12)


def test_frozen_noise_makes_full_batches_deterministic():
    frozen = small(num_iterations=30, batch_size=64, optimizer=optax.sgd(0.0), frozen_noise=True).losses
    assert np.ptp(frozen) == 0
    assert np.ptp(small(num_iterations=30, batch_size=64, optimizer=optax.sgd(0.0)).losses) > 0


# Chunks, interruptions, resuming: bit for bit.


def test_chunks_change_nothing(chunks, tmp_path):
    results = []
    for length in (1, 7, 60):
        chunks(length)
        results.append(small())
    assert all(identical(results[0].params, other.params) for other in results)
    assert all(np.array_equal(results[0].losses, other.losses) for other in results)
    assert results[0].losses.shape == (60,)
    assert not identical(results[0].params, small(key=jax.random.key(4)).params)


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_resuming_after_ctrl_c_changes_nothing(chunks, after_chunk, tmp_path, key):
    whole = small(key=key)
    for position in (10, 30, 50):
        after_chunk(at(position, interrupt))
        with pytest.raises(KeyboardInterrupt, match=rf"after {position} of 60 iterations.*resume=True"):
            small(key=key, run_dir=tmp_path, resume=position > 10)
        assert (tmp_path / "checkpoints" / str(position)).is_dir()
    after_chunk(lambda _: None)
    chunks(17)
    resumed = small(key=key, run_dir=tmp_path, resume=True)
    assert identical(
        [whole.params, whole.raw_params, whole.losses], [resumed.params, resumed.raw_params, resumed.losses]
    )
    again = small(key=key, run_dir=tmp_path, resume=True)
    assert identical([whole.params, whole.losses], [again.params, again.losses])
    assert again.seconds == resumed.seconds


def test_ctrl_c_waits_for_a_checkpoint_in_progress(chunks, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save, saved = ocp.CheckpointManager.save, []

    def interrupted(self, position, **kwargs):
        if not saved:
            interrupt()
        saved.append(position)
        return save(self, position, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after 10 of 60"):
        small(run_dir=tmp_path, checkpoint_every=0)
    assert saved == [10]
    assert runs.newest_checkpoint(tmp_path).position == 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert identical(small().params, small(run_dir=tmp_path, resume=True).params)


def test_ctrl_c_without_a_directory(chunks, after_chunk):
    after_chunk(at(20, interrupt))
    with pytest.raises(KeyboardInterrupt, match="after 20 of 60 iterations. Without `run_dir`"):
        small()


def test_progress_shows_bits_and_nothing_else(capfd, chunks, tmp_path):
    result = small(progress=True, run_dir=tmp_path, checkpoint_every=0)
    load_params(tmp_path, model)
    out, err = capfd.readouterr()
    bits = -result.losses[-6:].mean() / math.log(2)
    assert out == ""
    assert f"bound {bits:.3f} bits" in err
    lines = [line.strip() for line in err.replace("\n", "\r").split("\r") if line.strip()]
    assert lines[0] == "compiling"
    assert all("60 [" in line for line in lines[1:])
    small()
    assert capfd.readouterr() == ("", "")


# A loss that is not finite.


def failing(x0=None):
    """The parameter `edge` falls by the rate in every iteration, and the loss is NaN where it is not positive."""
    edge = numpyro.param("edge", 1.0)
    model(x0)
    numpyro.factor("fall", -len(x0) * edge + 0 * jnp.log(edge))


@pytest.mark.parametrize("length", [1, 10])
def test_a_loss_that_is_not_finite_stops_before_damage(length, chunks, tmp_path):
    chunks(length)
    fast, slow = ({"model": failing, "clip_norm": None, "optimizer": optax.sgd(rate)} for rate in (0.15, 1e-4))
    with pytest.raises(
        NonFiniteLossError, match=r"loss of nan in iteration 8; the last finite bound was -\d"
    ) as caught:
        small(**fast, run_dir=tmp_path)
    assert caught.value.iteration == 8
    # Iteration 8 fails at the parameters that iteration 7 made: the last good ones are those before it.
    assert caught.value.checkpoint == tmp_path / "checkpoints" / "6"
    assert str(caught.value.checkpoint) in str(caught.value)
    before = small(**fast, num_iterations=6)
    assert caught.value.bound_bits == pytest.approx(-small(**fast, num_iterations=7).losses[-1] / math.log(2))
    assert identical(load_params(tmp_path, failing, DATA), before.params)
    with pytest.raises(NonFiniteLossError, match="iteration 8"):
        small(**fast, run_dir=tmp_path, resume=True)
    resumed = small(**slow, run_dir=tmp_path, resume=True)
    assert np.isfinite(resumed.losses).all()
    assert np.array_equal(resumed.losses[:6], before.losses)


def test_an_update_that_is_not_finite_stops_before_damage(tmp_path):
    breaks = optax.sgd(lambda i: jnp.where(i == 4, jnp.nan, 1e-3))
    with pytest.raises(NonFiniteLossError, match="parameters that are not in iteration 5") as caught:
        small(optimizer=breaks, run_dir=tmp_path)
    assert identical(load_params(tmp_path, model), small(optimizer=breaks, num_iterations=4).params)
    assert caught.value.checkpoint.name == "4"


def test_a_fit_that_fails_at_once(tmp_path):
    nan = {"data": np.full((64, 1), 1e200)}  # whose square overflows
    with pytest.raises(NonFiniteLossError, match="iteration 1; no bound was finite. There is no checkpoint") as caught:
        small(**nan, run_dir=tmp_path)
    assert caught.value.checkpoint is None
    assert math.isnan(caught.value.bound_bits)
    assert runs.newest_checkpoint(tmp_path) is None


def test_only_a_chain_has_a_bound(capfd):
    def plain(x0):
        mean = numpyro.param("mean", jnp.zeros(1))
        with numpyro.plate("data", 64, subsample_size=len(x0)):
            numpyro.sample("x", dist.Normal(mean, 1).to_event(1), obs=x0)

    small(model=plain, guide=lambda x0: None, num_steps_sampled=None, progress=True, num_iterations=5)
    said = capfd.readouterr().err
    assert "objective " in said
    assert "bound" not in said


def test_the_bar_has_its_number_in_any_width_and_writes_little_to_a_file(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    small(progress=True, num_iterations=60)
    written = capfd.readouterr().err
    assert written.index("compiling") < written.index("bound ")
    lines = [line for line in written.replace("\r", "\n").splitlines() if line.startswith("bound ")]
    assert len(lines) == 1
    assert re.match(r"bound -\d+\.\d{3} bits +100%.* 60/60 ", lines[0])
