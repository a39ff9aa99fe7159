"""What a gate says, and how it is asked: a gate whose evidence is missing or broken does not pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from pipeline.errors import FORESEEN
from pipeline.gates.evidence import Evidence


@dataclass(frozen=True)
class Verdict:
    """Whether it passes, why, in a sentence, and the numbers that were looked at.

    ``numbers`` may hold anything that JSON can. A warning that does not pass stops nothing. Where ``judged`` is False,
    the evidence was missing or broken, which is not evidence against the candidate. Where ``applicable`` is False,
    there is nothing that this gate could judge: it passes, and the description says why. Where ``undecided``, there is
    evidence, and too little of it: the description says what would settle it.
    """

    passed: bool
    description: str
    numbers: Mapping[str, JsonValue] = field(default_factory=dict)
    severity: Literal["error", "warning"] = "error"
    judged: bool = True
    applicable: bool = True
    undecided: bool = False

    @property
    def outcome(self) -> Literal["passed", "refused", "undecided", "not applicable", "not judged"]:
        """The verdict in a word or two, the same wherever people see it."""
        if self.undecided:
            return "undecided"
        if not self.applicable:
            return "not applicable"
        if not self.judged:
            return "not judged"
        return "passed" if self.passed else "refused"

    def __str__(self) -> str:
        said = self.outcome
        return self.description if self.description.startswith(said) else f"{said}: {self.description}"


Gate = Callable[[Evidence], Verdict]
"""Its name and its docstring are what people see of it."""


def judge(gate: Gate, evidence: Evidence) -> Verdict:
    """Ask the gate; where a report is missing, unreadable or without the numbers in question, say which and why."""
    try:
        return gate(evidence)
    except FORESEEN as error:
        return not_judged(str(error))


def not_applicable(
    reason: str, numbers: Mapping[str, JsonValue] | None = None, severity: Literal["error", "warning"] = "error"
) -> Verdict:
    """The verdict where there is nothing to judge, such as no labels or no champion."""
    return Verdict(True, f"not applicable: {reason}", numbers or {}, severity, applicable=False)


def not_judged(
    description: str, numbers: Mapping[str, JsonValue] | None = None, severity: Literal["error", "warning"] = "error"
) -> Verdict:
    """The verdict where the evidence is missing or broken."""
    return Verdict(passed=False, description=description, numbers=numbers or {}, severity=severity, judged=False)


def undecided(description: str, numbers: Mapping[str, JsonValue], blocks: bool) -> Verdict:
    """The verdict where the evidence shows neither that the candidate is good enough nor that it is not.

    Args:
        blocks: whether it stops the release; otherwise it is a warning.
    """
    return Verdict(False, description, numbers, "error" if blocks else "warning", undecided=True)
