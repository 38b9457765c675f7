"""Seconds and findings of `dpm_ppl.check` for every program of models/, or for those that are named.

Exit status 1 if one has a mistake, does not run, or takes too long.

Usage: python tests/benchmarks/check_all.py [NAME ...]

Each is checked in a process of its own, as the command line starts it, compilation included.
"""

import os
import re
import subprocess
import sys
import time

from dpm_ppl.commands import find

SECONDS = 60  # what a check may take on two quiet cores


def main() -> int:
    """Prints a table, and every finding that is no pass; returns the number of programs that do not hold."""
    from machine import describe  # beside this file

    print(describe(), f"load {os.getloadavg()[0]:.1f}")
    print(f"{'program':<18}{'wall s':>8}{'CPU s':>8}{'passed':>8}{'noted':>8}{'skipped':>8}{'failed':>8}")
    remarks, num_bad = [], 0
    for name in sys.argv[1:] or find.known():
        began, before = time.monotonic(), os.times()
        done = subprocess.run([sys.executable, "-m", "dpm_ppl", "check", name], capture_output=True, text=True)
        after, wall = os.times(), time.monotonic() - began
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        statuses = re.findall(r"^(passed|note|skipped|FAILED)\b", done.stdout, re.MULTILINE)
        counts = [statuses.count(status) for status in ("passed", "note", "skipped", "FAILED")]
        late = "" if wall <= SECONDS else f"  over {SECONDS} s"
        print(f"{name:<18}{wall:>8.1f}{cpu:>8.1f}" + "".join(f"{count:>8}" for count in counts) + late, flush=True)
        findings = re.split(r"\n(?=\S)", done.stdout)
        remarks += [f"{name}: {finding}" for finding in findings if finding.startswith(("note", "skipped", "FAILED"))]
        remarks += [f"{name}: {done.stderr}"] if done.returncode not in (0, 1) or not statuses else []
        num_bad += bool(done.returncode or late or not statuses)
    print("\n" + "\n".join(remarks))
    return num_bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))
