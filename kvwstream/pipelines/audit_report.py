"""What an audit found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvwstream.errors import KvwstreamError


@dataclass
class Audit:
    """What was found out about the artefacts."""

    verified: list[str] = field(default_factory=list)
    """One line per thing that holds."""
    findings: list[str] = field(default_factory=list)
    """One line per thing that is missing, extra, changed or otherwise wrong."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and what would be needed."""

    @property
    def passed(self) -> bool:
        """Whether everything that was checked holds."""
        return not self.findings

    def add(self, other: Audit) -> None:
        """What was found out about further artefacts."""
        self.verified += other.verified
        self.findings += other.findings
        self.notes += other.notes

    def attempt(self, check: Callable[[], str | None]) -> bool:
        """Run one check: a line that it returns is verified, what it raises is a finding."""
        try:
            verified = check()
        except KvwstreamError as error:
            self.findings += str(error).splitlines()
            return False
        if verified:
            self.verified.append(verified)
        return True
