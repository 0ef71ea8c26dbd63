#!/usr/bin/env python3
"""Makes what the package has of the protocol: `_descriptors.binpb`, which it reads at import, and `v1.pyi`, for
readers.

    generate.py           writes them; needs protoc
    generate.py --check   writes nothing: exits with 1, and says what differs, where they are not what proto/ makes

The descriptors are protoc's, with all that they import, but for the comments. Which version of protoc made them does
not matter: only the files of proto/adamant are compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
DESCRIPTORS = HERE / "src/adamant/_descriptors.binpb"
STUB = HERE / "src/adamant/v1.pyi"

FieldProto = descriptor_pb2.FieldDescriptorProto
# What is read from a field, and what may be assigned to it.
SCALARS = {
    FieldProto.TYPE_DOUBLE: "float",
    FieldProto.TYPE_FLOAT: "float",
    FieldProto.TYPE_BOOL: "bool",
    FieldProto.TYPE_STRING: "str",
    FieldProto.TYPE_BYTES: "bytes",
}
WELL_KNOWN = {
    ".google.protobuf.Any": "Any",
    ".google.protobuf.Duration": "Duration",
    ".google.protobuf.FieldMask": "FieldMask",
    ".google.protobuf.Timestamp": "Timestamp",
}
PREAMBLE = '''\
"""The messages and enums of the protocol, adamant.v1. Made by generate.py from proto/adamant/v1; do not edit."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any as _Any
from typing import ClassVar, Generic, TypeVar

_M = TypeVar("_M", bound="Message")
_T = TypeVar("_T")

