"""What a TensorBoard log holds, read without TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Values by tag and step, of the one file in a folder.

    A record is its length, a checksum of that, the event, and a checksum of it.
    """
    (file,) = folder.iterdir()
    rest, found = file.read_bytes(), {}
    while rest:
        (length,) = struct.unpack("<Q", rest[:8])
        event = Event.FromString(rest[12 : 12 + length])
        rest = rest[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found
