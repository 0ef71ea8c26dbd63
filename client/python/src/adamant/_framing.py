"""The bulk messages of the protocol, written and read by hand.

StepRequest, StepOnceRequest, WriteTensorsRequest, their replies and ReadTensorsResponse share one outline: a header in
field 1, `last` in field 2 of requests, and TensorChunks in field 15. By protobuf's classes each chunk's elements would
be copied twice more. A test holds the two to the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamant import v1
from adamant._arrays import FLOAT32, Array, convert, element_bytes, wire_dtype

# Tags: field number << 3 | wire type.
_HEADER = b"\x0a"
_LAST = b"\x10\x01"
_CHUNK = b"\x7a"
_TENSOR = b"\x08"
_OFFSET = b"\x10"
_SLOT = b"\x18"
_DTYPE = b"\x20"
_ROWS = b"\x2a"
_DATA = b"\x7a"

# Upper bounds of what a chunk takes besides its elements, and of what a message takes besides its chunks and header.
_CHUNK_OVERHEAD_BYTES = 48
_MESSAGE_OVERHEAD_BYTES = 16
# ServerLimits.max_chunks_per_message.
MAX_CHUNKS = 32768
# How many rows are framed at once, so that many of them take no more memory than few.
_ROWS_AT_ONCE = 1 << 16


def varint(value: int) -> bytes:
    """`value` as protobuf writes it; a negative one in ten bytes."""
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_bytes(values: Array) -> Array:
    """How many bytes each of `values`, int64 and none negative, takes as a varint."""
    lengths = np.ones(values.shape, np.int64)
    for shift in range(7, 63, 7):
        longer = values >= 1 << shift
        if not longer.any():
            break
        lengths += longer
    return lengths


def pack_varints(values: Array) -> bytes:
    """`values`, int64 and none negative, one after the other."""
    lengths = varint_bytes(values)
    begins = np.cumsum(lengths) - lengths
    packed = np.empty(int(lengths.sum()), np.uint8)
    for i in range(int(lengths.max(initial=0))):
        there = lengths > i
        packed[begins[there] + i] = values[there] >> 7 * i & 0x7F | (lengths[there] > i + 1) << 7
    return packed.tobytes()


def unpack_varints(packed: bytes) -> Array:
    """int64."""
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        raise MalformedMessage("a number that does not end")
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))[: ends.size]
    lengths = ends - begins + 1
    if lengths.max(initial=0) > 10:
        raise MalformedMessage("a number of more than ten bytes")
    values = np.zeros(ends.size, np.uint64)
    for i in range(int(lengths.max(initial=0))):
        there = lengths > i
        values[there] |= (data[begins[there] + i] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * i)
    return values.view(np.int64)


def frame_header(header: bytes) -> bytes:
    """The header's field, of its bytes."""
    return _HEADER + varint(len(header)) + header


def frame_chunk(tensor: int, offset: int, slot: int, dtype: int, data_bytes: int) -> bytes:
    """All of a chunk's field but its elements, which follow."""
    fields = b""
    if tensor:
        fields += _TENSOR + varint(tensor)
    if offset:
        fields += _OFFSET + varint(offset)
    if slot:
        fields += _SLOT + varint(slot)
    if dtype != FLOAT32:
        fields += _DTYPE + varint(dtype)
    fields += _DATA + varint(data_bytes)
    return _CHUNK + varint(len(fields) + data_bytes) + fields


@dataclass
class Source:
    """One slot of some tensors, to be sent."""

    slot: int
    # Indices of the tensors, ascending, and beside each its elements: C-contiguous, of any shape.
    tensors: Sequence[int]
    arrays: Sequence[Array]
    # Beside each how its elements travel.
    dtypes: Sequence[int]


def frame_rows(tensor: int, rows: bytes, dtype: int, data_bytes: int) -> bytes:
    """All of the field of a chunk of rows but their elements, which follow. `rows` are their packed numbers."""
    fields = _TENSOR + varint(tensor) if tensor else b""
    if dtype != FLOAT32:
        fields += _DTYPE + varint(dtype)
    fields += _ROWS + varint(len(rows)) + rows
    if data_bytes:
        fields += _DATA + varint(data_bytes)
    return _CHUNK + varint(len(fields) + data_bytes) + fields


