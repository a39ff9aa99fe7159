"""What `simclr init --from FOLDER` alone makes of four real sets, each within 20 minutes, and how wrong its plan was.

    python -m benchmarks.pipeline.real_sets stamps --packages FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.pipeline.real_sets photographs --packages FOLDER --recipe photos-small --epochs 20

Sets, and what must be in FOLDER (`apt-get download NAME`, `npm pack NAME`):

stamps       tuxpaint-stamps-default (deb): drawings and photographs on a transparent ground among sounds and texts
emoji        emoji-datasource-twitter (npm): drawings of 64 pixels on a transparent ground, by category
photographs  mate-backgrounds, ukui-wallpapers, lomiri-wallpapers-16.04 and -20.04 (deb): patches, by picture
surfaces     the same: patches of some of the pictures, with a defect drawn on three of four; the defect is the class
fashion      nothing: the demo's sample

Nothing but the folder is given: what is proposed decides. With ``--recipe`` the values are those of a recipe, but for
the epochs. Accuracies are percentages with 95 % intervals.
"""

import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import measure
from pipeline import workspace as workspaces
from pipeline.cli.demo import fill_inbox
from pipeline.costs import record
from pipeline.gates.all_gates import verdicts
from pipeline.recipes.recipe import overlay
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.evaluation_reports import FinetuneReport, LinearEvalReport

PATCH = 160  # pixels, of pictures that are made this wide first:
WIDTH = 1600
BACKGROUNDS = ("mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers")
SURFACES = ("Wood", "RainDrops", "Dune", "Blinds", "GreenTraditional", "Storm")
DEFECTS = ("sound", "scratch", "hole", "stain")
FACTORS = {"scratch": 1.6, "hole": 0.3, "stain": 0.9}  # of the brightness


def build_stamps(packages: Path, folder: Path) -> Path:
    """The package as it is, all its files: 16 folders of pictures, sounds and descriptions."""
    _unpack_deb(packages, "tuxpaint-stamps-default", folder)
    return folder / "usr/share/tuxpaint/stamps"


def build_emoji(packages: Path, folder: Path) -> Path:
    """Each emoji without its skin tones, in a folder of its category."""
    [archive] = packages.glob("emoji-datasource-twitter-*.tgz")
    with tarfile.open(archive) as package:
        listed = json.load(_member(package, "package/emoji.json"))
        for emoji in listed:
            if emoji["has_img_twitter"] and emoji["category"] != "Component":
                target = folder / re.sub(r"\W+", "-", emoji["category"].lower()) / emoji["image"]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(_member(package, f"package/img/twitter/64/{emoji['image']}").read())
    return folder


def build_photographs(packages: Path, folder: Path) -> Path:
    """Patches that do not overlap, of JPEG photographs; the picture is the class."""
    for name in BACKGROUNDS:
        _unpack_deb(packages, name, folder / "packages")
    for name, path in _pictures(folder).items():
        with Image.open(path) as picture:
            if picture.width >= WIDTH and not name.startswith("Elephants_"):  # copies of one picture in other sizes
                _cut(picture.convert("RGB"), folder / "patches" / name)
    return folder / "patches"


def build_surfaces(packages: Path, folder: Path) -> Path:
    """Patches of pictures of a surface, of which every fourth stays as it is."""
    patches = build_photographs(packages, folder)
    draw = random.Random(0)
    for name in SURFACES:
        for number, path in enumerate(sorted((patches / name).iterdir())):
            defect = DEFECTS[number % len(DEFECTS)]
            target = folder / "surfaces" / defect / f"{name}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as patch:
                _damage(patch, defect, draw).save(target.with_suffix(".png"))
    return folder / "surfaces"


def build_fashion(_packages: Path, folder: Path) -> Path:
    """The demo's inbox."""
    workspace = workspaces.create(folder / "workspace")
    fill_inbox(workspace)
    return workspace.inbox


