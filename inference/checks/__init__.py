"""What can be known of a program before it is fitted: `check` finds the mistakes that give silent garbage.

`checklist.check` is where to start: it makes a program into a `subject` (data, parameters, the chains it declares) and
runs the checks on it, each of which yields findings of a `report`: `agreement` of guide and model, the kernel's `laws`,
whose `context` each datum sees, the `reverse` steps and their `variance`, `data` and its `rows`, `gradients`, `bounds`
(by the program's own `losses`) and `precision`. `statistics` decides what is a difference.
"""

from dpm_ppl.inference.checks.checklist import check
from dpm_ppl.inference.checks.report import Finding, Report

__all__ = [
    "Finding",
    "Report",
    "check",
]