@dataclass
class Rows:
    """Of one tensor some rows, of which the gradient is to be sent, and the parameters come back."""

    tensor: int
    # Of the whole tensor.
    shape: tuple[int, ...]
    # int64, each in [0, shape[0]), in any order. What comes for one more than once is added up.
    rows: Array
    # C-contiguous: the elements of each of `rows`.
    values: Array
    # How they travel.
    dtype: int
    # The reply's target is not the tensor, but `distinct` rows alone, one after the other.
    compact: bool

    def __post_init__(self) -> None:
        self.width = math.prod(self.shape[1:])
        # Ascending, each once: those that come back. np.unique, by its hash, takes nine times as long for a million.
        ordered = np.sort(self.rows)
        self.distinct = ordered[np.diff(ordered, prepend=-1) > 0]


class SmallMessages:
    """Makes the one message of small steps, again and again: what frames the elements is made once.

    Only for elements that travel as they are.
    """

    def __init__(self, tensors: Sequence[int], sizes: Sequence[int], dtypes: Sequence[int]) -> None:
        """`sizes`: elements of each tensor, none of them 0."""
        self._parts: list[Any] = [b""]
        for tensor, size, dtype in zip(tensors, sizes, dtypes):
            self._parts += (frame_chunk(tensor, 0, 0, dtype, size * element_bytes(dtype)), b"")
        # Without the header.
        self.framed_bytes = sum(map(len, self._parts))
        self.data_bytes = sum(size * element_bytes(dtype) for size, dtype in zip(sizes, dtypes))

    def make(self, header: bytes, arrays: Sequence[Array]) -> bytes:
        parts = self._parts
        parts[0] = _HEADER + varint(len(header)) + header + _LAST
        parts[2::2] = arrays
        try:
            return b"".join(parts)
        finally:
            # Nobody's gradients are kept.
            parts[2::2] = [b""] * len(arrays)


def fits_into_one(header_bytes: int, sources: Sequence[Source], limit: int, rows: Sequence[Rows] = ()) -> bool:
    """Whether the header and all elements go into one message of at most `limit` bytes."""
    size = header_bytes + _MESSAGE_OVERHEAD_BYTES
    chunks = 0
    for source in sources:
        for array, dtype in zip(source.arrays, source.dtypes):
            if array.size:
                size += array.size * element_bytes(dtype) + _CHUNK_OVERHEAD_BYTES
                chunks += 1
    for each in rows:
        size += each.values.size * element_bytes(each.dtype) + _CHUNK_OVERHEAD_BYTES + each.rows.size
        if size > limit:
            return False
        size += int(varint_bytes(each.rows).sum()) - each.rows.size
        chunks += 1
    return size <= limit and chunks <= MAX_CHUNKS


