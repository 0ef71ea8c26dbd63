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
BFLOAT16 = chunk(number(1, 3), number(4, 2), text(15, bytes(range(22))))
FLOAT16 = chunk(text(15, bytes(range(6))), number(4, 3))

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
    "unknown_fields": UNEVEN + DATA + chunk(floats(15, 1), number(5, 2)) + number(9, 1),
    "sixteen_bits": WHOLE + HEADER + LAST + BFLOAT16 + FLOAT16,
    "sixteen_bits_in_bytes": BYTES + BFLOAT16 + FLOAT16,
    "sixteen_bits_in_uneven_slices": UNEVEN + FLOAT16 + BFLOAT16,
    "half_an_element_of_sixteen_bits": UNEVEN + chunk(number(4, 2), text(15, b"123")),
    "floats_that_say_so": UNEVEN + chunk(number(4, 1), floats(15, 1)) + chunk(number(4, 1), floats(14, 1)),
    "values_of_sixteen_bits": UNEVEN + chunk(number(4, 2), floats(14, 1)),
    "unknown_dtype": UNEVEN + chunk(number(4, 9), floats(15, 1)),
    "group": UNEVEN + b"\x4b" + number(1, 1) + b"\x4c" + DATA,
    "cut_short": UNEVEN + (HEADER + LAST + DATA)[:-2],
}

# One choice a byte: see parameter_set_fuzz.cc, and set_schedule.cc for what each chooses. First the set: its tensors, its
# optimizers, how it clips, how stale steps may be, whether it rejects what is not finite, and that it begins with zeros.
ZEROS = b"\x00\x00\x00\x00\x00\x01"
LENIENT = b"\x00\x00\x00\x01\x00\x01"
CLIPPED_AMSGRAD = b"\x00\x03\x02\x00\x00\x01"
MIXED = b"\x00\x08\x01\x00\x01\x01"


# A client begins a step: a new one, which expects the set's step or is based on it, wishes for nothing or for something,
# and brings a gradient; or it tries the last one again.
def begin(client, wishes=b"\x01", based=False):
    return bytes([0, client, 1, 1, 1, 1, 1, 0 if based else 1, 1, 1]) + wishes + b"\x05\x01"


def retry(client):
    return bytes([0, client, 0, 0, 1, 1, 1, 1])


# The rest of a step comes, and its end.
def finish(client):
    return bytes([6, client, 1, 1])


def begin_write(*kind):
    return bytes([17, 7, 9, 1, 2, *kind, 1])


