"""A fit with parameters in shards over four times two devices: a process of its own, as for `many_devices`.

Usage: python tests/inference/fitting/many_shards.py FOLDER, with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, PartitionSpec

import dpm_ppl as dpm
from dpm_ppl.inference import bound, fit

KEY = jax.random.key(5)
BETA = np.array([0.1, 0.3, 0.5, 0.8])
DATA = 0.7 + 1.4 * np.random.default_rng(1).gamma(2.0, 0.7, size=(64, 1))
FIRST = {"rise": np.linspace(-1.0, 0.9, 8), "fall": np.linspace(0.3, -0.4, 8), "shift": np.array([0.2])}


def diffusion() -> dpm.Diffusion:
    """A perceptron of eight units."""
    rise, fall, shift = (jnp.asarray(numpyro.param(name, value)) for name, value in FIRST.items())

    def reverse(x: Any, t: Any) -> Any:
        mean = jnp.tanh(x * rise + t[..., None] / 4) @ fall[:, None] + shift
        return dist.Normal(mean, 0.9).to_event(1)

    return dpm.Diffusion(dpm.GaussianKernel(BETA, (1,)), reverse)


def rule(name: str, shape: tuple[int, ...]) -> PartitionSpec | None:
    """One in two parts, one in eight, the other whole."""
    return {"['rise']": PartitionSpec("model"), "['fall']": PartitionSpec(("data", "model"))}.get(name)


def fitted(**options: Any) -> Any:
    """The fit, of Adam, whose moments are in parts as well."""
    given: dict[str, Any] = {"num_iterations": 40, "batch_size": 24, "num_steps_sampled": 2, "progress": False}
    return fit(*dpm.single_chain(diffusion), DATA, key=KEY, **{**given, **options})


def main(folder: Path) -> None:
    """Writes numbers and shapes of parts."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    seen: list[int] = []

    def look(_: Any) -> None:
        """How many arrays of a split parameter's shape lie whole on one device."""
        seen.append(sum(a.shape == (8,) and len(a.sharding.device_set) == 1 for a in jax.live_arrays()))

    done = fitted(mesh=mesh, shard=rule, run_dir=folder / "run", every=20, callback=look)
    terms = bound(diffusion, DATA, params=done.params, key=KEY, mesh=mesh)
    parts = {name: [part.data.shape[0] for part in value.addressable_shards] for name, value in done.params.items()}
    errors = []
    for wrong in (lambda *_: PartitionSpec("rows"), lambda *_: PartitionSpec("model"), lambda *_: "model"):
        try:
            fitted(mesh=mesh, shard=wrong)
        except (TypeError, ValueError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    np.savez(folder / "numbers.npz", losses=done.losses, elbo=np.asarray(terms.elbo), **done.params)
    (folder / "about.json").write_text(json.dumps({"parts": parts, "errors": errors, "whole": seen}))


if __name__ == "__main__":
    numpyro.enable_x64()
    main(Path(sys.argv[1]))
