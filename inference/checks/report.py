"""What a check found: a list of findings, each in words and numbers, and the table that shows them."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["passed", "failed", "note", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What was found of one property of a program.

    Args:
        name: The property, such as "posterior".
        status: "failed" is a mistake; a "note" costs something, or is for the reader to judge; "skipped" says why.
        words: What was found and where to look, a sentence or two.
        numbers: The same as numbers, by name; nats per datum where nothing else is said.
    """

    name: str
    status: Status
    words: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def lines(self, *, indent: int = 0, width: int = 118) -> str:
        """Its status, name and words as lines of at most `width` characters, the words `indent` after the status."""
        status = self.status.upper() if self.status == "failed" else self.status
        head = f"{status:<8}{self.name:<{indent}}  "
        return "\n".join(
            textwrap.wrap(self.words, width, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
        )


@dataclass(frozen=True)
class Report:
    """All findings of a program.

    Args:
        program: Its name.
        findings: In the order in which they were made.
        seconds: Time that it took.
    """

    program: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The mistakes."""
        return tuple(finding for finding in self.findings if finding.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether no mistake was found."""
        return not self.failed

    def __getitem__(self, name: str) -> Finding:
        """The finding of a name, the first that failed where several chains have one.

        Raises:
            KeyError: there is none.
        """
        named = [finding for finding in self.findings if finding.name == name]
        if not named:
            raise KeyError(f"No finding {name!r}; there are {', '.join(sorted({f.name for f in self.findings}))}.")
        return next((finding for finding in named if finding.status == "failed"), named[0])

    def __str__(self) -> str:
        """A line or more for each finding, and a last one that adds up."""
        indent = max((len(finding.name) for finding in self.findings), default=0)
        return "\n".join([*(finding.lines(indent=indent) for finding in self.findings), self.verdict])

    @property
    def verdict(self) -> str:
        """What was found in all, in a line."""
        counts = {status: sum(f.status == status for f in self.findings) for status in ("passed", "note", "skipped")}
        counted = f"{counts['passed']} passed, {counts['note']} to note, {counts['skipped']} skipped"
        verdict = (
            f"{len(self.failed)} mistake{'s' * (len(self.failed) > 1)} found" if self.failed else "no mistake found"
        )
        if any(finding.name == "loss" and finding.status == "skipped" for finding in self.findings):
            verdict += ", but the loss could not be checked"
        return f"{self.program}: {verdict}; {counted}; {self.seconds:.0f} s"


def passed(name: str, words: str, **numbers: float) -> Finding:
    """What is as it should be."""
    return Finding(name, "passed", words, numbers)


def failed(name: str, words: str, **numbers: float) -> Finding:
    """A mistake."""
    return Finding(name, "failed", words, numbers)


def note(name: str, words: str, **numbers: float) -> Finding:
    """What is no mistake in itself."""
    return Finding(name, "note", words, numbers)


def skipped(name: str, reason: str) -> Finding:
    """What could not be checked, and why."""
    return Finding(name, "skipped", reason)
