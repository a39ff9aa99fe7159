"""What the deployed encoder costs, compared with torch and fastembed: medians of interleaved rounds in fresh processes.

    python -m benchmarks.deploy.encoder                                     all parts
    python -m benchmarks.deploy.encoder folder latency --rounds 3 --json benchmarks/results/FILE.json
    python -m benchmarks.deploy.encoder fastembed --fastembed-python OTHER_VENV/bin/python

import      import of deploy and of numpy; import, load and first embedding of deploy and of torch
size        installed bytes of what deploy needs and of what torch needs, from the packages' RECORD files
latency     one image, from its bytes to its vector: onnxruntime and eager torch on the same number of threads
inputs      EXIF, CMYK, 16-bit, palette, alpha and gray images: cosine with the training path
folder      files to published vectors, compared with what decoding and inference alone would take
fastembed   images a second on the same files and weights
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from benchmarks.deploy import random_encoders
from benchmarks.deploy.encoder_measurements import folder_rates, unusual_inputs
from benchmarks.measure import compared, interleaved
from deploy.latency import photo, processor
from deploy.session import available_cpus

LATENCY = ("resnet18", "resnet50", "vit_s_16")
FOLDERS = {"resnet18": 256, "small": 2048}  # files
FASTEMBED = {"resnet18": 512, "small": 4096}  # files; what its processes did before their first result is not counted
DEPLOY_NEEDS, TORCH_NEEDS = ("numpy", "onnxruntime", "pillow"), ("numpy", "pillow", "torch", "torchvision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--fastembed-python", type=Path, metavar="FILE", help="of an environment with fastembed")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    results: dict[str, Any] = {"benchmark": "deploy", "machine": f"{processor()}, {available_cpus()} cores"}
    results |= {"threads": options.threads, "rounds": options.rounds}
    results |= {name: version(name) for name in ("torch", "onnxruntime", "numpy", "pillow")}
    with tempfile.TemporaryDirectory() as folder:
        encoders = Encoders(Path(folder))
        for part in options.parts or PARTS:
            results[part] = PARTS[part](encoders, options)
            print(json.dumps({part: results[part]}, indent=1), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Encoders:
    """Encoders by name, written when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> Path:
        directory = self._folder / name
        if not directory.exists():
            random_encoders.write(name, directory)
        return directory

    def photos(self, number: int) -> Path:
        """A folder with ``number`` copies of one JPEG file of 640 x 480 pixels."""
        folder = self._folder / f"photos-{number}"
        if not folder.exists():
            folder.mkdir()
            data = photo()
            for position in range(number):
                (folder / f"{position:06d}.jpg").write_bytes(data)
        return folder


def seconds_of(code: str, *arguments: object) -> float:
    """Seconds that ``code`` takes in a fresh Python; its start does not count."""
    program = f"import sys, time; began = time.perf_counter()\n{code}\nprint(time.perf_counter() - began)"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=with_bytecode()).stdout)


