"""Embed many image files into a directory that other programs can read, and resume after an interruption.

    vectors.npy ids.csv    float32 [rows, dim], and the path of each row     (format "npy")
    vectors.csv            path and values, one line for each image          (format "csv")
    vectors.parquet        path, and vector as a list of dim float32         (format "parquet")
    failures.csv           path, reason, message of the images without a row
    embedding.json         the bundle that made them, and how many there are
    MANIFEST.sha256        `sha256sum -c` checks the directory

The directory appears when it is complete. Until then the finished parts are in a hidden folder next to it, named by a
digest of the encoder, the options and the files. The same request continues after the last part and gives the same
bytes as an uninterrupted run. The parts take as much disk space as the result.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import publish
from deploy.encoder import Embeddings, Encoder
from deploy.errors import ArgumentError, as_path, as_paths, require_path, require_positive, require_truth
from deploy.failpoint import failpoint
from deploy.folders.addresses import is_address, list_images, picture, state
from deploy.folders.embedding_writers import WRITERS, Format, check_format, table
from deploy.folders.files import ARRAY, LINK, NO_IMAGE, describe_passed_over, passed_over
from deploy.folders.unfinished import discard, finished_parts, read_part, work_folder, write_parts
from deploy.images.inputs import map_ahead
from deploy.images.signatures import HEAD_BYTES, is_array, is_image, named_as_image
from deploy.session import MOST_THREADS, available_cpus


def _ignore(_: object) -> None:
    pass


def image_files(
    paths: "Iterable[str | os.PathLike[str]] | str | os.PathLike[str]",
    notice: Callable[[str], None] = _ignore,
    arrays: bool = False,
) -> list[str]:
    """List the given files, and the files in the given folders, sorted by name.

    In folders, what is an image by its name or its first bytes counts, and no link is followed: see
    ``deploy.folders.files``. A path that is given may be a link.

    Args:
        paths: files and folders, or addresses of such (``deploy.folders.addresses``).
        notice: called with a sentence for each reason why something in the folders was passed over.
        arrays: whether arrays of numpy are images, as for an encoder that takes a number of channels.

    Raises:
        ArgumentError: a path does not exist, no file was found, or ``paths`` are not paths.
    """
    files: list[str] = []  # a Path takes four times as much memory
    passed: dict[str, str] = {}
    given = [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else paths
    for one in given:
        if is_address(one):
            files += list_images(str(one), passed, arrays)
            continue
        [path] = as_paths(paths=[one])
        if path.is_dir():
            found = _walk(path, passed, arrays)
            files += sorted(found, key=lambda file: file.replace(os.sep, "\0"))  # folder by folder
        elif path.exists():
            files.append(os.fspath(path))
        else:
            raise ArgumentError(f"{path}: no such file or folder")
    lines = describe_passed_over(passed)
    for line in lines:
        notice(line)
    if not files:
        links = ["copy what a link leads to, or give the link itself"] if LINK in passed.values() else []
        raise ArgumentError("; ".join(["no image found; give image files, or folders that hold some", *lines, *links]))
    return files


def _walk(folder: Path, passed: dict[str, str], arrays: bool) -> Iterator[str]:
    """The files below a folder; adds to ``passed`` what is left, and why."""
    names: list[str] = [""]
    while names:
        inside = names.pop()
        try:
            with os.scandir(folder / inside) as entries:
                listed = [(f"{inside}/{entry.name}" if inside else entry.name, entry) for entry in entries]
        except OSError as error:
            passed[os.fspath(folder / inside)] = f"cannot be listed: {error.strerror}"
            continue
        for name, entry in listed:
            reason = _fault(name, entry, arrays)
            if reason:
                passed[entry.path] = reason
            elif entry.is_dir(follow_symlinks=False):
                names.append(name)
            else:
                yield entry.path


def _fault(name: str, entry: os.DirEntry[str], arrays: bool) -> str | None:
    left = passed_over(name)
    if left:
        return left[1]
    if entry.is_symlink():
        return LINK
    if entry.is_dir():
        return None
    if not entry.is_file():
        return "is not a regular file"
    if named_as_image(name, arrays) or is_image(name, _head(entry.path), arrays):
        return None
    return ARRAY if is_array(name) else NO_IMAGE


def _head(path: str) -> bytes:
    """The first bytes; none of a file that cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(HEAD_BYTES)
    return b""


@dataclass(frozen=True)
class Options:
    """How to embed a folder.

    Attributes:
        format: "npy", "csv" or "parquet".
        normalize: scale each vector to length 1; otherwise write the raw output of the network.
        batch_size: images of one batch of a thread; larger batches take memory and are not faster on a CPU.
        threads: by default one for each core that this process may use.
    """

    format: Format = "npy"
    normalize: bool = True
    batch_size: int = 8
    threads: int | None = None


DEFAULTS = Options()

Compute = Callable[[Encoder, Sequence[str], int, Options], Iterator[Embeddings]]
"""Encoder, files, how many of them are done, and options → the embeddings of the others in order, several at a time."""


