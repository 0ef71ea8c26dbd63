"""Gradients that are sent while the backward pass still computes others."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Callable

import torch

from adamant._connection import BegunStep
from adamant._words import Words
from adamant.torch._mirror import Array, Mirror

# A step of fewer bytes goes up as one message, which is as fast.
_LEAST_BYTES = 1 << 20


class Overlap:
    """The step that the gradients of a backward pass are for, as they come.

    What is sent is what there is when a gradient has come. `take` finds out whether that is what the step is to be made
    of; if it is not, nothing of it counts.
    """

    def __init__(self, begin: weakref.WeakMethod[Callable[[], BegunStep | None]]) -> None:
        """`begin` begins the step that is likely to be made, if that can be said."""
        self._begin = begin
        self._mirrors: list[Mirror] = []
        self._handles: list[Any] = []
        # Autograd calls from a thread for each device.
        self._lock = threading.Lock()
        self._begun: BegunStep | None = None
        # How often each gradient has come since the last step, and how often they came before that one: of several
        # backward passes, which add to each other, the last one is sent.
        self._arrivals: dict[int, int] = {}
        self._passes = 1
        # By index: the gradient, its version, and what there was of it.
        self._sent: dict[int, tuple[torch.Tensor, int, Array]] = {}
        # A gradient that was sent has come again.
        self._is_over = False

    def watch(self, mirrors: Sequence[Mirror]) -> None:
        """There are more parameters."""
        # No parameter is to keep the optimizer.
        me = weakref.ref(self)

        def hook_of(index: int) -> Callable[[torch.Tensor], None]:
            def hook(_parameter: torch.Tensor) -> None:
                overlap = me()
                if overlap is not None:
                    overlap._arrived(index)

            return hook

        for mirror in mirrors:
            if mirror.parameter.device.type != "cpu":
                raise ValueError(
                    f"overlap: expected parameters on the CPU, got {mirror.name!r} on {mirror.parameter.device}"
                )
        self.cancel()
        for mirror in mirrors:
            hook = hook_of(len(self._mirrors))
            self._handles.append(mirror.parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            self._mirrors.append(mirror)

    def _arrived(self, index: int) -> None:
        with self._lock:
            count = self._arrivals[index] = self._arrivals.get(index, 0) + 1
            if self._is_over or count < self._passes:
                return
            if count > self._passes:
                self._is_over = True
                self._drop()
                # Which the model may not have any more.
                self._sent = {}
                return
            mirror = self._mirrors[index]
            gradient = mirror.parameter.grad
            if gradient is None or gradient.layout is not torch.strided or not gradient.is_contiguous():
                return
            if self._begun is None and not self._sent:
                if sum(each.parameter.numel() * each.parameter.element_size() for each in self._mirrors) < _LEAST_BYTES:
                    return
                begin = self._begin()
                self._begun = None if begin is None else begin()
            if self._begun is None:
                return
            array = mirror.gradient()
            if self._begun.add(index, array):
                self._sent[index] = gradient, gradient._version, array

    def take(self, carried: Sequence[int]) -> BegunStep | None:
        """What has been sent, if the step that brings `carried` brings it as it was sent. The next gradient that comes
        is for the next step."""
        with self._lock:
            begun, sent = self._begun, self._sent
            self._passes = max([1, *self._arrivals.values()])
            self._begun = None
            self._forget()
        if begun is None:
            return None
        if sent.keys() <= set(carried) and all(
            self._mirrors[index].parameter.grad is gradient and gradient._version == version
            for index, (gradient, version, _) in sent.items()
        ):
            totals = begun.totals()
            # Not all that writes into a gradient advances its version: DistributedDataParallel does not.
            if totals is not None and all(
                Words(array).total() == totals[index] for index, (_, _, array) in sent.items()
            ):
                return begun
        begun.cancel()
        return None

    def cancel(self) -> None:
        """What has been sent is of no use: gradients begin anew."""
        with self._lock:
            self._drop()
            self._forget()

    def close(self) -> None:
        """Nothing is sent any more."""
        for handle in self._handles:
            handle.remove()
        self.cancel()

    def _drop(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.cancel()

    def _forget(self) -> None:
        self._arrivals = {}
        self._sent = {}
        self._is_over = False