BUILDERS: Mapping[str, Callable[[Path, Path], Path]] = {
    "stamps": build_stamps,
    "emoji": build_emoji,
    "photographs": build_photographs,
    "surfaces": build_surfaces,
    "fashion": build_fashion,
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("set", choices=BUILDERS)
    parser.add_argument("--packages", type=Path, default=Path(), metavar="FOLDER", help="where the packages are")
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--workspace", type=Path, help="keep the workspace here")
    parser.add_argument("--recipe", metavar="NAME", help="take these values, and look at nothing")
    parser.add_argument("--epochs", type=int, default=20, help="of pretraining, with --recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary, "images")
        images.mkdir()
        source = BUILDERS[options.set](options.packages, images)
        directory = options.workspace or Path(temporary, "workspace")
        results = measure.header("real sets", "torch") | {"set": options.set}
        if options.recipe:
            results |= {"recipe": options.recipe}
            create_from_recipe(directory, options.recipe, source, options.epochs)
        else:
            results |= {"budget": options.budget}
            _simclr("init", directory, "--from", source, "--budget", options.budget, "--yes")
        results |= measure_run(directory)
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


def create_from_recipe(directory: Path, recipe: str, source: Path, epochs: int) -> None:
    """A workspace in which the folders of ``source`` are classes, and a quarter of the images is held out."""
    workspace = workspaces.create(directory, recipe)
    given = {
        "ingest": {"class_folders": True, "hold_out": 0.25},
        "pretrain": {"epochs": epochs},
        "retraining": {"sources": [str(source)]},
    }
    text = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text(overlay(text, yaml.safe_dump(given)), encoding="utf-8")


def measure_run(directory: Path) -> dict[str, Any]:
    """``run``, and what the reports say then."""
    began = time.perf_counter()
    released = _simclr("--workspace", directory, "run") == 0
    seconds = time.perf_counter() - began
    workspace = workspaces.find(directory)
    return {
        "proposed": read_proposal(workspace),
        "run_seconds": round(seconds),
        "plan": read_plan(workspace),
        "released": released,
        "gates": {name: str(verdict) for name, verdict in verdicts(workspace).items()},
        "accuracy": read_accuracy(workspace),
    }


def read_proposal(workspace: Workspace) -> dict[str, Any]:
    text = (workspace.root / "params.yaml").read_text(encoding="utf-8")
    pretrain = yaml.safe_load(text)["pretrain"]
    chosen = ("encoder", "image_size", "batch_size", "epochs", "temperature", "augmentation")
    return {"first_lines": text.splitlines()[:3], **{name: pretrain[name] for name in chosen}}


def read_plan(workspace: Workspace) -> dict[str, Any]:
    """Expected and actual seconds and bytes of each stage that was expected, and of all of them."""
    latest = record.latest(workspace.root)
    assert latest is not None
    return {
        stage: {
            "seconds": [round(expected.seconds, 1), round(actual.seconds, 1)],
            "disk_megabytes": [round(expected.disk_bytes / 1e6, 1), round(actual.disk_bytes / 1e6, 1)],
            "memory_megabytes": [round(expected.memory_bytes / 1e6), round(actual.memory_bytes / 1e6)],
        }
        for stage, (expected, actual) in latest.compared.items()
    }


def read_accuracy(workspace: Workspace) -> dict[str, Any]:
    report = reports.read(workspace.root, LinearEvalReport)
    rows = ("simclr", "random_init", "pixels")
    return {
        "test_images": report.test_images,
        "majority": report.majority_class,
        "kNN": {row: getattr(report, row).knn_top1 for row in rows},
        "probe": {name: {row: asdict(getattr(one, row)) for row in rows} for name, one in report.budgets.items()},
        "balanced": {name: scores.balanced_accuracy for name, scores in report.scores.items()},
        "finetune": {
            one.fraction: {
                name: getattr(one, name) for name in ("labels", "top1", "ci95", "scratch_top1", "scratch_ci95")
            }
            | {"probe": asdict(one.probe) if one.probe else None}
            for one in reports.read_each(workspace.root, FinetuneReport)
        },
    }


def _simclr(*arguments: str | Path) -> int:
    command = [sys.executable, "-P", "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def _unpack_deb(packages: Path, name: str, folder: Path) -> None:
    [package] = packages.glob(f"{name}_*.deb")
    folder.mkdir(exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def _member(package: tarfile.TarFile, name: str) -> Any:
    member = package.extractfile(name)
    assert member is not None
    return member


def _pictures(folder: Path) -> dict[str, Path]:
    paths = sorted((folder / "packages").rglob("*.jpg"))
    return {path.stem.lstrip("0123456789"): path for path in paths if not path.is_symlink()}


def _damage(patch: Image.Image, defect: str, draw: random.Random) -> Image.Image:
    """A bright line one pixel wide, a dark disk of 3 to 5 pixels, or a spot a tenth darker, away from the edge."""
    if defect == "sound":
        return patch.copy()
    x, y = (draw.uniform(PATCH / 4, 3 * PATCH / 4) for _ in range(2))
    radius = {"scratch": draw.uniform(12, 30), "hole": draw.uniform(3, 5), "stain": draw.uniform(8, 16)}[defect]
    mask = Image.new("L", patch.size)
    if defect == "scratch":
        dx, dy = radius, draw.uniform(-radius, radius)
        ImageDraw.Draw(mask).line((x - dx, y - dy, x + dx, y + dy), fill=255)
    else:
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(2 if defect == "stain" else 0.5))
    changed = patch.point([min(255, round(level * FACTORS[defect])) for level in range(256)] * len(patch.getbands()))
    return Image.composite(changed, patch, mask)


def _cut(picture: Image.Image, folder: Path) -> None:
    folder.mkdir(parents=True)
    smaller = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    for top in range(0, smaller.height - PATCH + 1, PATCH):
        for left in range(0, WIDTH - PATCH + 1, PATCH):
            patch = smaller.crop((left, top, left + PATCH, top + PATCH))
            patch.save(folder / f"{top:04}-{left:04}.jpg", quality=95)


if __name__ == "__main__":
    main()
