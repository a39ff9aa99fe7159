"""Embed on the nodes of a Ray cluster: the deployed encoder as an actor of Ray Data. Needs the extra ``ray``.

    RAY_ADDRESS=10.0.0.7:6379 simclr-deploy embed models/bundle s3://bucket/photos -o s3://bucket/vectors --engine ray

This machine has to be a node of the cluster, and each node needs this package in the same version, and sees local files
under the same paths; objects at addresses need neither. The bundle goes to the nodes with the work. What a node was
doing when it died is done again by another. Vectors are those of the local engine, bit by bit on equal processors.
"""

import json
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.cluster.connection import connected
from deploy.encoder import Embeddings, Encoder, load
from deploy.errors import ClusterError, DeployError, ImageError
from deploy.folders.addresses import is_address, picture
from deploy.folders.folder import Options

ASKS, INSTEAD = "--engine is ray", "leave --engine out"
FILES_AT_ONCE = 256  # of a task; a task that is lost is done again


@dataclass(frozen=True)
class Loaded:
    """How the encoder was loaded here, and so on each node."""

    directory: Path
    providers: Sequence[str]
    variant: str


def embed_on_ray(
    encoder: Encoder, files: Sequence[str], done: int, options: Options, loaded: Loaded
) -> Iterator[Embeddings]:
    """Yield the embeddings of the files from number ``done`` on, in order.

    Raises:
        ClusterError: Ray is not installed, no cluster answers, a node has other versions or does not see the files, or
            a task fails.
    """
    size = max(FILES_AT_ONCE // options.batch_size, 1) * options.batch_size
    names = [file if is_address(file) else str(Path(file).absolute()) for file in files[done:]]
    tasks = [{"files": json.dumps(names[start : start + size])} for start in range(0, len(names), size)]
    if not tasks:
        return
    content = contents_of(loaded.directory)
    with connected(ASKS, INSTEAD) as ray:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        most = options.threads or int(ray.cluster_resources().get("CPU", 1))
        asked = {"batch_size": options.batch_size, "normalize": options.normalize, "id": encoder.id}
        asked |= {"versions": versions(), "providers": [*loaded.providers], "variant": loaded.variant}
        dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
            Worker,
            fn_constructor_args=(ray.put(content), asked),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
        )
        try:
            for row, task in zip(dataset.iter_rows(), tasks, strict=True):
                yield _embeddings(row, json.loads(task["files"]), encoder.info["dim"])
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise ClusterError(
                f"a task on the Ray cluster failed with {type(error).__name__}; see its logs, fix the cause and run "
                f"the same command again, which continues, or {INSTEAD}"
            ) from error


def contents_of(directory: Path) -> dict[str, bytes]:
    """The files of a bundle, by their path in it."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


class Worker:
    """The encoder on a node. A fault is an answer, so that the message arrives as it is."""

    def __init__(self, content: Any, asked: Mapping[str, Any]) -> None:
        import ray

        self._asked, self._fault = asked, ""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in ray.get(content).items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(data)
            try:
                self._encoder = load(folder, 1, asked["providers"], asked["variant"])
            except DeployError as error:
                self._fault = f"cannot load the bundle: {error}"
        if versions() != asked["versions"]:
            self._fault = f"has {versions()}, and the command {asked['versions']}; install the same versions"
        elif not self._fault and self._encoder.id != asked["id"]:
            self._fault = "loads another encoder from the same bundle"

    def __call__(self, task: Mapping[str, str]) -> dict[str, Any]:
        files = json.loads(task["files"])
        fault = self._fault or _unseen(files)
        if fault:
            return {"vectors": b"", "ok": b"", "errors": "", "fault": f"the node {socket.gethostname()} {fault}"}
        size, normalize = self._asked["batch_size"], self._asked["normalize"]
        found = self._encoder.embed([*map(picture, files)], size, normalize, "skip", workers=1)
        errors = [[position, error.reason, str(error)] for position, error in sorted(found.errors.items())]
        return {
            "vectors": found.vectors.astype("<f4").tobytes(),
            "ok": found.ok.tobytes(),
            "errors": json.dumps(errors),
            "fault": "",
        }


def versions() -> dict[str, str]:
    """What has to be the same on each node."""
    return {name: version(name) for name in ("simclr-pipeline", "onnxruntime", "numpy", "pillow")}


def _unseen(files: Sequence[str]) -> str:
    """Why a node cannot read these files, if their folders are not there."""
    for folder in {Path(file).parent for file in files if not is_address(file)}:
        if not folder.is_dir():
            return f"does not see {folder}; put the images on a disk that all nodes share, or give an address"
    return ""


def _embeddings(row: Mapping[str, Any], files: Sequence[str], dim: int) -> Embeddings:
    if row["fault"]:
        raise ClusterError(row["fault"])
    return Embeddings(
        vectors=np.frombuffer(row["vectors"], "<f4").reshape(-1, dim),
        sources=tuple(files),
        ok=np.frombuffer(row["ok"], np.bool_),
        errors={position: ImageError(reason, message) for position, reason, message in json.loads(row["errors"])},
    )