def with_bytecode() -> dict[str, str]:
    """The environment, in which modules are compiled once, as those of an installed package are."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir(), "simclr-benchmark-bytecode"))
    }


def imports(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:
    directory = encoders("resnet18")
    image = next(encoders.photos(FOLDERS["resnet18"]).iterdir())
    read = "\nfrom pathlib import Path; picture = Path(sys.argv[2]).read_bytes()\n"
    torch_encoder = "from benchmarks.deploy.random_encoders import TorchEncoder"
    first = {
        "deploy": f"import deploy{read}deploy.load(sys.argv[1] + '/bundle').embed(picture)",
        "torch": f"{torch_encoder}{read}TorchEncoder(Path(sys.argv[1])).embed(picture)",
    }
    importing = {name: partial(seconds_of, f"import {name}") for name in ("deploy", "numpy")}
    embedding = {name: partial(seconds_of, code, directory, image) for name, code in first.items()}
    return {
        "import_seconds": compared(interleaved(importing, 3 * options.rounds)),
        "first_embedding_seconds": compared(interleaved(embedding, options.rounds)),
    }


def size(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001  as the others
    import deploy

    own = sum(path.stat().st_size for path in Path(deploy.__file__).parent.rglob("*.py"))
    ours, torchs = installed(DEPLOY_NEEDS), installed(TORCH_NEEDS)
    total = sum(ours.values()) + own
    return {
        "deploy_megabytes": round(total / 1e6, 1),
        "torch_megabytes": round(sum(torchs.values()) / 1e6, 1),
        "times_smaller": round(sum(torchs.values()) / total, 1),
        "deploy_packages": sorted(ours),
        "torch_packages": sorted(torchs),
    }


def installed(names: Sequence[str]) -> dict[str, int]:
    """Bytes on the disk of these packages and all that they require here, by name."""
    from packaging.requirements import Requirement

    sizes: dict[str, int] = {}
    waiting = list(names)
    while waiting:
        found = distribution(waiting.pop())
        name = found.metadata["Name"].lower().replace("_", "-")
        if name in sizes:
            continue
        files = [Path(str(found.locate_file(file))) for file in found.files or ()]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
        required = [Requirement(text) for text in found.requires or ()]
        waiting += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return sizes


def latency(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for name in LATENCY:
        kinds = ("onnxruntime", "torch")
        taken = {kind: partial(p50_apart, kind, encoders(name), options.threads) for kind in kinds}
        results[name] = compared(interleaved(taken, options.rounds), digits=2)
    return results


def p50_apart(kind: str, directory: Path, threads: int) -> float:
    """Milliseconds, in its own process: idle threads of one runtime would spin next to the other."""
    command = [sys.executable, "-m", "benchmarks.deploy.encoder_measurements", kind, str(directory), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def inputs(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001  as the others
    return unusual_inputs(encoders("resnet18"))


def folder(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: folder_rates(encoders(name) / "bundle", encoders.photos(number), options.threads, options.rounds)
        for name, number in FOLDERS.items()
    }


def fastembed(encoders: Encoders, options: argparse.Namespace) -> dict[str, Any]:
    if options.fastembed_python is None:
        return {"left_out": "give --fastembed-python, the interpreter of an environment with fastembed"}
    return {name: compare_with_fastembed(encoders, name, number, options) for name, number in FASTEMBED.items()}


def compare_with_fastembed(encoders: Encoders, name: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    import deploy

    directory, photos = encoders(name), encoders.photos(number)
    vectors = []

    def theirs(parallel: int) -> float:
        script = str(Path(__file__).with_name("fastembed_rate.py"))
        arguments = [str(directory / "fastembed"), str(photos), str(options.threads), str(parallel)]
        done = subprocess.run([str(options.fastembed_python), script, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"fastembed failed: {done.stderr[-2000:]}")
        answer = json.loads(done.stdout.splitlines()[-1])
        vectors.append(answer["vector"])
        return float(answer["images_per_second"])

    def ours() -> float:
        return float(folder_rates(directory / "bundle", photos, options.threads, rounds=1)["folder_images_per_second"])

    rates: dict[str, Callable[[], float]] = {
        "deploy": ours,
        "fastembed": partial(theirs, 0),
        "fastembed_processes": partial(theirs, options.threads),
    }
    values = interleaved(rates, options.rounds)
    report = compared(values, digits=1)
    pairs = zip(values["deploy"], values["fastembed_processes"], strict=True)
    report["ratio_to_processes"] = round(statistics.median(one / other for one, other in pairs), 3)
    own = deploy.load(directory / "bundle").embed(photo()).vectors[0]
    report["cosine"] = round(float(np.dot(own, vectors[0])), 6)
    return report


Part = Callable[[Encoders, argparse.Namespace], dict[str, Any]]
PARTS: dict[str, Part] = {
    "import": imports,
    "size": size,
    "latency": latency,
    "inputs": inputs,
    "folder": folder,
    "fastembed": fastembed,
}

if __name__ == "__main__":
    main()
