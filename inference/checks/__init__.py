"""What can be known of a program before it is fitted: `check` finds the mistakes that give silent garbage."""

from dpm_ppl.inference.checks.check import check as check
from dpm_ppl.inference.checks.report import Finding as Finding
from dpm_ppl.inference.checks.report import Report as Report
