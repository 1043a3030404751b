"""A check that a PNG file holds all rows of its image.

Its checksums cover the chunks that are there. Pillow and they accept a stream that ends early, and
Pillow leaves the missing rows black.
"""

import struct
import zlib

from bnjax.data.data_set import DataError

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel, by the type of colour in the header."""
_PLAIN = ((0, 0, 1, 1),)
_INTERLACED = (  # Adam7: first column and row of each pass, and the steps between its own
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PART = 1 << 20


def check_rows(data: bytes) -> None:
    """Refuses a PNG file whose compressed stream ends before its last row.

    Takes the time of decompressing the file, and a megabyte at most.

    Args:
        data: a PNG file with a header that Pillow accepts.

    Raises:
        DataError: rows are missing; says how much of the file's bytes there is.
        zlib.error: the stream is damaged.
    """
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * _CHANNELS[colour]
    expected = 0
    for left, top, across, down in _INTERLACED if interlace else _PLAIN:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + -(-columns * bits // 8))  # a byte for the row's filter
    found = _stream_size(data, expected)
    if found < expected:
        raise DataError(f"rows are missing: its pixels take {expected:,} bytes, it has {found:,}")


def _stream_size(data: bytes, most: int) -> int:
    """Returns the size of the decompressed chunks, counted up to `most`."""
    stream, size, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(data) and size < most and not stream.eof:
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"IDAT":
            packed = data[place + 8 : place + 8 + length]
            part = b"?"
            while (packed or part) and size < most and not stream.eof:
                part = stream.decompress(packed, _PART)  # may hold more back than it was given
                packed = stream.unconsumed_tail
                size += len(part)
        place += 12 + length
    return size
