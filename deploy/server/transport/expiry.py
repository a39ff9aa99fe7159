"""When certificates expire, read from their DER (X.690, RFC 5280): Python's ssl tells it of a peer's alone."""

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime

PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]+)-----END")
UTC_TIME, VERSION = 0x17, 0xA0  # tags: a time whose year has two digits; the optional first field of a certificate


def find_expiry(chain: bytes) -> float:
    """When the first certificate of a chain in PEM expires, in seconds since 1970; clients refuse the chain then.

    Raises:
        ValueError: there is no certificate in it, or one is damaged.
    """
    try:
        return min(_not_after(base64.b64decode(body)) for body in PEM.findall(chain))
    except (LookupError, RuntimeError) as error:  # it ends early
        raise ValueError("a certificate is damaged") from error


def _not_after(certificate: bytes) -> float:
    _, signed = next(_elements(certificate))
    _, fields = next(_elements(signed))
    found = [content for tag, content in _elements(fields) if tag != VERSION]
    _, (tag, written) = _elements(found[3])  # after serial number, algorithm and issuer: not before, not after
    text = written.decode("ascii")
    if tag == UTC_TIME:  # RFC 5280, 4.1.2.5.1
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of a sequence."""
    position = 0
    while position < len(data):
        tag, length, position = data[position], data[position + 1], position + 2
        if length & 0x80:  # then that many bytes hold the length
            size = length & 0x7F
            length, position = int.from_bytes(data[position : position + size]), position + size
        yield tag, data[position : position + length]
        position += length
