"""What came of the data contract, in sentences: what was expected, what was found, and what to do next."""

import re

from deploy.plural import counted
from pipeline.config import ValidateConfig
from pipeline.reports import Outcome, ValidationReport
from pipeline.validation.expectations import NEAR_LABELS, Expectation, expectations

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
    "not_broken": f"{LOOK}; if the batch is right, add its name to validate.drift.accepted, and run again",
    "no_drift": f"{LOOK}; if the new images are right, training on them is the remedy",
    "bytes_at_hand": "`simclr quarantine rescan` reads these files again",
    "test_labelled": "move each of these to inbox/test/<class>/, or name its class in labels.csv, and run again",
    "test_classes_known": f"{LOOK}; add training images of these classes, or correct the labels, and run again",
    "labels_agree": f"{LOOK}; correct the labels in the inbox, and run again",
    NEAR_LABELS: f"{LOOK}; correct the labels in the inbox, and run again",
}
RESCAN = "make the manifest again with `simclr quarantine rescan --all`"
QUARANTINED = (
    "fix the data (exclude files by ingest.exclude, release them with `simclr quarantine release`, or raise "
    "validate.max_quarantine_rate), then `simclr run`"
)
FROM_MANIFEST = ("manifest", "accepted")
"""Suites whose critical expectations hold for every manifest that the present code has made."""
NOTHING = {
    "batches": "there are too few earlier batches to tell their usual size",
    "drift": "drift was not checked, see the report of the stage validate",
    "shapes": "drift was not checked, see the report of the stage validate",
    "test": "there are no test images",
}
SHOWN_RULES = 3
NAMED_ROWS = ("drift", "shapes")
"""Tables whose rows are not files but what was compared, which says more than a number of them."""


def sentence(outcome: Outcome) -> str:
    """One expectation: its meaning, what was found, and what is required."""
    rule = BY_NAME.get(outcome.name)
    meaning = rule.meaning.rstrip(".") if rule else outcome.name
    if outcome.error:
        return f'"{meaning}" could not be evaluated: {outcome.error.removeprefix("Error: ").rstrip(".")}'
    if nothing := nothing_to_judge(outcome):
        return f'"{meaning}" is not applicable: {nothing}'
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
    return ADVICE.get(outcome.name) or (RESCAN if _by_making(outcome) else FILES)


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
        noted += [] if report.passed else ["the report says no more; `simclr run --select validate` makes it again"]
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
    return next((one for one in critical if one.name in ADVICE or one.suite == "manifest"), critical[0])


def _by_making(outcome: Outcome) -> bool:
    """Whether the manifest is at fault rather than the images."""
    return bool(outcome.error) or (outcome.suite in FROM_MANIFEST and outcome.severity == "critical")


def _found(outcome: Outcome) -> str:
    """What was found against what is required. A share is shown in percent, with the number that does not conform."""
    rule, observed, count = BY_NAME.get(outcome.name), outcome.observed, outcome.unexpected_count
    if rule and rule.table in NAMED_ROWS and count:
        more = f" and {count - SHOWN_RULES:,} more" if count > SHOWN_RULES else ""
        return f"found {', '.join(outcome.sample_ids[:SHOWN_RULES])}{more}, and none is allowed"
    if count is not None and isinstance(observed, float | int):
        share = re.search(r"for ([\d.]+) %$", outcome.threshold)
        others = f", {count:,} {'does' if count == 1 else 'do'} not" if count else ""
        return f"{_percent(100 * observed)} % conform{others}, and {share[1] if share else 100} % have to"
    required = re.sub(r"(>= \S+) <=", r"\1 and <=", outcome.threshold)
    if rule and rule.columns == ("quarantined",) and isinstance(observed, float | int):
        observed = f"{_percent(100 * observed)} %"
        required = re.sub(r"[\d.]+", lambda found: f"{100 * float(found[0]):g} %", required)
    required = required.replace(">=", "at least").replace("<=", "at most")
    return f"found {_shown(observed)}, required: {required}"


def _shown(observed: float | str | None) -> str:
    if observed is None:
        return "nothing"
    if isinstance(observed, str):
        return observed
    return f"{observed:,.0f}" if float(observed).is_integer() else f"{observed:,.4g}"


def _percent(value: float) -> str:
    """Two digits after the point, but nothing short of 100 shown as 100."""
    return f"{min(value, 99.99) if value < 100 else value:.4g}"
