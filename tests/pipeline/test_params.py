"""params.yaml is read as a whole, with all faults at once, and changed whole or not at all."""

import pytest
import yaml

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.errors import ParamsError
from pipeline.workspace import Workspace


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
        ("pretrain.epochs", "[", "'\\[' is not a YAML value"),
        ("pretrain.epochs.more", "3", "'epochs' is a value, not a block"),
    ],
)
def test_a_wrong_override_changes_nothing(workspace: Workspace, key: str, value: str, message: str) -> None:
    before = workspace.params.read_text()
    with pytest.raises(ParamsError, match=message):
        params.override(workspace, {"pretrain.seed": "7", key: value})
    assert workspace.params.read_text() == before
