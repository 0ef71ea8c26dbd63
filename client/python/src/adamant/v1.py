"""The messages and enums of the protocol, adamant.v1: what proto/adamant/v1 describes. `v1.pyi` lists them.

They are made here, at import, of descriptors in a pool of their own. Generated code would import under some versions of
protobuf's runtime only, and a second copy of the same files in its pool, such as stubs of the user's own, would clash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

_POOL = descriptor_pool.DescriptorPool()

# Protobuf 3.20 has no GetMessageClass, and since 5 there is nothing else.
if hasattr(message_factory, "GetMessageClass"):
    _message_class = message_factory.GetMessageClass
else:
    _message_class = message_factory.MessageFactory(_POOL).GetPrototype


def _load() -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = Path(__file__).with_name("_descriptors.binpb")
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    for file in files:
        _POOL.AddSerializedFile(file.SerializeToString())
    for file in files:
        described = _POOL.FindFileByName(file.name)
        for name, message in described.message_types_by_name.items():
            found[name] = _message_class(message)
        for name, enum in described.enum_types_by_name.items():
            found[name] = enum_type_wrapper.EnumTypeWrapper(enum)
            found.update((value.name, value.number) for value in enum.values)
    return found


_FOUND = _load()
globals().update(_FOUND)
__all__ = sorted(_FOUND)
