"""``simclr quarantine``: everything refused can be looked at, and what a person may overrule takes effect."""

import json
import shutil
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_sample_image

from pipeline.cli.main import simclr
from pipeline.errors import OverridesError
from pipeline.validation import manifest
from pipeline.validation.__main__ import run
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace
from tests.pipeline.validation.corpus.corpus import encoded, picture, write_batch

STRIP = encoded(picture(40, 300, 12), "PNG")
SHARED = encoded(picture(41), "PNG")
HALF = encoded(picture(42), "JPEG")[:900]
BLANK = encoded(Image.new("RGB", (64, 64), (90, 10, 10)), "PNG")
FILES = [
    *((f"unlabeled/{number}.png", encoded(picture(number), "PNG")) for number in range(6)),
    ("unlabeled/strip.png", STRIP),
    ("unlabeled/half.jpg", HALF),
    ("unlabeled/blank.png", BLANK),
    ("unlabeled/leaked.png", SHARED),
    ("test/cat/kept.png", SHARED),
    ("test/cat/0.png", encoded(picture(50), "PNG")),
]


def validate(workspace: Workspace) -> dict[str, list[str]]:
    run(workspace)
    rows = manifest.read(workspace.manifest, ["path", "reasons"]).to_dicts()
    return {row["path"].removeprefix("unlabeled/"): row["reasons"] for row in rows}


