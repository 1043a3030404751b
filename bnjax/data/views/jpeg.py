"""JPEG files made shorter, so that only the rows that a crop needs are decoded."""

_START_OF_FRAME = (0xC0, 0xC1)  # baseline and extended sequential, Huffman codes
_START_OF_SCAN = 0xDA
_END = b"\xff\xd9"


def keep_rows(data: bytes, rows: int) -> bytes:
    """Returns the same JPEG file with a frame that ends below the given rows.

    A sequential file holds its blocks row by row, so that a decoder which is told of a lower
    frame reads the same pixels and stops; what follows in the file is never decoded. One row of
    colours more than asked for is kept, from which those above it are interpolated.

    Other files are returned as they are: progressive and arithmetic ones, those with a scan for
    each colour, and those without an end, so that their decoder finds that they are cut off.

    Args:
        data: a JPEG file.
        rows: pixels of height that must stay as they are.
    """
    if data.rstrip(b"\0")[-2:] != _END:
        return data
    frame, place = 0, 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # any marker may be preceded by fill bytes
            place += 1
            continue
        if marker in _START_OF_FRAME:
            frame = place
        elif marker == _START_OF_SCAN:
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    else:
        return data
    components = data[frame + 9] if frame else 0
    if components not in (1, 3, 4) or data[place + 4] != components:
        return data
    vertical = max(data[frame + 11 + 3 * index] & 0x0F for index in range(components))
    height = rows + vertical
    if height >= int.from_bytes(data[frame + 5 : frame + 7], "big"):
        return data
    return data[: frame + 5] + height.to_bytes(2, "big") + data[frame + 7 :]
