"""`simclr-deploy index search duplicates few-shot export-index`: make an index, search it, and export it."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import FP32
from deploy.encoder import Encoder, load
from deploy.errors import ArgumentError
from deploy.failure import fail, notice, one_line
from deploy.folders.folder import image_files
from deploy.folders.progress import Progress
from deploy.search.export import STORES, export_index
from deploy.search.few_shot import FewShot
from deploy.search.files import Part
from deploy.search.index import Index
from deploy.trust.signature import TRUST_HELP

DONE, FAILED = 0, 1


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.set_defaults(run=run)
        return command

    command = add("index", index, "make a searchable index of images, or of embeddings")
    _add_bundle(command)
    command.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    command.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="image files, or folders of images")
    source_help = "instead of images: directories made by `embed`, or other indexes"
    command.add_argument("--from", dest="sources", type=Path, nargs="+", metavar="DIR", default=[], help=source_help)
    command.add_argument("--approximate", action="store_true", help="also prepare approximate search (extra `search`)")
    command.add_argument("--replace", action="store_true", help="replace an existing index")

    command = add("search", search, "print the images of an index that are most similar to each given image")
    _add_bundle(command)
    command.add_argument("index", type=Path, metavar="INDEX", help="made by `index` with the same bundle")
    _add_images(command)
    command.add_argument("-k", type=int, default=10, metavar="K", help="number of similar images; default: 10")
    command.add_argument("--approximate", action="store_true", help="much faster with millions; may miss a few")

    command = add("duplicates", duplicates, "print pairs of nearly identical images in an index")
    command.add_argument("index", type=Path, metavar="INDEX", help="made by `index`")
    command.add_argument("--threshold", type=float, default=0.98, metavar="COSINE", help="minimum; default: 0.98")
    command.add_argument("--json", action="store_true", help="one line of JSON for each pair")

    command = add("few-shot", few_shot, "classify images by a handful of examples of each class")
    _add_bundle(command)
    command.add_argument("examples", type=Path, metavar="EXAMPLES", help="a folder with one folder per class")
    _add_images(command)

    command = add("export-index", export, "write an index for another vector store")
    command.add_argument("index", type=Path, metavar="INDEX", help="made by `index`")
    command.add_argument("store", choices=STORES, help="writes an SQL script, lines of JSON, or Parquet")
    command.add_argument("file", type=Path, metavar="FILE", help="file to make; pgvector's table gets its name")


def index(options: argparse.Namespace) -> int:
    if bool(options.images) == bool(options.sources):
        raise ArgumentError("give either images, or --from with directories of embeddings")
    failures: list[str] = []
    files = image_files(options.images, notice) if options.images else []
    encoder = _load_encoder(options)
    if options.sources:
        Index.merge(options.sources, options.out, encoder, options.approximate, options.replace)
    else:
        progress = Progress(len(files), sys.stderr)
        progress(0)
        parts = _embed(encoder, files, failures, progress)
        Index.write(options.out, parts, encoder, approximate=options.approximate, replace=options.replace)
    print(f"{options.out}: {len(Index.open(options.out, verify=False)):,} vectors", file=sys.stderr)
    return _report_failures(failures, len(files))


def search(options: argparse.Namespace) -> int:
    files, encoder = image_files(options.images, notice), _load_encoder(options)
    opened = Index.open(options.index, encoder)
    failures: list[str] = []
    for names, vectors in _embed(encoder, files, failures):
        found = opened.search(vectors, options.k, approximate=options.approximate)
        for path, ids, scores in zip(names, found.ids, found.scores, strict=True):
            if options.json:
                print(json.dumps({"path": path, "neighbours": _neighbors(ids, scores)}))
            else:
                lines = (f"{score:8.4f}  {_escape(name)}" for name, score in zip(ids, scores, strict=True))
                print(_escape(path), *lines, sep="\n")
    return _report_failures(failures, len(files))


def duplicates(options: argparse.Namespace) -> int:
    count = 0
    for pair in Index.open(options.index).duplicates(options.threshold):
        count += 1
        if options.json:
            print(json.dumps({"ids": [pair.first, pair.second], "cosine": round(pair.cosine, 6)}))
        else:
            print(f"{pair.cosine:.4f}  {_escape(pair.first)}  {_escape(pair.second)}")
    print(f"{count:,} pairs with a cosine of at least {options.threshold}", file=sys.stderr)
    return DONE


def few_shot(options: argparse.Namespace) -> int:
    files, examples = image_files(options.images, notice), _find_examples(options.examples)
    encoder = _load_encoder(options)
    failures: list[str] = []
    read = list(_embed(encoder, list(examples), failures))
    learned = [name for part, _ in read for name in part]
    if not learned:
        raise ArgumentError(f"{options.examples}: none of its {len(examples)} files can be read; give example images")
    classifier = FewShot(np.concatenate([vectors for _, vectors in read]), [examples[name] for name in learned])
    print(f"{len(learned)} examples of {len(classifier.labels)} classes; {classifier.summary}", file=sys.stderr)
    for names, vectors in _embed(encoder, files, failures):
        for path, shares in zip(names, classifier.predict(vectors), strict=True):
            label = classifier.labels[int(shares.argmax())]
            if options.json:
                rounded = [round(float(share), 6) for share in shares]
                by_class = dict(zip(classifier.labels, rounded, strict=True))
                print(json.dumps({"path": path, "label": label, "shares": by_class}))
            else:
                print(f"{shares.max():.4f}  {_escape(label)}  {_escape(path)}")
    return _report_failures(failures, len(examples) + len(files))


def export(options: argparse.Namespace) -> int:
    opened = Index.open(options.index)
    export_index(opened, options.store, options.file)
    print(f"{options.file}: {len(opened):,} vectors", file=sys.stderr)
    return DONE


def _neighbors(ids: list[str], scores: NDArray[np.float32]) -> list[dict[str, object]]:
    return [{"id": name, "score": round(float(score), 6)} for name, score in zip(ids, scores, strict=True)]


def _embed(
    encoder: Encoder, files: list[str], failures: list[str], progress: Callable[[int], None] | None = None
) -> Iterator[Part]:
    """Yield paths and vectors of the readable images; report the others and append them to ``failures``."""
    done = 0
    for part in encoder.embed_iter(files, on_error="skip"):
        for position, error in part.errors.items():
            failures.append(part.sources[position])
            print(f"skipped {_escape(part.sources[position])}: {one_line(error)}", file=sys.stderr)
        yield [source for source, ok in zip(part.sources, part.ok, strict=True) if ok], part.vectors
        done += len(part.sources)
        if progress:
            progress(done)


def _find_examples(folder: Path) -> dict[str, str]:
    """Return path → class of each example image."""
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no such folder; give one that has a folder of example images for each class")
    classes = sorted(inner for inner in folder.iterdir() if inner.is_dir())
    return {file: inner.name for inner in classes for file in image_files([inner], notice)}


def _load_encoder(options: argparse.Namespace) -> Encoder:
    return load(options.bundle, options.threads, variant=options.variant, trust=options.trust)


def _report_failures(failures: list[str], total: int) -> int:
    return fail(f"{len(failures)} of {total} images could not be read", FAILED) if failures else DONE


def _escape(text: str) -> str:
    """Return ``text`` on one line, even if a file name contains line breaks."""
    return text if text.isprintable() else repr(text)[1:-1]


def _add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    command.add_argument("--threads", type=int, metavar="N", help="default: the cores that this process may use")
    command.add_argument("--variant", default=FP32, help="fp32, int8, fp16 or auto; default: fp32")
    command.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of images")
    command.add_argument("--json", action="store_true", help="one line of JSON for each image")