def messages(
    header: bytes, sources: Sequence[Source], limit: int, rows: Sequence[Rows] = ()
) -> Iterator[tuple[bytes, bool]]:
    """The messages, of about `limit` bytes at most, and whether each is the last. A header that needs more than one
    goes ahead alone, so that the server makes room before the elements move. `rows` come last."""
    parts: list[Any] = [frame_header(header)]
    room = limit - _MESSAGE_OVERHEAD_BYTES
    if fits_into_one(len(header), sources, limit, rows):
        room -= len(header)
    else:
        yield parts[0], False
        parts = []
    chunks = 0
    for source in sources:
        for tensor, array, dtype in zip(source.tensors, source.arrays, source.dtypes):
            width = element_bytes(dtype)
            flat = array.reshape(-1)
            offset = 0
            while offset < flat.size:
                count = min(flat.size - offset, (room - _CHUNK_OVERHEAD_BYTES) // width)
                if count <= 0 or chunks == MAX_CHUNKS:
                    yield b"".join(parts), False
                    parts, chunks, room = [], 0, limit - _MESSAGE_OVERHEAD_BYTES
                    continue
                elements = convert(flat[offset : offset + count], dtype)
                prefix = frame_chunk(tensor, offset, source.slot, dtype, elements.nbytes)
                parts += (prefix, elements)
                room -= len(prefix) + elements.nbytes
                offset += count
                chunks += 1
    for each in rows:
        width = each.width * element_bytes(each.dtype)
        values = each.values.reshape(each.rows.size, each.width)
        begin = 0
        while begin < each.rows.size:
            numbers = each.rows[begin : begin + _ROWS_AT_ONCE]
            taken = np.cumsum(varint_bytes(numbers) + width)
            count = int(np.searchsorted(taken, room - _CHUNK_OVERHEAD_BYTES, side="right"))
            if chunks == MAX_CHUNKS or (count == 0 and chunks):
                yield b"".join(parts), False
                parts, chunks, room = [], 0, limit - _MESSAGE_OVERHEAD_BYTES
                continue
            # A row goes as a whole, however wide it is.
            count = max(count, 1)
            elements = convert(values[begin : begin + count].reshape(-1), each.dtype)
            prefix = frame_rows(each.tensor, pack_varints(numbers[:count]), each.dtype, elements.nbytes)
            parts += (prefix, elements)
            room -= len(prefix) + elements.nbytes
            begin += count
            chunks += 1
    parts.append(_LAST)
    yield b"".join(parts), True


# The message that ends a step.
LAST = _LAST


class Chunks:
    """Makes messages of about `limit` bytes at most, of gradients as they come."""

    def __init__(self, limit: int) -> None:
        self._limit = limit - _MESSAGE_OVERHEAD_BYTES
        self._parts: list[Any] = []
        self._room = self._limit

    def add(self, tensor: int, array: Array, dtype: int) -> Iterator[bytes]:
        """The messages that are full with it."""
        width = element_bytes(dtype)
        flat = array.reshape(-1)
        offset = 0
        while offset < flat.size:
            count = min(flat.size - offset, (self._room - _CHUNK_OVERHEAD_BYTES) // width)
            if count <= 0 or len(self._parts) == 2 * MAX_CHUNKS:
                yield from self.end()
                continue
            elements = convert(flat[offset : offset + count], dtype)
            prefix = frame_chunk(tensor, offset, 0, dtype, elements.nbytes)
            self._parts += (prefix, elements)
            self._room -= len(prefix) + elements.nbytes
            offset += count

    def end(self) -> Iterator[bytes]:
        """The message that is not full yet, if there is one."""
        if self._parts:
            yield b"".join(self._parts)
            self._parts, self._room = [], self._limit


class MalformedMessage(Exception):
    """The other side sent what is no message."""


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7
        if shift >= 70:
            raise MalformedMessage("a number of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _skip(message: bytes, at: int, wire_type: int) -> int:
    if wire_type == 0:
        return _read_varint(message, at)[1]
    if wire_type == 1:
        return at + 8
    if wire_type == 2:
        length, at = _read_varint(message, at)
        return at + length
    if wire_type == 5:
        return at + 4
    raise MalformedMessage(f"a field of wire type {wire_type}")


@dataclass
class Chunk:
    """A chunk as it was read: where its elements lie in the message."""

    tensor: int = 0
    offset: int = 0
    slot: int = 0
    dtype: int = 0
    begin: int = 0
    end: int = 0
    # Packed numbers; none for a run of elements.
    rows: bytes = b""


def parse(message: bytes) -> tuple[bytes | None, int, list[Chunk]]:
    """The header's bytes, if there is one, where the first chunk begins, and the chunks. Unknown fields are skipped."""
    header = None
    first = len(message)
    chunks: list[Chunk] = []
    at = 0
    try:
        while at < len(message):
            begin = at
            tag, at = _read_varint(message, at)
            if tag == _HEADER[0]:
                length, at = _read_varint(message, at)
                header = (header or b"") + message[at : at + length]
                at += length
            elif tag == _CHUNK[0]:
                length, at = _read_varint(message, at)
                if at + length > len(message):
                    raise MalformedMessage("a chunk that does not end")
                if not chunks:
                    first = begin
                chunks.append(_parse_chunk(message, at, at + length))
                at += length
            else:
                at = _skip(message, at, tag & 7)
    except IndexError:
        raise MalformedMessage("it ends in the middle") from None
    if at != len(message):
        raise MalformedMessage("it ends in the middle")
    return header, first, chunks


def _parse_chunk(message: bytes, at: int, end: int) -> Chunk:
    chunk = Chunk()
    while at < end:
        tag, at = _read_varint(message, at)
        if tag == _TENSOR[0]:
            value, at = _read_varint(message, at)
            chunk.tensor = _signed(value)
        elif tag == _OFFSET[0]:
            value, at = _read_varint(message, at)
            chunk.offset = _signed(value)
        elif tag == _SLOT[0]:
            chunk.slot, at = _read_varint(message, at)
        elif tag == _DTYPE[0]:
            chunk.dtype, at = _read_varint(message, at)
        elif tag == _ROWS[0]:
            length, at = _read_varint(message, at)
            chunk.rows += message[at : at + length]
            at += length
        elif tag == 0x28:  # A row by itself.
            begin = at
            _, at = _read_varint(message, at)
            chunk.rows += message[begin:at]
        elif tag == _DATA[0] or tag == 0x72:  # `values`, packed, are the same bytes.
            length, at = _read_varint(message, at)
            chunk.begin, chunk.end = at, at + length
            at += length
        else:
            at = _skip(message, at, tag & 7)
    if at != end or chunk.end > end:
        raise MalformedMessage("a chunk that does not end")
    return chunk


def _elements(message: bytes, chunk: Chunk, width: int) -> Array:
    """As they travel, flat."""
    kind = np.dtype("<f4" if width == 4 else "<u2")
    return np.frombuffer(message, kind, (chunk.end - chunk.begin) // width, chunk.begin)


class ReplyRecord:
    """How the messages of the last reply were made: the next one is, in all likelihood, made in the same way."""

    def __init__(self) -> None:
        # By the message's number in the reply: its chunks, each with the bytes in front of its elements.
        self.messages: dict[int, list[tuple[bytes, int, int, int]]] = {}


class Receiver:
    """Places a reply's elements where they belong. `targets`: by slot, an array for each tensor, or None for those that
    are not to come (or, with `pass_over`, not wanted). Arrays are C-contiguous and writable, and of any type that
    elements travel in; what comes in another is converted. On error their content is indeterminate. Of the tensors of
    `rows` only these come."""

    def __init__(
        self,
        targets: dict[int, Sequence[Array | None]],
        *,
        pass_over: bool = False,
        record: ReplyRecord | None = None,
        rows: Sequence[Rows] = (),
    ) -> None:
        self._rows = {each.tensor: each for each in rows}
        self._targets = targets
        self._pass_over = pass_over
        self._record = record
        self._number = 0
        self._received = {slot: [0] * len(arrays) for slot, arrays in targets.items()}

    def take(self, message: bytes) -> bytes | None:
        """Places one message's elements. Returns its header, if it has one."""
        number = self._number
        self._number += 1
        if self._record is not None and number in self._record.messages:
            replayed, header = self._replay(message, self._record.messages[number])
            if replayed:
                return header
            self._record.messages.pop(number, None)
        header, first, chunks = parse(message)
        for chunk in chunks:
            self._place(message, chunk)
        if self._record is not None and chunks:
            self._remember(number, message, first, chunks)
        return header

    def _place(self, message: bytes, chunk: Chunk) -> None:
        slot = chunk.slot or v1.SLOT_PARAMETER
        arrays = self._targets.get(slot)
        if arrays is None:
            raise MalformedMessage(f"a slot that was not asked for: {slot}")
        if not 0 <= chunk.tensor < len(arrays):
            raise MalformedMessage(f"tensor {chunk.tensor}: expected one of {len(arrays)}")
        array = arrays[chunk.tensor]
        dtype = chunk.dtype or FLOAT32
        width = element_bytes(dtype)
        if width == 0 or (chunk.end - chunk.begin) % width:
            raise MalformedMessage(f"tensor {chunk.tensor}: {chunk.end - chunk.begin} bytes of type {dtype}")
        if array is None:
            if self._pass_over:
                return
            raise MalformedMessage(f"tensor {chunk.tensor}, which was not to come")
        received = self._received[slot]
        if chunk.tensor in self._rows:
            self._place_rows(message, chunk, self._rows[chunk.tensor], array, received)
            return
        if chunk.rows:
            raise MalformedMessage(f"rows of tensor {chunk.tensor}, which is to come whole")
        if chunk.offset != received[chunk.tensor]:
            raise MalformedMessage(
                f"element {chunk.offset} of tensor {chunk.tensor} where element {received[chunk.tensor]} was due"
            )
        count = (chunk.end - chunk.begin) // width
        if chunk.offset + count > array.size:
            raise MalformedMessage(
                f"tensor {chunk.tensor}: expected {array.size} elements, got {chunk.offset + count} or more"
            )
        elements = _elements(message, chunk, width)
        convert(elements, wire_dtype(array.dtype), dtype, out=array.reshape(-1)[chunk.offset : chunk.offset + count])
        received[chunk.tensor] += count

    def _place_rows(self, message: bytes, chunk: Chunk, rows: Rows, array: Array, received: list[int]) -> None:
        dtype = chunk.dtype or FLOAT32
        width = element_bytes(dtype)
        numbers = unpack_varints(chunk.rows)
        first = received[chunk.tensor]
        last = first + numbers.size
        if not np.array_equal(numbers, rows.distinct[first:last]):
            raise MalformedMessage(f"other rows of tensor {chunk.tensor} than were due")
        if chunk.end - chunk.begin != numbers.size * rows.width * width:
            raise MalformedMessage(f"tensor {chunk.tensor}: {chunk.end - chunk.begin} bytes of {numbers.size} rows")
        if rows.width:
            elements = convert(_elements(message, chunk, width), wire_dtype(array.dtype), dtype)
            places: Any = slice(first, last) if rows.compact else numbers
            array.reshape(-1, rows.width).view(elements.dtype)[places] = elements.reshape(-1, rows.width)
        received[chunk.tensor] = last

    def finish(self, *, without_rows: bool = False) -> None:
        """Raises if not everything has come. `without_rows`: these did not have to."""
        for slot, arrays in self._targets.items():
            received = self._received[slot]
            for tensor, array in enumerate(arrays):
                if tensor in self._rows:
                    due = self._rows[tensor].distinct.size if self._rows[tensor].width else 0
                    if array is not None and not without_rows and received[tensor] != due:
                        raise MalformedMessage(f"{received[tensor]} of {due} rows of tensor {tensor}")
                elif array is not None and received[tensor] != array.size:
                    raise MalformedMessage(f"{received[tensor]} of {array.size} elements of tensor {tensor}")

    def _remember(self, number: int, message: bytes, first: int, chunks: list[Chunk]) -> None:
        """Only messages of chunks that are whole tensors, as they come, with nothing between them or behind."""
        assert self._record is not None
        (arrays,) = self._targets.values()
        made = []
        at = first
        for chunk in chunks:
            array = arrays[chunk.tensor]
            data_bytes = chunk.end - chunk.begin
            if array is None or chunk.rows or chunk.offset or array.nbytes != data_bytes or chunk.begin < at:
                return
            if (chunk.dtype or FLOAT32) != wire_dtype(array.dtype):
                return
            made.append((message[at : chunk.begin], chunk.tensor, data_bytes, array.dtype.num))
            at = chunk.end
        if at == len(message):
            self._record.messages[number] = made

    def _replay(self, message: bytes, made: list[tuple[bytes, int, int, int]]) -> tuple[bool, bytes | None]:
        """Places a message that is made as one before it was: without looking into it any further than to see that it
        is. What has been placed where it is not will be placed again."""
        ((slot, arrays),) = self._targets.items()
        received = self._received[slot]
        header = None
        at = 0
        if message[:1] == _HEADER:
            length, at = _read_varint(message, 1)
            header = message[at : at + length]
            at += length
        stream = io.BytesIO(message)
        stream.seek(at)
        read, readinto = stream.read, stream.readinto
        for prefix, tensor, data_bytes, kind in made:
            array = arrays[tensor]
            if read(len(prefix)) != prefix or array is None or array.nbytes != data_bytes or array.dtype.num != kind:
                return False, None
            if readinto(array) != data_bytes:  # type: ignore[arg-type]
                return False, None
        if read(1):
            return False, None
        for _, tensor, _, _ in made:
            received[tensor] = arrays[tensor].size  # type: ignore[union-attr]
        return True, header
