"""The JSON of a bundle: parsed within limits, and compared with a schema before anything uses a value of it.

The manifest proves that a file is as its author wrote it, not that it makes sense. ``parse_json`` refuses what other
programs do not read alike (NaN, numbers beyond 64 bits, broken Unicode) and what could exhaust this one; ``check_card``
names every field of bundle.json that is missing, of a wrong type, or out of its range.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from deploy.errors import BundleFormatError

FORMAT_VERSION = 2
MULTI_LABEL_VERSION = 3  # of bundles whose classes do not exclude each other: earlier releases would answer with one
READABLE = (1, FORMAT_VERSION, MULTI_LABEL_VERSION)  # version 1 has neither variants nor a temperature
MAX_DEPTH = 32  # export writes 5 levels
MAX_TEXT = 100_000  # characters
MAX_SIDE = 8_192  # pixels; pretraining allows 1,024

Check = Callable[[Any], bool]


def parse_json(content: bytes) -> Any:
    """Parse JSON; raise ValueError if it is not valid, too deep, or holds a value that not every program can read."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    _check_values(value)
    return value


def check_card(card: Any) -> dict[str, Any]:
    """Return the content of bundle.json if it fits the schema.

    Raises:
        BundleFormatError: another format version, or names each field that does not fit.
    """
    version = card.get("format_version") if isinstance(card, dict) else None
    if type(version) is not int or version not in READABLE:
        raise BundleFormatError(
            f"format version {str(version)[:50]!r}, this release reads {', '.join(map(str, READABLE))}; "
            "install the release that made the bundle, or export it again"
        )
    faults = _faults(card, SCHEMA, "") or _channel_faults(card)
    if not faults and card.get("multi_label", False) != (version == MULTI_LABEL_VERSION):
        faults = [f"multi_label and format version {version} do not belong together"]
    if faults:
        raise BundleFormatError(f"{'; '.join(faults[:5])}; export the bundle again")
    return dict(card)


def _channel_faults(card: dict[str, Any]) -> list[str]:
    channels, statistics = card["preprocessing"].get("channels", 3), card["normalisation"]
    wrong = [name for name in ("mean", "std") if len(statistics[name]) != channels]
    return [f"{name} has {len(statistics[name])} values for {channels} channels" for name in wrong]


def check_labels(labels: Any) -> tuple[str, ...]:
    """Return the content of labels.json; raise BundleFormatError unless it is a list of different names."""
    if not (isinstance(labels, list) and labels and all(_is_text(label) for label in labels)):
        raise BundleFormatError("not a list of names of classes; export the bundle again")
    if len(set(labels)) < len(labels):
        raise BundleFormatError("names a class twice; export the bundle again")
    return tuple(labels)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_values(value: Any) -> None:
    pending = [(value, 1)]
    while pending:
        part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(part, dict):
            pending += [(inner, depth + 1) for entry in part.items() for inner in entry]
        elif isinstance(part, list):
            pending += [(inner, depth + 1) for inner in part]
        elif isinstance(part, str):
            part.encode()  # a lone surrogate is not text: UnicodeEncodeError is a ValueError
            if len(part) > MAX_TEXT:
                raise ValueError(f"a text of {len(part):,} characters")
        elif isinstance(part, (int, float)) and not (abs(part) < 2**63 and math.isfinite(part)):
            raise ValueError("a number beyond 64 bits")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_integer(least: int, most: int = 2**31) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(least: float = -math.inf, most: float = math.inf) -> Check:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _is_optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_list_of(check: Check) -> Check:
    """Of one value for each channel; how many there are is compared with the channels."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_object(check: Check = lambda _: True) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_variant_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9]{1,20}", name) is not None


_PERCENT = _is_optional(_is_number(0, 100))
_TOLERANCE = {"cosine_min": _is_number(-1, 1), "max_abs": _is_number(0)}
_FACTS = {
    "method?": _is_text,
    "size_ratio?": _is_number(0),
    "cosine_mean?": _is_number(),
    "batch_cosine_min?": _is_number(),
    "knn_top1?": _PERCENT,
    "classifier_top1?": _PERCENT,
    "tolerance?": _TOLERANCE,
}
_CLASS = {"images": _is_integer(0), "recall": _PERCENT, "precision": _PERCENT}
_RESULTS = {
    "test_images?": _is_integer(0),
    "temperature?": _is_number(0),
    "calibration_error_before?": _is_number(0),
    "calibration_error?": _is_number(0),
    "per_class?": _is_object(lambda one: not _faults(one, _CLASS, "")),
}
SCHEMA: dict[str, Any] = {
    "format_version": _is_integer(1),
    "name": lambda value: isinstance(value, str) and len(value) <= 1_000,
    "dim": _is_integer(1, 1_000_000),
    "preprocessing": {
        "size": _is_integer(1, MAX_SIDE),
        "resize": _is_integer(1),
        "background?": lambda value: isinstance(value, str),
        "letterbox?": lambda value: type(value) is bool,
        "channels?": _is_integer(1, 16),
    },
    "normalisation": {"mean": _is_list_of(_is_number()), "std": _is_list_of(_is_number(1e-6))},
    "golden": {"images?": _is_integer(1), "tolerance": _TOLERANCE},
    "license?": lambda value: isinstance(value, str),
    "classes?": _is_integer(0),
    "multi_label?": lambda value: type(value) is bool,
    "encoder?": _is_object(),
    "head_layers?": _is_integer(0),
    "parity?": _is_object(_is_number()),
    "metrics?": _is_object(),
    "provenance?": _is_object(),
    "producer?": _is_object(lambda value: type(value) in (str, int)),
    "variants?": lambda value: (
        isinstance(value, dict)
        and all(_is_variant_name(name) and not _faults(facts, _FACTS, "") for name, facts in value.items())
        and all("tolerance" in facts for name, facts in value.items() if name != "fp32")
    ),
    "left_out?": _is_object(lambda value: isinstance(value, str)),
    "results?": _RESULTS,
}
"""Field → what it must be; a field whose name ends with "?" may be absent. Further fields are allowed, and not used."""


def _faults(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where or 'the content'} is not an object"]
    found = []
    for field, check in schema.items():
        name = field.removesuffix("?")
        if name not in value:
            found += [] if field != name else [f"{where}{name} is missing"]
        elif isinstance(check, dict):
            found += _faults(value[name], check, f"{where}{name}.")
        elif not check(value[name]):
            found.append(f"{where}{name} is of a wrong type or out of its range: {str(value[name])[:50]}")
    return found
