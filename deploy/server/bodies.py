"""The body of a request: receive it, undo its Content-Encoding, and extract its images. Every route reads it here.

A body is counted as it arrives and as it is inflated, so that neither exceeds the limit in memory. The server never
fetches a URL, and writes no file of a form to the disk.
"""

import asyncio
import base64
import binascii
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from deploy.errors import ImageError
from deploy.server.engine import Image
from deploy.server.limits import ClientLeftError, Limits, RefusedError

HOW = (
    "send the bytes of an image as image/* or application/octet-stream, several as files of multipart/form-data, or "
    'JSON {"images": [{"b64": "..."}]}'
)

BINARY = ("application/octet-stream", "application/x-npy")
"""Content types of one image file, besides image/*; an array of numpy has no registered type."""

PIECE = 16_384
"""Bytes that are inflated at a time; other requests get their turn in between."""

GZIP_MEMBERS = 1_000
"""Most parts of a body in gzip, each of which may be empty."""

ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content-Encoding → the format for zlib; deflate is the format of RFC 1950 (RFC 9110, 8.4.1.2)."""

PADDING = 100
"""Blanks behind a boundary that are refused: the parser takes a quarter of a second for each million."""

MOST_IN_JSON = {b"{": 100_000, b":": 100_000, b"[": 500_000, b",": 4_000_000}
"""How often each may be in a body of JSON. To parse these takes some tenths of a second, in which no thread runs."""

_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ESCAPED = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
"""How URIs escape what base64 needs; decoding every escape would take seconds for a body that consists of them."""

# Its warnings would be a line in the log for each form that is not valid, with a part of it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


async def read_body(receive: Receive, headers: Headers, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """Receive the body of a request and undo its Content-Encoding.

    Its size is counted as it arrives, regardless of Content-Length, and as it is inflated.

    Raises:
        RefusedError: 413 if it is too large, 408 if it takes too long, 503 if the memory for bodies is full, 415 for
            another encoding, 400 if it is not in the encoding that the request names.
        ClientLeftError: the connection was closed before the end of the body.
    """
    too_large = RefusedError(
        413, "body_too_large", f"the body exceeds {limits.body_bytes:,} bytes; send fewer or smaller images"
    )
    inflater = _inflater(headers)
    if int(headers.get("content-length", "0")) > limits.body_bytes:
        raise too_large
    pieces: list[bytes] = []
    received, size, more = 0, 0, True
    try:
        async with asyncio.timeout(limits.receive_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError("the client left before its body was complete")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                received += len(chunk)
                if received > limits.body_bytes:
                    raise too_large
                for piece in inflater.inflate(chunk) if inflater else (chunk,):
                    size += len(piece)
                    if size > limits.body_bytes:
                        raise too_large
                    hold(len(piece))
                    pieces.append(piece)
                    if inflater:
                        await asyncio.sleep(0)
    except TimeoutError:
        raise RefusedError(
            408, "receive_timeout", f"the body was not complete after {limits.receive_seconds:g} s; send it faster"
        ) from None
    if inflater:
        inflater.end()
    return b"".join(pieces)


class Inflater:
    """Undoes a Content-Encoding in pieces of at most PIECE bytes, however much a compressed byte stands for."""

    def __init__(self, encoding: str) -> None:
        self._encoding, self._members = encoding, 1
        self._stream = zlib.decompressobj(ENCODINGS[encoding])

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body stand for; raise RefusedError (400) if they are not in the encoding."""
        for start in range(0, len(data), PIECE):
            rest, full = data[start : start + PIECE], False
            while rest or full:
                if self._stream.eof:
                    self._begin_member()
                try:
                    piece = self._stream.decompress(rest, PIECE)
                except zlib.error as error:
                    raise _invalid_encoding(f"is not in {self._encoding} ({error})") from None
                rest, full = self._stream.unconsumed_tail or self._stream.unused_data, len(piece) == PIECE
                full = full and not self._stream.eof
                yield piece

    def end(self) -> None:
        """Raise RefusedError (400) if the body ended too early."""
        if not self._stream.eof:
            raise _invalid_encoding(f"ends before its {self._encoding} is complete")

    def _begin_member(self) -> None:
        """Begin the next part of a body in gzip, which may consist of several (RFC 1952, 2.2)."""
        if self._encoding == "deflate" or self._members == GZIP_MEMBERS:
            raise _invalid_encoding(f"continues after the end of its {self._encoding}")
        self._members += 1
        self._stream = zlib.decompressobj(ENCODINGS[self._encoding])