STEP = begin(0) + finish(0)
OVER = b"\x06\x01"  # the same for a client whose step is over
SOME_TENSORS = b"\x00\x01\x00\x01\x00\x01"
OVERRIDES = b"\x00\x02\x00\x01\x01\x00\x00\x00\x01\x00\x01\x02\x00\x00"
SCALED = b"\x00\x0c\x00\x07"
WITHOUT_REPLY = b"\x00\x10"
FULL, COUNTS, SOME = (0, 1), (0, 0, 3, 1, 2, 0), (1, 0, 0, 1, 1, 0)
FINISH_WRITE = b"\x11\x03\x01"
FREEZE, RATE, CLIP = b"\x14\x00\x00\x01\x01", b"\x14\x01\x01\x01\x01\x01", b"\x14\x03\x02\x01\x01"
WATCH, LOOK = b"\x16", b"\x16\x02"
SEVERAL = b"\x12\x01"
# Three tensors of a group that there is; one of a new group, with the set's incarnation and fingerprint; one too many.
GROW, GROW_GROUP = b"\x18\x01\x00\x02\x00\x01\x03\x00\x00\x00", b"\x18\x00\x01\x01\x00\x04\x00\x01\x01\x01\x01"
GROW_IN_VAIN = b"\x18\x01\x00\x00\x00\x01\x01\x00\x01\x01"
PARAMETER_SET = {
    "one_step": ZEROS + STEP,
    "cut_and_retry": ZEROS + begin(0) + b"\x03\x00\x01\x01\x10\x0d\x00" + retry(0) + finish(0),
    "superseded": ZEROS + begin(0) + retry(1) + finish(1) + OVER,
    "read_while_stepping": ZEROS + b"\x0e\x00\x01" + STEP + b"\x0f\x00\x00",
    "full_write": ZEROS + begin_write(*FULL) + FINISH_WRITE,
    "forgotten": ZEROS + STEP + b"\x12\x08" + retry(0) + OVER,
    "deleted": ZEROS + begin(0) + b"\x13\x00\x10\x00\x13\x01" + begin(0),
    # Sets with tensors without elements, and with no others.
    "empty_tensors": b"\x01" + ZEROS[1:] + begin(0) + b"\x0a\x00\x01\x02\x01" + finish(0),
    "only_empty_tensors": b"\x02" + ZEROS[1:] + begin(0)[:-1] + finish(0) + b"\x0e\x00\x01",
    "only_empty_tensors_written": b"\x02" + ZEROS[1:-1] + b"\x00" + begin_write(*FULL) + FINISH_WRITE,
    # What steps and writes can mean.
    "some_tensors": ZEROS + begin(0, SOME_TENSORS) + finish(0) + STEP + begin(1, SOME_TENSORS) + finish(1),
    "overrides": MIXED + begin(0, OVERRIDES) + finish(0) + STEP,
    "scaled_and_clipped": CLIPPED_AMSGRAD + begin(0, SCALED) + finish(0) + STEP,
    "without_reply": ZEROS + begin(0, WITHOUT_REPLY) + finish(0) + retry(1) + finish(1),
    "stale": LENIENT + begin(0, based=True) + begin(1, based=True) + SEVERAL + finish(0) + retry(2) + finish(2) + OVER,
    "frozen_under_way": ZEROS + begin(0) + FREEZE + finish(0) + STEP + FREEZE + STEP,
    "reconfigured_under_way": MIXED + begin(0, OVERRIDES) + RATE + CLIP + finish(0) + STEP,
    "some_tensors_written": ZEROS + begin_write(*SOME) + STEP + FINISH_WRITE + STEP,
    "counts_written": MIXED + STEP + begin_write(*COUNTS) + FINISH_WRITE + STEP,
    "watched": ZEROS + WATCH + STEP + RATE + LOOK + SEVERAL + begin_write(*FULL) + FINISH_WRITE + LOOK + b"\x13\x00",
    "grown_under_way": MIXED + STEP + begin(0) + GROW + OVER + begin(0) + finish(0) + retry(1) + GROW_IN_VAIN + STEP,
    "grown_by_a_group": ZEROS + WATCH + STEP + FREEZE + GROW_GROUP + LOOK + begin(0, OVERRIDES) + finish(0) + FREEZE,
    "grown_while_written": ZEROS + begin_write(*SOME) + GROW + FINISH_WRITE + STEP + begin_write(*FULL) + FINISH_WRITE,
    "grown_and_created_again": ZEROS + GROW_GROUP + begin(0, OVERRIDES) + b"\x13\x00\x13\x01" + retry(0) + STEP,
    "noise": bytes(i * 97 % 251 for i in range(400)),
}

# The same for rounds_fuzz.cc and round_schedule.cc. First the set: its workers, window and quorum, each one less.
TWO_WORKERS = b"\x01\x01\x01"
FOUR_WORKERS = b"\x03\x00\x00"


def contribute(client, rank, is_first=False):
    """A client begins a new contribution with a request_id and nothing out of the way."""
    return bytes((0, client)) + (b"" if is_first else b"\x01") + bytes((rank, 1, 1, 1, 1, 1, 1, 1, rank, 1))


def contribute_again(client, back):
    """A client begins another attempt of one of the last requests."""
    return bytes((0, client, 0, back, 1, 1))


def deliver(client):
    return bytes((5, client))


def die(client):
    return bytes((11, client))


