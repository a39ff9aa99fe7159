"""Proposals are sensible for the folders that people have, honest about their reasons, and valid params.yaml files."""

import io
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from deploy.images.background import LEVELS
from pipeline import params
from pipeline import workspace as workspaces
from pipeline.errors import IngestError
from pipeline.ingest.layout import Place
from pipeline.preflight.images import Images
from pipeline.preflight.minimums import too_few
from pipeline.proposal import collection as collections
from pipeline.proposal.collection import Collection, examine
from pipeline.proposal.glance import SIDES, Glance, glance, read_glance
from pipeline.proposal.judging import Judging
from pipeline.proposal.machine import Machine
from pipeline.proposal.propose import Choice, Proposal, propose
from pipeline.proposal.render import describe, params_text
from pipeline.proposal.training import FEWEST_EPOCHS, MOST_EPOCHS, Training, Trial
from pipeline.recipes.recipe import params_of, recipes
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.probe import probe
from pipeline.workspace import Workspace
from simclr_core.data import label_sets
from simclr_core.schedule import peak_learning_rate
from tests.pipeline.costs.examples import MEASURED
from tests.pipeline.proposal.folders import CASES, Expected, Folder, drawing, photograph, save
from tests.pipeline.validation.corpus.contents import seen, verdicts

BASE = workspaces.template("params.yaml").read_text(encoding="utf-8")
LAPTOP = Machine(cores=2, memory_gigabytes=16, free_disk_gigabytes=100)
SERVER = Machine(cores=32, memory_gigabytes=256, free_disk_gigabytes=2000, gpu_gigabytes=(80.0, 80.0))
MINUTES = 60.0
GIVEN = [Choice("retraining.sources", ["inbox", "/pictures"], "where new images are looked for")]


STARTS = 60.0  # seconds of a run whatever it trains


def rate(training: Training, images: Images) -> Trial:
    """What a processor does: the more pixels, the slower; 1,400 images a second at 28 pixels."""
    return trial(1400 * (28 / training.side) ** 2, training, images)


