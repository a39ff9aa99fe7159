"""What of a folder counts as an image file: what is one by its name or its first bytes (``images.signatures``), but
for hidden files, links, and what desktops leave behind.

The one rule for ``simclr-deploy`` and for ``simclr ingest``. A link may lead out of the folder, to what its owner did
not mean to give, or to a file that is there already; so none is followed. Text next to images describes them: notes,
annotations, tables.
"""

from collections.abc import Mapping

from deploy.plural import listed

LABELS = "labels.csv"
LEFTOVERS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")  # in lower case
NOTES = (".txt", ".md", ".rst", ".log", ".ini", ".xmp", ".aae", ".htm", ".html")
TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml")
ARRAY = "is an array, which this encoder does not take for an image"
LINK = "is a link"
NO_IMAGE = "is not an image by its name or its first bytes"  # why it is passed over
SHOWN = 3


def passed_over(path: str) -> tuple[str, str] | None:
    """Whether a path below a folder, with forward slashes, is not taken for an image: the part that is not, and why.

    >>> passed_over("2026/.cache/a.png")
    ('2026/.cache', 'is hidden')
    >>> passed_over("2026/a.heic")
    """
    parts = path.split("/")
    for depth, part in enumerate(parts, start=1):
        if part.startswith("."):
            return "/".join(parts[:depth]), "is hidden"
        if part.casefold() in LEFTOVERS:
            return "/".join(parts[:depth]), "is left behind by a desktop or an archiver"
    if is_labels(path):
        return path, "has labels"
    return (path, "is text or a table by its name") if path.lower().endswith(NOTES + TABLES) else None


def is_labels(path: str) -> bool:
    """Whether a file is a table of labels, however its name is capitalized."""
    return path.rpartition("/")[2].casefold() == LABELS


def describe_passed_over(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason why files (path → reason) were passed over."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        by_reason.setdefault(reason, []).append(path)
    return [_line(paths, reason) for reason, paths in sorted(by_reason.items())]


def _line(paths: list[str], reason: str) -> str:
    each = "each " if len(paths) > 1 else ""
    return f"skipped {len(paths):,} ({each}{reason}): {listed([*map(repr, paths)], SHOWN)}"
