"""The data contract, as data: what must hold for a set of images before anything is trained on it.

Five suites of Great Expectations. A critical expectation that fails stops the pipeline, a warning or an info does not.
One that cannot be evaluated is an error, and an error stops the pipeline whatever its severity. Great Expectations
passes over nulls, so each critical expectation on a column has a twin, ``<column>_present``.

The suites decide about the set; which file is quarantined is for ``verdict`` to say. Names and severities never depend
on the parameters: Dagster makes its checks of them before it knows any. Importing this module imports nothing heavy:
see ``evaluate`` for that, and for the tables.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

from deploy.images.image_faults import FORMATS
from pipeline.config import ValidateConfig
from pipeline.reports import Severity
from pipeline.validation.probe.facts import Facts
from pipeline.validation.reasons import DARK_P99, LIGHT_P05, REASONS

NO_REASON = "none"
FILE_COLUMNS = (
    "file_id", "path", "split", "label", "sha256", "batch", "ingest_batch", "verdict", "reasons", "message",
    "warnings", "copy_of", "near_group", "near_group_size", "short_side", "aspect",
)  # fmt: skip
FACT_COLUMNS = tuple(one.name for one in fields(Facts) if one.name not in ("sha256", "reason", "message"))
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB",
    "I;16", "I;16B", "I;16L", "I;16N", "uint8", "uint16",
)  # fmt: skip
"""Pixel layouts whose range is known: Pillow's, all but 32-bit integers and floats, and those of arrays and TIFFs of
several channels."""

NEAR_LABELS = "near_labels_agree"
"""The expectation about the labels of near copies, and its column."""

SHARP = 1.5
"""Mean difference of neighboring pixels, of 255. Photographs 640 pixels wide have 4 and more, and 1.2 to 1.3 when they
are blurred by 16 pixels; measured on those of scikit-learn."""

LARGEST_NEAR_GROUP = 50
USUAL_BATCH = 2.0  # times more or fewer files than the median of the batches before

IN_SET = "expect_column_values_to_be_in_set"
NOT_IN_SET = "expect_column_values_to_not_be_in_set"
BETWEEN = "expect_column_values_to_be_between"
PRESENT = "expect_column_values_to_not_be_null"
UNIQUE = "expect_column_values_to_be_unique"
MEAN = "expect_column_mean_to_be_between"
MAX = "expect_column_max_to_be_between"
COLUMNS = "expect_table_columns_to_match_set"
ROWS = "expect_table_row_count_to_be_between"
NOT_BELOW = "expect_column_pair_values_a_to_be_greater_than_b"

MEANINGS = {
    "manifest_columns": "The manifest has exactly its columns.",
    "not_empty": "There are files.",
    "file_id_unique": "No two files have the same id.",
    "split_known": "Every file is for training or for the test.",
    "verdict_known": "Every file is accepted, converted or quarantined.",
    "reason_known": "Every reason is in the vocabulary.",
    "batch_size_usual": "The newest batch is about as large as those before it.",
    "decodes": "Nearly all contents decode.",
    "decodes_almost_always": "All but one in a thousand decode.",
    "decoders_survive": "Hardly any content kills or stalls its decoder.",
    "no_worker_crash": "All but one in ten thousand contents decode without a crash or timeout.",
    "bytes_at_hand": "All but one in a thousand contents can be read.",
    "few_bombs": "Hardly any content unpacks to an unreasonable size.",
    "streams_intact": "Hardly any JPEG decodes from a damaged stream.",
    "format_known": "Nearly all contents have a supported format.",
    "mode_known": "Nearly all contents have a pixel layout whose range is known.",
    "bit_depth_known": "Nearly all contents store 1, 2, 4, 8 or 16 bits a channel.",
    "not_animated": "Nearly all contents have a single frame.",
    "extension_matches": "Nearly all file names match the format of the content.",
    "no_trailing_bytes": "Hardly any content has bytes after the end of its image.",
    "exif_readable": "Hardly any content has a damaged EXIF block.",
    "no_icc_profile": "Hardly any content has an embedded color profile.",
    "no_gps": "No content has a GPS position; one that has is stripped of it.",
    "short_side": "The shorter side of nearly all images has validate.min_side pixels.",
    "aspect": "Nearly all images are no longer than validate.max_aspect times their shorter side.",
    "quarantine_rate": "No more contents than validate.max_quarantine_rate are quarantined.",
    "quarantine_rate_low": "No more than one content in a hundred is quarantined.",
    "has_content": "Hardly any image is of one color.",
    "not_dark": "Hardly any image is almost black.",
    "not_light": "Hardly any image is almost white.",
    "not_blurred": "Nine of ten images are sharp.",
    "brightness": "The images are, on the whole, neither dark nor light.",
    "has_colour": "The images have, on the whole, color.",
    "accepted_decodes": "Every accepted file decodes.",
    "accepted_short_side": "Every accepted image has validate.min_side pixels, unless a person has released it.",
    "accepted_aspect": "No accepted image is longer than validate.max_aspect allows, unless a person has released it.",
    "accepted_bytes_unique": "No two accepted files have the same bytes.",
    "accepted_pixels_unique": "No two accepted files have the same pixels.",
    "near_copies_few": "Nine of ten training images have no near copy.",
    "near_group_small": "No training picture has very many near copies.",
    "no_split_leak": "No image is in both the training and the test set.",
    "no_near_leak": "No training image is a near copy of a test image.",
    "enough_training_images": "There are validate.min_images accepted training images.",
    "has_test_images": "There are accepted test images.",
    "test_labelled": "Every test image has a label.",
    "test_classes_known": "Every label of the test images also occurs in training.",
    "labels_agree": "Hardly any image has contradictory labels.",
    "near_labels_agree": "Near copies have the same label.",
    "no_drift": "The newest batch looks like the earlier ones.",
    "not_broken": "No batch looks like a known bug.",
}
"""What each expectation says, in one sentence without the numbers that parameters may change."""


@dataclass(frozen=True)
class Expectation:
    """One rule on one of the tables of ``evaluate.tables``. ``type`` and ``arguments`` are Great Expectations' own."""

    name: str
    suite: str
    table: str
    severity: Severity
    type: str
    arguments: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it looks into."""
        return tuple(self.arguments[key] for key in ("column", "column_A", "column_B") if key in self.arguments)

    @property
    def meaning(self) -> str:
        """One sentence for a person."""
        return MEANINGS.get(self.name, f"{', '.join(self.columns)} is known wherever a rule needs it.")

    @property
    def threshold(self) -> str:
        """What is asked for, in a few words."""
        arguments = self.arguments
        given = arguments.get("value_set", ())
        words = {UNIQUE: ["unique"], PRESENT: ["present"], NOT_IN_SET: ["not"]}.get(self.type, [])
        words += [f"{arguments['column_B']} <= its {arguments['column_A']}"] if self.type == NOT_BELOW else []
        words += [f">= {arguments['min_value']:g}"] if "min_value" in arguments else []
        words += [f"<= {arguments['max_value']:g}"] if "max_value" in arguments else []
        words += [f"exactly {len(arguments['column_set'])} columns"] if self.type == COLUMNS else []
        values = [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) for value in given]
        words += [" or ".join(values) if len(values) <= 3 else f"{len(values)} known values"] if values else []
        words += [f"for {100 * arguments['mostly']:g} %"] if "mostly" in arguments else []
        return " ".join(words)


def expectations(config: ValidateConfig) -> tuple[Expectation, ...]:
    """All rules, with unique names; a critical rule on a column is followed by its twin, unless the column has one."""
    files = _container_rules(config), _picture_rules(config)
    suites = _manifest_suite(), *files, _accepted_suite(config), _splits_suite(config), _drift_suite()
    return _with_twins(chain.from_iterable(suites))


def _manifest_suite() -> list[Expectation]:
    """S0: is the manifest whole?"""
    rule = partial(_rule, "manifest")
    columns: dict[str, Any] = {"column_set": [*FILE_COLUMNS, *FACT_COLUMNS], "exact_match": True}
    verdicts = ["accept", "convert", "quarantine"]
    usual = {"min_value": 1 / USUAL_BATCH, "max_value": USUAL_BATCH}
    return [
        rule("columns", "manifest_columns", "critical", COLUMNS, **columns),
        rule("manifest", "not_empty", "critical", ROWS, min_value=1),
        rule("manifest", "file_id_unique", "critical", UNIQUE, "file_id"),
        rule("manifest", "split_known", "critical", IN_SET, "split", value_set=["train", "test"]),
        rule("manifest", "verdict_known", "critical", IN_SET, "verdict", value_set=verdicts),
        rule("manifest", "reason_known", "critical", IN_SET, "reason", value_set=[NO_REASON, *REASONS]),
        rule("batches", "batch_size_usual", "info", BETWEEN, "times_usual", **usual),
    ]


def _container_rules(config: ValidateConfig) -> list[Expectation]:
    """S1: are the files, by and large, what they should be?"""
    rule = partial(_rule, "files", "contents")
    most = round(1 - config.max_quarantine_rate, 6)
    crashed, bombs = ["worker_crash", "timeout"], ["bomb", "metadata_bomb"]
    matches: dict[str, Any] = {"value_set": [True], "mostly": 0.995}
    return [
        rule("decodes", "critical", IN_SET, "decodes", value_set=[True], mostly=most),
        rule("decodes_almost_always", "warning", IN_SET, "decodes", value_set=[True], mostly=0.999),
        rule("decoders_survive", "critical", NOT_IN_SET, "fault", value_set=crashed, mostly=0.99),
        rule("no_worker_crash", "warning", NOT_IN_SET, "fault", value_set=crashed, mostly=0.9999),
        rule("bytes_at_hand", "warning", NOT_IN_SET, "fault", value_set=["io_error"], mostly=0.999),
        rule("few_bombs", "warning", NOT_IN_SET, "fault", value_set=bombs, mostly=0.999),
        rule("streams_intact", "warning", IN_SET, "stream_intact", value_set=[True], mostly=0.99),
        rule("format_known", "critical", IN_SET, "format", value_set=[*FORMATS, "HEIF", "NPY"], mostly=most),
        rule("mode_known", "critical", IN_SET, "mode", value_set=list(MODES), mostly=most),
        rule("bit_depth_known", "warning", IN_SET, "bit_depth", value_set=[1, 2, 4, 8, 16], mostly=0.95),
        rule("not_animated", "warning", BETWEEN, "frames", max_value=1, mostly=0.99),
        _rule("files", "manifest", "extension_matches", "warning", IN_SET, "extension_matches", **matches),
        rule("no_trailing_bytes", "info", IN_SET, "trailing_bytes", value_set=[0], mostly=0.99),
        rule("exif_readable", "info", IN_SET, "exif_unreadable", value_set=[False], mostly=0.99),
        rule("no_icc_profile", "info", IN_SET, "has_icc_profile", value_set=[False], mostly=0.99),
        rule("no_gps", "info", IN_SET, "has_gps", value_set=[False]),
    ]


def _picture_rules(config: ValidateConfig) -> list[Expectation]:
    rule = partial(_rule, "files", "contents")
    rate = config.max_quarantine_rate
    most = round(1 - rate, 6)
    return [
        rule("short_side", "critical", BETWEEN, "short_side", min_value=config.min_side, mostly=most),
        rule("aspect", "critical", BETWEEN, "aspect", max_value=config.max_aspect, mostly=most),
        rule("quarantine_rate", "critical", MEAN, "quarantined", max_value=rate),
        rule("quarantine_rate_low", "warning", MEAN, "quarantined", max_value=0.01),
        rule("has_content", "warning", NOT_IN_SET, "fault", value_set=["low_information", "placeholder"], mostly=0.98),
        rule("not_dark", "warning", BETWEEN, "luma_p99", min_value=DARK_P99 * 255, mostly=0.95),
        rule("not_light", "warning", BETWEEN, "luma_p05", max_value=LIGHT_P05 * 255, mostly=0.95),
        rule("not_blurred", "warning", BETWEEN, "edge_energy", min_value=SHARP, mostly=0.9),
        rule("brightness", "warning", MEAN, "luma_mean", min_value=25, max_value=230),
        rule("has_colour", "info", MEAN, "saturation", min_value=1),
    ]


def _accepted_suite(config: ValidateConfig) -> list[Expectation]:
    """S2: is what was accepted fit for training, whatever the verdicts were based on?"""
    rule = partial(_rule, "accepted")
    return [
        rule("accepted", "accepted_decodes", "critical", IN_SET, "decodes", value_set=[True]),
        rule("unreleased", "accepted_short_side", "critical", BETWEEN, "short_side", min_value=config.min_side),
        rule("unreleased", "accepted_aspect", "critical", BETWEEN, "aspect", max_value=config.max_aspect),
        rule("accepted", "accepted_bytes_unique", "critical", UNIQUE, "sha256"),
        rule("accepted", "accepted_pixels_unique", "critical", UNIQUE, "pixel_hash"),
        rule("train", "near_copies_few", "warning", BETWEEN, "near_copies", max_value=1, mostly=0.9),
        rule("train", "near_group_small", "warning", MAX, "near_copies", max_value=LARGEST_NEAR_GROUP),
    ]


def _splits_suite(config: ValidateConfig) -> list[Expectation]:
    """S3: are training and test set apart, and usable?"""
    rule = partial(_rule, "splits")
    agreeing = round(1 - config.near_duplicates.max_label_conflicts, 6)
    return [
        rule("accepted", "no_split_leak", "critical", IN_SET, "leaks", value_set=[False]),
        rule("accepted", "no_near_leak", "warning", IN_SET, "nearly_leaks", value_set=[False]),
        rule("train", "enough_training_images", "critical", ROWS, min_value=config.min_images),
        rule("test", "has_test_images", "info", ROWS, min_value=1),
        rule("test", "test_labelled", "warning", PRESENT, "label"),
        rule("test", "test_classes_known", "warning", IN_SET, "class_known", value_set=[True]),
        rule("manifest", "labels_agree", "warning", NOT_IN_SET, "reason", value_set=["label_conflict"], mostly=0.99),
        rule("manifest", NEAR_LABELS, "warning", IN_SET, NEAR_LABELS, value_set=[True], mostly=agreeing),
    ]


def _drift_suite() -> list[Expectation]:
    """S4: does the newest batch look like the earlier ones? Both tables are empty where that cannot be judged."""
    rule = partial(_rule, "drift")
    ordered: dict[str, Any] = {"column_A": "threshold", "column_B": "effect", "or_equal": True}
    return [
        rule("drift", "no_drift", "warning", NOT_BELOW, **ordered),
        rule("shapes", "not_broken", "critical", IN_SET, "found", value_set=[False]),
    ]


def _rule(
    suite: str, table: str, name: str, severity: Severity, type: str, column: str | None = None, **arguments: Any
) -> Expectation:
    arguments = {"column": column, **arguments} if column else arguments
    return Expectation(name, suite, table, severity, type, arguments)


def _with_twins(rules: Iterable[Expectation]) -> tuple[Expectation, ...]:
    """Add, after the first critical rule on a column, one that asks for it in the same share of rows."""
    complete: dict[str, Expectation] = {}
    for rule in rules:
        complete[rule.name] = rule
        column = rule.arguments.get("column")
        if rule.severity == "critical" and column:
            name = f"{'accepted_' if rule.table in ('accepted', 'unreleased') else ''}{column}_present"
            share = {"mostly": rule.arguments["mostly"]} if "mostly" in rule.arguments else {}
            twin = _rule(rule.suite, rule.table, name, "critical", PRESENT, column, **share)
            complete.setdefault(name, twin)
    return tuple(complete.values())