def trial(speed: float, training: Training, images: Images) -> Trial:
    def seconds(epochs: int, judging: Judging) -> float:
        steps = (
            max(100, judging.tuning_epochs * (images.labeled // 10 // training.tuning_batch)) if images.labeled else 0
        )
        return STARTS + (epochs * images.train.total() + 12 * steps * training.tuning_batch / 2) / speed

    return Trial(replace(MEASURED, unit=replace(MEASURED.unit, images_per_second=speed)), seconds)


def values(proposal: Proposal) -> dict[str, Any]:
    return {one.key: one.value for one in proposal.choices}


def photographs(count: int, side: int = 300, **changes: Any) -> Collection:
    """``count`` unlabeled photographs, known without a file; ``changes`` are of a glance or of the collection."""
    lost = [round(max(0.0, 0.44 - SIDES.index(one) * 0.06), 4) for one in SIDES]
    fields: dict[str, Any] = {
        "has_color": True,
        "has_alpha": False,
        "deep": False,
        "lost": lost,
        "frames": 1,
        "deviations": dict.fromkeys(LEVELS, 50.0),
    }
    fields |= {name: changes.pop(name) for name in list(changes) if name in Glance.__annotations__}
    gists = [[(number * 37 + cell * cell * (number + 3)) % 251 for cell in range(256)] for number in range(40)]
    glances = tuple(Glance(side + 100, side, gist=gist, **fields) for gist in gists)
    known: dict[str, Any] = {"labels": {Place("train", None): count}, "others": {}, "folders": {}}
    known["paths"] = tuple(f"{number}.png" for number in range(len(glances)))
    return Collection(**(known | {"glances": glances} | changes))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are looked at in this process: starting workers is what another test is for."""

    def look(function: Any, files: Any, **_: Any) -> Any:
        return ((key, function(data)) for key, data in files)

    monkeypatch.setattr(collections, "isolated_map", look)


@pytest.mark.seconds
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=list(CASES))
def test_the_proposal_is_sensible(tmp_path: Path, make: Folder, expected: Expected) -> None:
    folder = tmp_path / "pictures"
    make(folder)
    found = examine(tmp_path, [str(folder)])
    proposal = propose(found, LAPTOP, 20 * MINUTES, rate)
    chosen = values(proposal)
    assert proposal.recipe == expected.recipe
    low, high = expected.sides
    assert low <= chosen["pretrain.image_size"] <= min(high, found.short_side(0.5))
    assert chosen.items() >= expected.keys.items()
    optional = {"ingest.class_folders", "ingest.hold_out", "validate.max_megapixels"}
    assert not optional & chosen.keys() - expected.keys.keys() - ({"ingest.hold_out"} if expected.keys else set())
    read = assert_valid(tmp_path, proposal, found, LAPTOP)
    assert expected.note in " ".join([*too_few(proposal.images, read, released=False), *proposal.notes])


def assert_valid(tmp_path: Path, proposal: Proposal, found: Collection, machine: Machine) -> params.Params:
    """The text is a whole params.yaml with these values and their reasons; the table has one line for each."""
    workspace = Workspace(tmp_path)
    workspace.params.write_text(params_text(BASE, proposal, found, machine, GIVEN), encoding="utf-8")
    read = params.read(workspace)
    document = yaml.safe_load(workspace.params.read_text(encoding="utf-8"))
    assert document["retraining"]["sources"] == ["inbox", "/pictures"]
    for one in proposal.choices:
        value = document
        for key in one.key.split("."):
            value = value[key]
        assert value == one.value
    lines = workspace.params.read_text(encoding="utf-8").splitlines()
    assert all(any(line.endswith(f"# {one.reason}") for line in lines) for one in proposal.choices)
    table = describe(proposal, found, machine, [])
    assert all(
        any(line.startswith(one.key) and line.endswith(one.reason) for line in table) for one in proposal.choices
    )
    return read


@pytest.mark.seconds
def test_a_sample_is_looked_at_in_confined_workers_and_is_the_same_every_time(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "pictures" / f"{number}.png", drawing(40))
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first, second = (examine(tmp_path, [str(tmp_path / "pictures")]) for _ in range(2))
    assert (first.images, first.unreadable, len(first.glances)) == (7, ("broken.png",), 6)
    assert first.glances == second.glances
    assert first.share("has_alpha") == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"width": "9"},
        {"frames": True},
        {"deviation": "0"},
        {"lost": [0.5]},
        {"lost": ["0.5"] * len(SIDES)},
        {"gist": [0.5] * 256},
        {"height": -5},
        {"more": 1},
    ],
    ids=repr,
)
def test_an_answer_of_a_worker_that_is_not_a_glance_is_refused(changed: dict[str, Any]) -> None:
    whole = vars(photographs(5).glances[0])
    assert read_glance(whole) == photographs(5).glances[0]
    with pytest.raises(ValueError, match="Glance"):
        read_glance(whole | changed)


@pytest.mark.seconds
@pytest.mark.usefixtures("in_process")
def test_what_the_data_contract_will_refuse_is_foreseen(tmp_path: Path) -> None:
    """By the judgment of validation itself on the same files."""
    folder = tmp_path / "pictures"
    for number in range(40):
        save(folder / f"{number}.png", photograph(60, 50))
    save(folder / "blank.png", Image.new("RGB", (40, 40), "white"))
    save(folder / "blanker.png", Image.new("L", (30, 30), 7))
    save(folder / "thin.png", photograph(300, 20))
    save(folder / "tiny.png", photograph(9, 7))
    frames = [photograph(40, 40) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (note,) = [
        one for one in propose(examine(tmp_path, [str(folder)]), LAPTOP, MINUTES, rate).notes if "quarant" in one
    ]
    contents = {path.name: Facts(**probe(path.read_bytes())) for path in sorted(folder.iterdir())}
    judged = verdicts([seen(name, facts.sha256) for name, facts in contents.items()], [*contents.values()])
    refused = [one["path"] for one in judged if one["verdict"] == "quarantine"]
    assert note.startswith(
        f"{len(refused)} of 46 sampled images will be quarantined (2: one color, or nearly, such as "
    )
    assert "; 1: cannot be decoded, 'broken.png'; 1: " in note
    assert "stop at the data contract, which allows 5%" in note
    few = photographs(1000)
    few = replace(few, glances=(replace(few.glances[0], deviations=dict.fromkeys(LEVELS, 0.0)), *few.glances[1:]))
    assert (
        "1 of 40 sampled images will be quarantined (1: one color, or nearly, '0.png')"
        in propose(few, LAPTOP, MINUTES, rate).notes
    )


def of_channels(*channels: int, arrays: bool = True, **changes: Any) -> Collection:
    """A sample of 40 with five channels at full depth, but for the first ones."""
    found = photographs(1000, channels=5, needs_depth=True, deep=True, arrays=arrays, **changes)
    odd = [replace(one, channels=number) for one, number in zip(found.glances, channels, strict=False)]
    return replace(found, glances=(*odd, *found.glances[len(odd) :]))


def test_a_few_odd_arrays_leave_the_number_of_channels_as_most_have_it() -> None:
    odd = of_channels(3, 3, 0, unreadable=("float.npy", "either.npy"))
    proposal = propose(odd, LAPTOP, 20 * MINUTES, rate)
    (choice,) = [one for one in proposal.choices if one.key == "prepare.channels"]
    assert choice.value == 5
    assert choice.reason == "37 of 42 have 5 channels; the others will be quarantined"
    (note,) = proposal.notes
    assert note.startswith(
        "5 of 42 sampled images will be quarantined (3: another number of channels than prepare.channels, such as "
        "'0.png'; 2: cannot be decoded, such as 'float.npy')"
    )
    assert "in color" not in "".join(describe(proposal, odd, LAPTOP, []))
    assert of_channels(*[3] * 15).channels == 5, "none of them is an image without it"


@pytest.mark.parametrize(
    ("collection", "channels"),
    [
        (of_channels(arrays=False), 5),
        (of_channels(3, arrays=False), 5),
        (of_channels(3, 3, 3, arrays=False), None),  # 8-bit RGB loses their depth, and not them
        (photographs(1000, channels=3), None),
        (of_channels(*[0] * 30), None),
    ],
)
def test_pictures_are_read_at_full_depth_if_hardly_any_is_lost_by_that(
    collection: Collection, channels: int | None
) -> None:
    assert collection.channels == channels


@pytest.mark.usefixtures("in_process")
def test_folders_that_may_be_meant_otherwise_are_noted(tmp_path: Path) -> None:
    for name in ("images", "test_images", "2026-11", "2026-10"):
        for number in range(3):
            save(tmp_path / name / f"{number}.png", photograph(30, 30))
    found = examine(tmp_path, ["."])
    said = "test_images/ is taken as unlabeled training images; if test/ is meant, name it so (3 files)"
    assert said in propose(found, LAPTOP, MINUTES, rate).notes
    classes = examine(tmp_path, ["."]).with_class_folders().notes
    assert "test_images/ is taken as class test_images; if test/ is meant, name it so (3 files)" in classes


def test_one_step_is_one_step() -> None:
    reasons = {one.key: one.reason for one in propose(photographs(60), LAPTOP, MINUTES, rate).choices}
    assert reasons["pretrain.batch_size"] == "1 step in an epoch of 60 training images"
    assert str(Machine(1, 8, 9, (80.0,))) == "1 core, 1 GPU of 80 GB, 8 GB of memory, 9 GB of free disk"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("ink", "background"), [("white", "black"), ("black", None), ("gray", None)])
def test_drawings_that_are_blank_on_white_get_a_background_on_which_they_are_not(
    tmp_path: Path, ink: str, background: str | None
) -> None:
    for number in range(8):
        shape = Image.new("RGBA", (64, 64))
        shape.paste(ink, (number, 5, 30 + number, 50))
        shape.save(tmp_path / f"{number}.png")
    proposal = propose(examine(tmp_path, ["."]), LAPTOP, MINUTES, rate)
    assert values(proposal).get("prepare.background") == background
    assert not any("quarantined" in note for note in proposal.notes)


@pytest.mark.usefixtures("in_process")
def test_a_folder_without_images_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.ogg").write_bytes(b"OggS")
    with pytest.raises(IngestError, match=r"no image that can be decoded among 1 \.ogg; name a folder with JPEG"):
        examine(tmp_path, [str(tmp_path / "sounds")])


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_fifty_thousand_icons_are_listed_and_only_a_sample_is_read(tmp_path: Path) -> None:
    save(tmp_path / "icons" / "0.png", drawing(48))
    for number in range(1, 50_000):
        if number % 10_000 == 1:
            linked = tmp_path / "icons" / f"{number}.png"
            linked.write_bytes((tmp_path / "icons" / "0.png").read_bytes())  # a file has a limited number of names
        else:
            os.link(linked, tmp_path / "icons" / f"{number}.png")
    found = examine(tmp_path, [str(tmp_path / "icons")])
    assert (found.images, len(found.glances)) == (50_000, collections.SAMPLE_IMAGES)
    assert values(propose(found, LAPTOP, 20 * MINUTES, rate))["pretrain.batch_size"] == 256


def test_the_epochs_fill_the_time_and_no_more() -> None:
    chosen = values(propose(photographs(2_000), LAPTOP, 20 * MINUTES, rate))
    epoch = 2_000 / (1400 * (28 / chosen["pretrain.image_size"]) ** 2)
    assert 20 * MINUTES - epoch < STARTS + chosen["pretrain.epochs"] * epoch <= 20 * MINUTES


def test_a_lower_resolution_is_taken_where_the_time_would_not_do() -> None:
    hours, minutes = (propose(photographs(20_000), LAPTOP, seconds, rate) for seconds in (36_000.0, 1_200.0))
    assert values(hours)["pretrain.image_size"] == 96
    assert values(minutes)["pretrain.image_size"] == 32
    assert "there is no time for 30 epochs at that size" in str(minutes.choices)


@pytest.mark.parametrize(("at_48", "chosen"), [(0.012, 48), (0.017, 32)])
def test_a_resolution_between_two_that_were_measured_is_tried_too(at_48: float, chosen: int) -> None:
    """By pixels alone, from 96 pixels on, 32 are what the time allows: 0.0159 s an image. They take less than that."""
    asked = []

    def measured(training: Training, images: Images) -> Trial:
        asked.append(training.side)
        return trial(1 / {96: 0.08, 32: 0.003, 48: at_48}[training.side], training, images)

    proposal = propose(photographs(2_380), LAPTOP, 20 * MINUTES, measured)
    assert asked == [96, 32, 48]
    assert values(proposal)["pretrain.image_size"] == chosen
    assert values(proposal)["pretrain.epochs"] >= FEWEST_EPOCHS


@pytest.mark.parametrize(("minutes", "warned"), [(1, True), (60, False)])
def test_fine_tuning_that_takes_longer_than_there_is_time_is_announced(minutes: int, warned: bool) -> None:
    """Twelve trainings of 100 steps of 16 images are 19,200 images, whatever pretraining computes."""
    found = replace(photographs(200), labels={Place("train", "cat"): 100, Place("train", "dog"): 100})
    proposal = propose(found, LAPTOP, minutes * MINUTES, rate)
    said = "a run takes longer than 60 s: even with one epoch of pretraining it is about 67 s"
    assert (said in " ".join(proposal.notes)) == warned
    assert "finetune.epochs" not in values(proposal), "with 20 labels, the fewest steps decide, not the epochs"


def test_evaluation_that_the_time_does_not_allow_is_reduced_and_said() -> None:
    found = replace(photographs(2000), labels={Place("train", "cat"): 1000, Place("train", "dog"): 1000})

    def measured(training: Training, images: Images) -> Trial:
        pretraining = rate(training, images)

        def seconds(epochs: int, judging: Judging) -> float:
            return pretraining.seconds(epochs, judging) + 59 * judging.draws * (1 + len(judging.labels_per_class))

        return Trial(pretraining.measured, seconds)

    hour, minutes = (values(propose(found, LAPTOP, seconds, measured)) for seconds in (8 * 3600.0, 10 * MINUTES))
    assert not {"finetune.epochs", "linear_eval.draws", "linear_eval.labels_per_class"} & set(hour)
    assert (minutes["finetune.epochs"], minutes["linear_eval.draws"]) == (5, 1)
    assert minutes["linear_eval.labels_per_class"] == [5, 25]


def test_no_folder_is_taken_for_a_class_next_to_one_that_is_not() -> None:
    folders = {"china": 60, "flower": 60, "2024-05": 30}
    found = replace(photographs(150), labels={Place("train", None): 150}, folders=folders)
    proposal = propose(found, LAPTOP, 20 * MINUTES, rate)
    assert "ingest.class_folders" not in values(proposal)
    assert "2 folders (china, flower) could be classes, and 2024-05 could not" in " ".join(proposal.notes)
    del folders["2024-05"]
    sorted_out = propose(replace(found, folders=folders), LAPTOP, 20 * MINUTES, rate)
    assert values(sorted_out)["ingest.class_folders"] is True


def test_few_images_are_not_trained_on_forever() -> None:
    assert values(propose(photographs(100), LAPTOP, 36_000.0, rate))["pretrain.epochs"] == MOST_EPOCHS


def test_the_rate_is_measured_for_what_is_proposed() -> None:
    asked: list[Training] = []

    def measured(training: Training, images: Images) -> Trial:
        asked.append(training)
        return rate(training, images)

    chosen = values(propose(photographs(20_000), LAPTOP, 1_200.0, measured))
    assert [training.side for training in asked] == [96, chosen["pretrain.image_size"]]
    assert asked[-1].batch == chosen["pretrain.batch_size"]
    assert {"name": asked[-1].encoder, "width": asked[-1].width, "stem": asked[-1].stem} == chosen["pretrain.encoder"]


@pytest.mark.parametrize(
    ("images", "batch"), [(70, 32), (256, 32), (512, 64), (1024, 128), (5_000, 256), (100_000, 256)]
)
def test_a_batch_leaves_eight_steps_in_an_epoch(images: int, batch: int) -> None:
    assert values(propose(photographs(images), LAPTOP, 36_000.0, rate))["pretrain.batch_size"] == batch


def test_gpus_get_a_larger_network_and_resolution(tmp_path: Path) -> None:
    found = photographs(100_000)
    proposal = propose(found, SERVER, 7_200.0, partial(trial, 3_000.0))
    chosen = values(proposal)
    assert proposal.recipe == "photos"
    assert chosen["pretrain.image_size"] == 128
    assert chosen["pretrain.encoder"]["name"] == "resnet50"
    assert chosen["pretrain.batch_size"] == 1024
    assert assert_valid(tmp_path, proposal, found, SERVER).prepared_side == 128


def test_the_sample_of_the_demo_gets_what_was_tuned_for_it(tmp_path: Path) -> None:
    found = photographs(8_000, 28, has_color=False, lost=[0.0] * len(SIDES))
    found = replace(found, labels={Place("train", "coat"): 8_000, Place("test", "coat"): 2_000})
    proposal = propose(found, LAPTOP, 20 * MINUTES, rate)
    assert proposal.recipe == "cpu-small"
    tuned, chosen = yaml.safe_load(BASE)["pretrain"], values(proposal)
    assert {key: chosen[f"pretrain.{key}"] for key in ("encoder", "image_size", "batch_size")} == {
        key: tuned[key] for key in ("encoder", "image_size", "batch_size")
    }
    assert chosen["pretrain.epochs"] >= tuned["epochs"] >= FEWEST_EPOCHS
    assert "pretrain.learning_rate" not in chosen


@pytest.mark.parametrize(("tested", "loss"), [(50, 15.0), (200, 7.5), (600, 5.0), (1500, 3.0), (5000, None)])
def test_the_gate_asks_for_what_the_test_images_can_show(tested: int, loss: float | None) -> None:
    """An equally good candidate passes in four of five cases; ``images_needed`` has its own oracle."""
    found = replace(photographs(2_000), labels={Place("train", "cat"): 2_000, Place("test", "cat"): tested})
    assert values(propose(found, LAPTOP, 1_200.0, rate)).get("gates.max_loss") == loss


def test_of_several_labels_the_gate_asks_for_what_rare_classes_can_show() -> None:
    both = label_sets.join(["cat", "eel"])
    found = photographs(2_000)
    found = replace(found, labels={Place("train", "cat"): 2_000, Place("test", "cat"): 1_300, Place("test", both): 200})
    (choice,) = [one for one in propose(found, LAPTOP, 1_200.0, rate).choices if one.key == "gates.max_loss"]
    effective = int(1 / (1_300 * (1 / 3_000) ** 2 + 200 * (1 / 3_000 + 1 / 400) ** 2))
    assert choice.value == 5.0
    assert f"on 1,500 test images, which count as {effective:,} since each class counts the same" in choice.reason


def test_detail_is_the_share_of_variance_that_a_reduction_removes() -> None:
    """A checkerboard of single pixels is gone at half its side; one of large fields stays."""
    fine = glance(board(64, 1))
    coarse = glance(board(64, 32))
    assert fine is not None
    assert coarse is not None
    assert fine["lost"][SIDES.index(32)] > 0.95
    assert coarse["lost"][SIDES.index(32)] < 0.05
    assert fine["lost"][SIDES.index(64)] == coarse["lost"][SIDES.index(64)] == 0.0


def board(side: int, field: int) -> bytes:
    y, x = np.mgrid[:side, :side] // field
    content = io.BytesIO()
    Image.fromarray(((x + y) % 2 * 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_alike_images_correlate_and_different_ones_do_not() -> None:
    different = photographs(40)
    alike = replace(different, glances=(replace(different.glances[0], gist=list(range(256))),) * 9)
    assert alike.likeness == pytest.approx(1.0)
    assert alike.copies == 1.0
    assert abs(different.likeness) < 0.2


@pytest.mark.parametrize(
    ("images", "classes", "seconds", "whole", "steps", "news"),
    [
        (130, 7, 60.0, "2 min, at 118", "1 step in an epoch of", "the fewest worth a run; a tenth of the 98 training"),
        (2_000, 10, 1_200.0, "7 min, at 1,818", "2 steps in an epoch of", "a tenth of the 1,500 training images there"),
    ],
)
def test_the_reasons_hold_for_few_images_and_little_time(
    images: int, classes: int, seconds: float, whole: str, steps: str, news: str
) -> None:
    labels = {Place("train", str(number)): images // classes for number in range(classes)}
    found = photographs(images, labels=labels | {Place("train", None): images % classes})
    reasons = {one.key: one.reason for one in propose(found, LAPTOP, seconds, partial(trial, images / 1.1)).choices}
    assert reasons["pretrain.epochs"].startswith(f"a whole run takes about {whole} images a second")
    assert reasons["finetune.batch_size"].startswith(steps)
    assert reasons["retraining.min_new_images"].startswith(news)


@pytest.mark.parametrize("name", sorted(set(recipes()) - {"auto", "cifar", "cpu-small"}))
def test_the_peak_that_a_recipe_names_is_that_of_its_batch(name: str) -> None:
    """It stays true where the proposal, or a person, changes the batch size."""
    text = params_of(name, BASE)
    pretrain = yaml.safe_load(text)["pretrain"]
    stated = re.search(r"before learning_rate_scaling; ([\d.e-]+) for a batch of (\d+)", text)
    assert stated is not None
    assert int(stated[2]) == pretrain["batch_size"]
    scaling = pretrain["learning_rate_scaling"]
    peak = peak_learning_rate(float(pretrain["learning_rate"]), pretrain["batch_size"], scaling)
    assert float(stated[1]) == pytest.approx(peak, rel=0.05)
