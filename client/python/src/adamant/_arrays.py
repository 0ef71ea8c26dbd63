"""Arrays as the caller has them, and elements as they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from adamant import v1

Array = np.ndarray[Any, Any]
Arrays = Union[Sequence[Optional[Array]], Mapping[str, Array]]
"""An array for each tensor: a mapping by its name, or a sequence in the order of the set's tensors."""

FLOAT32: int = v1.DTYPE_FLOAT32
BFLOAT16: int = v1.DTYPE_BFLOAT16
FLOAT16: int = v1.DTYPE_FLOAT16

_F4 = np.dtype("<f4")
_F2 = np.dtype("<f2")
_U2 = np.dtype("<u2")
_NAMES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


def element_bytes(dtype: int) -> int:
    """Of a type that elements travel in; 0 for one that there is not."""
    return 4 if dtype == FLOAT32 else 2 if dtype in (BFLOAT16, FLOAT16) else 0


def _wire(dtype: np.dtype[Any]) -> int:
    """How elements of an array of this type travel as they are; 0: not at all."""
    if dtype == _F4:
        return FLOAT32
    if dtype == _F2:
        return FLOAT16
    # numpy has no bfloat16 of its own; uint16 is one's bits, and ml_dtypes has the type.
    if dtype == _U2 or dtype.name == "bfloat16":
        return BFLOAT16
    return 0


_WIRE: dict[Any, int] = {}


def wire_dtype(dtype: np.dtype[Any]) -> int:
    """How elements of an array of this type travel as they are; 0: not at all. uint16 counts as bfloat16's bits."""
    try:
        return _WIRE[dtype]
    except KeyError:
        return _WIRE.setdefault(dtype, _wire(dtype))


def dtype_argument(name: str, dtype: object) -> int:
    """An argument that says how elements travel: `float32`, `bfloat16`, `float16`, or v1's number."""
    found = _NAMES.get(str(dtype), dtype)
    if found not in (FLOAT32, BFLOAT16, FLOAT16):
        raise ValueError(f"{name}: expected 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    return int(found)


def convert(elements: Array, to: int, of: int | None = None, out: Array | None = None) -> Array:
    """Elements (flat) that travel as `to`; as they are where they do already. 16 bits are rounded to the nearest, ties
    to even. `of` says what they are, where their array's type does not; `out` takes them."""
    of = of or wire_dtype(elements.dtype)
    if of == to:
        if out is None:
            return elements
        np.copyto(out.view(elements.dtype), elements)
        return out
    wide = _widen(elements, of)
    if to == FLOAT32:
        if out is not None:
            np.copyto(out, wide)
            return out
        return wide
    narrow = _narrow(wide, to)
    if out is not None:
        np.copyto(out.view(_U2), narrow)
        return out
    return narrow


def _widen(elements: Array, of: int) -> Array:
    if of == FLOAT32:
        return elements
    if of == BFLOAT16:
        bits = elements.view(_U2).astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(_F4)
    return elements.view(_F2).astype(_F4)


def _narrow(elements: Array, to: int) -> Array:
    if to == BFLOAT16:
        bits = elements.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        narrow = rounded.astype(_U2)
        nan = np.isnan(elements)
        if nan.any():
            narrow[nan] = (bits[nan] >> 16).astype(_U2) & 0x8000 | 0x7FC0
        return narrow
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return elements.astype(_F2).view(_U2)


def round_in_place(array: Array, to: int) -> int:
    """Rounds a float32 array to what `to` has room for. Returns how many elements have become infinite by that."""
    if to == FLOAT32:
        return 0
    overflowed = 0
    flat = array.reshape(-1)
    for begin in range(0, flat.size, 1 << 18):
        part = flat[begin : begin + (1 << 18)]
        overflowed -= int(np.isinf(part).sum())
        np.copyto(part, _widen(_narrow(part, to), to))
        overflowed += int(np.isinf(part).sum())
    return overflowed


def by_index(what: str, arrays: Any, names: Sequence[str], carried: Sequence[bool] | None) -> Sequence[Any]:
    """`arrays` in the order of `names`. Of those that are not `carried` (None: all are) there need be none, or None."""
    # A list is what the fastest callers have.
    if type(arrays) is not list and isinstance(arrays, Mapping):
        found = [arrays.get(name) for name in names]
        if len(arrays) != len(found) or any(array is None for array in found):
            unknown = sorted(arrays.keys() - set(names))
            if unknown:
                raise ValueError(f"{what}: the set has no tensor {unknown[0]!r}")
            for i, array in enumerate(found):
                if array is None and (carried is None or carried[i]):
                    raise ValueError(f"{what}: expected an array for each tensor, got none for {names[i]!r}")
        return found
    if type(arrays) is not list and (isinstance(arrays, np.ndarray) or not isinstance(arrays, Sequence)):
        raise TypeError(f"{what}: expected arrays in a list or by name in a dict, got {type(arrays).__name__}")
    if len(arrays) != len(names):
        raise ValueError(f"{what}: expected an array for each of {len(names)} tensors, got {len(arrays)}")
    return arrays


def check(what: str, array: Any, name: str, shape: Sequence[int], size: int, *, writable: bool = False) -> Array:
    """`array`, if it can be sent or filled as it lies; of one that is not C-contiguous, to be sent, a copy."""
    if not isinstance(array, np.ndarray):
        got = f"{type(array).__module__}.{type(array).__name__}"
        raise TypeError(f"{what}[{name!r}]: expected a numpy array, got {got}")
    if wire_dtype(array.dtype) == 0:
        raise TypeError(
            f"{what}[{name!r}]: expected float32, bfloat16 or float16 (uint16 stands for bfloat16's bits), "
            f"got {array.dtype}: convert it, so that it is you who rounds"
        )
    if array.shape != tuple(shape) and array.shape != (size,):
        raise ValueError(f"{what}[{name!r}]: expected shape {tuple(shape)}, got {array.shape}")
    flags = array.flags
    if not flags.c_contiguous:
        if writable:
            raise ValueError(f"{what}[{name!r}]: expected a C-contiguous array, got one with strides {array.strides}")
        array = np.ascontiguousarray(array)
    if writable and not flags.writeable:
        raise ValueError(f"{what}[{name!r}]: expected a writable array, got a read-only one")
    # ml_dtypes' own type exports no buffer.
    exported: Array = array if array.dtype in (_F4, _F2, _U2) else array.view(_U2)
    return exported


def check_no_overlap(sources: Sequence[Array], targets: Sequence[Array]) -> None:
    """Raises where memory that is read is memory that is written."""
    ranges = [(begin, end, False) for begin, end in map(_bounds, sources) if end > begin]
    ranges += [(begin, end, True) for begin, end in map(_bounds, targets) if end > begin]
    ranges.sort()
    # How far the ranges seen so far reach, those that are read and those that are written.
    reach = [0, 0]
    for begin, end, written in ranges:
        if begin < reach[not written]:
            raise ValueError("an array of the gradients overlaps one of the parameters")
        reach[written] = max(reach[written], end)


def _bounds(array: Array) -> tuple[int, int]:
    address = array.__array_interface__["data"][0]
    return address, address + array.nbytes
