"""What came of the data contract, in sentences: what was expected, what was found, and what to do next."""

import re

from deploy.plural import counted
from pipeline.config import ValidateConfig
from pipeline.reports import Outcome, ValidationReport
from pipeline.validation.expectations import Expectation, expectations

RULES = expectations(ValidateConfig())
"""Of these only what no parameter changes is used; thresholds are those of the report."""

BY_NAME: dict[str, Expectation] = {rule.name: rule for rule in RULES}

LOOK = "look at reports/validation.html"
FILES = (
    f"{LOOK}; correct or remove these files, accept good ones with `simclr quarantine release`, or change the block "
    "validate of params.yaml, and run again"
)
ADVICE = {
    "enough_training_images": "put more images into inbox/unlabeled, or lower validate.min_images, and run again",
    "not_empty": "put images into inbox/unlabeled, and run again",
    "not_broken": f"{LOOK}; if the batch is right all the same, add its name to validate.drift.accepted, and run again",
}
QUARANTINED = (
    "fix the data (exclude files by ingest.exclude, release them with `simclr quarantine release`, or raise "
    "validate.max_quarantine_rate), then `simclr run`"
)
BY_SUITE = {"manifest": "make the manifest again with `simclr quarantine rescan --all`"}
NOTHING = {
    "batches": "there are too few earlier batches to tell their usual size",
    "drift": "drift was not checked, see the report of the stage validate",
    "shapes": "drift was not checked, see the report of the stage validate",
    "test": "there are no test images",
}
SHOWN_RULES = 3


def sentence(outcome: Outcome) -> str:
    """One expectation: its meaning, what was found, and what is required."""
    rule = BY_NAME.get(outcome.name)
    meaning = rule.meaning.rstrip(".") if rule else outcome.name
    if outcome.error:
        return f'"{meaning}" could not be evaluated: {outcome.error}'
    verb = "holds" if outcome.success else "does not hold"
    return f'"{meaning}" {verb}: {_found(outcome)}'


def nothing_to_judge(outcome: Outcome) -> str | None:
    """Why an expectation cannot hold or fail, as there are no rows that it is about; None if there are."""
    rule = BY_NAME.get(outcome.name)
    if outcome.error or outcome.observed is not None or not outcome.success:
        return None
    return NOTHING.get(rule.table if rule else "", "there are no such images")


def advice(outcome: Outcome) -> str:
    """The next step when an expectation does not hold."""
    return ADVICE.get(outcome.name) or BY_SUITE.get(outcome.suite, FILES)


def next_step(report: ValidationReport) -> str | None:
    """What to do about a broken contract; None where it is not broken."""
    critical = _critical(report)
    if report.passed or not critical:
        return None
    if any(one.name == "quarantine_rate" for one in critical):
        return QUARANTINED
    return advice(_cause(critical))


def describe(report: ValidationReport) -> str:
    """The whole contract in a sentence. One that is broken begins with its cause, the most frequent of its files."""
    images = report.images
    quarantined = images.quarantined
    reasons = ", ".join(f"{count:,} {name}" for name, count in sorted(quarantined.items(), key=lambda one: -one[1]))
    lost = f", {sum(quarantined.values()):,} quarantined ({reasons})" if quarantined else ""
    files = f"{images.accepted:,} of {counted(images.ingested, 'file')} accepted{lost}"
    broken = [one for one in report.expectations if not one.success]
    critical = _critical(report)
    if report.passed or not critical:
        noted = [f"{one.severity}: {sentence(one)}" for one in broken]
        return "; ".join([files, *noted])
    first = _cause(critical)
    said = [sentence(one) for one in [first, *(one for one in critical if one is not first)][:SHOWN_RULES]]
    more = len(critical) - len(said)
    said += [f"{counted(more, 'more critical expectation')} {'does' if more == 1 else 'do'} not hold"] if more else []
    return f"the data contract is broken, with {files}: {'; '.join(said)}; {advice(first)}"


def _critical(report: ValidationReport) -> list[Outcome]:
    return [one for one in report.expectations if not one.holds]


def _cause(critical: list[Outcome]) -> Outcome:
    """The one with advice for itself, if there is one."""
    return next((one for one in critical if one.name in ADVICE or one.suite in BY_SUITE), critical[0])


def _found(outcome: Outcome) -> str:
    """What was found against what is required. A share is shown in percent, with the number that does not conform."""
    share = re.search(r"for ([\d.]+) %$", outcome.threshold)
    observed, count = outcome.observed, outcome.unexpected_count
    if count is not None and isinstance(observed, float | int):
        others = f", {count:,} {'does' if count == 1 else 'do'} not" if count else ""
        return f"{_percent(100 * observed)} % conform{others}, and {share[1] if share else 100} % have to"
    required = outcome.threshold.replace(">=", "at least").replace("<=", "at most")
    return f"found {'nothing' if observed is None else observed}, required: {required}"


def _percent(value: float) -> str:
    """Two digits after the point, but nothing short of 100 shown as 100."""
    return f"{min(value, 99.99) if value < 100 else value:.4g}"
