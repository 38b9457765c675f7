"""Reads a run: the program that it is of, its data, and its fitted parameters."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from numpyro import handlers

from dpm_ppl.commands.find import load
from dpm_ppl.data import fresh_data
from dpm_ppl.inference import load_params, read_run
from dpm_ppl.programs import Program


@dataclass(frozen=True, eq=False)
class Run:
    """What `dpm fit` left in a directory.

    Args:
        directory: The directory, which can be written.
        program: The program that was fitted.
        data: Its data, a distribution or an array.
        params: Its parameters, averaged, as `dpm_ppl.inference.load_params` gives them.
    """

    directory: Path
    program: Program
    data: Any
    params: dict[str, Any]


def open_run(run_dir: Path) -> Run:
    """Reads a run.

    Args:
        run_dir: Directory of the fit.

    Raises:
        FileNotFoundError: the directory holds no run, or no finished checkpoint.
        PermissionError: it cannot be written.
        ValueError: it is no run of `dpm fit`, or is damaged, or of another program.
    """
    noted = read_run(run_dir)["settings"].get("fingerprint") or {}
    if not isinstance(noted.get("model"), str):
        raise ValueError(f"Expected the run in {run_dir} to be one of `dpm fit`, which notes its model; it has none.")
    if not os.access(run_dir, os.W_OK):
        raise PermissionError(f"Expected to write into {run_dir}; it is read-only. Copy it to where you may write.")
    program = load(noted["model"])
    data = program.data()
    return Run(run_dir, program, data, fitted_params(run_dir, program, data))


def fitted_params(run_dir: Path, program: Program, data: Any) -> dict[str, Any]:
    """Parameters of a run, averaged: of `diffusion` where the program has one, and else of model and guide together.

    Args:
        run_dir: Directory of the fit.
        program: The program that was fitted.
        data: Its data, of which one is enough to see what it declares.

    Returns:
        Values by name, as `dpm_ppl.inference.load_params` gives them.
    """
    if program.diffusion is not None:
        return load_params(run_dir, program.diffusion)
    x0 = fresh_data(data, key=jax.random.key(0), num_data=1)[:1]

    def declarations() -> None:
        with handlers.block(hide_fn=lambda site: site["type"] != "param"), handlers.seed(rng_seed=0):
            program.model(x0)
            program.guide(x0)

    return load_params(run_dir, declarations)
