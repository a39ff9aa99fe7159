"""What every message for a person has to be: one plain sentence, without Python in it, that ends with the next step.

Fixtures that inject faults hold each message that comes of them against this, so that no test has to quote it for that.
"""

import re

from pipeline.gates.verdict import Verdict

FAULTS = {
    "a Python value": re.compile(r"[\[({]['\"]|\bobject at 0x|\b(True|False|None)\b|\b(dict|tuple)\("),
    "bytes": re.compile(r"\bb['\"]"),
    "words of a library": re.compile(r"Input should|Field required|Expecting value|Traceback|\[Errno"),
    "a doubled word": re.compile(r"\b([a-z]{2,}) \1\b", re.IGNORECASE),
    "doubled punctuation": re.compile(r"[.;:,]['\"]?[;,]|[;:]\s*$"),
    "one of several": re.compile(
        r"(?<![\d.,/@-])1 (?:[a-z-]+ )?(?:image|file|label|row|content|column|fault|note|step|object)s\b"
        r"|(?<![\d.,/@-])1 (?:epoch|seed|version|day)s\b"
        r"|(?<![\d.,/@-])1 (?:[a-z-]+ )?(?:batch|class|copi)es\b"
    ),
    "a fraction of nothing": re.compile(r"found \d+\.0\b"),
    "a line break": re.compile("\n"),
}
NEXT_STEP = re.compile(
    r"`simclr |(?:^|; |, or |, and |: |when the machine is free)(?:add|correct|embed|give|ingest|label|look|lower|make|"
    r"more finetune|move|put|raise|restore|run|set|train|try|turn|if the |did you mean)\b"
)


def assert_plain(sentence: str) -> None:
    """No Python, no doubled word, no "1 batches"."""
    for kind, pattern in FAULTS.items():
        found = pattern.search(sentence)
        assert not found, f"{kind}, {found[0]!r}: {sentence}"


def assert_helpful(verdict: Verdict) -> None:
    """The sentence of a verdict is plain; where something has to be done, it says what."""
    assert_plain(verdict.description)
    if not verdict.passed:
        assert NEXT_STEP.search(verdict.description), f"no next step: {verdict.description}"
