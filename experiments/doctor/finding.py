"""What an examination finds: one line about one thing, a verdict, and what to do. Standard library only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """`found` says what is there, `advice` what to do about it; an `ok` needs none."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, advice: str = "") -> Finding:
    return Finding(check, "warning", found, advice)


def problem(check: str, found: str, advice: str = "") -> Finding:
    return Finding(check, "problem", found, advice)


def guarded(check: str, examine: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one examination. That it breaks is a finding as well, after those before it."""
    findings: list[Finding] = []
    try:
        for found in examine():
            findings.append(found)  # one by one: those before an error count
    except Exception as error:
        lines = str(error).strip().splitlines()
        # A UserError is a sentence for a person already, and its class may be what cannot be imported.
        known = type(error).__name__ == "UserError"
        said = lines[0] if lines else type(error).__name__
        findings.append(problem(check, said if known else f"cannot be examined: {type(error).__name__}: {said}"))
    return findings


def gigabytes(amount: float) -> str:
    """`12.3 GB`, by powers of 1000."""
    return f"{amount / 1e9:.1f} GB"
