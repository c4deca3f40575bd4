"""Arrow files as untrusted input: what a buffer would take is read and bounded before anything is decompressed.

Arrow writes each compressed buffer's size before it and allocates what is written there, so a kilobyte can ask for
gigabytes. Messages are read in the order that they lie in the file, not by the footer: those that were looked at are
those that are read.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from distributed_kd.errors import RequestError

# Columns may hold long runs of one value; beyond this many bytes and times the file's own size none of ours does.
SPARE_BYTES = 64 << 20
MOST_RATIO = 256
_MAGIC = b"ARROW1\0\0"
_V5 = 4  # of MetadataVersion in Arrow's Schema.fbs; V4 may say elsewhere that its buffers are compressed
_SCHEMA, _RECORD_BATCH = 1, 3  # of MessageHeader in its Message.fbs
_VERSION, _HEADER_TYPE, _HEADER = 0, 1, 2  # fields of its Message
_BUFFERS, _COMPRESSION = 2, 3  # fields of its RecordBatch


def table_of(data: bytes, where: str) -> pa.Table:
    """The table of an Arrow file in memory, every offset in it checked. Raises `RequestError` when it is not one.

    At most SPARE_BYTES + MOST_RATIO * len(data) bytes are allocated for it.
    """
    try:
        if not data.startswith(_MAGIC) or not data.endswith(_MAGIC[:6]):
            raise ValueError("it does not begin and end as one")
        stream = pa.py_buffer(data).slice(len(_MAGIC))
        wanted = sum(_uncompressed_bytes(message) for message in pa.ipc.MessageReader.open_stream(stream))
        if wanted > SPARE_BYTES + MOST_RATIO * len(data):
            raise ValueError(f"{len(data)} bytes that would become {wanted}")
        table = pa.ipc.open_stream(stream).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{where} is damaged: not an Arrow table that this reads ({reason})") from error
    return table


def _uncompressed_bytes(message: pa.Message) -> int:
    """What a message's buffers take once decompressed. Raises `struct.error` or `ValueError` for one of no sense."""
    meta, body = memoryview(message.metadata), message.body
    if body is None:
        return 0
    contents = memoryview(body)
    root = _u32(meta, 0)
    version, kind, header = (_field(meta, root, number) for number in (_VERSION, _HEADER_TYPE, _HEADER))
    if version is None or kind is None or header is None or meta[version] != _V5:
        raise ValueError("a message of another version, or of no kind")
    if meta[kind] == _SCHEMA:
        return len(contents)
    if meta[kind] != _RECORD_BATCH:  # dictionaries have buffers, too, and none of ours has dictionaries
        raise ValueError("a message that is neither a schema nor rows")
    batch = header + _u32(meta, header)
    place = _field(meta, batch, _BUFFERS)
    if place is None or _field(meta, batch, _COMPRESSION) is None:
        return len(contents)
    vector = place + _u32(meta, place)
    total = 0
    for number in range(_u32(meta, vector)):
        offset, length = struct.unpack_from("<qq", meta, vector + 4 + 16 * number)
        if length:
            if offset < 0 or length < 8 or offset + length > len(contents):
                raise ValueError("a buffer outside its message")
            size = struct.unpack_from("<q", contents, offset)[0]
            total += length if size == -1 else size  # -1: kept as it is
            if size < -1:
                raise ValueError("a buffer of a negative size")
    return total


def _field(meta: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffers table lies; None where it is not said."""
    vtable = table - struct.unpack_from("<i", meta, table)[0]
    if not 0 <= vtable < len(meta):
        raise ValueError("a table of no sense")
    size, place = struct.unpack_from("<H", meta, vtable)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", meta, vtable + place)[0] if place + 2 <= size else 0
    return table + offset if offset else None


def _u32(meta: memoryview, place: int) -> int:
    return int(struct.unpack_from("<I", meta, place)[0])
