"""Damage inside the scans of a JPEG that a tolerant decoder passes over without a word.

Of JPEGs damaged in the middle, Pillow reads nine in ten as if nothing were wrong, though the picture is shifted,
discolored or smeared from there on. A strict decoder notices that a scan holds more or less than the picture needs.
What remains is damage that happens to cost exactly the right number of blocks; of that, runs of zeros, which a failing
disk leaves, are distinguished by what zeros mean in the file's own Huffman codes.
"""

import simplejpeg

from pipeline.validation.probe.container import jpeg_segments

ZERO_RUN = 32  # bytes: longer than any one block of a picture is in zeros alone, and far from what pictures hold
END_OF_BLOCK = 0

# Codes of markers: ITU T.81, table B.1.
DHT, SOS, COMMENT = 0xC4, 0xDA, 0xFE
APPLICATION = range(0xE0, 0xF0)
SEQUENTIAL_HUFFMAN = (0xC0, 0xC1)


def stream_fault(jpeg: bytes) -> str | None:
    """What a strict decoder says of a JPEG that Pillow decodes; None: nothing, or it does not know this kind of JPEG.

    Metadata and what follows the end are not looked at.

    Raises:
        MemoryError: there is not enough for the strict decoder.
    """
    segments = [(code, jpeg[start:end]) for code, start, end in jpeg_segments(jpeg)]
    segments = [(code, segment) for code, segment in segments if code not in APPLICATION and code != COMMENT]
    fault = _complaint(segments)
    if fault and _complaint(unpadded := [(code, _unpadded(code, segment)) for code, segment in segments]) is None:
        segments, fault = unpadded, None
    if not fault and _has_zeroed_scan(segments):
        return f"{ZERO_RUN} or more bytes of zeros in a scan"
    return fault


def _complaint(segments: list[tuple[int, bytes]]) -> str | None:
    """Of libjpeg-turbo, which decodes all of the entropy-coded data, but of each block only the mean: that is cheap."""
    jpeg = b"\xff\xd8" + b"".join(segment for _, segment in segments)
    try:
        simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        if "nsufficient memory" in str(error):
            raise MemoryError(str(error)) from error
        return str(error) if _is_known_kind(jpeg) else None
    return None


def _is_known_kind(jpeg: bytes) -> bool:
    """It refuses rare subsamplings as soon as it has read the header."""
    try:
        simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return False
    return True


def _unpadded(code: int, segment: bytes) -> bytes:
    """Without the zeros that some cameras put behind a scan, to fill a block of their memory."""
    shorter = segment.rstrip(b"\0") if code == SOS else segment
    return shorter + b"\0" if shorter.endswith(b"\xff") else shorter  # a stuffed byte


def _has_zeroed_scan(segments: list[tuple[int, bytes]]) -> bool:
    """Does a scan hold a run of zeros that no picture has?

    The shortest Huffman code is all zeros. Where it says "end of block", as in flat pictures with codes made for them,
    zeros are many empty blocks. Where it is a coefficient, they are blocks of 63 equal ones, up to the highest
    frequency, which is not a picture.
    """
    is_sequential = any(code in SEQUENTIAL_HUFFMAN for code, _ in segments)
    first_symbols: dict[int, int] = {}
    for code, segment in segments:
        if code == DHT:
            first_symbols |= _first_symbols(segment)
        elif code == SOS and is_sequential and bytes(ZERO_RUN) in segment.rstrip(b"\0"):
            tables = [selectors & 15 for selectors in segment[6 : 5 + 2 * segment[4] : 2]]
            if any(first_symbols.get(table, END_OF_BLOCK) != END_OF_BLOCK for table in tables):
                return True
    return False


def _first_symbols(segment: bytes) -> dict[int, int]:
    """For each AC table in a DHT segment, its number → the symbol of its shortest code (ITU T.81, B.2.4.2)."""
    symbols, position = {}, 4
    while position + 17 < len(segment):
        kind, number = divmod(segment[position], 16)
        if kind == 1:
            symbols[number] = segment[position + 17]
        position += 17 + sum(segment[position + 1 : position + 17])
    return symbols