class Message:
    """What every message can do (google.protobuf.message.Message)."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...
    def ParseFromString(self, serialized: bytes) -> int: ...
    @classmethod
    def FromString(cls: type[_M], serialized: bytes) -> _M: ...
    def CopyFrom(self: _M, other: _M) -> None: ...
    def MergeFrom(self: _M, other: _M) -> None: ...
    def Clear(self) -> None: ...
    def ClearField(self, field_name: str) -> None: ...
    def HasField(self, field_name: str) -> bool: ...
    def WhichOneof(self, oneof_group: str) -> str | None: ...
    def ListFields(self) -> list[tuple[_Any, _Any]]: ...
    def ByteSize(self) -> int: ...
    def IsInitialized(self) -> bool: ...
    DESCRIPTOR: ClassVar[_Any]

class _Repeated(MutableSequence[_T]):
    """A field with many values. Of messages, `add` makes one in place."""

    def add(self, **fields: _Any) -> _T: ...
    def insert(self, index: int, value: _T) -> None: ...
    def __getitem__(self, index: _Any) -> _Any: ...
    def __setitem__(self, index: _Any, value: _Any) -> None: ...
    def __delitem__(self, index: _Any) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_T]: ...

class _Enum(Generic[_T]):
    """An enum: its values are ints."""

    @classmethod
    def Name(cls, number: int) -> str: ...
    @classmethod
    def Value(cls, name: str) -> int: ...
    @classmethod
    def keys(cls) -> list[str]: ...
    @classmethod
    def values(cls) -> list[int]: ...
    @classmethod
    def items(cls) -> list[tuple[str, int]]: ...
    DESCRIPTOR: ClassVar[_Any]

class Any(Message):
    type_url: str
    value: bytes

class Duration(Message):
    seconds: int
    nanos: int
    def __init__(self, *, seconds: int = ..., nanos: int = ...) -> None: ...

class FieldMask(Message):
    paths: _Repeated[str]
    def __init__(self, *, paths: Iterable[str] = ...) -> None: ...

class Timestamp(Message):
    seconds: int
    nanos: int
    def __init__(self, *, seconds: int = ..., nanos: int = ...) -> None: ...
'''


def describe(folder: Path) -> tuple[descriptor_pb2.FileDescriptorSet, descriptor_pb2.FileDescriptorSet]:
    """What protoc makes of the protocol: with comments, and without."""
    files = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "adamant/v1").glob("*.proto"))
    found = []
    for option in (["--include_source_info"], []):
        output = folder / "descriptors"
        command = ["protoc", "-I", str(PROTO), "--include_imports", *option, f"--descriptor_set_out={output}", *files]
        subprocess.run(command, check=True)
        found.append(descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()))
    return found[0], found[1]


class Stub:
    """The lines of v1.pyi."""

    def __init__(self, descriptors: descriptor_pb2.FileDescriptorSet) -> None:
        self.lines = PREAMBLE.splitlines()
        for file in descriptors.file:
            if not file.name.startswith("adamant/"):
                continue
            comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
            for i, enum in enumerate(file.enum_type):
                self.add_enum(enum, comments, (5, i))
            for i, message in enumerate(file.message_type):
                self.add_message(message, comments, (4, i), "")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def comment(self, comment: str, indent: str) -> Iterator[str]:
        for paragraph in textwrap.dedent(comment).strip().split("\n"):
            yield f"{indent}# {paragraph.strip()}".rstrip()

    def docstring(self, comment: str, indent: str) -> Iterator[str]:
        lines = [line.strip().replace("\\", "\\\\") for line in comment.strip().split("\n")]
        if len(lines) == 1:
            yield f'{indent}"""{lines[0]}"""'
            return
        yield f'{indent}"""{lines[0]}'
        yield from (f"{indent}{line}".rstrip() for line in lines[1:])
        yield f'{indent}"""'

    def add_enum(self, enum, comments, path) -> None:
        self.lines += ["", f"class {enum.name}(_Enum[int]):", *self.docstring(comments.get(path, ""), "    "), ""]
        for i, value in enumerate(enum.value):
            self.lines += self.comment(comments.get((*path, 2, i), ""), "    ")
            self.lines.append(f"    {value.name}: ClassVar[int]")
        self.lines.append("")
        self.lines += [f"{value.name}: int" for value in enum.value]

    def add_message(self, message, comments, path, indent: str) -> None:
        inner = indent + "    "
        self.lines += ["", f"{indent}class {message.name}(Message):"]
        self.lines += self.docstring(comments.get(path, ""), inner)
        entries = {}
        for nested in message.nested_type:
            if not nested.options.map_entry:
                sys.exit(f"generate.py: {message.name}.{nested.name}: nested messages are not written yet")
            entries["." + nested.name] = tuple(self.value(field) for field in nested.field)
        arguments = []
        for i, field in enumerate(message.field):
            self.lines += self.comment(comments.get((*path, 2, i), ""), inner)
            value = self.value(field)
            entry = next((e for name, e in entries.items() if field.type_name.endswith(message.name + name)), None)
            if entry:
                declared = f"MutableMapping[{entry[0]}, {entry[1]}]"
                accepted = f"Mapping[{entry[0]}, {entry[1]}]"
            elif field.label == FieldProto.LABEL_REPEATED:
                declared, accepted = f"_Repeated[{value}]", f"Iterable[{value}]"
            else:
                declared, accepted = value, f"{value} | None"
            self.lines.append(f"{inner}{field.name}: {declared}")
            arguments.append(f"{inner}    {field.name}: {accepted} = ...,")
        if arguments:
            self.lines += [f"{inner}def __init__(", f"{inner}    self,", f"{inner}    *,", *arguments]
            self.lines.append(f"{inner}) -> None: ...")
        else:
            self.lines.append(f"{inner}def __init__(self) -> None: ...")

    def value(self, field) -> str:
        if field.type == FieldProto.TYPE_MESSAGE:
            return WELL_KNOWN.get(field.type_name, field.type_name.rsplit(".", 1)[-1])
        return SCALARS.get(field.type, "int")


def ours(descriptors: descriptor_pb2.FileDescriptorSet) -> list[descriptor_pb2.FileDescriptorProto]:
    return [file for file in descriptors.file if file.name.startswith("adamant/")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        commented, plain = describe(Path(folder))
    stub = Stub(commented).text()
    if not check:
        DESCRIPTORS.write_bytes(plain.SerializeToString(deterministic=True))
        STUB.write_text(stub, encoding="utf-8")
        return
    differ = []
    if ours(descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())) != ours(plain):
        differ.append(DESCRIPTORS.name)
    if STUB.read_text(encoding="utf-8") != stub:
        differ.append(STUB.name)
    if differ:
        sys.exit(f"not what proto/ makes: {', '.join(differ)}; run client/python/generate.py")


if __name__ == "__main__":
    main()
