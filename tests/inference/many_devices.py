"""What 1, 2 and 8 devices make of the same program: a process of its own, as devices are counted when JAX starts.

Usage: python tests/inference/many_devices.py FOLDER, with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import dpm_ppl as dpm
from dpm_ppl.inference import Moves, bound, fit, log_likelihood, make_mesh, sandwich, smc
from dpm_ppl.inference.devices import using
from dpm_ppl.inference.posteriors.twists import tempered
from dpm_ppl.parts import parts_of
from dpm_ppl.reports.samples import draws

KEY = jax.random.key(3)
BETA = np.array([0.1, 0.3, 0.5, 0.8])
RNG = np.random.default_rng(0)
CONTEXT = RNG.normal(size=(64, 1))
DATA = 0.7 + 1.4 * RNG.gamma(2.0, 0.7, size=(64, 1)) + CONTEXT
PARTS = {"c": CONTEXT, "x0": DATA}
FITS = {"even": {"batch_size": 24}, "uneven": {"batch_size": 13}}
START = {"gain": np.full(3, 0.4), "shift": np.array([-0.2, 0.1, 0.3]), "slope": np.array([0.1, 0.2, 0.3])}


def diffusion(c: Any) -> dpm.Diffusion:
    """Affine reverse steps beside a context."""
    kernel = dpm.GaussianKernel(BETA, (1,))
    gain, shift, slope = (jnp.asarray(numpyro.param(name, value)) for name, value in START.items())

    def reverse(x: Any, t: Any, c: Any) -> Any:
        at = (t - 2)[..., None]
        return dist.Normal(gain[at] * x + shift[at] + slope[at] * c, 0.9).to_event(1)

    return dpm.Diffusion(kernel, reverse, context=c)


def observed(y: Any) -> None:
    """A posterior with two latent variables, one that the chain depends on and one of the observation alone."""
    c = numpyro.sample("c", dist.Normal(0.3, 1.0).expand([1]).to_event(1))
    scale = numpyro.sample("scale", dist.Gamma(3.0, 20.0))
    x = dpm.reverse_chain("x", diffusion(c))
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def fitted(mesh: Any = None, data: Any = None, num_iterations: int = 50, **options: Any) -> Any:
    """A fit of fifty iterations or fewer, validated now and then on a number that no devices divide."""
    validation = {"c": CONTEXT[:21], "x0": DATA[:21]}
    model, guide = dpm.single_chain(diffusion)
    return fit(
        model,
        guide,
        PARTS if data is None else data,
        key=KEY,
        num_iterations=num_iterations,
        num_steps_sampled=2,
        optimizer=optax.adam(1e-2),
        validation=validation,
        every=20,
        mesh=mesh,
        progress=False,
        **options,
    )


def numbers(mesh: Any = None) -> dict[str, Any]:
    """All but fits: everything that takes a mesh, with numbers of data and particles that no devices divide."""
    given: dict[str, Any] = {"params": START, "key": KEY, "mesh": mesh}
    beside = {"context": CONTEXT[:21], **given}
    weights = log_likelihood(diffusion, DATA[:21], num_particles=11, progress=False, **beside)
    terms = bound(diffusion, DATA[:21], num_samples=2, **beside)
    sides = sandwich(diffusion, num_data=21, num_particles=3, progress=False, **beside)
    run = smc(observed, "x", params=START, num_particles=52, twist=tempered(), moves=Moves(2, 1, 1), mesh=mesh)
    with warnings.catch_warnings(action="ignore"):  # so few are not to be trusted
        posterior = run(KEY, np.array([1.2]))
    given = {"params": START, "num_particles": 52, "twist": tempered(), "mesh": mesh}
    islands = smc(observed, "x", num_islands=4, moves=None, **given)
    with warnings.catch_warnings(action="ignore"):
        apart = islands(KEY, np.array([1.2]))
        several = jax.vmap(islands, (0, None))(jax.random.split(KEY, 2), np.array([1.2]))
    parts = parts_of(SimpleNamespace(model=dpm.single_chain(diffusion)[0], conditional=diffusion), PARTS)
    with using(mesh), patch("dpm_ppl.reports.samples.affordable", lambda *_, **__: 21):
        drawn = draws(parts, beside["params"], key=KEY, num_samples=21, context=CONTEXT[:21])
    return {
        "drawn": drawn,
        "log_weight": weights.log_weight,
        "cross_entropy": weights.reverse_cross_entropy,
        "elbo": terms.elbo,
        "kl": terms.kl,
        "x0": sides.x0,
        "own_log_weight": sides.own_log_weight,
        "lower": sides.lower,
        "log_evidence": posterior.log_evidence,
        "samples": posterior.samples,
        **posterior.latents,
        **{f"taken/{kind}": share for kind, share in posterior.acceptance.items()},
        "resampled": posterior.resampled,
        "ancestors": posterior.num_ancestors,
        "log_evidence_of_islands": apart.log_evidence,
        "samples_of_islands": apart.samples,
        "log_evidences_of_islands": several.log_evidence,
    }


def compiled_texts(run: Callable[[], Any]) -> list[str]:
    """The programs that a run compiles ahead, as XLA's text."""
    texts: list[str] = []
    original = jax.stages.Lowered.compile

    def compile_and_keep(self: Any, *args: Any, **options: Any) -> Any:
        done = original(self, *args, **options)
        texts.append(done.as_text() or "")
        return done

    jax.stages.Lowered.compile = compile_and_keep  # type: ignore[method-assign]
    try:
        run()
    finally:
        jax.stages.Lowered.compile = original  # type: ignore[method-assign]
    return texts


def main(folder: Path) -> None:
    """Writes `numbers.npz`, and `step.txt`, the training step of eight devices."""
    kept: dict[str, Any] = {}

    def keep(name: str, tree: dict[str, Any]) -> None:
        kept.update({f"{name}/{part}": np.asarray(value) for part, value in tree.items()})

    def keep_fit(name: str, done: Any) -> None:
        keep(name, {"losses": done.losses, "validation": done.validation, **done.params})

    written = np.memmap(folder / "data", DATA.dtype, "w+", shape=DATA.shape)
    written[:] = DATA
    mapped = np.memmap(folder / "data", DATA.dtype, "r", shape=DATA.shape)
    read: Any = {"data": {"c": CONTEXT, "x0": mapped}, "run_dir": folder / "run", **FITS["even"]}
    fitted(make_mesh(2), num_iterations=20, **read)
    keep_fit("even/2, then 8", fitted(make_mesh(8), resume=True, **read))
    keep("numbers/2", numbers(make_mesh(2)))
    texts = compiled_texts(lambda: keep_fit("even/8", fitted(**FITS["even"])))  # by default on all
    (folder / "step.txt").write_text(texts[1])
    keep_fit("uneven/8", fitted(**FITS["uneven"]))
    keep("numbers/8", numbers())
    np.savez(folder / "numbers.npz", **kept)
    print(json.dumps({"devices": len(jax.devices())}))


if __name__ == "__main__":
    numpyro.enable_x64()
    main(Path(sys.argv[1]))
