"""`simclr-deploy index search duplicates few-shot export-index`: make and change an index, search it, export it."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import FP32
from deploy.cli.embedding import embed, embedded
from deploy.encoder import Encoder, load
from deploy.errors import ArgumentError
from deploy.failure import fail, notice, printable
from deploy.folders.files import LINK, describe_passed_over, passed_over
from deploy.folders.folder import image_files
from deploy.plural import counted
from deploy.search.approximate import check_metric
from deploy.search.export import STORES, export_index
from deploy.search.few_shot import FewShot
from deploy.search.files import check_replaceable
from deploy.search.filters import parse_where
from deploy.search.index import Index
from deploy.search.tables import read_table, with_metadata
from deploy.trust.signature import TRUST_HELP

DONE, FAILED, INTERRUPTED = 0, 1, 130

METADATA_HELP = "CSV file with a column path, as the images are given here, and columns to search by"


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

    command.add_argument("--metadata", type=Path, metavar="FILE", help=METADATA_HELP)

    for verb, run, summary in (
        ("add", add_images, "embed new images and add them to an index"),
        ("update", update, "embed changed images of an index again"),
    ):
        command = add(f"index-{verb}", run, f"{summary}; also written as `index {verb}`")
        _add_bundle(command)
        command.add_argument("index", type=Path, metavar="INDEX", help="made by `index` with the same bundle")
        command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of images")
        command.add_argument("--metadata", type=Path, metavar="FILE", help=METADATA_HELP)

    command = add("index-delete", delete, "delete images from an index; also written as `index delete`")
    command.add_argument("index", type=Path, metavar="INDEX", help="made by `index`")
    command.add_argument("paths", nargs="+", metavar="PATH", help="as they were given to `index`")

    command = add("search", search, "print the images of an index that are most similar to each given image")
    _add_bundle(command)
    command.add_argument("index", type=Path, metavar="INDEX", help="made by `index` with the same bundle")
    _add_images(command)
    command.add_argument("-k", type=int, default=10, metavar="K", help="number of similar images; default: 10")
    command.add_argument("--approximate", action="store_true", help="much faster with millions; may miss a few")
    where_help = "only images whose metadata hold: NAME=VALUE, NAME>=VALUE or NAME<=VALUE; the same NAME= again: or"
    command.add_argument("--where", action="append", default=[], metavar="CONDITION", help=where_help)

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
    if options.sources and options.metadata:
        raise ArgumentError(
            "--metadata describes images; with --from leave it out, indexes keep the metadata they have"
        )
    if options.out.exists() and not options.replace:
        raise ArgumentError(f"{options.out}: already exists; choose another directory, or remove it")
    check_replaceable(options.out)
    if options.approximate:
        check_metric("cosine")
    if options.sources:
        Index.merge(options.sources, options.out, _load_encoder(options), options.approximate, options.replace)
        print(f"{options.out}: {counted(len(Index.open(options.out, verify=False)), 'vector')}", file=sys.stderr)
        return DONE
    encoder = _load_encoder(options, threads=1)
    return _write(
        options,
        encoder,
        options.out,
        image_files(options.images, notice, encoder.takes_arrays),
        None,
        partial(Index.write, options.out, approximate=options.approximate, replace=options.replace),
    )


def add_images(options: argparse.Namespace) -> int:
    encoder, opened = _load_encoder(options, threads=1), Index.open(options.index, verify=False)
    files = image_files(options.images, notice, encoder.takes_arrays)
    there = set(opened.ids)
    for file in files:
        if file in there:
            raise ArgumentError(f"{file}: is in the index already; use `index update` for images that have changed")
    return _write(options, encoder, options.index, files, _kinds(opened), partial(Index.add, options.index))


def update(options: argparse.Namespace) -> int:
    encoder, opened = _load_encoder(options, threads=1), Index.open(options.index, verify=False)
    files = image_files(options.images, notice, encoder.takes_arrays)
    there = set(opened.ids)
    for file in files:
        if file not in there:
            raise ArgumentError(f"{file}: is not in the index; use `index add` for new images")
    return _write(options, encoder, options.index, files, _kinds(opened), partial(Index.update, options.index))


def delete(options: argparse.Namespace) -> int:
    Index.delete(options.index, options.paths)
    print(f"{options.index}: {counted(len(Index.open(options.index, verify=False)), 'vector')}", file=sys.stderr)
    return DONE


def _kinds(opened: Index) -> dict[str, str]:
    """The kind of each column that has a value; what all values were missing of may become anything."""
    return {name: column.kind for name, column in opened.columns.items() if len(column.values)}


def _write(
    options: argparse.Namespace,
    encoder: Encoder,
    out: Path,
    files: list[str],
    kinds: dict[str, str] | None,
    change: Callable[..., None],
) -> int:
    """Embed ``files`` and ``change`` the index ``out`` by them; continue where an interrupted command stopped."""
    table = read_table(options.metadata, kinds) if options.metadata else {}
    unused = {path for values in table.values() for path in values} - set(files)
    if unused:
        notice(f"{options.metadata}: {counted(len(unused), 'row')} for none of the images, such as {min(unused)!r}")
    failures: list[str] = []
    if kinds is not None:
        Index.open(out, encoder, verify=False)  # another encoder is refused before any work
    try:
        with embedded(encoder, files, out, options.threads, failures) as parts:
            change(parts=with_metadata(parts, table), encoder=encoder)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to continue", INTERRUPTED)
    print(f"{out}: {counted(len(Index.open(out, verify=False)), 'vector')}", file=sys.stderr)
    return _report_failures(failures, len(files))


def search(options: argparse.Namespace) -> int:
    encoder = _load_encoder(options)
    files = image_files(options.images, notice, encoder.takes_arrays)
    opened = Index.open(options.index, encoder)
    where = parse_where(options.where, opened.columns)
    failures: list[str] = []
    for names, vectors in embed(encoder, files, failures):
        found = opened.search(vectors, options.k, approximate=options.approximate, where=where or None)
        for path, ids, scores in zip(names, found.ids, found.scores, strict=True):
            if options.json:
                print(json.dumps({"path": path, "neighbours": _neighbors(ids, scores)}))
            else:
                lines = (f"{score:8.4f}  {printable(name, None)}" for name, score in zip(ids, scores, strict=True))
                print(printable(path, None), *lines, sep="\n")
    return _report_failures(failures, len(files))


def duplicates(options: argparse.Namespace) -> int:
    count = 0
    for pair in Index.open(options.index).duplicates(options.threshold):
        count += 1
        if options.json:
            print(json.dumps({"ids": [pair.first, pair.second], "cosine": round(pair.cosine, 6)}))
        else:
            print(f"{pair.cosine:.4f}  {printable(pair.first, None)}  {printable(pair.second, None)}")
    print(f"{counted(count, 'pair')} with a cosine of at least {options.threshold}", file=sys.stderr)
    return DONE


def few_shot(options: argparse.Namespace) -> int:
    encoder = _load_encoder(options)
    files = image_files(options.images, notice, encoder.takes_arrays)
    examples = _find_examples(options.examples, encoder.takes_arrays)
    failures: list[str] = []
    read = list(embed(encoder, list(examples), failures))
    learned = [name for part in read for name in part[0]]
    if not learned:
        raise ArgumentError(
            f"{options.examples}: none of the files in it ({len(examples):,}) can be read; give example images"
        )
    classifier = FewShot(np.concatenate([part[1] for part in read]), [examples[name] for name in learned])
    print(
        f"{counted(len(learned), 'example')} of {counted(len(classifier.labels), 'class')}; {classifier.summary}",
        file=sys.stderr,
    )
    for names, vectors in embed(encoder, files, failures):
        for path, shares in zip(names, classifier.predict(vectors), strict=True):
            label = classifier.labels[int(shares.argmax())]
            if options.json:
                rounded = [round(float(share), 6) for share in shares]
                by_class = dict(zip(classifier.labels, rounded, strict=True))
                print(json.dumps({"path": path, "label": label, "shares": by_class}))
            else:
                print(f"{shares.max():.4f}  {printable(label, None)}  {printable(path, None)}")
    return _report_failures(failures, len(examples) + len(files))


def export(options: argparse.Namespace) -> int:
    opened = Index.open(options.index)
    export_index(opened, options.store, options.file)
    print(f"{options.file}: {counted(len(opened), 'vector')}", file=sys.stderr)
    return DONE


def _neighbors(ids: list[str], scores: NDArray[np.float32]) -> list[dict[str, object]]:
    return [{"id": name, "score": round(float(score), 6)} for name, score in zip(ids, scores, strict=True)]


def _find_examples(folder: Path, arrays: bool) -> dict[str, str]:
    """Return path → class of each example image."""
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no such folder; give one that has a folder of example images for each class")
    inside = sorted(folder.iterdir())
    left = {os.fspath(inner): reason for inner in inside if (reason := _why_left(inner))}
    for line in describe_passed_over(left):
        notice(line)
    classes = [inner for inner in inside if os.fspath(inner) not in left]
    return {file: inner.name for inner in classes for file in image_files([inner], notice, arrays)}


def _why_left(path: Path) -> str | None:
    if left := passed_over(path.name):
        return left[1]
    if path.is_symlink():
        return LINK
    return None if path.is_dir() else "is in the folder of no class"


def _load_encoder(options: argparse.Namespace, threads: int | None = None) -> Encoder:
    return load(options.bundle, threads or options.threads, variant=options.variant, trust=options.trust)


def _report_failures(failures: list[str], total: int) -> int:
    return fail(f"{len(failures)} of {counted(total, 'image')} could not be read", FAILED) if failures else DONE


def _add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    command.add_argument("--threads", type=int, metavar="N", help="default: the cores that this process may use")
    command.add_argument("--variant", default=FP32, help="fp32, int8, fp16 or auto; default: fp32")
    command.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of images")
    command.add_argument("--json", action="store_true", help="one line of JSON for each image")
