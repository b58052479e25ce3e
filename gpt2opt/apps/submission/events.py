"""Change texts in an event file of TensorBoard, such as the arguments that `Trainer` writes into it.

A text can't be replaced in the bytes alone: lengths stand before it, and a checksum behind each record.
"""

import io
import struct
from collections.abc import Callable, Iterator

HEADER = struct.Struct("<Q4x")  # length of the record, its checksum
CHECKSUM_BYTES = 4


def change_events(content: bytes, change: Callable[[str], str]) -> bytes:
    """Return an event file with `change` applied to the texts of its summaries.

    Raises:
        OSError: the file is cut short.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    changed = io.BytesIO()
    writer = RecordWriter(changed)
    for record in _records(content):
        event = Event.FromString(record)
        for value in event.summary.value:
            if not value.HasField("tensor"):
                continue  # even an empty one would take the place of a scalar or a picture
            texts = [text.decode("utf-8", "surrogateescape") for text in value.tensor.string_val]
            value.tensor.string_val[:] = [change(text).encode("utf-8", "surrogateescape") for text in texts]
        writer.write(event.SerializeToString())
    return changed.getvalue()


def _records(content: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(content):
        end = place + HEADER.size
        length = HEADER.unpack_from(content, place)[0] if end <= len(content) else len(content)
        if end + length + CHECKSUM_BYTES > len(content):
            raise OSError("an event file of TensorBoard is cut short; write it again")
        yield content[end : end + length]
        place = end + length + CHECKSUM_BYTES
