"""Extract the images from the body of a request. The server never fetches a URL."""

import base64
import binascii
import json
from collections.abc import Mapping

from deploy.errors import ImageError
from deploy.server.engine import Image
from deploy.server.limits import RefusedError

HOW = 'send the bytes of an image as image/* or application/octet-stream, or JSON {"images": [{"b64": "..."}]}'


def read_images(content_type: str, body: bytes, most: int) -> list[Image]:
    """Return the encoded images of a request to a /v1 route; invalid base64 becomes an ImageError in its place.

    Raises:
        RefusedError: 415 for another content type, 400 for other JSON, 422 for no image or too many.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [body]
    if kind != "application/json":
        raise RefusedError(415, "unsupported_content_type", f"given Content-Type {kind[:100] or 'none'}; {HOW}")
    entries = json_object(body).get("images")
    if not isinstance(entries, list):
        raise RefusedError(400, "invalid_request", f"images is not a list; {HOW}")
    check_count(len(entries), most)
    return [_image(entry, position) for position, entry in enumerate(entries)]


def json_object(body: bytes) -> dict[str, object]:
    """Parse the body; raise RefusedError (400) if it is not a JSON object."""
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
    """Decode base64 text; return an ImageError if it is not valid."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        return ImageError("unsupported_input", f"not valid base64 ({error}); encode the bytes of the image file")


def read_integer(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return a query parameter from 1 to ``most``; raise RefusedError (400) if it has another value."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise RefusedError(400, "invalid_parameter", f"{name}={text[:50]}; give an integer from 1 to {most}")
    return int(text)


def _image(entry: object, position: int) -> Image:
    if not (isinstance(entry, dict) and set(entry) == {"b64"} and isinstance(entry["b64"], str)):
        raise RefusedError(
            400, "invalid_request", f'images[{position}] is not {{"b64": "..."}}; the server never fetches a URL; {HOW}'
        )
    return from_base64(entry["b64"])
