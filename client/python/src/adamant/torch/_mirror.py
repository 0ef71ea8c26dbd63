"""A parameter of torch's, as an array that elements can be sent from and received into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _python_dispatch

from adamant._words import WEIGHTS, WORDS, Words

Array = np.ndarray[Any, Any]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)


# Up to so many elements a parameter is kept, which takes less time than a sum, and in all so many.
_SMALL = 4096
_SMALL_IN_ALL = 1 << 20


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Its elements' bits, as integers."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs: the server knows none."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()


def as_array(tensor: torch.Tensor) -> Array:
    """The memory of a tensor that is on the CPU. numpy has no bfloat16: these are its bits."""
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
        self._is_contiguous = False
        self.lay_out()

    def lay_out(self) -> None:
        """Finds the parameter's memory: again where it lies otherwise than before (`p.data = ...`)."""
        parameter = self.parameter
        if parameter.data_ptr() == self._address and parameter.is_contiguous() == self._is_contiguous:
            return
        self._address = parameter.data_ptr()
        self._is_contiguous = parameter.is_contiguous()
        real = as_real(parameter.detach())
        if tuple(real.shape) != self.shape:
            raise RuntimeError(
                f"parameter {self.name!r}: expected shape {self.shape}, which the set has, got {tuple(real.shape)}"
            )
        # Whether a reply goes right into the parameter.
        self.is_direct = real.device.type == "cpu" and real.is_contiguous() and not parameter.is_conj()
        self._buffer = real if self.is_direct else torch.empty(self.shape, dtype=real.dtype)
        self._array = as_array(self._buffer)
        self.words = Words(self._array) if self.is_direct else None
        is_small = self.words is not None and real.element_size() == 4 and real.numel() <= _SMALL
        self.small = self._array.reshape(-1).view(np.int32) if is_small else None

    def target(self) -> Array:
        """Where to put its elements; `arrived` follows."""
        self.lay_out()
        return self._array

    def arrived(self) -> None:
        """Elements have been put into `target`."""
        if not self.is_direct:
            as_real(self.parameter.detach()).copy_(self._buffer)

    def local(self) -> torch.Tensor:
        """Its elements as they are, real and contiguous, on the CPU."""
        self.lay_out()
        if not self.is_direct:
            self._buffer.copy_(as_real(self.parameter.detach()))
        return self._buffer

    def source(self) -> Array:
        """Its elements as they are, to be sent."""
        self.local()
        return self._array

    def gradient(self) -> Array:
        """The gradient, to be sent: where it lies, if it is dense and on the CPU, otherwise a copy."""
        gradient = self.parameter.grad
        assert gradient is not None
        if gradient.layout is not torch.strided:
            gradient = gradient.to_dense()
        if gradient.dtype is torch.float32 and gradient.is_cpu and not gradient.is_neg():
            # Most are like this. numpy does not take what has a history of its own.
            return (gradient.detach() if gradient.requires_grad else gradient).numpy()
        return as_array(as_real(gradient.detach()).to("cpu"))


def _bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses [begin, end) that its elements lie between."""
    length = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
    return tensor.data_ptr(), tensor.data_ptr() + length * tensor.element_size()


def _may_overlap_itself(tensor: torch.Tensor) -> bool:
    """Whether two of its elements may be one. False is certain."""
    length = 1
    for stride, size in sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride()) if size > 1):
        if stride < length:
            return True
        length += (size - 1) * stride
    return False


def check_disjoint(mirrors: Sequence[Mirror]) -> None:
    """Raises where two elements of parameters are one: an update of the one would undo that of the other. Torch, which
    updates them one after the other, would apply both."""
    parts = sorted(
        ((*_bytes_of(mirror.parameter), mirror) for mirror in mirrors if mirror.parameter.numel()),
        key=lambda part: part[:2],
    )
    at = 0
    while at < len(parts):
        # Those that lie between each other's elements, as the columns of one matrix do.
        begin, end, _ = parts[at]
        cluster = [parts[at][2]]
        while at + len(cluster) < len(parts) and parts[at + len(cluster)][0] < end:
            end = max(end, parts[at + len(cluster)][1])
            cluster.append(parts[at + len(cluster)][2])
        at += len(cluster)
        if len(cluster) > 1 or _may_overlap_itself(cluster[0].parameter):
            _check_cluster(cluster, begin, end)


def _check_cluster(mirrors: Sequence[Mirror], begin: int, end: int) -> None:
    # Of each byte, the number of the parameter that has it, from 1.
    owners = torch.zeros(end - begin, dtype=torch.int32)
    for number, mirror in enumerate(mirrors, 1):
        parameter = mirror.parameter
        width = parameter.element_size()
        shape = (*parameter.shape, width)
        strides = (*(stride * width for stride in parameter.stride()), 1)
        mine = owners.as_strided(shape, strides, parameter.data_ptr() - begin)
        other = int(mine.max())
        if other:
            raise ValueError(
                f"parameter {mirror.name!r}: expected memory of its own, got some that parameter "
                f"{mirrors[other - 1].name!r} has: give the optimizer one of them, or what both are views of"
            )
        mine.fill_(number)
        if int((owners == number).sum()) != parameter.numel() * width:
            raise ValueError(
                f"parameter {mirror.name!r}: expected memory for each of its elements, got some that share it: "
                "give the optimizer a clone() of what was expanded"
            )


def _total_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The like, without bringing elements here."""
    bits = bits_of(tensor.contiguous()).reshape(-1)
    weights = torch.from_numpy(WEIGHTS.view(np.int64)).to(bits.device)
    rows = bits.numel() // WORDS * WORDS
    total = (bits[rows:] * weights[: bits.numel() - rows]).sum()
    if rows:
        total += 3 * (bits[:rows].view(-1, WORDS).sum(0) * weights).sum()
    return total