@pytest.fixture(scope="module")
def validated(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quarantine") / "workspace"
    shutil.copytree(empty_workspace, root, symlinks=True)
    write_batch(root / "data" / "raw", "0001", FILES)
    validate(Workspace(root))
    return root


@pytest.fixture
def workspace(validated: Path, tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    shutil.copytree(validated, root, symlinks=True)
    return Workspace(root)


def call(workspace: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(simclr, ["--workspace", str(workspace.root), "quarantine", *arguments])


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_the_list_counts_reasons_and_names_files(workspace: Workspace) -> None:
    answer = call(workspace, "list")
    assert answer.exit_code == 0
    counted = {line.split()[1]: line.split()[0] for line in answer.output.partition("\n\n")[0].splitlines()}
    assert counted == dict.fromkeys(("truncated", "extreme_aspect", "low_information", "test_leak"), "1")
    assert f"{digest(STRIP)[:12]}  extreme_aspect     unlabeled/strip.png" in answer.output
    only = call(workspace, "list", "--reason", "truncated")
    assert "half.jpg" in only.output
    assert "strip.png" not in only.output
    assert "… and 3 more" in call(workspace, "list", "--limit", "1").output
    found = json.loads(call(workspace, "list", "--json", "--limit", "3").output)
    assert found["counts"] == dict.fromkeys(("truncated", "extreme_aspect", "low_information", "test_leak"), 1)
    assert (len(found["first"]), found["more"]) == (3, 1)
    assert found["first"][0].keys() == {"sha256", "path", "reason"}
    unknown = call(workspace, "list", "--reason", "ugly")
    assert isinstance(unknown.exception, OverridesError)
    assert str(unknown.exception).startswith("unknown reason 'ugly'; choose one of: denied, unsafe_path")


@pytest.mark.parametrize("name", [digest(STRIP), digest(STRIP)[:12], "unlabeled/strip.png", "strip.png"])
def test_a_content_is_found_by_hash_or_path(workspace: Workspace, name: str) -> None:
    answer = call(workspace, "show", name)
    assert answer.exit_code == 0
    assert digest(STRIP) in answer.output
    assert "300 x 12 pixels; validate.max_aspect is 10" in answer.output
    assert f"simclr quarantine release {digest(STRIP)[:12]}" in answer.output


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing.png", "no ingested file"), ("abcdef", "no ingested file"), ("abc", "no ingested file")],
)
def test_an_unknown_name_is_reported(workspace: Workspace, name: str, message: str) -> None:
    assert message in str(call(workspace, "show", name).exception)


def test_an_ambiguous_name_is_reported(workspace: Workspace) -> None:
    assert "names 2 contents" in str(call(workspace, "show", "0.png").exception)


def test_the_original_bytes_can_be_exported(workspace: Workspace, tmp_path: Path) -> None:
    assert call(workspace, "show", "half.jpg", "--save", str(tmp_path / "half.jpg")).exit_code == 0
    assert (tmp_path / "half.jpg").read_bytes() == HALF


@pytest.mark.seconds
def test_a_released_image_is_used_by_the_next_validation(workspace: Workspace) -> None:
    done = call(workspace, "release", "strip.png", "blank.png", "--why", "as wanted", "--who", "ada")
    assert (
        done.output
        == "2 contents are accepted, in overrides.csv; commit it. It takes effect with the next `simclr run`\n"
    )
    assert "allow, by ada on" in call(workspace, "show", "strip.png").output
    assert "decided by people:" in call(workspace, "list").output
    assert validate(workspace).items() >= {"strip.png": [], "blank.png": [], "half.jpg": ["truncated"]}.items()
    rows = manifest.read(workspace.manifest, ["path", "warnings"]).to_dicts()
    assert "released" in {row["path"]: row["warnings"] for row in rows}["unlabeled/strip.png"]
    assert json.loads((workspace.reports / "validation.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half.jpg", "truncated (the file ends too early) cannot be released; what can be: animated, extreme_aspect"),
        ("kept.png", "is not quarantined; nothing to release"),
        ("1.png", "is not quarantined"),
    ],
)
def test_an_image_that_cannot_be_released_is_reported_and_nothing_is_written(
    workspace: Workspace, name: str, message: str
) -> None:
    before = workspace.overrides.read_bytes()
    assert message in str(call(workspace, "release", "strip.png", name, "--why", "please").exception)
    assert workspace.overrides.read_bytes() == before


@pytest.mark.slow
def test_a_near_leak_can_be_released_and_the_same_pixels_cannot(workspace: Workspace, tmp_path: Path) -> None:
    large = Image.fromarray(load_sample_image("china.jpg")).resize((320, 214))
    files = [("unlabeled/copy.bmp", encoded(large, "BMP")), ("test/cat/large.png", encoded(large, "PNG"))]
    smaller = large.resize((200, 134), Image.Resampling.LANCZOS)
    write_batch(workspace.raw, "0002", [*files, ("unlabeled/smaller.png", encoded(smaller, "PNG"))])
    assert validate(workspace).items() >= {"copy.bmp": ["test_leak"], "smaller.png": ["test_leak"]}.items()
    assert "exactly the pixels of a test image" in str(call(workspace, "release", "copy.bmp", "--why", "x").exception)
    assert call(workspace, "release", "smaller.png", "--why", "another photo").exit_code == 0
    assert validate(workspace)["smaller.png"] == []


@pytest.mark.seconds
def test_a_denied_image_is_excluded_everywhere_and_can_be_allowed_again(workspace: Workspace, tmp_path: Path) -> None:
    image = FILES[0][1]
    outside = tmp_path / "never ingested.png"
    outside.write_bytes(encoded(picture(77), "PNG"))
    assert call(workspace, "deny", "unlabeled/0.png", str(outside), "--why", "consent withdrawn").exit_code == 0
    write_batch(workspace.raw, "0002", [("unlabeled/again.png", image), ("labeled/cat/new.png", outside.read_bytes())])
    reasons = validate(workspace)
    assert (reasons["0.png"][0], reasons["labeled/cat/new.png"][0]) == ("denied", "denied")
    assert "refused by" in call(workspace, "show", digest(image)).output
    assert call(workspace, "release", digest(image), "--why", "consent given").exit_code == 0
    assert validate(workspace)["0.png"] == []


@pytest.mark.seconds
def test_decisions_without_effect_are_reported(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    contradicted, unknown = encoded(picture(60), "PNG"), "0" * 64
    write_batch(workspace.raw, "0002", [(f"labeled/{name}/0.png", contradicted) for name in ("cat", "dog")])
    rows: list[tuple[str, overrides.Action]]
    rows = [(digest(contradicted), "allow"), (unknown, "deny"), (digest(STRIP), "allow"), (digest(SHARED), "deny")]
    decisions = [Override(one, action, "ada", "seen", date.today()) for one, action in rows]
    overrides.write(workspace.overrides, decisions)
    reasons = validate(workspace)
    assert (reasons["labeled/cat/0.png"], reasons["strip.png"]) == (["label_conflict"], [])
    said = f"2 decisions in overrides.csv without effect, such as {digest(contradicted)[:12]}: it stays quarantined as "
    assert f"; {said}label_conflict; " in capsys.readouterr().out
    listed = call(workspace, "list").output.partition("decided by people:\n")[2].splitlines()
    effects = [line.partition("; no effect: ")[2] for line in listed]
    assert effects == ["it stays quarantined as label_conflict", "no raw batch holds it", "", ""]


def test_a_decision_holds_through_its_last_day(workspace: Workspace) -> None:
    tomorrow = date.today() + timedelta(days=1)
    assert call(workspace, "deny", "unlabeled/0.png", "--why", "embargo", "--expires", str(tomorrow)).exit_code == 0
    assert overrides.settle(workspace.overrides, tomorrow) == []
    assert [one.why for one in overrides.settle(workspace.overrides, tomorrow + timedelta(days=1))] == ["embargo"]
    late = call(workspace, "deny", "unlabeled/0.png", "--why", "embargo", "--expires", "2020-01-01")
    assert "2020-01-01: has passed; give a day from" in str(late.exception)


def test_decisions_carry_the_user_name_from_git(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Grace")
    call(workspace, "deny", "unlabeled/0.png", "--why", "x")
    assert [one.who for one in overrides.read(workspace.overrides)] == ["Grace"]


def test_without_a_validation_it_says_what_to_run(empty_workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(empty_workspace, tmp_path / "new", symlinks=True)
    failure = call(Workspace(tmp_path / "new"), "list").exception
    assert "nothing was ingested yet; put images into inbox/unlabeled, then `simclr run`" in str(failure)


@pytest.mark.slow
def test_a_rescan_probes_again_and_changes_nothing_else(workspace: Workspace) -> None:
    before = manifest.read(workspace.manifest, None)
    answer = call(workspace, "rescan", "strip.png")
    assert answer.exit_code == 0, answer.output
    assert answer.output.endswith("1 content was probed again\n")
    assert manifest.read(workspace.manifest, None).equals(before)
    assert (workspace.root / "dvc.lock").exists()
    assert "4 contents were probed again" in call(workspace, "rescan").output
