"""The protocol's messages: those that protobuf makes, and those that are written by hand."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamant import _framing, _transport, v1
from adamant._arrays import FLOAT32, check_no_overlap, convert, wire_dtype

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(shutil.which("protoc") is None, reason="there is no protoc")
def test_what_ships_is_what_the_protocol_makes():
    subprocess.run([sys.executable, ROOT / "client/python/generate.py", "--check"], check=True)


@pytest.mark.skipif(shutil.which("protoc") is None, reason="there is no protoc")
def test_what_no_longer_fits_the_protocol_is_found(tmp_path):
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "client/python", tmp_path / "client/python")
    step = tmp_path / "proto/adamant/v1/step.proto"
    step.write_text(
        step.read_text(encoding="utf-8")
        .replace("int64 staleness = 11;", "int64 staleness = 12;")
        .replace("int64 round = 12;", "int64 round = 11;"),
        encoding="utf-8",
    )
    command = [sys.executable, tmp_path / "client/python/generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "_descriptors.binpb" in done.stderr


def test_the_stub_names_what_the_module_has():
    stub = (ROOT / "client/python/src/adamant/v1.pyi").read_text(encoding="utf-8")
    for name in v1.__all__:
        if isinstance(getattr(v1, name), type) and v1.__dict__[name].DESCRIPTOR.file.name.startswith("adamant/"):
            assert f"class {name}(Message):" in stub
            for field in getattr(v1, name).DESCRIPTOR.fields:
                assert f"    {field.name}: " in stub


def seeds(count):
    """Of random tests. The name of one that fails has its seed, and $ADAMANT_TEST_SEED takes it back."""
    given = os.environ.get("ADAMANT_TEST_SEED")
    return [int(given)] if given else [random.randrange(1 << 32) for _ in range(count)]


def random_sources(generator, slots):
    sources = []
    for slot in slots:
        tensors = sorted(generator.choice(40, size=generator.integers(0, 8), replace=False).tolist())
        arrays, dtypes = [], []
        for _ in tensors:
            size = int(generator.choice([0, 1, 7, 130, 3000]))
            array = generator.normal(size=size).astype(generator.choice([np.float32, np.float16]))
            arrays.append(array)
            dtypes.append(int(generator.choice([wire_dtype(array.dtype), FLOAT32, v1.DTYPE_BFLOAT16])))
        sources.append(_framing.Source(slot, tensors, arrays, dtypes))
    return sources


@pytest.mark.parametrize("seed", seeds(20))
def test_messages_by_hand_are_protobufs(seed):
    generator = np.random.default_rng(seed)
    header = v1.WriteHeader(set="s" * int(generator.integers(1, 300)), mode=v1.WRITE_MODE_FULL, step=3)
    sources = random_sources(generator, [v1.SLOT_UNSPECIFIED, v1.SLOT_EXP_AVG])
    limit = int(generator.choice([1024, 5000, 1 << 20]))
    received = {}
    made = list(_framing.messages(header.SerializeToString(), sources, limit))
    for i, (data, last) in enumerate(made):
        assert len(data) <= max(limit, header.ByteSize() + 16)
        assert last == (i == len(made) - 1)
        message = v1.WriteTensorsRequest.FromString(data)
        # Nothing that protobuf does not know, and nothing that it would write in another way.
        assert message.SerializeToString() == data or not message.chunks or message.last
        assert message.HasField("header") == (i == 0)
        assert message.last == last
        for chunk in message.chunks:
            pieces = received.setdefault((chunk.slot, chunk.tensor), [])
            assert chunk.offset == sum(len(piece) for piece in pieces)
            kind = np.float32 if chunk.dtype == v1.DTYPE_UNSPECIFIED else np.uint16
            pieces.append(np.frombuffer(chunk.data, kind))
    assert v1.WriteTensorsRequest.FromString(made[0][0]).header == header
    for source in sources:
        for tensor, array, dtype in zip(source.tensors, source.arrays, source.dtypes):
            pieces = received.pop((source.slot, tensor), [np.empty(0, np.float32)])
            expected = convert(array, dtype)
            assert np.concatenate(pieces).tobytes() == expected.tobytes()
    assert not received


@pytest.mark.parametrize("seed", seeds(20))
def test_messages_of_rows_by_hand_are_protobufs(seed):
    generator = np.random.default_rng(seed)
    header = v1.StepHeader(set="s" * int(generator.integers(1, 300)))
    limit = int(generator.choice([1024, 5000, 1 << 20]))
    made = []
    for tensor in sorted(generator.choice(300, size=generator.integers(0, 4), replace=False).tolist()):
        width = int(generator.choice([0, 1, 3, 400]))
        # Of all lengths that a varint has.
        numbers = generator.integers(0, 1 << 62, size=generator.choice([0, 1, 600])) >> generator.integers(0, 62)
        values = generator.normal(size=(numbers.size, width)).astype(np.float32)
        dtype = int(generator.choice([FLOAT32, v1.DTYPE_BFLOAT16]))
        made.append(_framing.Rows(tensor, (1 << 62, width), numbers, values, dtype, False))
    received = {each.tensor: ([], b"") for each in made}
    messages = list(_framing.messages(header.SerializeToString(), (), limit, made))
    for i, (data, last) in enumerate(messages):
        # A row is not divided.
        assert len(data) <= max(limit, header.ByteSize() + 16, 1700)
        assert last == (i == len(messages) - 1)
        for chunk in v1.StepRequest.FromString(data).chunks:
            numbers, elements = received[chunk.tensor]
            width = 4 if chunk.dtype == v1.DTYPE_UNSPECIFIED else 2
            assert len(chunk.data) % (width * len(chunk.rows)) == 0
            received[chunk.tensor] = (numbers + list(chunk.rows), elements + chunk.data)
    assert v1.StepRequest.FromString(messages[0][0]).header == header
    for each in made:
        numbers, elements = received[each.tensor]
        assert numbers == each.rows.tolist()
        assert elements == convert(each.values.reshape(-1), each.dtype).tobytes()


def test_rows_of_a_reply_that_are_not_due_are_refused():
    def reply(rows, **chunk):
        return v1.StepResponse(chunks=[v1.TensorChunk(rows=rows, **chunk)]).SerializeToString()

    def receiver(compact=False):
        rows = _framing.Rows(1, (9, 2), np.array([8, 3, 8, 5]), np.zeros((4, 2), np.float32), FLOAT32, compact)
        table = np.zeros((3 if compact else 9, 2), np.float32)
        return _framing.Receiver({v1.SLOT_PARAMETER: [np.zeros(2, np.float32), table]}, rows=[rows]), table

    ones = np.ones(2, np.float32).tobytes()
    for data, message in (
        (reply([3], tensor=0, data=ones), "rows of tensor 0, which is to come whole"),
        (reply([4], tensor=1, data=ones), "other rows of tensor 1"),
        (reply([], tensor=1, data=ones), "8 bytes of 0 rows"),
        (reply([3, 5, 8, 8], tensor=1, data=ones * 4), "other rows of tensor 1"),
        (reply([3, 5], tensor=1, data=ones), "8 bytes of 2 rows"),
        (b"\x7a\x05\x08\x01\x2a\x01\x83", "a number that does not end"),
        (b"\x7a\x10\x08\x01\x2a\x0c" + b"\x83" * 11 + b"\0", "more than ten bytes"),
    ):
        with pytest.raises(_framing.MalformedMessage, match=message):
            receiver()[0].take(data)
    for compact in (False, True):
        taking, table = receiver(compact)
        taking.take(reply([3], tensor=1, data=ones))
        # Not packed.
        taking.take(b"\x7a\x0e\x08\x01\x28\x05\x7a\x08" + ones)
        taking.take(reply([], tensor=0, data=ones))
        with pytest.raises(_framing.MalformedMessage, match="2 of 3 rows of tensor 1"):
            taking.finish()
        taking.finish(without_rows=True)
        assert table[:, 0].tolist() == ([1, 1, 0] if compact else [0, 0, 0, 1, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("seed", seeds(20))
def test_small_messages_by_hand_are_protobufs(seed):
    generator = np.random.default_rng(seed)
    tensors = sorted(generator.choice(3000, size=generator.integers(1, 50), replace=False).tolist())
    arrays = [generator.normal(size=generator.integers(1, 200)).astype(np.float32) for _ in tensors]
    small = _framing.SmallMessages(tensors, [array.size for array in arrays], [FLOAT32] * len(arrays))
    header = v1.StepHeader(set="x" * int(generator.integers(1, 200)), expected_step=int(generator.integers(1 << 40)))
    for _ in range(2):
        data = small.make(header.SerializeToString(), arrays)
        expected = v1.StepRequest(header=header, last=True)
        for tensor, array in zip(tensors, arrays):
            expected.chunks.add(tensor=tensor, data=array.tobytes())
        assert data == expected.SerializeToString()


@pytest.mark.parametrize("seed", seeds(20))
def test_replies_of_protobufs_are_read_by_hand(seed):
    generator = np.random.default_rng(seed)
    slots = [v1.SLOT_PARAMETER, v1.SLOT_EXP_AVG]
    sizes = [int(generator.choice([0, 1, 5, 700])) for _ in range(6)]
    values = {slot: [generator.normal(size=size).astype(np.float32) for size in sizes] for slot in slots}
    targets = {slot: [np.full(size, np.nan, np.float32) for size in sizes] for slot in slots}
    header = v1.ReadHeader(incarnation=int(generator.integers(1, 1 << 53)), step=int(generator.integers(1 << 53)))
    message = v1.ReadTensorsResponse(header=header)
    receiver = _framing.Receiver(targets)
    found = []

    def send():
        nonlocal message
        data = message.SerializeToString()
        if generator.integers(2):  # A newer server's fields.
            data += b"\xa0\x06\x05" + b"\xaa\x06\x03abc" + b"\xad\x06abcd" + b"\xa9\x06abcdefgh"
        found.append(receiver.take(data))
        message = v1.ReadTensorsResponse()

    for slot in slots:
        for tensor, array in enumerate(values[slot]):
            offset = 0
            while offset < array.size:
                count = int(generator.integers(1, array.size - offset + 1))
                chunk = message.chunks.add(tensor=tensor, offset=offset, slot=slot)
                part = array[offset : offset + count]
                if generator.integers(2):
                    chunk.data = part.tobytes()
                else:
                    chunk.values.extend(part.tolist())
                offset += count
                if generator.integers(4) == 0:
                    send()
    send()
    receiver.finish()
    assert v1.ReadHeader.FromString(found[0]) == header
    assert all(each is None for each in found[1:])
    for slot in slots:
        for target, array in zip(targets[slot], values[slot]):
            assert target.tobytes() == array.tobytes()


def test_replies_that_are_none_are_refused():
    def reply(**chunk):
        return v1.StepResponse(chunks=[v1.TensorChunk(**chunk)]).SerializeToString()

    whole = reply(tensor=0, data=b"\0" * 8)
    for data, message in (
        (whole[:-1], "end"),
        (b"\x0b", "wire type 3"),
        (b"\xff" * 20, "more than ten bytes"),
        (reply(tensor=2, data=b"\0" * 8), "tensor 2: expected one of 2"),
        (reply(tensor=-1, data=b"\0" * 8), "tensor -1"),
        (reply(tensor=0, offset=1, data=b"\0" * 4), "element 1 of tensor 0 where element 0 was due"),
        (reply(tensor=0, data=b"\0" * 12), "expected 2 elements, got 3"),
        (reply(tensor=0, data=b"\0" * 7), "7 bytes"),
        (reply(tensor=0, dtype=9, data=b"\0" * 8), "of type 9"),
        (reply(tensor=1, data=b"\0" * 8), "which was not to come"),
        (reply(tensor=0, slot=v1.SLOT_EXP_AVG, data=b"\0" * 8), "slot that was not asked for"),
    ):
        receiver = _framing.Receiver({v1.SLOT_PARAMETER: [np.zeros(2, np.float32), None]})
        with pytest.raises(_framing.MalformedMessage, match=message):
            receiver.take(data)
    receiver = _framing.Receiver({v1.SLOT_PARAMETER: [np.zeros(3, np.float32)]})
    receiver.take(whole)
    with pytest.raises(_framing.MalformedMessage, match="2 of 3 elements of tensor 0"):
        receiver.finish()


def float16_bits_by_struct(values):
    import struct

    return [struct.unpack("<H", struct.pack("<e", float(value)))[0] for value in values]


def test_16_bits_are_rounded_to_the_nearest_even():
    generator = np.random.default_rng(1)
    bits = generator.integers(0, 1 << 32, size=20_000, dtype=np.uint32)
    special = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001, 0x80000000, 0x7F800000], np.uint32)
    values = np.concatenate([bits, special]).view(np.float32)
    values = values[~np.isnan(values)]
    narrow = convert(values, v1.DTYPE_BFLOAT16)
    for value, half in zip(values.astype(np.float64), narrow.tolist()):
        wide = (np.array([half], np.uint16).astype(np.uint32) << 16).view(np.float32)[0]
        below, above = (np.array([half - 1, half + 1], np.int64) & 0xFFFF).astype(np.uint32) << 16
        if np.isfinite(wide) and np.isfinite(value):
            distance = abs(value - np.float64(wide))
            for other in (below, above):
                neighbour = np.float64(np.array([other], np.uint32).view(np.float32)[0])
                if np.isfinite(neighbour):
                    away = abs(value - neighbour)
                    assert distance < away or (distance == away and half % 2 == 0)
    nan = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert convert(nan, v1.DTYPE_BFLOAT16).tolist() == [0x7FC0, 0xFFC0]
    small = generator.uniform(-70_000, 70_000, size=1000).astype(np.float32)
    small = small[np.abs(small) < 65_519]
    assert convert(small, v1.DTYPE_FLOAT16).view(np.uint16).tolist() == float16_bits_by_struct(small)
    assert np.isinf(convert(np.array([65_520], np.float32), v1.DTYPE_FLOAT16).view(np.float16)).all()


def test_overlaps_are_found():
    memory = np.zeros(10, np.float32)
    check_no_overlap([memory[:3], memory[2:5]], [memory[5:7], memory[8:]])
    check_no_overlap([memory[:0], memory[:10]], [memory[4:4]])
    for sources, targets in (([memory[:5]], [memory[4:]]), ([memory[6:7]], [memory]), ([memory], [memory[3:4]])):
        with pytest.raises(ValueError, match="overlaps"):
            check_no_overlap(sources, targets)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("unix:/tmp/x", True),
        ("localhost:1", True),
        ("127.1.2.3:1", True),
        ("[::1]:1", True),
        ("::1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv6:%5B::1%5D:1", True),
        ("0.0.0.0:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("example.org:1", False),
        ("dns://8.8.8.8/example.org:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_local_targets_take_no_proxy(target, local):
    assert _transport.is_local(target) == local
    assert dict(_transport.channel_options(target)).get("grpc.enable_http_proxy") == (0 if local else None)


def test_the_bandwidth_probe_stays_on():
    options = dict(_transport.channel_options("example.org:1"))
    assert "grpc.http2.bdp_probe" not in options
    assert dict(_transport.channel_options("x:1", [("grpc.enable_retries", 1)]))["grpc.enable_retries"] == 1
