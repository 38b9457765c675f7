"""What a training step sends between devices, read from the compiled program; and what that would cost, on paper.

Runs itself on eight forced host devices. Two cores show no speed-up: collectives and bytes are what is measured. Weak
scaling keeps the batch of each device, strong scaling the whole batch. Usage: python tests/benchmarks/scaling.py
[--program swiss_roll|unet] [--devices 1 2 4 8]

The estimate assumes, for each device (an NVIDIA H100 SXM in a DGX H100, by its data sheet):
- 494 TFLOP/s in TF32, dense, of which a step reaches the share MFU; FLOPs are those that XLA counts in the step.
- One ring all-reduce of the gradients a step: 2 (n - 1) / n of their bytes over the slowest link, at LINK_SHARE of its
  speed: 450 GB/s each way within eight (NVLink 4), 50 GB/s beyond (one 400 Gb/s adapter for each).
- A latency of 10 us within eight, and of 20 us more for each doubling beyond (trees).
- Nothing hidden behind computation: the worst case. Reading data is not in it.
"""

import argparse
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpyro.distributions as dist
from fit_loop import bits, unet
from machine import describe, report

import dpm_ppl as dpm
from dpm_ppl.inference import fit, make_mesh
from dpm_ppl.models import swiss_roll

PEAK, MFU, LINK_SHARE = 494e12, 0.3, 0.8
WITHIN, BETWEEN = 450e9, 50e9
BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<name>all-\w+(?:-\w+)*?|reduce-scatter|collective-\w+|ragged-all-to-all)(?:-start)?\("
)
PROGRAMS: dict[str, tuple[Callable[[], Any], Callable[[], dist.Distribution], int]] = {
    "swiss_roll": (lambda: (swiss_roll.model, swiss_roll.guide), swiss_roll.data, 64),
    "unet": (lambda: dpm.single_chain(unet), lambda: bits(0.13), 4),
}


def size_of(shapes: str) -> int:
    """Bytes of a type as XLA writes it, such as `(f32[3]{0}, f32[])`."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found)


def collectives(text: str) -> list[tuple[str, int]]:
    """Name and bytes of every collective of a compiled program."""
    return [(match["name"], size_of(match["type"])) for match in COLLECTIVE.finditer(text)]


def step(programs: Any, data: Any, *, num_devices: int, batch_size: int) -> Any:
    """The training step as `fit` compiles it."""
    compiled = []
    original = jax.stages.Lowered.compile

    def keep(self: Any, *args: Any, **options: Any) -> Any:
        compiled.append(original(self, *args, **options))
        return compiled[-1]

    jax.stages.Lowered.compile = keep  # type: ignore[method-assign]
    try:
        fit(
            programs[0],
            programs[1],
            data,
            key=jax.random.key(0),
            num_iterations=1,
            batch_size=batch_size,
            num_steps_sampled=1,
            mesh=make_mesh(num_devices),
            progress=False,
        )
    finally:
        jax.stages.Lowered.compile = original  # type: ignore[method-assign]
    return compiled[-1]


def efficiency(flops: float, sent: int, num_devices: int) -> float:
    """Share of a step that is computation, on paper."""
    seconds = flops / (PEAK * MFU)
    if num_devices == 1:
        return 1.0
    link = (WITHIN if num_devices <= 8 else BETWEEN) * LINK_SHARE
    latency = 10e-6 + 20e-6 * max(0.0, math.log2(num_devices / 8))
    return seconds / (seconds + 2 * (num_devices - 1) / num_devices * sent / link + latency)


def measure(name: str, counts: list[int]) -> dict[str, Any]:
    """Lines for weak and strong scaling, and figures."""
    pair, data, batch = PROGRAMS[name]
    programs, source = pair(), data()
    figures: dict[str, Any] = {}
    for kind in ("weak", "strong"):
        for num in counts:
            batch_size = batch * (num if kind == "weak" else max(counts))
            done = step(programs, source, num_devices=num, batch_size=batch_size)
            sent, flops = collectives(done.as_text()), float((done.cost_analysis() or {}).get("flops", math.nan))
            print(
                f"{name}, {kind}, {num} devices, batch {batch_size}: {flops:.3g} FLOP a device; "
                + (", ".join(f"{what} of {size:,} bytes" for what, size in sent) or "nothing sent"),
                flush=True,
            )
            figures[f"{kind}_{num}"] = {"flops": flops, "sent": sent}
    reduced = sum(size for what, size in figures[f"weak_{max(counts)}"]["sent"] if what == "all-reduce")
    per_datum = figures["weak_1"]["flops"] / batch
    for per_device in (16, 256):
        table = {n: round(efficiency(per_datum * per_device, reduced, n), 3) for n in (8, 16, 64, 256, 1024)}
        print(f"{name}: efficiency on paper, weak, {per_device} data a device: {table}")
        figures[f"efficiency_{per_device}"] = table
    table = {n: round(efficiency(per_datum * 4096 / n, reduced, n), 3) for n in (8, 16, 64, 256, 1024)}
    print(f"{name}: efficiency on paper, strong, 4,096 data in all: {table}")
    return {**figures, "efficiency_strong": table, "gradient_bytes": reduced}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", choices=PROGRAMS, default="swiss_roll")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    if len(jax.devices()) < max(options.devices):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(options.devices)}"
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, "XLA_FLAGS": flags}).returncode)
    print(describe())
    report({"program": options.program, **measure(options.program, options.devices)})