TIME = b"\x0c\x00"
WRITE = b"\x0d\x00\x07"
ROUNDS = {
    "together": TWO_WORKERS + contribute(0, 0, True) + contribute(1, 1) + deliver(1) + deliver(0),
    "two_rounds": TWO_WORKERS + (contribute(0, 0, True) + contribute(1, 1) + deliver(0) + deliver(1))
    + contribute(0, 0) + contribute(1, 1) + deliver(0) + deliver(1),
    "left_out": FOUR_WORKERS + contribute(0, 2, True) + contribute(1, 1) + TIME + deliver(1) + deliver(0),
    "failed": TWO_WORKERS + contribute(0, 0, True) + deliver(0) + TIME + contribute(1, 1) + deliver(1),
    "retried": TWO_WORKERS + contribute(0, 0, True) + deliver(0) + die(0) + contribute_again(2, 0) + deliver(2)
    + contribute(1, 1) + deliver(1) + contribute_again(3, 1) + deliver(3),
    "superseded": TWO_WORKERS + contribute(0, 0, True) + contribute(1, 0) + deliver(1) + contribute(2, 1) + deliver(2),
    "written": TWO_WORKERS + contribute(0, 0, True) + deliver(0) + contribute(1, 1) + WRITE + contribute(2, 1) + deliver(2),
    "noise": bytes(i * 89 % 241 for i in range(300)),
}

# A byte that says of which kind it is, and a file: see tensor_file_headers_fuzz.cc.
GOLDEN_FILES = pathlib.Path(__file__).parent.parent / "tensor_files" / "golden"


def safetensors(header, data_bytes):
    return b"\x00" + struct.pack("<Q", len(header)) + header + bytes(data_bytes)


TENSOR_FILE_HEADERS = {
    **{file: b"\x00" + (GOLDEN_FILES / file).read_bytes() for file in ("model.safetensors", "none.safetensors")},
    **{file: b"\x01" + (GOLDEN_FILES / file).read_bytes() for file in ("matrix.npy", "scalar.npy", "version2.npy")},
    "overlap.safetensors": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}', 6
    ),
    "overflow.safetensors": safetensors(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', 0
    ),
    "escapes.safetensors": safetensors(b'{"__metadata__":{"\\u0000\\ud83d\\ude00":"\\"\\n"}}', 0),
    "endless_header.safetensors": b"\x00" + b"\xff" * 8 + b"{",
}

# A byte that says what the rest is: see checkpoint_fuzz.cc.
MANIFEST = (
    b'{"format":1,"set":"s","incarnation":"5","step":"9","create_time":"2026-01-02T03:04:05Z","update_counts":["9","8"],'
    b'"description":{"name":"s","groups":[{"name":"g","learning_rate":0.1,"adam":{"beta1":"NaN"}}],"labels":{"a":"b"}},'
    b'"files":[{"name":"parameters.safetensors","bytes":"2","crc32c":[1]}%s]}'
)
TENSORS = b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F32","shape":[],"data_offsets":[24,28]}}'
CHECKPOINT = {
    "manifest": b"\x00" + MANIFEST % b"",
    "manifest_of_two_files": b"\x00" + MANIFEST % b',{"name":"optimizer.safetensors","bytes":"0"}',
    "manifest_of_a_large_file": b"\x00" + (MANIFEST % b"").replace(b'"bytes":"2"', b'"bytes":"9223372036854775807"'),
    "manifest_of_a_later_format": b"\x00" + b'{"format":2,"step":{}}',
    "nested_manifest": b"\x00" + b'{"description":' * 200,
    "file_with_its_elements_out_of_place": b"\x01" + safetensors(TENSORS, 28)[1:],
    "file_that_ends_in_its_prefix": b"\x01\x00\x00",
    "file_with_an_endless_header": b"\x01" + b"\xff" * 8 + b"{",
    "header": b"\x02\x07" + TENSORS,
    "header_of_sixteen_bits": b"\x02\x07" + TENSORS.replace(b"F32", b"F16"),
    "header_of_another_shape": b"\x02\x07" + TENSORS.replace(b"[2,3]", b"[3,2]"),
    "header_of_more_than_there_is": b"\x02\x06" + TENSORS,
    "header_of_impossible_sizes": b"\x02\x00"
    b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
}

CORPORA = {
    "checkpoint": CHECKPOINT,
    "tensor_message": TENSOR_MESSAGE,
    "parameter_set": PARAMETER_SET,
    "rounds": ROUNDS,
    "tensor_file_headers": TENSOR_FILE_HEADERS,
}

for name, inputs in CORPORA.items():
    folder = pathlib.Path(__file__).parent / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in inputs.items():
        (folder / file).write_bytes(content)
