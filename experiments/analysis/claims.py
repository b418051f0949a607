"""One sentence about a study, computed from its data, and whether it holds."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One sentence computed from the data; `holds` is None where it only describes, or where the data do not decide."""

    text: str
    holds: bool | None = None
    undecided: bool = False

    @property
    def verdict(self) -> Verdict | None:
        """For people: holds, fails, undecided, or nothing to judge."""
        if self.holds is None:
            return "undecided" if self.undecided else None
        return "holds" if self.holds else "fails"
