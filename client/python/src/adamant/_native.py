"""Large steps, reads and writes by the C++ client, through its C ABI: libadamant_c.so, where it is found.

It sends from the caller's memory and receives into it, without a copy in between and without the interpreter's lock.
What is small is as fast by grpcio, and what is converted on the way is left to `_framing`.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from adamant import _fork, _malloc, v1
from adamant._arrays import FLOAT32, Array, wire_dtype
from adamant._connection import ReadCall, RetryingConnection, StepCall, WriteCall
from adamant._framing import Rows, Source
from adamant._options import RetryPolicy, Timeouts
from adamant._transport import MAX_MESSAGE_BYTES, Transport, interruptible
from adamant.errors import AdamantError, CancelledError, from_status

# adamant_c.h's ADAMANT_ABI_VERSION.
_ABI_VERSION = 1
_LIBRARY = "ADAMANT_C_LIBRARY"


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))

    def value(self) -> bytes:
        return ctypes.string_at(self.data, self.size) if self.size else b""


class _Status(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int32), ("message", _Bytes), ("details", _Bytes))

    def error(self) -> AdamantError:
        return from_status(self.code, self.message.value().decode("utf-8", "replace"), self.details.value())


_OnWait = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_Status))
_Interrupted = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class _Options(ctypes.Structure):
    _fields_ = (
        ("max_attempts", ctypes.c_int32),
        *(
            (name, ctypes.c_double)
            for name in (
                "total_timeout",
                "initial_backoff",
                "max_backoff",
                "multiplier",
                "jitter",
                "connect_timeout",
                "unary_timeout",
                "step_timeout",
                "transfer_timeout",
            )
        ),
        ("message_bytes", ctypes.c_int64),
        ("on_wait", _OnWait),
        ("interrupted", _Interrupted),
        ("context", ctypes.c_void_p),
    )


class _Rows(ctypes.Structure):
    """adamant_rows."""

    _fields_ = (
        ("tensor", ctypes.c_int32),
        ("rows", ctypes.c_void_p),
        ("row_count", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("value_count", ctypes.c_int64),
    )


class _StepCall(ctypes.Structure):
    _fields_ = (
        ("header", ctypes.c_char_p),
        ("header_size", ctypes.c_size_t),
        ("gradient_dtype", ctypes.c_int32),
        ("tensor_count", ctypes.c_int64),
        ("gradients", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("row_count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("round_timeout", ctypes.c_double),
    )


class _Slot(ctypes.Structure):
    """adamant_source_slot and adamant_destination_slot."""

    _fields_ = (("slot", ctypes.c_int32), ("tensor_count", ctypes.c_int64), ("tensors", ctypes.c_void_p))


class Library:
    """libadamant_c.so."""

    def __init__(self, path: str) -> None:
        """OSError where there is none at `path`, or one of another version."""
        self._library = ctypes.CDLL(path)
        try:
            version = self._library.adamant_abi_version()
        except AttributeError:
            raise OSError(f"{path}: expected libadamant_c.so, got another library") from None
        if version != _ABI_VERSION:
            raise OSError(f"{path}: expected version {_ABI_VERSION} of the C ABI, got {version}")
        signatures: dict[str, tuple[Any, ...]] = {
            "adamant_connect": (
                ctypes.c_char_p,
                ctypes.POINTER(_Options),
                ctypes.POINTER(ctypes.c_void_p),
                ctypes.POINTER(_Status),
            ),
            "adamant_step": (
                ctypes.c_void_p,
                ctypes.POINTER(_StepCall),
                ctypes.POINTER(_Bytes),
                ctypes.POINTER(_Status),
            ),
        }
        for name in ("adamant_write", "adamant_read"):
            signatures[name] = (
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.POINTER(_Bytes),
                ctypes.POINTER(_Status),
            )
        for name, arguments in signatures.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int32
        self.connect = self._library.adamant_connect
        self.step = self._library.adamant_step
        self.write = self._library.adamant_write
        self.read = self._library.adamant_read
        self._library.adamant_disconnect.argtypes = (ctypes.c_void_p,)
        self._library.adamant_disconnect.restype = None
        self.disconnect = self._library.adamant_disconnect
        self._library.adamant_bytes_free.argtypes = (ctypes.POINTER(_Bytes),)
        self._library.adamant_bytes_free.restype = None
        self._library.adamant_status_free.argtypes = (ctypes.POINTER(_Status),)
        self._library.adamant_status_free.restype = None

    def call(self, function: Callable[..., int], *arguments: Any) -> bytes:
        """The message that `function` makes; raises what it says instead."""
        made = _Bytes()
        status = _Status()
        code = function(*arguments, ctypes.byref(made), ctypes.byref(status))
        try:
            if code:
                raise status.error()
            return made.value()
        finally:
            self._library.adamant_status_free(ctypes.byref(status))
            self._library.adamant_bytes_free(ctypes.byref(made))

    def make_connection(self, target: str, options: _Options) -> ctypes.c_void_p:
        connection = ctypes.c_void_p()
        status = _Status()
        code = self.connect(target.encode(), ctypes.byref(options), ctypes.byref(connection), ctypes.byref(status))
        try:
            if code:
                raise status.error()
            return connection
        finally:
            self._library.adamant_status_free(ctypes.byref(status))


_library: Library | None = None
_found = False
_lock = threading.Lock()


def find_library() -> Library | None:
    """The one that $ADAMANT_C_LIBRARY names, which must be there, or the one that the system finds, or None; an empty
    name is None."""
    global _library, _found
    with _lock:
        if not _found:
            path = os.environ.get(_LIBRARY)
            if path is None:
                path = ctypes.util.find_library("adamant_c")
                try:
                    _library = Library(path) if path else None
                except OSError:
                    _library = None
            else:
                _library = Library(path) if path else None
            _found = True
        return _library


def _address(array: Any) -> int:
    try:
        # A fifth of the time that the other takes, which does for arrays that are read-only, or empty.
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):
        return int(array.__array_interface__["data"][0])


def _spans(count: int, tensors: Iterable[int], arrays: Sequence[Array]) -> Array:
    """adamant_source or adamant_destination: the arrays by the index of their tensor; the others are none."""
    spans = np.zeros((count, 2), np.int64)
    places = np.fromiter(tensors, np.intp)
    spans[places, 0] = [_address(array) for array in arrays]
    spans[places, 1] = [array.size for array in arrays]
    return spans


def _all_fp32(arrays: Sequence[Array | None]) -> bool:
    return all(array is not None and wire_dtype(array.dtype) == FLOAT32 for array in arrays)


# What it takes to hand a call over, and in it each array, is what the library saves with so many bytes.
_CALL_BYTES = 128 << 10
_ARRAY_BYTES = 16 << 10


def _pays(call: StepCall) -> bool:
    """Whether a step of one message is faster by the library."""
    (source,) = call.sources
    count = len(source.arrays)
    least = max(_CALL_BYTES, count * _ARRAY_BYTES)
    if least > MAX_MESSAGE_BYTES or sum(array.nbytes for array in source.arrays) < least:
        return False
    # It does not make its message before the reply comes.
    with contextlib.suppress(ValueError):
        call.check_again()
        return True
    return False


class NativeConnection(RetryingConnection):
    """Connection by the C++ client, as far as that is faster, and by a Transport for the rest."""

    def __init__(
        self,
        library: Library,
        transport: Transport,
        retry: RetryPolicy,
        timeouts: Timeouts,
        message_bytes: int,
        on_wait: Callable[[AdamantError], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__(transport, retry, timeouts, message_bytes, on_wait, on_progress)
        self._library = library
        # By thread, the call that Ctrl-C ends.
        self._cancellable: dict[int, _Call] = {}
        self._ended = False
        self._condition = threading.Condition()
        self._calls = 0
        # The callbacks live as long as this.
        me = weakref.ref(self)

        def tell(_: object, reason: Any) -> None:
            if on_wait is not None:
                on_wait(reason.contents.error())

        def is_interrupted(_: object) -> int:
            connection = me()
            if connection is None or connection._ended:
                return 1
            call = connection._cancellable.get(threading.get_ident())
            return int(call is not None and call.is_cancelled)

        options = _Options(
            max_attempts=retry.max_attempts,
            total_timeout=retry.total_timeout,
            initial_backoff=retry.initial_backoff,
            max_backoff=retry.max_backoff,
            multiplier=retry.multiplier,
            jitter=retry.jitter,
            connect_timeout=timeouts.connect,
            unary_timeout=timeouts.unary,
            step_timeout=timeouts.step,
            transfer_timeout=timeouts.transfer,
            message_bytes=message_bytes,
            on_wait=_OnWait(tell) if on_wait is not None else _OnWait(),
            interrupted=_Interrupted(is_interrupted),
        )
        self._options = options
        self._native = library.make_connection(transport.target, options)
        # Signals are the main thread's: its calls are made by another, and Ctrl-C ends its wait for that.
        self._worker: _Worker | None = None
        self._generation = _fork.generation

    def step(self, call: StepCall) -> v1.StepResult:
        parameters = call.parameters
        (source,) = call.sources
        dtypes = {*source.dtypes, *(rows.dtype for rows in call.rows)}
        if (
            (call.small is not None and not _pays(call))
            or len(dtypes) != 1
            or not _all_fp32(source.arrays)
            or not _all_fp32([rows.values for rows in call.rows])
            # The library places rows where they belong in their tensor.
            or any(rows.compact for rows in call.rows if parameters is not None)
            or not _all_fp32([array for array in parameters or () if array is not None])
        ):
            return super().step(call)
        last = max([*source.tensors, *(rows.tensor for rows in call.rows)], default=-1)
        count = len(parameters) if parameters is not None else last + 1
        gradients = _spans(count, source.tensors, source.arrays)
        header = call.header.SerializeToString()
        native = _StepCall(
            header=header,
            header_size=len(header),
            gradient_dtype=dtypes.pop(),
            tensor_count=count,
            gradients=_address(gradients),
            round_timeout=call.round_timeout,
        )
        if call.rows:
            rows = (_Rows * len(call.rows))(*map(_row_spans, call.rows))
            native.row_count, native.rows = len(rows), ctypes.addressof(rows)
        targets = None
        if parameters is not None:
            brought = [i for i, array in enumerate(parameters) if array is not None]
            targets = _spans(count, brought, [parameters[i] for i in brought])  # type: ignore[misc]
            native.parameters = _address(targets)
        return v1.StepResult.FromString(self._call(self._library.step, ctypes.byref(native)))

    def write(self, call: WriteCall) -> v1.WriteTensorsResponse:
        # The library does not tell how far it is.
        if self._on_progress is not None or not all(
            set(source.dtypes) == {FLOAT32} and _all_fp32(source.arrays) for source in call.sources
        ):
            return super().write(call)
        spans = [_write_spans(source) for source in call.sources]
        slots = (_Slot * len(spans))()
        for slot, source, span in zip(slots, call.sources, spans):
            slot.slot, slot.tensor_count, slot.tensors = source.slot, len(span), _address(span)
        header = call.header.SerializeToString()
        made = self._call(self._library.write, header, len(header), ctypes.addressof(slots), len(spans))
        return v1.WriteTensorsResponse.FromString(made)

    def read(self, call: ReadCall) -> v1.ReadHeader:
        if self._on_progress is not None or not all(_all_fp32(arrays) for arrays in call.targets.values()):
            return super().read(call)
        spans = [_spans(len(arrays), range(len(arrays)), arrays) for arrays in call.targets.values()]  # type: ignore[arg-type]
        slots = (_Slot * len(spans))()
        for slot, number, span in zip(slots, call.targets, spans):
            slot.slot, slot.tensor_count, slot.tensors = number, len(span), _address(span)
        request = call.request.SerializeToString()
        made = self._call(self._library.read, request, len(request), ctypes.addressof(slots), len(spans))
        return v1.ReadHeader.FromString(made)

    def close(self) -> None:
        super().close()
        with self._condition:
            if self._ended:
                return
            self._ended = True
            self._condition.wait_for(lambda: self._calls == 0)
        if self._worker is not None:
            self._worker.stop(wait=True)
        self._library.disconnect(self._native)

    def __del__(self) -> None:
        # Nobody uses it any more. After a fork the connection is the parent's.
        if getattr(self, "_native", None) is not None and not self._ended and self._generation == _fork.generation:
            if self._worker is not None:
                self._worker.stop(wait=False)
            self._library.disconnect(self._native)

    def _call(self, function: Callable[..., int], *arguments: Any) -> bytes:
        with self._condition:
            if self._ended:
                raise RuntimeError("this adamant.Client is closed")
            self._calls += 1
        # It makes messages as large as these.
        _malloc.expect(self._message_bytes)
        try:
            if threading.current_thread() is not threading.main_thread():
                return self._library.call(function, self._native, *arguments)
            return self._interruptibly(function, *arguments)
        finally:
            with self._condition:
                self._calls -= 1
                self._condition.notify_all()

    def _interruptibly(self, function: Callable[..., int], *arguments: Any) -> bytes:
        if self._worker is None:
            self._worker = _Worker()
        call = _Call()

        def work() -> None:
            self._cancellable[threading.get_ident()] = call
            try:
                call.made = self._library.call(function, self._native, *arguments)
            except BaseException as error:
                call.error = error
            finally:
                call.done.release()

        # The call refers to the caller's memory until it has ended. So Ctrl-C, however often, raises nothing before.
        with interruptible(call):
            self._worker.give(work)
            try:
                call.done.acquire()
            except BaseException:
                # By a handler of the program's own.
                call.cancel()
                ended = False
                while not ended:
                    with contextlib.suppress(KeyboardInterrupt):
                        ended = call.done.acquire(timeout=0.05)
                raise
            if call.error is not None:
                try:
                    raise call.error
                finally:
                    # It leads to the caller's arrays.
                    call.error = None
            return call.made


class _Call:
    """What a thread of the connection's is at."""

    def __init__(self) -> None:
        self.is_cancelled = False
        # Released when the call has ended, by one of these two.
        self.done = threading.Lock()
        self.done.acquire()
        self.made = b""
        self.error: BaseException | None = None

    def cancel(self) -> None:
        self.is_cancelled = True


class _Worker:
    """A thread that does one thing after the other: concurrent.futures' takes twice as long to be told."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_do_all, args=(self._work,), name="adamant", daemon=True)
        self._thread.start()

    def give(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def stop(self, *, wait: bool) -> None:
        self._work.put(None)
        if wait:
            self._thread.join()


def _do_all(works: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := works.get()) is not None:
        work()
        # Nobody's gradients are kept.
        del work


def _row_spans(rows: Rows) -> _Rows:
    return _Rows(rows.tensor, _address(rows.rows), rows.rows.size, _address(rows.values), rows.values.size)


def _write_spans(source: Source) -> Array:
    return _spans(max(source.tensors, default=-1) + 1, source.tensors, source.arrays)


__all__ = ["CancelledError", "Library", "NativeConnection", "find_library"]
