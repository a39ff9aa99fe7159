"""params.yaml is read as a whole, with all faults at once, and changed whole or not at all."""

import random
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest
import yaml
from pydantic import ValidationError

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.config import RetrainingConfig
from pipeline.errors import ParamsError
from pipeline.workspace import Workspace

TAKEN = """
0 3 * * 0; 30 4 * * 1-5; */15 2-4 1,15 jan *; 0 0 L * *; 0 0 * * L5; 0 0 * * 5#2; 0 0 * * fri#2; 0 0 * * fri-mon;
0 22-2 * * *; 0 0 ? * ?; 0 0 * * 7; 0 0 1,L * *; @daily; @DAILY; @midnight; 5/10 * * * *; 0 0 1-5/2 * *;
0 0 * JAN,mar *; 0  3 * * 0; *,5 * * * *; 0 0 * * 0,7; 0 0 31 2,3 *; @yearly; @annually; @hourly; 0 0 29 2 *;
00 03 030 04 *; 0 0 30-30 2 *; 0 0 L 02 *; 0 0 29 2 mon; 0 0 * 2 mon#5; 0 0 1-7 * mon#1; 0 0 31-1 2 *;
0 0 30 2-2/12 *
"""
REFUSED = """
0 3 * *; 0 3 * * 0 5; 60 * * * *; -5 * * * *; 0 0 0 * *; 0 0 * 13 *; 0 0 * * 8; 0 0 30 2 *; 0 0 31 feb *; */0 * * * *;
? 0 * * *; 0 0 15W * *; 0 0 * * 5L; h h * * *; every sunday; @reboot; @every 5m; 3; 0 0 * sun *; 0 0 * * jan;
1, * * * *; sunday; 0 0 31 02 *; 0 0 030 2 *; 0 0 30 2,2 *; 0 0 31 feb,2 *; 0 0 1 1 0#1,1; 0 0 1 1 1,0#1; 0 0 ?,1 * *;
0 0 * * ?/2
"""
NEVER_DUE = """
0 0 31 4 *; 0 0 31 apr,06,9 *; 0 0 30,31 2 *; 0 0 31 2,4 *; 0 0 30-31 2 *; 0 0 31 4 mon; 0 0 1 * mon#2; 0 0 L 3 sun#4;
0 0 15/16 2,4 fri#5
"""


def test_the_shipped_recipe_is_valid_and_names_every_key(workspace: Workspace) -> None:
    workspace.params.write_text(workspaces.template("params.yaml").read_text())
    read = params.read(workspace)
    given = yaml.safe_load(workspace.params.read_text())
    for name, model in params.BLOCKS.items():
        assert given[name].keys() == model.model_fields.keys(), "a knob that is not shown is a knob no one finds"
        assert getattr(read, name).model_fields_set == model.model_fields.keys()


def test_all_faults_of_all_blocks_are_reported_together(workspace: Workspace) -> None:
    content = yaml.safe_load(workspace.params.read_text())
    content["ingest"]["setle_seconds"] = 1
    content["pretrain"]["temperature"] = -1
    content["export"]["opset"] = "new"
    workspace.params.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        params.read(workspace)
    for fault in (
        "ingest.setle_seconds: unknown key; did you mean settle_seconds?",
        "pretrain.temperature",
        "export.opset",
    ):
        assert fault in str(caught.value)


LONG_STEPS = pytest.mark.filterwarnings("ignore:Found a cron schedule with an interval")  # such as */90 minutes


def dagster_takes(expression: str) -> bool:
    try:
        dg.ScheduleDefinition(name="scheduled", job_name="retrain", cron_schedule=expression)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True


def is_allowed(expression: str) -> bool:
    try:
        return RetrainingConfig(schedule=expression).schedule == expression
    except ValidationError:
        return False


@LONG_STEPS
@pytest.mark.parametrize("schedules", [TAKEN, REFUSED])
def test_a_schedule_is_judged_as_dagster_would(schedules: str) -> None:
    expressions = [one.strip() for one in schedules.split(";")]
    wrong = [one for one in expressions if not is_allowed(one) == dagster_takes(one) == (schedules is TAKEN)]
    assert wrong == []


@LONG_STEPS
@pytest.mark.parametrize("expression", ["*/90 * * * *", "0 */36 * * *", "0 3 */45 * *", "5-50/90 * * * *"])
def test_a_step_longer_than_its_field_is_refused_though_dagster_takes_it(expression: str) -> None:
    """It would be due every hour, or day, or month."""
    assert dagster_takes(expression)
    assert not is_allowed(expression)


def test_a_schedule_that_is_never_due_is_refused_though_dagster_takes_it() -> None:
    expressions = [one.strip() for one in NEVER_DUE.split(";")]
    assert [one for one in expressions if is_allowed(one) or not dagster_takes(one)] == []