def embed_files(
    encoder: Encoder,
    files: Sequence[str],
    out: str | Path,
    options: Options = DEFAULTS,
    progress: Callable[[int], None] = _ignore,
    notice: Callable[[str], None] = _ignore,
    compute: Compute | None = None,
) -> int:
    """Write the embeddings of ``files`` into the new directory ``out``.

    Args:
        encoder: loaded with ``threads=1``: each thread decodes and embeds separate batches, so that no core waits for
            another, and the result does not depend on the number of threads.
        files: paths of image files, such as ``image_files`` lists them.
        out: directory to make.
        options: see ``Options``.
        progress: called with the number of files done; the first call counts those of an interrupted run.
        notice: called with a sentence if an interrupted run is continued or discarded.
        compute: what embeds; None: threads of this process.

    Returns:
        The number of files that could not be read.

    Raises:
        ArgumentError: ``out`` exists, another process is writing it, or an argument is not allowed.
        DeployError: the format needs a package that is not installed.

    Examples:
        >>> import deploy
        >>> encoder = deploy.load("models/bundle", threads=1)
        >>> embed_files(encoder, image_files([Path("photos")]), Path("vectors"))
        0
        >>> sorted(path.name for path in Path("vectors").iterdir())
        ['MANIFEST.sha256', 'embedding.json', 'failures.csv', 'ids.csv', 'vectors.npy']
    """
    batch_size, normalize = options.batch_size, options.normalize
    threads = available_cpus() if options.threads is None else options.threads
    require_positive(batch_size=batch_size)
    require_positive(MOST_THREADS, threads=threads)
    require_truth(normalize=normalize)
    if not isinstance(encoder, Encoder):
        raise ArgumentError(f"encoder={encoder!r:.80}; give an Encoder, as `deploy.load` returns")
    if isinstance(files, str | os.PathLike) or not isinstance(files, Sequence):
        raise ArgumentError(f"files={files!r:.80}; give a list of paths, such as `image_files` returns")
    for file in files:
        require_path(files=file)
    files, out = list(map(os.fspath, files)), as_path(out=out)
    check_format(options.format, files)
    if out.exists():
        discard(out)
        raise ArgumentError(f"{out}: already exists; choose another directory, or remove it")
    with work_folder(out, digest_of(encoder, files, normalize, batch_size), notice) as work:
        done = sum(len(part) for part in finished_parts(work))
        if done:
            notice(f"an interrupted run embedded {done:,} of {len(files):,} files; continuing from there")
        progress(done)
        batches = (compute or _embed_here)(encoder, files, done, options)
        write_parts(work, batches, done, len(files), progress)
        return _publish(out, work, files, encoder, options.format, normalize)


def _embed_here(encoder: Encoder, files: Sequence[str], done: int, options: Options) -> Iterator[Embeddings]:
    """In threads, each of which decodes and embeds batches."""
    threads, size = options.threads or available_cpus(), options.batch_size

    def embed(start: int) -> Embeddings:
        batch = [*map(picture, files[start : start + size])]
        return encoder.embed(batch, size, options.normalize, "skip", workers=1)

    return map_ahead(embed, range(done, len(files), size), threads, ahead=2 * threads)


def _publish(out: Path, work: Path, files: Sequence[str], encoder: Encoder, format: Format, normalize: bool) -> int:
    info, rows = encoder.info, 0
    with publish(out) as folder:
        with (
            table(folder / "failures.csv", ["path", "reason", "message"]) as failed,
            WRITERS[format](folder, info["dim"]) as write,
        ):
            for part in finished_parts(work):
                vectors, ok, failures = read_part(work, part)
                sources = files[part.start : part.stop]
                write([source for source, good in zip(sources, ok, strict=True) if good], vectors)
                bad = [source for source, good in zip(sources, ok, strict=True) if not good]
                failed.writerows([source, *failure] for source, failure in zip(bad, failures, strict=True))
                rows += len(vectors)
        summary = {"bundle": info["id"], "encoder": encoder.id, "name": info["name"], "dim": info["dim"]}
        summary |= {"normalized": normalize, "rows": rows, "failures": len(files) - rows}
        (folder / "embedding.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    failpoint("folder.published")
    return len(files) - rows


def digest_of(encoder: Encoder, files: Sequence[str], normalize: bool, batch_size: int) -> str:
    """Return a digest of everything that the vectors depend on; a file counts by its path, size and time of change."""
    import onnxruntime

    providers = encoder.info["runtime"]["providers"]
    request = [encoder.id, providers, onnxruntime.__version__, normalize, batch_size]
    digest = hashlib.sha256(json.dumps(request).encode())
    for file in files:
        try:
            now = state(file)
        except (OSError, ArgumentError):
            now = "cannot be read"
        digest.update(os.fsencode(file) + f"\0{now}\0".encode())
    return digest.hexdigest()
