"""`dpm posterior`: evidences and moments against closed forms and enumeration; what is wrong is said before work."""

import json
import shutil
from itertools import product

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import xarray as xr

from dpm_ppl.commands import find
from dpm_ppl.inference import Posterior, fit
from tests.command_line import dpm

# The exact reverse of a Gaussian's diffusion, or bits that are redrawn at their own rates: the density is known.
PROGRAM = '''"""A model of which everything is known."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
import dpm_ppl as dpm

BETA = np.array([0.05, 0.2, 0.4, 0.6])
MEAN, SCALE = np.array([0.8, -0.5]), np.array([0.5, 1.2])
ONE, ZERO = np.array([0.9, 0.6, 0.8, 0.7]), np.array([0.2, 0.3, 0.1, 0.4])  # P(x^(t-1) = 1 | x^t = 1 or 0)

def data():
    return dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)

def diffusion():
    offset = numpyro.param("offset", jnp.zeros(2))
    KERNEL
    return dpm.Diffusion(kernel, reverse)

def model(x0=None, size=1):
    chain = diffusion()
    with numpyro.plate("data", size if x0 is None else len(x0)):
        return dpm.reverse_chain("x", chain, obs=x0)

def guide(x0):
    chain = diffusion()
    with numpyro.plate("data", len(x0)):
        dpm.forward_chain("x", chain, x0)
'''
REAL = """
    kernel = dpm.GaussianKernel(BETA, (2,))
    signal = np.append(1, np.cumprod(1 - BETA))[:, None]
    variance = signal * SCALE**2 + 1 - signal
    gain = np.sqrt(1 - BETA[:, None]) * variance[:-1] / variance[1:]
    shift = (np.sqrt(signal[:-1]) - gain * np.sqrt(signal[1:])) * MEAN
    gain, shift, scale = (jnp.asarray(a) for a in (gain, shift, np.sqrt(variance[:-1] - gain**2 * variance[1:])))
    def reverse(x, t):
        return dist.Normal(gain[t - 1] * x + shift[t - 1] + offset, scale[t - 1]).to_event(1)
"""
BITS = """
    kernel = dpm.BernoulliKernel(BETA, (4,), rate=0.3)
    def reverse(x, t):
        return dist.Bernoulli(probs=jnp.where(x == 1, ONE, ZERO) + 0 * offset[0]).to_event(1)
"""
OTHER = """
    kernel = dpm.CategoricalKernel(BETA, (4,), probs=[0.2, 0.3, 0.5])
    def reverse(x, t):
        return kernel.step(x, t)
"""
NO_CHAIN = PROGRAM.replace("def diffusion():", "def diffusion(label=0, *, needed):").replace(
    "chain = diffusion()", "chain = diffusion(needed=1)"
)
BETA = np.array([0.05, 0.2, 0.4, 0.6])
MEAN, SCALE = np.array([0.8, -0.5]), np.array([0.5, 1.2])
ONE, ZERO = np.array([0.9, 0.6, 0.8, 0.7]), np.array([0.2, 0.3, 0.1, 0.4])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of fits, by the kind of their programs; one is fitted, as all have the same parameters."""
    folder = tmp_path_factory.mktemp("runs")
    for name, text in (("real", REAL), ("bits", BITS), ("other", OTHER), ("no_chain", REAL)):
        whole = NO_CHAIN if name == "no_chain" else PROGRAM
        (folder / f"{name}.py").write_text(whole.replace("    KERNEL\n", text))
    program = find.load(folder / "real.py")
    options = {"num_iterations": 1, "batch_size": 4, "num_steps_sampled": None, "progress": False}
    noted = {"model": program.name}
    where = {"run_dir": folder / "real", "fingerprint": noted, "learning_rate": 1e-12}
    fit(program.model, program.guide, program.data(), key=jax.random.key(0), **where, **options)
    for name in ("bits", "other", "no_chain"):
        shutil.copytree(folder / "real", folder / name)
        run = (folder / name / "run.json").read_text().replace("real.py", f"{name}.py")
        (folder / name / "run.json").write_text(run)
    return folder


def observed(run_dir, tmp_path, y, *options, mask=None, name="y"):
    """Runs `dpm posterior` on arrays, and gives back what it wrote and printed."""
    np.save(tmp_path / f"{name}.npy", y)
    given = [*options, "--overwrite", "--observe", tmp_path / f"{name}.npy"]
    if mask is not None:
        np.save(tmp_path / "mask.npy", mask)
        given += ["--mask", tmp_path / "mask.npy"]
    done = dpm("posterior", run_dir, *given)
    assert done.exit_code == 0, done.output
    text = (run_dir / "posterior.json").read_text()
    figures = json.loads(text, parse_constant=lambda found: pytest.fail(f"{found} in JSON"))
    return figures, xr.open_datatree(run_dir / "posterior.nc", engine="h5netcdf"), done.stdout


def generated():
    """Mean and variance of x^0 under the real model: from pi through the affine steps and the fixed last one."""
    signal = np.append(1, np.cumprod(1 - BETA))[:, None]
    marginal = signal * SCALE**2 + 1 - signal
    mean, variance = np.zeros(2), np.ones(2)
    for t in (4, 3, 2):
        gain = np.sqrt(1 - BETA[t - 1]) * marginal[t - 1] / marginal[t]
        mean = np.sqrt(signal[t - 1]) * MEAN + gain * (mean - np.sqrt(signal[t]) * MEAN)
        variance = gain**2 * variance + marginal[t - 1] - gain**2 * marginal[t]
    keep = 1 - BETA[0]
    return np.sqrt(keep) * mean, keep * variance + 1 - keep


def rates():
    """P(x^0 = 1) of each bit under the model of bits, which are independent."""
    rate = np.full(4, 0.3)
    for _ in range(3):
        rate = rate * ONE + (1 - rate) * ZERO
    return (1 - BETA[0]) * rate + BETA[0] * 0.3


def normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def assert_evidence(row, exact):
    assert abs(row["log_evidence_nats"] - exact) < 4 * row["log_evidence_nats_se"] + 1e-4
    assert row["log_evidence_bits"] * np.log(2) == pytest.approx(row["log_evidence_nats"])
    assert row["log_evidence_nats_se"] < 0.1


def test_denoised_data_have_the_moments_and_evidence_of_the_closed_form(runs, tmp_path):
    y = np.array([[1.0, -0.6], [2.5, 0.8], [-0.5, 0.1]])
    figures, tree, printed = observed(runs / "real", tmp_path, y, "--noise", 0.5, "--particles", 2000, "--seed", 3)
    prior_mean, prior_variance = generated()
    assert figures["num_data"] == 3
    for row, seen, place in zip(figures["data"], y, range(3), strict=True):
        assert_evidence(row, normal(seen, prior_mean, prior_variance + 0.25).sum())
        gain = prior_variance / (prior_variance + 0.25)
        particles = tree["particles"].sel(datum=place)
        weight = np.exp(particles["log_weight"].values - particles["log_weight"].values.max())
        mean = np.average(particles["x"].values, 0, weights=weight)
        variance = np.average((particles["x"].values - mean) ** 2, 0, weights=weight)
        error = np.sqrt(gain * 0.25 / row["ess"])
        assert (np.abs(mean - prior_mean - gain * (seen - prior_mean)) < 4 * error).all()
        np.testing.assert_allclose(variance, gain * 0.25, rtol=4 * np.sqrt(2 / row["ess"]))
        assert f"{row['log_evidence_nats']:.3f} ± {row['log_evidence_nats_se']:.3f}" in printed
    assert figures["trusted_share"] == 1
    assert "The 3 posteriors can be trusted" in " ".join(printed.split())
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    assert tree["observed_data"]["known"].values.all()
    image = matplotlib.image.imread(runs / "real" / "posterior.png")
    assert len(np.unique(image[::5, ::5].reshape(-1, image.shape[-1]), axis=0)) > 100
    assert set(figures) >= {"model", "seed", "seconds", "noise", "num_known", "observed", "verdict"}


def test_a_known_coordinate_is_kept_exactly(runs, tmp_path):
    y, mask = np.array([np.nan, 1.3]), np.array([0, 1])  # what is not known may be anything
    figures, tree, printed = observed(runs / "real", tmp_path, y, "--particles", 1000, mask=mask)
    prior_mean, prior_variance = generated()
    assert figures["observed"] == "1 of 2 coordinates known exactly"
    assert_evidence(figures["data"][0], normal(1.3, prior_mean[1], prior_variance[1]))
    x = tree["posterior"]["x"].values[0, :, 0]
    np.testing.assert_array_equal(x[:, 1], np.full(1000, 1.3))
    assert abs(x[:, 0].mean() - prior_mean[0]) < 4 * np.sqrt(prior_variance[0] / figures["data"][0]["ess"])
    assert "The posterior can be trusted" in printed


def test_flipped_bits_of_a_part_have_the_evidence_of_the_enumeration(runs, tmp_path):
    y, mask = np.array([1, 0, 1, 1]), np.array([True, True, False, True])
    figures, tree, _ = observed(runs / "bits", tmp_path, y, "--noise", 0.1, "--particles", 2000, mask=mask)
    states = np.array(list(product((0, 1), repeat=4)))
    prior = np.where(states == 1, rates(), 1 - rates()).prod(1)
    joint = prior * np.where(states == y, 0.9, 0.1)[:, mask].prod(1)
    assert_evidence(figures["data"][0], np.log(joint.sum()))
    found = tree["posterior"]["x"].values[0, :, 0].mean(0)
    expected = joint @ states / joint.sum()
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / figures["data"][0]["ess"])).all()
    assert figures["observed"] == "3 of 4 coordinates with bits flipped with probability 0.1"


BAD = {
    "neither": ({}, "Expected --noise S (all coordinates are observed with noise), --mask FILE.npy"),
    "no noise": ({"noise": 0}, "Expected --noise to be a standard deviation, above 0; got 0. For coordinates that"),
    "nan noise": ({"noise": "nan"}, "Expected --noise to be a standard deviation, above 0; got nan"),
    "infinite noise": ({"noise": "inf"}, "Expected --noise to be a standard deviation, above 0; got inf"),
    "flips": ({"noise": 0.5, "run": "bits"}, "the probability that a bit is flipped, in (0, 0.5); got 0.5"),
    "no file": ({"noise": 1, "y": None}, "Expected --observe to be a file with an array; there is none at"),
    "no array": ({"noise": 1, "y": b"text"}, "Expected --observe to be a .npy file, as numpy.save writes;"),
    "objects": ({"noise": 1, "y": np.array([{}, 1], object)}, "Expected --observe to be a .npy file"),
    "words": ({"noise": 1, "y": np.array(["a", "b"])}, "Expected --observe to hold numbers; got <U1"),
    "shape": ({"noise": 1, "y": np.zeros(3)}, "of shape (2,), or several, of shape (num_data, 2); got (3,)"),
    "no data": ({"noise": 1, "y": np.zeros((0, 2))}, "got (0, 2)"),
    "nan": ({"noise": 1, "y": np.array([np.nan, 1])}, "Expected finite values where"),
    "no bits": ({"noise": 0.1, "run": "bits", "y": np.array([0, 1, 2, 0])}, "Expected 0 or 1 where"),
    "mask shape": ({"mask": np.ones((1, 2), bool)}, "Expected --mask of shape (2,), that of a datum; got (1, 2)"),
    "mask values": ({"mask": np.array([0.5, 1])}, "Expected --mask to be boolean, or 0 and 1; got other values"),
    "empty mask": ({"mask": np.zeros(2, bool)}, "Expected --mask to be true where something is observed"),
    "no mask": ({"mask": None}, "Expected --mask to be a file with an array; there is none at"),
    "other": ({"noise": 1, "run": "other"}, "Expected a program of real numbers or bits"),
    "no chain": ({"noise": 1, "run": "no_chain"}, "Expected a program with `diffusion`, one chain of its data"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_before_work(runs, tmp_path, monkeypatch, name):
    given, message = BAD[name]
    monkeypatch.setattr("dpm_ppl.inference.smc", lambda *_, **__: pytest.fail("work has started"))
    run = given.get("run", "real")
    for option, default in (("y", np.zeros(4 if run in ("bits", "other") else 2)), ("mask", None)):
        value = given.get(option, default)
        if isinstance(value, bytes):
            (tmp_path / f"{option}.npy").write_bytes(value)
        elif value is not None:
            np.save(tmp_path / f"{option}.npy", value, allow_pickle=True)
    options = ["--noise", given["noise"]] if "noise" in given else []
    options += ["--mask", tmp_path / "mask.npy"] if "mask" in given else []
    done = dpm("posterior", runs / run, "--observe", tmp_path / "y.npy", *options)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_archive_is_no_array(runs, tmp_path):
    np.savez(tmp_path / "y.npz", y=np.zeros(2))
    done = dpm("posterior", runs / "real", "--observe", tmp_path / "y.npz", "--noise", 1)
    assert done.exit_code == 1
    assert "Expected --observe to be a .npy file with one array" in done.stderr


def pretended(model, site, *, params, num_particles):
    """In place of `smc`: the evidence is the first coordinate; a negative one leaves no particle."""

    def run(key, y):
        num_left = jnp.where(y[0] < 0, 0.0, 20.0)
        same, ess = jnp.zeros((20,)), jnp.full((5,), num_left)
        x = jnp.broadcast_to(y, (20, 2)) + jax.random.normal(key, (20, 2))
        whole, tail = jnp.full((5,), 20), jnp.zeros((5, 5))
        return Posterior(x, same, y[0], y[1], {}, ess, tail, whole, 0 * whole, whole < 0)

    return run


def test_blocks_keep_the_order_of_the_data(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("dpm_ppl.inference.smc", pretended)
    y = np.stack([np.arange(30.0), np.ones(30)], -1)
    figures, tree, printed = observed(runs / "real", tmp_path, y, "--noise", 1, "--particles", 2**17)  # 8 a block
    assert [row["log_evidence_nats"] for row in figures["data"]] == list(range(30))
    np.testing.assert_array_equal(tree["evidence"]["log_evidence"], np.arange(30))
    assert "and 10 more, in posterior.json" in printed
    x = tree["particles"]["x"].values
    assert len(np.unique(x - y)) == x.size  # each datum with a key of its own


def test_a_datum_that_cannot_be_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("dpm_ppl.inference.smc", pretended)
    np.save(tmp_path / "y.npy", np.array([[1.0, 1.0], [2.0, 1.0], [-3.0, 1.0]]))
    done = dpm("posterior", runs / "real", "--observe", tmp_path / "y.npy", "--noise", 1, "--out", tmp_path)
    assert done.exit_code == 1
    assert "Error: Datum 2: Expected a particle with r > 0; all weights are zero at t = 4" in done.stderr