def random_field(chance: random.Random, low: int, high: int, others: Sequence[str]) -> str:
    """As people and programs write one: few of them are valid."""

    def value() -> str:
        number = chance.randint(low, high)
        return chance.choice([str(number), f"{number:02}", *others])

    forms = [lambda: "*", value, value, lambda: f"{value()}-{value()}", lambda: f"*/{chance.randint(0, 9)}"]
    forms.append(lambda: f"{value()}-{value()}/{chance.randint(1, 12)}")
    return ",".join(chance.choice(forms)() for _ in range(chance.choice([1, 1, 1, 2, 3])))


@LONG_STEPS
def test_dagster_takes_every_schedule_that_is_allowed() -> None:
    """Else the code location does not load, which ends the schedule, the sensor and the UI."""
    chance = random.Random(0)
    allowed = 0
    for _ in range(1500):
        expression = " ".join(
            (
                random_field(chance, 0, 60, ()),
                "0",
                random_field(chance, 27, 32, ("L", "?", "*")),
                random_field(chance, 0, 13, ("feb", "2", "02", "2", "feb")),
                random_field(chance, 0, 8, ("?", "*", "*", "mon", "fri#2", "0#1", "l5", "1#5", "*")),
            )
        )
        if is_allowed(expression):
            allowed += 1
            assert dagster_takes(expression), expression
    assert allowed > 100


@pytest.mark.parametrize("written", ["@daily ", " 0 3 * * 0", "0 3 * * 0\n"])
def test_blanks_around_a_schedule_do_not_reach_dagster(written: str) -> None:
    assert RetrainingConfig(schedule=written).schedule == written.strip()


@pytest.mark.parametrize(("short_side", "resize", "side"), [("null", "null", 16), ("null", "20", 20), ("64", "20", 64)])
def test_what_is_stored_follows_what_is_trained_and_served(
    workspace: Workspace, short_side: str, resize: str, side: int
) -> None:
    params.override(workspace, {"prepare.short_side": short_side, "pretrain.resize": resize})
    assert params.read(workspace).prepared_side == side


def test_what_null_follows_has_to_be_written_down(workspace: Workspace) -> None:
    """DVC watches these keys, and refuses a file without them."""
    text = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text(text.replace("short_side: 256", "short_side: null").replace("  resize: null\n", ""))
    with pytest.raises(ParamsError, match=r"pretrain.resize: missing, but prepare.short_side is null and follows it"):
        params.read(workspace)


def test_images_may_be_as_small_as_training_sees_them(workspace: Workspace) -> None:
    params.override(workspace, {"prepare.short_side": "16"})
    assert params.read(workspace).prepare.short_side == params.read(workspace).pretrain.image_size


