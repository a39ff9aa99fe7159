"""Read the kinds of images that an encoder accepts: each becomes pixels, or the reason why it cannot be read."""

import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from numbers import Number
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images.full_depth import Samples, as_samples, widened
from deploy.images.preprocess import MAX_PIXELS, Preprocessing, canonicalize

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image | Samples"
"""A path, the bytes of an image file, an open file, a PIL image, or pixels: uint8 RGB [height, width, 3], or uint8 or
uint16 [height, width, channels] for an encoder that takes a number of channels."""

Pixels: TypeAlias = Samples | ImageError

PARTS = ("read", "__dlpack__", "columns", "iter_content")
"""What has one of these attributes yields parts: lines of a file, rows of a tensor, columns of a table, chunks of an
answer over HTTP."""

PATHS = "OUT"
"""NumPy's letters for arrays whose elements may be paths: objects and text."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_single(images: "Picture | Iterable[Picture]") -> bool:
    """Return whether ``images`` is one image rather than an iterable of them.

    An array [n, height, width, 3], or one of n paths, is n images. What yields other things than images (a file its
    lines, a buffer or tensor its numbers, an array its rows, a mapping its keys, a table its columns), or yields them
    in no order (a set), counts as one, so that it is read or refused as a whole.
    """
    if isinstance(images, str | os.PathLike | Mapping | set | frozenset):
        return True
    if not isinstance(images, np.ndarray):
        if _has_buffer(images) or any(hasattr(images, name) for name in PARTS) or not isinstance(images, Iterable):
            return True
        if isinstance(images, Sequence) and _is_nested_pixels(images):
            return True
    shape = _shape(images)
    return shape is not None and len(shape) != 4 and not (len(shape) == 1 and _kind(images) in PATHS)


def _shape(images: object) -> tuple[int, ...] | None:
    """The shape of anything that is an array, of whatever library; () if it does not say, None of other things."""
    shape = getattr(images, "shape", None)
    if shape is None or callable(shape):
        return () if hasattr(images, "__array__") or hasattr(images, "__array_interface__") else None
    try:
        return tuple(shape)
    except TypeError:
        return ()


def _kind(images: object) -> str:
    """NumPy's letter for the kind of the elements; "O" where they are not numpy's, as strings of pandas."""
    return str(getattr(getattr(images, "dtype", None), "kind", "O"))


def _is_nested_pixels(images: Sequence[Any]) -> bool:
    """Whether lists in lists are one image: what ``tolist`` makes of pixels [height, width, 3], or of a part of it.

    A list of such lists is several inputs, of which each is refused.
    """
    depth, first = 0, images
    while isinstance(first, Sequence) and not isinstance(first, str | bytes) and len(first):
        depth, first = depth + 1, first[0]
    return depth <= 3 and isinstance(first, Number) and all(_is_like(item, images[0]) for item in images)


def _is_like(item: object, first: object) -> bool:
    if isinstance(first, Number):
        return isinstance(item, Number)
    return isinstance(item, Sequence) and not isinstance(item, str | bytes)


def as_iterable(images: "Picture | Iterable[Picture]") -> Iterable[Picture]:
    """Return the given images; a single image becomes a list of one.

    So does what can only be iterated, and yields bytes or other things than images, as the response of an HTTP client
    and an archive do: whether bytes from it are files or parts of one cannot be known, and it is refused as a whole.
    """
    if is_single(images):
        return [cast("Picture", images)]
    several = cast("Iterable[Picture]", images)
    if isinstance(several, Iterator | Collection) or hasattr(several, "__getitem__"):
        return several
    rest = iter(several)
    first = list(islice(rest, 1))
    if all(_is_picture(picture) for picture in first):
        return chain(first, rest)
    return [cast("Picture", images)]


def _is_picture(picture: object) -> bool:
    """Whether it is an image for certain; bytes may be a part of a file."""
    from PIL.Image import Image

    return isinstance(picture, str | os.PathLike | np.ndarray | Image) or hasattr(picture, "read")


def source_of(picture: Picture, position: int) -> str:
    """Return the name of an input in messages: its path, or ``image <position>``."""
    path = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "name", None)
    return os.fspath(path) if isinstance(path, str | os.PathLike) else f"image {position}"


def read_ahead(
    pictures: Iterable[Picture], preprocessing: Preprocessing, workers: int, ahead: int
) -> Iterator[tuple[str, Pixels]]:
    """Yield source and pixels, as ``Preprocessing.read`` gives them, of each input in order.

    Threads decode ``ahead`` more.
    """
    named = ((source_of(picture, position), picture) for position, picture in enumerate(pictures))

    def read(item: tuple[str, Picture]) -> tuple[str, Pixels]:
        source, picture = item
        return source, read_pixels(picture, preprocessing)

    return map_ahead(read, named, workers, ahead)


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yield ``function`` of each item in order, while ``workers`` threads compute at most ``ahead`` more results.

    Threads suffice: Pillow and onnxruntime release the interpreter lock. With one worker, the caller's thread computes.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="deploy-decode")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_pixels(picture: Picture, preprocessing: Preprocessing) -> Pixels:
    """Decode one input and resize it for the encoder. An ImageError is returned, not raised."""
    try:
        return preprocessing.apply(_decode_picture(picture, preprocessing))
    except ImageError as error:
        return error


def _decode_picture(picture: Picture, preprocessing: Preprocessing) -> Samples:
    if isinstance(picture, str | os.PathLike):
        return preprocessing.decode(_read_path(Path(picture)))
    if isinstance(picture, np.ndarray):
        return _check_pixels(picture, preprocessing.channels)
    if _has_buffer(picture):
        return preprocessing.decode(bytes(cast("bytes", picture)))
    if hasattr(picture, "read"):
        return preprocessing.decode(_read_file(cast("IO[bytes]", picture)))
    from PIL.Image import Image

    if not isinstance(picture, Image):
        raise ImageError(
            "unsupported_input", f"given a value of type {type(picture).__name__}; give {_allowed(picture)}"
        )
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} x {picture.height} pixels"
        raise ImageError("bomb", f"{size} are over the limit of {MAX_PIXELS:,} pixels; make it smaller")
    if preprocessing.channels:
        return as_samples(picture, preprocessing.channels)
    return np.array(canonicalize(picture, preprocessing.background)[0])


def _allowed(picture: object) -> str:
    """What to give in place of something else."""
    if hasattr(picture, "iter_content"):
        return "its `content`, the bytes of the file"
    if hasattr(picture, "__array__"):
        return "its pixels as numpy.asarray makes them, or a path"
    allowed = "a path, the bytes of a file, a file opened with 'rb', a PIL image or an array; or a list of them"
    return f"{allowed}, or iter() of it if it yields images" if hasattr(picture, "__iter__") else allowed


def _check_pixels(pixels: NDArray[Any], channels: int | None) -> Samples:
    shape, kinds = pixels.shape, (np.uint8, np.uint16) if channels else (np.uint8,)
    fits = len(shape) == 3 and shape[2] == (channels or 3) and pixels.size > 0
    if not fits or pixels.dtype.newbyteorder("=") not in kinds:
        wanted = (
            f"uint8 or uint16 [height, width, {channels}]" if channels else "RGB pixels as uint8 [height, width, 3]"
        )
        raise ImageError("unsupported_input", f"given an array {pixels.dtype} {list(shape)}; give {wanted}")
    return widened(pixels) if channels else np.ascontiguousarray(pixels)


def _has_buffer(picture: object) -> bool:
    """Return whether the object gives its memory as bytes, as bytes, memoryview, mmap and array.array do."""
    try:
        memoryview(cast("bytes", picture))
    except TypeError:
        return False
    return True


def _read_path(path: Path) -> bytes:
    try:
        # Check the type first: reading a pipe or a device may never end.
        data = path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None
    except OSError as error:
        raise ImageError("io_error", f"cannot be read: {error.strerror}; check the path and its permissions") from error
    except ValueError as error:  # a null character
        raise ImageError("io_error", f"not a valid path: {error}") from error
    if data is None:
        raise ImageError("io_error", "not a regular file; give the path of an image file")
    return data


def _read_file(file: IO[bytes]) -> bytes:
    try:
        data: object = file.read()
    except ImageError:
        raise  # of an object in a store, which says itself why
    except (OSError, ValueError, TypeError) as error:  # closed, opened as text or for writing, or not a file
        raise ImageError("io_error", f"cannot be read: {error}; give a file opened with 'rb'") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        given = f"its read() returned {type(data).__name__}, not bytes"
        raise ImageError("unsupported_input", f"{given}; give a file opened with 'rb'")
    if not data:
        raise ImageError("empty_file", "no bytes are left to read; rewind the file with seek(0)")
    return bytes(data)
