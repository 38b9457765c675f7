"""Kills a fit (kill -9) at random moments, resumes it each time, and compares the end with an uninterrupted one's.

Half of the moments are counted from the call of `fit`, which compiles first; half from the session's first checkpoint.
With `--mapped` its data are a memory-mapped file, read beside the iterations. Run as
`python tests/benchmarks/kill_resume.py [seed] [--mapped] [--iterations 15000]`; takes a few minutes.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import describe, report

from dpm_ppl.inference import fit
from dpm_ppl.models import swiss_roll_2015

NUM_KILLS = 10
BEGUN = "begun"


def run(run_dir: Path, num_iterations: int, file: Path | None) -> None:
    """One session, in a process of its own: begins, or continues, to the end, and leaves the parameters as bytes."""
    data: Any = swiss_roll_2015.data().sample(jax.random.key(1), (1000,)) if file is None else np.load(file, "r")
    print(BEGUN, flush=True)
    result = fit(
        swiss_roll_2015.model,
        swiss_roll_2015.guide,
        data,
        key=jax.random.key(0),
        num_iterations=num_iterations,
        batch_size=128,
        run_dir=run_dir,
        resume=True,
        checkpoint_every=0.0,
        progress=False,
    )
    leaves = [*jax.tree.leaves((result.params, result.raw_params)), result.losses]
    np.savez(run_dir / "end.npz", *(np.asarray(leaf) for leaf in leaves))


def session(run_dir: Path, num_iterations: int, file: Path | None) -> subprocess.Popen[str]:
    """Starts one, and returns when its fit is called."""
    command = [sys.executable, __file__, "--run", str(run_dir), "--iterations", str(num_iterations)]
    command += [] if file is None else ["--file", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == BEGUN
    return process


def positions(run_dir: Path) -> list[int]:
    """Iterations of the checkpoints that are there."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if re.fullmatch(r"\d+", path.name))


def half_written(run_dir: Path) -> set[str]:
    """Names of what killed saves have left; the next save clears them away."""
    return {path.name for path in (run_dir / "checkpoints").glob("*tmp*")}


def end(run_dir: Path) -> list[np.ndarray] | None:
    """What a finished fit left."""
    if not (run_dir / "end.npz").exists():
        return None
    with np.load(run_dir / "end.npz") as leaves:
        return [leaves[name] for name in leaves.files]


def main(seed: int, num_iterations: int, *, mapped: bool) -> None:
    """Kills and compares."""
    print(describe())
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, file = Path(folder, "whole"), Path(folder, "data.npy") if mapped else None
        if file is not None:
            np.save(file, swiss_roll_2015.data().sample(jax.random.key(1), (1000,)))
        begun = time.perf_counter()
        assert session(whole, num_iterations, file).wait() == 0
        seconds = time.perf_counter() - begun
        expected = end(whole)
        assert expected is not None
        print(f"uninterrupted: {seconds:.1f} s for {num_iterations} iterations")

        kills, during_saves, compared = 0, 0, []
        run_dir = Path(folder, "killed")
        while kills < NUM_KILLS or end(run_dir) is None:
            before, before_half = positions(run_dir), half_written(run_dir)
            process = session(run_dir, num_iterations, file)
            if kills < NUM_KILLS:
                if kills % 2:
                    while process.poll() is None and positions(run_dir) == before:
                        time.sleep(0.01)
                moment = rng.uniform(0, 3.0 if kills % 2 else 0.5 * seconds)
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
                    partial = bool(half_written(run_dir) - before_half)
                    during_saves += partial
                    since = "the first checkpoint" if kills % 2 == 0 else "the call"
                    print(f"kill {kills}: {moment:.2f} s after {since}; left {positions(run_dir)}", end="")
                    print(" and one half-written" if partial else "", flush=True)
            process.wait()
            found = end(run_dir)
            if found is not None:
                compared.append(all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True)))
                print(f"ended; identical: {compared[-1]}", flush=True)
                if kills < NUM_KILLS:  # it was quicker than its kills: another
                    run_dir = Path(folder, f"killed{len(compared)}")
    report(
        {
            "kills": kills,
            "identical": all(compared),
            "fits_compared": len(compared),
            "kills_during_a_save": during_saves,
            "num_iterations": num_iterations,
            "mapped": mapped,
            "uninterrupted_s": round(seconds, 1),
            "seed": seed,
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--iterations", type=int, default=15_000)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.iterations, options.file)
    else:
        main(options.seed, options.iterations, mapped=options.mapped)
