"""`dpm sample`."""

import shutil

import numpy as np

from tests.command_line import dpm
from tests.dpm_ppl.commands.test_fit import BETA, MEAN, SCALE, assert_error, assert_picture


def exact_moments():
    """Mean and variance of x^0 under the model: from pi through the affine steps and the fixed last one."""
    signal = np.append(1, np.cumprod(1 - BETA))
    mean, variance = np.zeros(2), np.ones(2)
    for t in range(6, 1, -1):
        before, after = (signal[s] * SCALE**2 + 1 - signal[s] for s in (t - 1, t))
        gain = np.sqrt(1 - BETA[t - 1]) * before / after
        mean = np.sqrt(signal[t - 1]) * MEAN + gain * (mean - np.sqrt(signal[t]) * MEAN)
        variance = gain**2 * variance + before - gain**2 * after
    return np.sqrt(1 - BETA[0]) * mean, (1 - BETA[0]) * variance + BETA[0]


def test_samples_have_the_moments_of_the_model(run):
    done = dpm("sample", run[0], "-n", 6000, "--overwrite")
    assert done.exit_code == 0, done.output
    x0 = np.load(run[0] / "samples.npz")["x0"]
    mean, variance = exact_moments()
    assert x0.shape == (6000, 2)
    assert np.all(np.abs(x0.mean(0) - mean) < 4 * np.sqrt(variance / 6000))
    assert np.all(np.abs(x0.var(0) / variance - 1) < 4 * np.sqrt(2 / 6000))
    assert len(np.unique(x0[:, 0])) == 6000  # blocks differ
    assert_picture(run[0] / "samples.png")
    dpm("sample", run[0], "-n", 5, "--overwrite")
    np.testing.assert_array_equal(np.load(run[0] / "samples.npz")["x0"], x0[:5])
    dpm("sample", run[0], "-n", 5, "--seed", 1, "--overwrite")
    assert not np.isin(np.load(run[0] / "samples.npz")["x0"], x0).any()


def test_sample_of_no_fit(tmp_path):
    assert_error(dpm("sample", tmp_path), "Expected the directory of a fit, with run.json; there is none")
    assert_error(dpm("sample", tmp_path / "nowhere"), "there is none")


def test_sample_of_a_damaged_run(run, tmp_path):
    (tmp_path / "run.json").write_text((run[0] / "run.json").read_text()[:-20])
    assert_error(dpm("sample", tmp_path), "it is damaged")


def test_sample_of_a_run_of_the_python_api(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"fingerprint": null}, "num_iterations": 3}')
    assert_error(dpm("sample", tmp_path), "to be one of `dpm fit`, which notes its model")


def test_sample_without_a_checkpoint(run, tmp_path):
    (tmp_path / "run.json").write_text((run[0] / "run.json").read_text())
    assert_error(dpm("sample", tmp_path), "nor at mine.py. --model FILE says where it is.")
    shutil.copytree(run[0] / "program", tmp_path / "program")
    assert_error(dpm("sample", tmp_path), "Expected a checkpoint of a fit")
