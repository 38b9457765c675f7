"""A fit on a memory-mapped file larger than what it may take of memory: resident memory, and speed beside an array's.

The file is sparse, so that it takes no room on the disk. Each fit runs in a process of its own; memory is the largest
that the system saw, less that of the same fit on 1,000 data.
Usage: python tests/benchmarks/memory.py [--gib 4] [--gib-in-memory 1] [--iterations 300]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
from machine import describe, report
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

SIZE = 1024  # numbers of a datum
BATCH = 256


def diffusion():
    """A perceptron on 1,024 numbers."""
    kernel = dpm.GaussianKernel(dpm.schedules.linear(100), event_shape=(SIZE,))
    mlp = dpm.networks.TimeMLP(SIZE, SIZE, num_steps=100, key=numpyro.prng_key())
    net = eqx_module("reverse", mlp)
    return dpm.Diffusion(kernel, lambda x, t: dpm.outputs.data_normal(kernel, x, t, net(x, t)))


def resident() -> dict[str, int]:
    """Bytes resident now: in all, and of them in mapped files."""
    status = Path("/proc/self/status").read_text()
    return {name: 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "RssFile")}  # type: ignore[index]


def child(kind: str, gib: float, iterations: int, folder: str) -> None:
    """One fit: peak of memory, sampled, and iterations a second after the first tenth."""
    num = int(gib * 2**30) // (4 * SIZE)
    data = np.zeros((1000, SIZE), np.float32)
    if kind == "mapped":
        data = np.memmap(Path(folder, "data"), np.float32, "w+", shape=(num, SIZE))
    elif kind == "memory":
        data = np.zeros((num, SIZE), np.float32)
    peak, over = {"VmRSS": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    times = []
    every = max(1, iterations // 10)
    dpm.inference.fit(
        *dpm.single_chain(diffusion),
        data,
        key=jax.random.key(0),
        num_iterations=iterations,
        batch_size=BATCH,
        num_steps_sampled=4,
        every=every,
        callback=lambda _: times.append(time.perf_counter()),
        progress=False,
    )
    over.set()
    thread.join()
    spans = np.diff(times)
    print(json.dumps({**peak, "rate": every / float(np.median(spans)), "best": every / float(np.min(spans))}))


def run(kind: str, gib: float, iterations: int) -> dict[str, float]:
    """A fit in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", kind, "--gib", str(gib), "--iterations", str(iterations)]
        done = subprocess.run([*command, "--folder", folder], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}, {gib:g} GiB: {figures}", flush=True)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--gib-in-memory", type=float, default=1.0)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--child")
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.gib, options.iterations, options.folder)
    else:
        print(describe())
        small = run("small", 0, options.iterations)
        mapped = run("mapped", options.gib, options.iterations)
        memory = run("memory", options.gib_in_memory, options.iterations)
        again = run("mapped", options.gib_in_memory, options.iterations)
        report(
            {
                "file_gib": options.gib,
                "resident_mib_beyond_small": round((mapped["VmRSS"] - small["VmRSS"]) / 2**20),
                "mapped_files_mib": round(mapped["RssFile"] / 2**20),
                "in_memory_mib_beyond_small": round((memory["VmRSS"] - small["VmRSS"]) / 2**20),
                "throughput_ratio": round(again["rate"] / memory["rate"], 3),
                "throughput_ratio_best": round(again["best"] / memory["best"], 3),
            }
        )