def read_images(content_type: str, body: bytes, most: int) -> list[Image]:
    """Return the encoded images of a request to a /v1 route; invalid base64 becomes an ImageError in its place.

    Raises:
        RefusedError: 415 for another content type, 400 for another form or other JSON, 422 for no image or too many.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in BINARY:
        return [body]
    if kind == "multipart/form-data":
        return _read_form(content_type, body, most)
    if kind != "application/json":
        raise RefusedError(415, "unsupported_content_type", f"given Content-Type {kind[:100] or 'none'}; {HOW}")
    entries = json_object(body).get("images")
    if not isinstance(entries, list):
        raise RefusedError(400, "invalid_request", f"images is not a list; {HOW}")
    check_count(len(entries), most)
    return [_image(entry, position) for position, entry in enumerate(entries)]


def json_object(body: bytes) -> dict[str, object]:
    """Parse the body; raise RefusedError (400) if it is not a JSON object, or one of very many fields."""
    for sign, most in MOST_IN_JSON.items():
        if body.count(sign) > most:
            raise RefusedError(400, "invalid_request", f"the JSON has over {most:,} times {sign.decode()!r}; {HOW}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid_json", f"the body is not valid JSON ({error}); {HOW}") from None
    if not isinstance(content, dict):
        raise RefusedError(400, "invalid_request", f"the JSON is not an object; {HOW}")
    return content


def check_count(count: int, most: int) -> None:
    """Raise RefusedError (422) unless the number of images is from 1 to ``most``."""
    if not 1 <= count <= most:
        raise RefusedError(422, "number_of_images", f"given {count} images; send 1 to {most} in a request")


def from_base64(text: str) -> Image:
    """Decode base64 or a ``data:`` URI; return an ImageError if it is neither.

    Both alphabets of RFC 4648 are read, with or without padding, and in lines.
    """
    if text[:5].lower() == "data:":
        about, _, text = text.partition(",")
        if not about.lower().endswith(";base64"):
            message = "a data URI without base64; give data:image/png;base64, and the bytes of the image file in base64"
            return ImageError("unsupported_input", message)
        for code, letter in _ESCAPED if "%" in text else ():
            text = text.replace(code, letter)
    try:
        letters = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        return ImageError("unsupported_input", f"not valid base64 ({error}); encode the bytes of the image file")


def _inflater(headers: Headers) -> Inflater | None:
    given = ",".join(headers.getlist("content-encoding")).lower().split(",")
    encodings = [encoding.strip() for encoding in given if encoding.strip() not in ("", "identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in ENCODINGS:
        message = f"given Content-Encoding {', '.join(encodings)[:100]}; send gzip, deflate or none, only once"
        raise RefusedError(415, "unsupported_content_encoding", message, {"Accept-Encoding": "gzip, deflate"})
    return Inflater(encodings[0])


def _invalid_encoding(what: str) -> RefusedError:
    return RefusedError(400, "invalid_content_encoding", f"the body {what}; compress it again, or send it uncompressed")


def _read_form(content_type: str, body: bytes, most: int) -> list[Image]:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _invalid_form("its Content-Type has no boundary")
    if re.search(re.escape(b"--" + boundary) + rb"[ \t]{%d}" % PADDING, body):
        raise _invalid_form("a boundary has a long row of blanks behind it")
    form = _Form(most)
    try:
        MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.add_to_name,
                "on_header_value": form.add_to_value,
                "on_header_end": form.end_header,
                "on_part_data": form.add_content,
                "on_part_end": form.end_part,
                "on_end": form.end,
            },
        ).write(body)
    except FormParserError as error:
        raise _invalid_form(str(error)) from None
    if not form.complete:
        raise _invalid_form("it ends before its last boundary")
    check_count(len(form.images), most)
    return form.images


class _Form:
    """The files of a form, collected while it is parsed."""

    def __init__(self, most: int) -> None:
        self.images: list[Image] = []
        self.complete = False
        self._most, self._parts = most, 0

    def begin_part(self) -> None:
        self._parts += 1
        check_count(self._parts, self._most)
        self._headers: dict[bytes, bytes] = {}
        self._content: list[bytes] = []
        self._name, self._value = b"", b""

    def add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        kind, _ = parse_options_header(self._headers.get(b"content-type"))
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise _invalid_form("a file has a Content-Transfer-Encoding; send its bytes as they are (RFC 7578, 4.7)")
        if b"filename" not in options and not kind.startswith((b"image/", *map(str.encode, BINARY))):
            name = options.get(b"name", b"").decode(errors="replace")[:50]
            raise _invalid_form(f"the field {name!r} is not a file; give options in the query of the URL")
        content = b"".join(self._content)
        if content or options.get(b"filename") != b"":  # what a browser sends for a field without a file
            self.images.append(content)

    def end(self) -> None:
        self.complete = True


def _invalid_form(message: str) -> RefusedError:
    return RefusedError(400, "invalid_form", f"the form is not valid: {message}")


def _image(entry: object, position: int) -> Image:
    if not (isinstance(entry, dict) and set(entry) == {"b64"} and isinstance(entry["b64"], str)):
        raise RefusedError(
            400, "invalid_request", f'images[{position}] is not {{"b64": "..."}}; the server never fetches a URL; {HOW}'
        )
    return from_base64(entry["b64"])
