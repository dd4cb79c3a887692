"""What a check-up found, as plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """PROBLEM: a run would fail, or could not be trusted. WARNING: it would work, but should be looked at."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. advice: what to do about it; empty where nothing is to be done."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, Verdict.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Verdict.WARNING, text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Verdict.PROBLEM, text, advice)


def skipped(check: str, why: str) -> Finding:
    return Finding(check, Verdict.SKIPPED, why)
