"""A parameter of torch's, as an array that elements can be sent from and received into."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _python_dispatch

Array = np.ndarray[Any, Any]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)


# Of each of so many 64-bit words of a parameter, again and again: odd, so that no change of one word goes unnoticed,
# and without a pattern, so that hardly any change of several does.
_WORDS = 512
_WEIGHTS = np.random.default_rng(0).integers(2**63, size=_WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Its elements' bits, as integers."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs: the server knows none."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()


def as_array(tensor: torch.Tensor) -> Array:
    """The memory of a tensor that is on the CPU and contiguous. numpy has no bfloat16: these are its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


class Mirror:
    """One parameter, and what it was when its elements last were the server's."""

    def __init__(self, parameter: torch.Tensor, name: str) -> None:
        if _python_dispatch.is_traceable_wrapper_subclass(parameter):
            raise TypeError(f"parameter {name!r}: expected a plain tensor, got a {type(parameter).__name__}")
        if parameter.dtype not in _DTYPES:
            raise TypeError(
                f"parameter {name!r}: expected float32, bfloat16, float16 or complex64, got {parameter.dtype}: "
                "the server keeps 32 bits an element"
            )
        if parameter.layout != torch.strided or parameter.device.type == "meta":
            raise TypeError(
                f"parameter {name!r}: expected a dense tensor with memory, got one of layout {parameter.layout} on "
                f"{parameter.device}"
            )
        self.parameter = parameter
        self.name = name
        self.shape = tuple(as_real(parameter.detach()).shape)
        self._address = -1
        self._dtype = parameter.dtype
        # The parameter's place, type and version and the sum of its bits, as of `remember`; None: not known.
        self._known: tuple[int, torch.dtype, int, int] | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        """Finds the parameter's memory: again where it lies elsewhere than before (`p.data = ...`)."""
        parameter = self.parameter
        if parameter.data_ptr() == self._address and parameter.dtype == self._dtype:
            return
        self._address = parameter.data_ptr()
        self._dtype = parameter.dtype
        real = as_real(parameter.detach())
        if tuple(real.shape) != self.shape:
            raise RuntimeError(
                f"parameter {self.name!r}: expected shape {self.shape}, which the set has, got {tuple(real.shape)}"
            )
        # A reply goes right into the parameter where that is possible.
        self._is_direct = real.device.type == "cpu" and real.is_contiguous() and not parameter.is_conj()
        self._buffer = real if self._is_direct else torch.empty(self.shape, dtype=real.dtype)
        self._array = as_array(self._buffer)
        self._words = _Words(self._array)

    def target(self) -> Array:
        """Where to put its elements; `arrived` follows."""
        self._lay_out()
        return self._array

    def arrived(self) -> None:
        """Elements have been put into `target`."""
        if not self._is_direct:
            as_real(self.parameter.detach()).copy_(self._buffer)

    def local(self) -> torch.Tensor:
        """Its elements as they are, real and contiguous, on the CPU."""
        self._lay_out()
        if not self._is_direct:
            self._buffer.copy_(as_real(self.parameter.detach()))
        return self._buffer

    def source(self) -> Array:
        """Its elements as they are, to be sent."""
        self.local()
        return self._array

    def gradient(self) -> Array:
        """The gradient, to be sent: where it lies, if it is on the CPU and contiguous, otherwise a copy."""
        gradient = self.parameter.grad
        assert gradient is not None
        if gradient.dtype is torch.float32 and gradient.is_cpu and gradient.is_contiguous() and not gradient.is_neg():
            # Most are like this.
            return gradient.detach().numpy()
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        return as_array(as_real(gradient.detach()).to("cpu").contiguous())

    def forget(self) -> None:
        """What it last was is not what the server has."""
        self._known = None

    def remember(self, total: int) -> None:
        """Its elements are the server's, and this is the sum of their bits (`totals`)."""
        parameter = self.parameter
        self._known = parameter.data_ptr(), parameter.dtype, parameter._version, total

    def is_as_remembered(self, total: int) -> bool | None:
        """Whether its elements are those of `remember`, as far as the sum of their bits tells. None if it does not: the
        sum is the same, but somebody has written (as load_state_dict and DistributedDataParallel do); or it is not
        known what they were."""
        if self._known is None:
            return None
        address, dtype, version, known = self._known
        parameter = self.parameter
        if dtype == parameter.dtype and total != known:
            return False
        return (
            True if (address, dtype, version) == (parameter.data_ptr(), parameter.dtype, parameter._version) else None
        )


class _Words:
    """The elements of an array as 64-bit words: whole rows, what is left, and the bytes that are left of that."""

    def __init__(self, array: Array) -> None:
        octets = array.reshape(-1).view(np.uint8)
        words = octets[: octets.size // 8 * 8].view(np.uint64)
        rows = words.size // _WORDS
        self._rows = words[: rows * _WORDS].reshape(rows, _WORDS) if rows else None
        self._rest = words[rows * _WORDS :]
        self._weights = _WEIGHTS[: self._rest.size]
        self._tail = octets[words.size * 8 :] if octets.size % 8 else None

    def total(self) -> int:
        total = int(self._rest.dot(self._weights))
        if self._rows is not None:
            total += 3 * int(self._rows.sum(axis=0).dot(_WEIGHTS))
        if self._tail is not None:
            total += 5 * int.from_bytes(self._tail.tobytes(), sys.byteorder)
        return total % 2**64


def _total_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The like, without bringing elements here."""
    bits = bits_of(tensor.contiguous()).reshape(-1)
    weights = torch.from_numpy(_WEIGHTS.view(np.int64)).to(bits.device)
    rows = bits.numel() // _WORDS * _WORDS
    total = (bits[rows:] * weights[: bits.numel() - rows]).sum()
    if rows:
        total += 3 * (bits[:rows].view(-1, _WORDS).sum(0) * weights).sum()
    return total


def totals(mirrors: Sequence[Mirror]) -> list[int]:
    """A weighted sum of each one's bits: whatever changes one element changes it. It stays where parts of a large one
    trade places that are 4 KiB apart, or a multiple: that a parameter's version and address tell."""
    result = [0] * len(mirrors)
    elsewhere = []
    for i, mirror in enumerate(mirrors):
        mirror._lay_out()
        if mirror._is_direct:
            result[i] = mirror._words.total()
        else:
            elsewhere.append(i)
    if elsewhere:
        # One wait for the device, not one a tensor.
        sums = [_total_on_device(as_real(mirrors[i].parameter.detach())) for i in elsewhere]
        for i, total in zip(elsewhere, torch.stack(sums).tolist()):
            result[i] = total
    return result