def _totals(mirrors: Sequence[Mirror]) -> list[int]:
    """A weighted sum of each one's bits: whatever changes one element changes it. It stays where parts of a large one
    trade places that are 4 KiB apart, or a multiple: that a parameter's version and address tell."""
    result = [0] * len(mirrors)
    elsewhere = []
    for i, mirror in enumerate(mirrors):
        if mirror.words is not None:
            result[i] = mirror.words.total()
        else:
            elsewhere.append(i)
    if elsewhere:
        # One wait for the device, not one a tensor.
        sums = [_total_on_device(as_real(mirrors[i].parameter.detach())) for i in elsewhere]
        for i, total in zip(elsewhere, torch.stack(sums).tolist()):
            result[i] = total
    return result


class Layout:
    """Where all parameters lie, and what follows from that. It holds until one of them lies elsewhere."""

    def __init__(self, mirrors: Sequence[Mirror]) -> None:
        check_disjoint(mirrors)
        # By index, as `Mirror.target`.
        self.targets = [mirror.target() for mirror in mirrors]
        self.parameters = [mirror.parameter for mirror in mirrors]
        self.dtypes = [parameter.dtype for parameter in self.parameters]
        # Those that are copied from there when they have arrived.
        self.copied = {i for i, mirror in enumerate(mirrors) if not mirror.is_direct}
        self.is_complex = any(parameter.is_complex() for parameter in self.parameters)
        self._addresses = list(map(torch.Tensor.data_ptr, self.parameters))
        self._are_contiguous = list(map(torch.Tensor.is_contiguous, self.parameters))

    def holds(self) -> bool:
        return (
            list(map(torch.Tensor.data_ptr, self.parameters)) == self._addresses
            and list(map(torch.Tensor.is_contiguous, self.parameters)) == self._are_contiguous
        )


class Memory:
    """What parameters were when they last were the server's: of small ones every bit, of others a sum."""

    def __init__(self) -> None:
        self._mirrors: list[Mirror] = []
        # Of small ones, by index: where in `_kept` their bits are.
        self._places: dict[int, slice] = {}
        self._kept = np.zeros(0, np.int32)
        # Of the others, by index: address, type, version and sum; of small ones, whether it is known. Not there: not.
        self._known: dict[int, tuple[int, torch.dtype, int, int] | None] = {}
        self._follow(Layout([]))

    def add(self, mirrors: Sequence[Mirror]) -> None:
        """There are more, of which nothing is known yet."""
        end = self._kept.size
        for mirror in mirrors:
            if mirror.small is not None and end + mirror.small.size <= _SMALL_IN_ALL:
                self._places[len(self._mirrors)] = slice(end, end + mirror.small.size)
                end += mirror.small.size
            self._mirrors.append(mirror)
        self._kept = np.concatenate([self._kept, np.zeros(end - self._kept.size, np.int32)])

    def _follow(self, layout: Layout) -> None:
        self._layout = layout
        # Small ones, and of each its bits; those that were small; the others.
        self._small = {i: bits for i in self._places if (bits := self._mirrors[i].small) is not None}
        self._bits = list(self._small.values())
        self._lost = [i for i in self._places if i not in self._small]
        self._others = [i for i in range(len(self._mirrors)) if i not in self._places]

    def remember(self, layout: Layout, indices: Sequence[int] | None = None) -> None:
        """These, or all, are the server's as they are, and lie so."""
        if layout is not self._layout:
            self._follow(layout)
        if indices is None and not self._lost:
            small: Iterable[int] = self._small
            others = self._others
            if self._bits:
                np.concatenate(self._bits, out=self._kept)
        else:
            chosen = range(len(self._mirrors)) if indices is None else indices
            small = [i for i in chosen if i in self._small]
            others = [i for i in chosen if i not in self._places]
            for i in small:
                self._kept[self._places[i]] = self._small[i]
        self._known.update(dict.fromkeys(small))
        for i, total in zip(others, _totals([self._mirrors[i] for i in others])):
            parameter = self._mirrors[i].parameter
            self._known[i] = parameter.data_ptr(), parameter.dtype, parameter._version, total

    def forget(self, index: int) -> None:
        """It may not be what the server has."""
        self._known.pop(index, None)

    def compare(self, layout: Layout) -> tuple[list[int], list[int]]:
        """Those that are something else now, and those of which that is not known: because it never was, or because
        somebody has written (as load_state_dict and DistributedDataParallel do) and may have written the same."""
        if layout is not self._layout:
            self._follow(layout)
        changed: list[int] = []
        unsure = list(self._lost)
        is_whole = len(self._known) == len(self._mirrors)
        if not is_whole:
            unsure += [i for i in range(len(self._mirrors)) if i not in self._known and i not in self._lost]
        # Not by torch, whose threads take longer to wake than this takes.
        if self._bits and not (is_whole and not self._lost and np.array_equal(np.concatenate(self._bits), self._kept)):
            changed += [
                i
                for i, bits in self._small.items()
                if i in self._known and not np.array_equal(bits, self._kept[self._places[i]])
            ]
        others = [i for i in self._others if i in self._known]
        for i, total in zip(others, _totals([self._mirrors[i] for i in others])):
            known = self._known[i]
            assert known is not None
            address, dtype, version, known_total = known
            parameter = self._mirrors[i].parameter
            if dtype == parameter.dtype and total != known_total:
                changed.append(i)
            elif (address, dtype, version) != (parameter.data_ptr(), parameter.dtype, parameter._version):
                unsure.append(i)
        return sorted(changed), sorted(unsure)
