"""Parameters that come with a program, in a file beside its page, so that they can be had without the fit.

`NAME.npz` has them unconstrained, in half precision, each leaf by its name, and the losses of the fit that made them;
`NAME.json` says how it was made, and what came of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpm_ppl.commands.run import declaring
from dpm_ppl.inference import Fit, load_params, read_run
from dpm_ppl.inference.fitting import runs
from dpm_ppl.programs import Program

LOSSES = "losses"


def how_made(program: Program) -> dict[str, Any]:
    """How the parameters of a program were made: `num_iterations`, `seconds` and `seed` of the fit, and in words.

    Raises:
        ValueError: it comes without.
    """
    if not program.path.with_suffix(".npz").is_file():
        there = sorted(path.stem for path in program.path.parent.glob("*.npz") if path.with_suffix(".py").is_file())
        others = f" ({', '.join(there)} has)" if there else ""
        raise ValueError(
            f"Expected a program with parameters, {program.path.stem}.npz beside its page, for --pretrained; "
            f"{program.name} has none{others}. Without --pretrained it is fitted."
        )
    made: dict[str, Any] = json.loads(program.path.with_suffix(".json").read_text(encoding="utf-8"))
    return made


def take(
    program: Program,
    made: Mapping[str, Any],
    data: Any,
    run_dir: Path,
    *,
    fingerprint: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Fit:
    """Makes a run of the parameters that come with a program, as a fit would have left it.

    Args:
        program: The program.
        made: How they were made (see `how_made`).
        data: Its data.
        run_dir: Directory of the run.
        fingerprint: What tells the run from others, as in `dpm_ppl.inference.fit`.
        files: What else to keep in run_dir, as in `fit`.

    Returns:
        The fit that made them; its `raw_params` are the averaged ones too.

    Raises:
        FileExistsError: run_dir holds a run.
        OSError: run_dir cannot be written.
        ValueError: the parameters are of another program.
    """
    with np.load(program.path.with_suffix(".npz"), allow_pickle=False) as archive:
        leaves = {name: archive[name] for name in archive.files}
    losses = np.asarray(leaves.pop(LOSSES), float)
    path = runs.open_run(run_dir, resume=False)
    function, args = declaring(program, data)
    position, seconds = made["num_iterations"], made["seconds"]
    average = runs.named(leaves, function, *args, where=str(program.path.with_suffix(".npz")))
    runs.write_files(path, files)
    settings = {"fingerprint": dict(fingerprint), "pretrained": program.path.stem}
    runs.write_run(path, settings, information={"num_iterations": position})
    runs.save_checkpoint(path, position, {"average": average}, seconds=seconds, num_checkpoints=1)
    params = load_params(path, function, *args)
    return Fit(
        params=params,
        raw_params=params,
        losses=losses,
        seconds=seconds,
        num_iterations=position,
        validation=np.zeros((0, 2)),
        best_params=params,
        key=jax.random.key(made["seed"]),
        start_losses=losses[None],
    )


def require_fitted_here(run_dir: Path) -> None:
    """Checks that a run can be carried on; ValueError where its parameters came with the program."""
    if (run_dir / runs.FILE).exists() and "pretrained" in read_run(run_dir)["settings"]:
        raise ValueError(
            f"Expected a run of `dpm fit` to carry on; the parameters in {run_dir} came with the program, without the "
            "state of their optimiser. Another fit can begin with them: fit(..., params=load_params(run_dir, program))."
        )
