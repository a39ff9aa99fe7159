"""What a gate says, and how it is asked: a gate whose evidence is missing or broken does not pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import FORESEEN
from pipeline.gates.evidence import Evidence


@dataclass(frozen=True)
class Verdict:
    """Whether it passes, why, and the numbers that were looked at.

    ``numbers`` may hold anything that JSON can. A warning that does not pass stops nothing. Where ``judged`` is False,
    the evidence was missing or broken, which is not evidence against the candidate. Where ``applicable`` is False,
    there is nothing that this gate could judge: it passes, and the description says why.
    """

    passed: bool
    description: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    severity: Literal["error", "warning"] = "error"
    judged: bool = True
    applicable: bool = True


Gate = Callable[[Evidence], Verdict]
"""Its name and its docstring are what people see of it."""


def judge(gate: Gate, evidence: Evidence) -> Verdict:
    """Ask the gate; where a report is missing, unreadable or without the numbers in question, say which and why."""
    try:
        return gate(evidence)
    except FORESEEN as error:
        return not_judged(str(error))


def not_applicable(reason: str, numbers: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict where there is nothing to judge, such as no labels or no champion."""
    return Verdict(passed=True, description=f"not applicable: {reason}", numbers=numbers or {}, applicable=False)


def not_judged(
    description: str, numbers: Mapping[str, Any] | None = None, severity: Literal["error", "warning"] = "error"
) -> Verdict:
    """The verdict where the evidence is missing or broken."""
    return Verdict(passed=False, description=description, numbers=numbers or {}, severity=severity, judged=False)