def test_override_keeps_comments_and_types(workspace: Workspace) -> None:
    workspace.params.write_text(workspaces.template("params.yaml").read_text())
    params.override(
        workspace, {"pretrain.epochs": "100", "pretrain.encoder.name": "resnet18", "pretrain.resize": "null"}
    )
    read = params.read(workspace).pretrain
    assert (read.epochs, read.encoder.name, read.resize) == (100, "resnet18", None)
    assert "# images over all processes; two views of each" in workspace.params.read_text()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pretrian.epochs", "3", "'pretrian.epochs': unknown block.*pretrain"),
        ("epochs", "3", "a key is BLOCK.KEY"),
        ("pretrain.epoch", "3", "pretrain.epoch: unknown key; did you mean epochs?"),
        ("pretrain.epochs", "-3", "pretrain.epochs: given -3, allowed: greater than or equal to 1"),
        ("ingest.classes", "cat", "ingest.classes: given 'cat', allowed: a list$"),
        ("ingest.classes", "[]", r"ingest.classes: given \[\], allowed: a list of at least 1$"),
        ("pretrain.epochs", "[", "'\\[' is not a YAML value; text with such characters needs quotes: pretrain.epochs="),
        ("pretrain.epochs", "", "pretrain.epochs: given null, allowed: a valid integer"),
        ("pretrain.encoder.name", "{a: true}", r"given {a: true}, allowed: a valid string"),
        ("export.name", "a b", "export.name: given 'a b', allowed: letters, digits, - and _"),
        ("release.registry", ".", "release.registry: given '.', allowed: a separate folder"),
        ("release.registry", "../..", "release.registry: given '../..', allowed: a separate folder"),
        ("release.registry", "models/../data/", "allowed: a separate folder, such as registry"),
        ("release.registry", "inbox/released", "allowed: a separate folder, such as registry"),
        ("release.registry", "data/raw/registry", "allowed: a separate folder, such as registry"),
        ("release.registry", "models/bundle", "allowed: a separate folder, such as registry"),
        ("release.registry", "dvc.yaml", "allowed: a separate folder, such as registry"),
        ("release.registry", "./params.yaml/", "allowed: a separate folder, such as registry"),
        ("release.registry", "' '", "allowed: a separate folder, such as registry"),
        (
            "release.registry",
            "'~'",
            r"registry: given '~', allowed: a folder without ~ before it, such as /srv/registry",
        ),
        ("release.registry", "~/registry", "allowed: a folder without ~ before it"),
        ("pretrain.epochs.more", "3", "'epochs' is a value, not a block"),
        (
            "pretrain.encoder.name",
            "resnet51",
            "'resnet51', allowed: the name of an encoder; did you mean resnet50",
        ),
        ("pretrain.optimizer", "adam", "pretrain.optimizer: given 'adam', allowed: 'sgd', 'lars' or 'adamw'"),
        ("pretrain.loss", "triplet", "pretrain.loss: given 'triplet', allowed: 'nt_xent', 'dcl' or 'info_nce'"),
        ("pretrain.augmentation.preset", "cats", "pretrain.augmentation.preset: given 'cats', allowed: 'imagenet'"),
        (
            "retraining.schedule",
            "0 3 * *",
            r"schedule: given '0 3 \* \*', allowed: a cron expression of five",
        ),
        ("retraining.schedule", "0 3 30 2 *", "allowed: a cron expression of five"),
        ("retraining.schedule", "0 3 31 4 *", "allowed: a cron expression .* with a day that one of its months has"),
        ("finetune.seeds", "[0, 0, 0]", r"finetune.seeds: given .*, allowed: a list in which nothing is twice"),
        (
            "linear_eval.fractions",
            "['0.1', '0.10']",
            "linear_eval.fractions: given .*, allowed: a list in which nothing",
        ),
        ("linear_eval.labels_per_class", "[1, 5, 1]", "allowed: a list in which nothing is twice"),
        ("gates.baselines", "[pixels, pixels]", "allowed: a list in which nothing is twice"),
        ("watch.trackers", "[mlflow, mlflow]", "allowed: a list in which nothing is twice"),
        ("ingest.classes", "[cat, dog, cat]", "allowed: a list in which nothing is twice"),
        ("retraining.timezone", "Mars", "retraining.timezone: given 'Mars', allowed: the name of a time zone"),
        (
            "prepare.short_side",
            "15",
            r"prepare.short_side: given 15, allowed: null, or at least pretrain.image_size .16.",
        ),
        (
            "pretrain.image_size",
            "300",
            r"prepare.short_side: given 256, allowed: null, or at least pretrain.image_size .300.",
        ),
        ("pretrain.resize", "300", r"prepare.short_side: given 256, allowed: null, or at least pretrain.resize .300."),
        ("finetune.head_layers", "3", r"given 3, allowed: at most pretrain.projection_head.layers .2."),
    ],
)
def test_a_wrong_override_changes_nothing(workspace: Workspace, key: str, value: str, message: str) -> None:
    before = workspace.params.read_text()
    with pytest.raises(ParamsError, match=message):
        params.override(workspace, {"pretrain.seed": "7", key: value})
    assert workspace.params.read_text() == before


def test_a_registry_is_nowhere_in_a_folder_in_use_nor_around_one(workspace: Workspace, tmp_path: Path) -> None:
    root = workspace.root
    (tmp_path / "photos").mkdir()
    (tmp_path / "way in").symlink_to(root / "data")
    given = yaml.safe_load(workspace.params.read_text())
    given["retraining"]["sources"] = ["inbox", str(tmp_path / "photos" / "*.jpg"), str(tmp_path)]
    workspace.params.write_text(yaml.safe_dump(given))
    refused = [root, root / "data/raw/registry", root.parent, tmp_path / "photos/released", "../photos", "../way in/x"]
    for place in map(str, (*refused, f"../{root.name}/inbox")):
        with pytest.raises(ParamsError, match=r"registry: given .*, allowed: a separate folder"):
            params.override(workspace, {"release.registry": f"'{place}'"})
    for place in (tmp_path / "registry", root / "released", "served/here"):
        params.override(workspace, {"release.registry": f"'{place}'"})
        assert params.read(workspace).release.registry == str(place)


def test_a_source_in_the_home_folder_of_an_unknown_user_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"retraining\.sources: ~no-such-user/x: no home folder of ~no-such-user"):
        params.override(workspace, {"retraining.sources": "[inbox, ~no-such-user/x]"})


def test_defaults_that_dvc_looks_for_are_written_down(workspace: Workspace) -> None:
    """As after an upgrade: the stage would fail, with DVC's words."""
    text = workspace.params.read_text()
    for line in ("  background: white\n", "  channels: null\n", "  resize: null\n"):
        workspace.params.write_text(workspace.params.read_text().replace(line, ""))
    assert workspace.params.read_text() != text
    before = params.read(workspace)
    assert params.complete(workspace) == [
        "params.yaml: added prepare.background: white, the default, which dvc.yaml names",
        "params.yaml: added prepare.channels: null, the default, which dvc.yaml names",
        "params.yaml: added pretrain.resize: null, the default, which dvc.yaml names",
    ]
    written = yaml.safe_load(workspace.params.read_text())
    assert (written["prepare"]["background"], written["pretrain"]["resize"]) == ("white", None)
    assert params.read(workspace) == before
    assert params.complete(workspace) == []
