#!/usr/bin/env python3
"""Writes the inputs that the fuzz tests start from into corpus/, beside this file. Findings there are left alone."""

import pathlib
import struct


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def fixed32(field, value):
    return varint(field << 3 | 5) + struct.pack("<f", value)


def fixed64(field, value):
    return varint(field << 3 | 1) + struct.pack("<Q", value)


def text(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value


def floats(field, *values):
    return text(field, struct.pack(f"<{len(values)}f", *values))


def chunk(*fields):
    return text(15, b"".join(fields))


HEADER = text(
    1,
    text(1, b"run/a") + fixed64(2, 0x0123456789ABCDEF) + fixed64(3, 7) + text(4, b"r1") + number(5, 1) + number(6, 300),
)
LAST = number(2, 1)
DATA = chunk(number(1, 200), number(2, 1 << 40), floats(15, 1.5, -0.0, float("inf")))
VALUES = chunk(number(3, 2), floats(14, 2.5, float("nan")))

# Two bytes that say how the message is cut, then the message: see tensor_message_fuzz.cc.
WHOLE, BYTES, UNEVEN = b"\xff\xff", b"\x00\x00", b"\x02\x06"
TENSOR_MESSAGE = {
    "empty": WHOLE,
    "header_alone": BYTES + HEADER,
    "whole_step": WHOLE + HEADER + LAST + DATA + VALUES,
    "whole_step_in_bytes": BYTES + HEADER + LAST + DATA + VALUES,
    "whole_step_in_uneven_slices": UNEVEN + HEADER + LAST + DATA + VALUES,
    "many_chunks": UNEVEN + b"".join(chunk(number(1, i), floats(15, i)) for i in range(20)) + LAST,
    "long_chunk": b"\xff\x3f" + chunk(floats(15, *range(500))) + LAST,
    "unpacked_values": UNEVEN + chunk(fixed32(14, 1), fixed32(14, 2), number(1, 3)),
    "values_in_pieces": UNEVEN + chunk(floats(14, 1, 2), number(1, 3), floats(14, 3), floats(14), fixed32(14, 4)),
    "data_replaced": UNEVEN + chunk(text(15, b"odd"), floats(15, 1, 2), number(1, 3)),
    "header_in_pieces": UNEVEN + HEADER + DATA + text(1, text(1, b"run/b")) + number(2, 0),
    "negative_numbers": UNEVEN + chunk(number(1, -1), number(2, -1), number(3, -1), floats(15, 1)),
    "both_forms": UNEVEN + chunk(floats(14, 1), floats(15, 1)),
    "no_elements": UNEVEN + chunk(number(1, 3)),
    "half_an_element": UNEVEN + chunk(text(15, b"123456")),
    "unknown_fields": UNEVEN + DATA + chunk(floats(15, 1), number(4, 2)) + number(9, 1),
    "group": UNEVEN + b"\x4b" + number(1, 1) + b"\x4c" + DATA,
    "cut_short": UNEVEN + (HEADER + LAST + DATA)[:-2],
}

# One choice a byte: see parameter_set_fuzz.cc, and set_schedule.cc for what each chooses. The first two make a set of
# zeros.
ZEROS = b"\x00\x01"
# An action, then what it chooses: a client, a new request that expects the set's step, a gradient.
NEW = b"\x01\x01\x01\x01\x01\x01\x01\x05\x01"
RETRY = b"\x00\x00\x00\x01"
FINISH = b"\x01\x01"
PARAMETER_SET = {
    "one_step": ZEROS + b"\x00\x00" + NEW + b"\x06\x00" + FINISH,
    "cut_and_retry": ZEROS + b"\x00\x00" + NEW + b"\x03\x00\x01\x01\x10\x0d\x00\x00\x00" + RETRY + b"\x06\x00" + FINISH,
    "superseded": ZEROS + b"\x00\x00" + NEW + b"\x00\x01" + RETRY + b"\x06\x01" + FINISH + b"\x06\x00" + FINISH,
    "read_while_stepping": ZEROS + b"\x0e\x00\x01" + b"\x00\x00" + NEW + b"\x06\x00" + FINISH + b"\x0f\x00\x00",
    "full_write": ZEROS + b"\x11\x07\x09\x01\x02\x00\x01" + b"\x11\x02\x01",
    "forgotten": ZEROS + b"\x00\x00" + NEW + b"\x06\x00" + FINISH + b"\x12\x08\x00\x00" + RETRY + b"\x06\x00" + FINISH,
    "deleted": ZEROS + b"\x00\x00" + NEW + b"\x13\x00\x10\x00\x13\x01\x00\x00" + NEW,
    # Sets with tensors without elements, and with no others.
    "empty_tensors": b"\x01\x01" + b"\x00\x00" + NEW + b"\x0a\x00\x01\x02\x01" + b"\x06\x00" + FINISH,
    "only_empty_tensors": b"\x02\x01" + b"\x00\x00" + NEW + b"\x06\x00" + FINISH + b"\x0e\x00\x01",
    "only_empty_tensors_written": b"\x02\x00" + b"\x11\x07\x09\x01\x02\x00\x01" + b"\x11\x02\x01",
    "noise": bytes(i * 97 % 251 for i in range(400)),
}

CORPORA = {"tensor_message": TENSOR_MESSAGE, "parameter_set": PARAMETER_SET}

for name, inputs in CORPORA.items():
    folder = pathlib.Path(__file__).parent / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in inputs.items():
        (folder / file).write_bytes(content)
