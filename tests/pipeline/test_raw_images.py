"""The ingest as an asset."""

import dagster as dg
import pytest
import yaml

from pipeline.defs.raw_images import RawImagesConfig, raw_images
from pipeline.errors import IngestError, ParamsError
from pipeline.workspace import Workspace


def materialize(workspace: Workspace, **config: object) -> dg.AssetMaterialization:
    run_config = dg.RunConfig(ops={"raw_images": RawImagesConfig(**config)})
    result = dg.materialize([raw_images], resources={"workspace": workspace}, run_config=run_config)
    (materialization,) = result.asset_materializations_for_node("raw_images")
    return materialization


def told(materialization: dg.AssetMaterialization) -> dict[str, object]:
    return {name: value.value for name, value in materialization.metadata.items()}


def version(materialization: dg.AssetMaterialization) -> str:
    assert materialization.tags is not None
    return materialization.tags["dagster/data_version"]


def test_its_data_version_is_the_hash_that_dvc_tracks(filled: Workspace) -> None:
    first = materialize(filled)
    tracked = yaml.safe_load((filled.root / "data" / "raw.dvc").read_text())["outs"][0]
    assert version(first) == tracked["md5"]
    assert told(first)["new_images"] == 40
    assert told(first)["dvc/executed"] is True
    again = materialize(filled)
    assert version(again) == version(first)
    assert (told(again)["new_images"], told(again)["batch"]) == (0, "nothing new")
    assert told(again)["dvc/executed"] is False


def test_an_empty_inbox_is_unchanged_after_the_first_ingest_and_an_error_before(filled: Workspace) -> None:
    with pytest.raises(IngestError, match="nothing to ingest"):
        materialize(filled, sources=["inbox/nothing-here/*"])
    first = materialize(filled)
    for file in filled.inbox.rglob("*.png"):
        file.unlink()
    assert version(materialize(filled)) == version(first)


def test_settings_from_the_launchpad_are_written_before_anything_runs(filled: Workspace) -> None:
    materialize(filled, sources=["inbox/labeled"], overrides={"pretrain.epochs": "7"})
    assert yaml.safe_load(filled.params.read_text())["pretrain"]["epochs"] == 7
    before = filled.params.read_bytes()
    with pytest.raises(ParamsError, match="epochs"):
        materialize(filled, overrides={"pretrain.epochs": "many"})
    assert filled.params.read_bytes() == before
