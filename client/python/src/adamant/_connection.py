"""The calls of a server, each with its retries: what Client and StepStream are written on.

This is the other seam beside `_transport.Transport`: a library that knows of steps and tensors itself, such as one with
a C ABI over the C++ client, would implement `Connection`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable, Protocol, TypeVar

import grpc
import numpy as np

from adamant import _fork, _framing, v1
from adamant._arrays import FLOAT32, Array, element_bytes, round_in_place, wire_dtype
from adamant._options import RetryPolicy, Timeouts
from adamant._transport import ByteStream, Transport, interruptible
from adamant._words import Words
from adamant.errors import (
    AdamantError,
    DeadlineExceededError,
    DrainingError,
    SetNotFoundError,
    StalledError,
    TooManyStreamsError,
    UnavailableError,
    make_error,
)

_T = TypeVar("_T")

OnProgress = Callable[[str, int, int], None]
"""Called with "read" or "write", the bytes that have moved, and those that there are."""

# What the server does with all of a set.
_WHOLE_SETS = frozenset(["Checkpoint", "ListCheckpoints", "RestoreCheckpoint", "Fork"])

# How often a target is tried to which there is no connection, in seconds, and how long a try may take.
_CONNECT_INTERVAL = 0.3
_CONNECT_TRY = 1.0


@dataclass
class StepCall:
    """One step: a gradient up, parameters back. No part of the one overlaps one of the other."""

    # `attempt` is the connection's to set.
    header: v1.StepHeader
    # Makes the step's one message, of the header's bytes, where it is small; None otherwise.
    small: Callable[[bytes], bytes] | None
    # The gradients.
    sources: Sequence[_framing.Source]
    # Raises where the gradient may no longer be what it was, because a reply that broke off has begun to overwrite it.
    check_again: Callable[[], None]
    # By index; None for tensors that the step does not bring. None at all with `omit_parameters`, or `ack_when_folded`.
    parameters: Sequence[Array | None] | None
    record: _framing.ReplyRecord
    # Of a contribution: how long it may wait for the others, beside the time of a step.
    round_timeout: float = 0.0
    # Of the tensors that `header.sparse` announces, in its order, which have no part in `sources`.
    rows: Sequence[_framing.Rows] = ()


@dataclass
class WriteCall:
    """One write: every tensor that it brings, of each slot that its mode writes. `request_id` is set."""

    header: v1.WriteHeader
    sources: Sequence[_framing.Source]


@dataclass
class ReadCall:
    """One read: every tensor of each slot that it names. `slots` is the connection's to set."""

    request: v1.ReadTensorsRequest
    targets: dict[int, Sequence[Array | None]] = field(default_factory=dict)


class EventStream(Protocol):
    """What happens to one set."""

    def next(self) -> v1.WatchParameterSetResponse | None:
        """Waits for an event; None once the set has been deleted."""

    def cancel(self) -> None:
        """Ends it, and a `next` that waits. From any thread."""

    def close(self) -> None:
        """Lets go of the call."""


class Connection(Protocol):
    """Thread-safe. Every function waits until its call has succeeded, has failed for good, or has used up its
    retries."""

    def unary(self, method: str, request: bytes) -> bytes:
        """A call that moves no tensors."""

    def step(self, call: StepCall) -> v1.StepResult:
        """Applies one step, exactly once. On error its `parameters` are indeterminate."""

    def begin_step(self, header: v1.StepHeader, dtype: int | None) -> BegunStep:
        """Begins to send the gradient of a step that may be made."""

    def write(self, call: WriteCall) -> v1.WriteTensorsResponse:
        """Writes, once."""

    def read(self, call: ReadCall) -> v1.ReadHeader:
        """Reads everything of one step."""

    def watch(self, request: v1.WatchParameterSetRequest) -> EventStream:
        """Begins a watch."""

    def close(self) -> None:
        """Ends all calls."""


def new_request_id() -> str:
    """128 random bits."""
    return os.urandom(16).hex()


class Attempts:
    """The attempts of one call: counts them, waits between them, and says when to give up."""

    def __init__(self, policy: RetryPolicy, on_wait: Callable[[AdamantError], None] | None) -> None:
        self.number = 1
        self._policy = policy
        self._on_wait = on_wait
        self._begin = time.monotonic()
        self._backoff = policy.initial_backoff

    def timeout(self, timeout: float) -> float:
        """What an attempt that may take so long may take now."""
        return max(0.0, min(timeout, self._policy.total_timeout - self._elapsed()))

    def next(self, failure: AdamantError) -> None:
        """Waits until there may be another attempt, or raises the failure if there is to be none."""
        if not _is_retryable(failure):
            raise failure
        policy = self._policy
        wait = max(self._backoff * random.uniform(1 - policy.jitter, 1), failure.retry_delay or 0.0)
        if self.number >= policy.max_attempts or self._elapsed() + wait >= policy.total_timeout:
            attempts = "1 attempt" if self.number == 1 else f"{self.number} attempts"
            raise failure.with_suffix(f" (gave up after {attempts} in {self._elapsed():.3f} s)") from failure
        self.tell(failure)
        time.sleep(wait)
        self._backoff = min(self._backoff * policy.multiplier, policy.max_backoff)
        self.number += 1

    def tell(self, failure: AdamantError) -> None:
        """Tells the program that the call begins to wait."""
        if self._on_wait is not None:
            self._on_wait(failure)

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin


def _is_retryable(failure: AdamantError) -> bool:
    if failure.code == grpc.StatusCode.UNAVAILABLE:
        return True
    if failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a delay it is gRPC's word for a message that is too large.
        return failure.retry_delay is not None
    # A deadline of ours, that is; the server's own say why, and that this client is too slow would not change.
    return isinstance(failure, DeadlineExceededError)


def _misunderstood(error: Exception) -> AdamantError:
    """What the server sent and is no reply is not the caller's fault."""
    return make_error(grpc.StatusCode.INTERNAL, f"the server's reply could not be understood: {error}")


class RetryingConnection:
    """Connection by a Transport."""

    def __init__(
        self,
        transport: Transport,
        retry: RetryPolicy,
        timeouts: Timeouts,
        message_bytes: int,
        on_wait: Callable[[AdamantError], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._transport = transport
        self._retry = retry
        self._timeouts = timeouts
        self._message_bytes = message_bytes
        self._on_wait = on_wait
        self._on_progress = on_progress
        # Streams of steps that await their next one, of whatever set.
        self._idle: deque[ByteStream] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def unary(self, method: str, request: bytes) -> bytes:
        timeout = self._timeouts.transfer if method in _WHOLE_SETS else self._timeouts.unary

        def attempt(attempts: Attempts) -> bytes:
            try:
                return self._transport.unary(method, request, attempts.timeout(timeout))
            except SetNotFoundError:
                # An earlier attempt has deleted it.
                if method == "DeleteParameterSet" and attempts.number > 1:
                    return b""
                raise

        return self._repeat(attempt)

    def step(self, call: StepCall) -> v1.StepResult:
        return self._repeat(lambda attempts: self._try_step(call, attempts))

    def begin_step(self, header: v1.StepHeader, dtype: int | None) -> BegunStep:
        return BegunStep(self, header, dtype)

    def write(self, call: WriteCall) -> v1.WriteTensorsResponse:
        return self._repeat(lambda attempts: self._try_write(call, attempts))

    def read(self, call: ReadCall) -> v1.ReadHeader:
        return self._repeat(lambda attempts: self._try_read(call, attempts))

    def watch(self, request: v1.WatchParameterSetRequest) -> EventStream:
        return self._repeat(lambda attempts: self._try_watch(request, attempts))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        with interruptible():
            for stream in idle:
                stream.close()
            self._transport.close()

    def _repeat(self, attempt: Callable[[Attempts], _T]) -> _T:
        attempts = Attempts(self._retry, self._on_wait)
        while True:
            try:
                return attempt(attempts)
            except AdamantError as failure:
                attempts.next(failure)
            self._await_connection(attempts)

    def _await_connection(self, attempts: Attempts) -> None:
        """Before each attempt but the first: while nobody answers, no attempt is used up."""
        limit = attempts.timeout(self._timeouts.connect)
        end = time.monotonic() + limit
        for number in itertools.count():
            left = end - time.monotonic()
            begin = time.monotonic()
            try:
                self._transport.connect(max(0.001, min(left, _CONNECT_TRY)))
                return
            except UnavailableError as failure:
                if number == 0:
                    attempts.tell(failure)
                pause = begin + _CONNECT_INTERVAL - time.monotonic()
                if time.monotonic() + pause >= end:
                    raise UnavailableError(
                        failure.code, f"no connection within {limit:.6g} s: {failure.message}"
                    ) from None
                if pause > 0:
                    time.sleep(pause)

    def _try_step(self, call: StepCall, attempts: Attempts) -> v1.StepResult:
        if attempts.number == 1:
            return self._exchange(call, call.header, attempts)
        header = call.header
        # The reply may be all that was lost. Asking costs less than a gradient.
        request = v1.GetStepResultRequest(set=header.set, request_id=header.request_id)
        if header.HasField("incarnation"):
            request.incarnation = header.incarnation
        reply = self._transport.unary(
            "GetStepResult", request.SerializeToString(), attempts.timeout(self._timeouts.unary)
        )
        response = v1.GetStepResultResponse.FromString(reply)
        if response.state == v1.STEP_STATE_COMMITTED:
            return self._fetch(call, response.result, attempts)
        call.check_again()
        # Never applied, or still arriving: then this attempt ends that one.
        again = v1.StepHeader()
        again.CopyFrom(header)
        again.attempt = attempts.number
        # Of a contribution that counts already the gradient is there: this attempt is to hear what becomes of it.
        # Should its round fail meanwhile, so does this.
        return self._exchange(call, again, attempts, without_gradient=response.state == v1.STEP_STATE_ACCUMULATED)

    def _exchange(
        self, call: StepCall, header: v1.StepHeader, attempts: Attempts, *, without_gradient: bool = False
    ) -> v1.StepResult:
        # Of all of it, so that no Ctrl-C strikes where a call begins, or ends.
        with interruptible() as interrupt:
            stream = self._take_idle()
            if stream is not None:
                try:
                    return self._exchange_on(stream, interrupt, call, header, attempts, without_gradient)
                except (StalledError, TooManyStreamsError, DrainingError, UnavailableError):
                    # A server, or a network, that ends an idle call says so too late for a step that is on its way.
                    call.check_again()
            stream = self._transport.open("Step")
            return self._exchange_on(stream, interrupt, call, header, attempts, without_gradient)

    def _exchange_on(
        self,
        stream: ByteStream,
        interrupt: interruptible,
        call: StepCall,
        header: v1.StepHeader,
        attempts: Attempts,
        without_gradient: bool,
    ) -> v1.StepResult:
        try:
            interrupt.attach(stream)
            stream.set_timeout(attempts.timeout(self._timeouts.step + call.round_timeout))
            header_bytes = header.SerializeToString()
            small = call.small is not None and not without_gradient
            if small:
                stream.write(call.small(header_bytes), last=True)  # type: ignore[misc]
            else:
                sources = () if without_gradient else call.sources
                for message, last in _framing.messages(header_bytes, sources, self._message_bytes, call.rows):
                    stream.write(message, last=last)
            result = self._receive_step(stream, call, ahead=not small)
            stream.set_timeout(None)
        except _framing.MalformedMessage as error:
            stream.close()
            raise _misunderstood(error) from error
        except BaseException:
            # Ctrl-C among them: a call that is half way through a step is of no use for the next.
            stream.close()
            raise
        finally:
            interrupt.detach()
        if interrupt.signalled:
            stream.close()
        else:
            self._keep_idle(stream)
        if result.replayed and call.rows:
            # The answer to a request that was applied before has no rows.
            return self._fetch(call, result, attempts)
        return result

    def _receive_step(self, stream: ByteStream, call: StepCall, *, ahead: bool) -> v1.StepResult:
        parameters = () if call.parameters is None else call.parameters
        receiver = _framing.Receiver({v1.SLOT_PARAMETER: parameters}, record=call.record, rows=call.rows)
        while True:
            message = stream.read(ahead=ahead)
            if message is None:
                raise make_error(grpc.StatusCode.UNAVAILABLE, "the server ended the call before it answered")
            header = receiver.take(message)
            if header is not None:
                result = v1.StepResult.FromString(header)
                receiver.finish(without_rows=result.replayed)
                return result

    def _fetch(self, call: StepCall, result: v1.StepResult, attempts: Attempts) -> v1.StepResult:
        """What a step's reply would have brought."""
        result.replayed = True
        if call.parameters is None:
            return result
        request = v1.ReadTensorsRequest(set=call.header.set, incarnation=result.incarnation)
        targets = list(call.parameters)
        compact = [rows for rows in call.rows if rows.compact]
        for rows in compact:
            targets[rows.tensor] = np.empty(rows.shape, np.float32)
        brought = [tensor for tensor, array in enumerate(targets) if array is not None]
        if len(brought) < len(targets):
            request.tensors.extend(brought)
        read = ReadCall(request, {v1.SLOT_PARAMETER: targets})
        header = self._try_read(read, attempts, pass_over=True)
        result.parameters_step = header.step
        for rows in compact:
            target, whole = call.parameters[rows.tensor], targets[rows.tensor]
            assert target is not None and whole is not None
            np.copyto(target, whole[rows.distinct])
        # A read comes in fp32. That the reply was lost must not show in its bits.
        result.overflowed = 0
        reply_dtype = call.header.reply_dtype or FLOAT32
        for array in call.parameters:
            if array is not None and wire_dtype(array.dtype) == FLOAT32:
                result.overflowed += round_in_place(array, reply_dtype)
        return result

    def _try_write(self, call: WriteCall, attempts: Attempts) -> v1.WriteTensorsResponse:
        with interruptible() as interrupt, contextlib.closing(self._transport.open("WriteTensors")) as stream:
            interrupt.attach(stream)
            stream.set_timeout(attempts.timeout(self._timeouts.transfer))
            header = call.header.SerializeToString()
            progress = self._progress("write", (zip(source.arrays, source.dtypes) for source in call.sources))
            for message, _ in _framing.messages(header, call.sources, self._message_bytes):
                stream.write(message)
                progress(len(message))
            stream.done_writing()
            reply = stream.read()
            if reply is None:
                raise make_error(grpc.StatusCode.INTERNAL, "the server did not answer")
            stream.read()
            return v1.WriteTensorsResponse.FromString(reply)

    def _try_read(self, call: ReadCall, attempts: Attempts, *, pass_over: bool = False) -> v1.ReadHeader:
        request = v1.ReadTensorsRequest()
        request.CopyFrom(call.request)
        request.slots.extend(call.targets)
        receiver = _framing.Receiver(call.targets, pass_over=pass_over)
        header = None
        try:
            with interruptible() as interrupt, contextlib.closing(self._transport.open("ReadTensors")) as stream:
                interrupt.attach(stream)
                stream.set_timeout(attempts.timeout(self._timeouts.transfer))
                stream.write(request.SerializeToString())
                stream.done_writing()
                wanted = ([array for array in arrays if array is not None] for arrays in call.targets.values())
                # A read comes in fp32.
                progress = self._progress("read", ([(array, FLOAT32) for array in arrays] for arrays in wanted))
                while (message := stream.read(ahead=True)) is not None:
                    found = receiver.take(message)
                    progress(len(message))
                    if found is not None:
                        header = v1.ReadHeader.FromString(found)
            if header is None:
                raise _framing.MalformedMessage("it has no header")
            if not header.not_modified:
                receiver.finish()
            return header
        except _framing.MalformedMessage as error:
            raise _misunderstood(error) from error

    def _try_watch(self, request: v1.WatchParameterSetRequest, attempts: Attempts) -> EventStream:
        with interruptible() as interrupt:
            stream = self._transport.open("WatchParameterSet")
            try:
                interrupt.attach(stream)
                stream.set_timeout(attempts.timeout(self._timeouts.unary))
                stream.write(request.SerializeToString())
                stream.done_writing()
                first = stream.read()
                if first is None:
                    raise make_error(grpc.StatusCode.INTERNAL, "the server did not answer")
                stream.set_timeout(None)
                watching = _Watching(stream, v1.WatchParameterSetResponse.FromString(first))
            except BaseException:
                stream.close()
                raise
            finally:
                interrupt.detach()
            if interrupt.signalled:
                stream.close()
            return watching

    def _progress(self, what: str, moved: Iterable[Iterable[tuple[Array, int]]]) -> Callable[[int], None]:
        """What is to be called with the bytes of each message of a transfer of arrays, beside how each travels."""
        tell = self._on_progress
        if tell is None:
            return lambda _: None
        total = sum(array.size * element_bytes(dtype) for arrays in moved for array, dtype in arrays)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            # Messages have more in them than elements.
            done = min(total, done + size)
            tell(what, done, total)

        tell(what, 0, total)
        return count

    def _take_idle(self) -> ByteStream | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _keep_idle(self, stream: ByteStream) -> None:
        self._idle.append(stream)
        if self._closed:
            stream.close()


class BegunStep:
    """A step of which gradients go up before it is known to be made. Until `step` it is not complete: the server keeps
    room for it, and nobody waits for it. One that nobody holds any more is cancelled.

    For one thread at a time. What is sent is sent by a thread of its own: so `add` waits for nothing, and Ctrl-C, which
    is the main thread's, never strikes inside of gRPC.
    """

    def __init__(self, connection: RetryingConnection, header: v1.StepHeader, dtype: int | None) -> None:
        """`dtype`: how the gradients travel; None: as they are."""
        self.header = header
        self._generation = _fork.generation
        self._connection = connection
        self._sender = _Sender(connection, header.SerializeToString(), dtype)
        self._thread = threading.Thread(target=self._sender.run, name="adamant-sender", daemon=True)
        self._thread.start()

    def add(self, tensor: int, gradient: Array) -> bool:
        """The gradient of the tensor of this index, C-contiguous, is to go up; false where that has failed already. It
        is read now or later, until `totals`: if somebody writes into it meanwhile, the step is not to be made."""
        if self._sender.error is not None:
            return False
        self._sender.gradients.put((tensor, gradient))
        return True

    def totals(self) -> dict[int, int] | None:
        """Waits until all gradients have been sent, and returns of each what `Words.total` of it was before. None: the
        call has failed."""
        self._sender.gradients.put(None)
        with interruptible(self._sender):
            self._thread.join()
        return None if self._sender.error is not None else self._sender.totals

    def step(self, call: StepCall) -> v1.StepResult:
        """Makes the step, as RetryingConnection.step does, of what has been sent and of the rest. After `totals`."""
        return self._connection._repeat(lambda attempts: self._try(call, attempts))

    def cancel(self) -> None:
        """It is not to be made."""
        if self._generation != _fork.generation:
            # The call is the parent's.
            return
        self._sender.is_cancelled = True
        self._sender.gradients.put(None)
        with interruptible():
            self._sender.cancel()

    def __del__(self) -> None:
        if getattr(self, "_thread", None) is not None:
            self.cancel()

    def _try(self, call: StepCall, attempts: Attempts) -> v1.StepResult:
        connection = self._connection
        stream, self._sender.stream = self._sender.stream, None
        if attempts.number > 1 or stream is None:
            return connection._try_step(call, attempts)
        with interruptible() as interrupt:
            try:
                interrupt.attach(stream)
                stream.set_timeout(attempts.timeout(connection._timeouts.step + call.round_timeout))
                for message in self._sender.rest(call.sources):
                    stream.write(message)
                stream.write(_framing.LAST, last=True)
                result = connection._receive_step(stream, call, ahead=True)
                stream.set_timeout(None)
            except _framing.MalformedMessage as error:
                stream.close()
                raise _misunderstood(error) from error
            except (StalledError, TooManyStreamsError, DrainingError, UnavailableError):
                # As with a call that was idle.
                stream.close()
                call.check_again()
                return connection._exchange(call, call.header, attempts)
            except BaseException:
                stream.close()
                raise
            finally:
                interrupt.detach()
            if interrupt.signalled:
                stream.close()
            else:
                connection._keep_idle(stream)
            return result


class _Sender:
    """What the thread of a BegunStep does. It does not refer to that, which so may be collected."""

    def __init__(self, connection: RetryingConnection, header: bytes, dtype: int | None) -> None:
        # (index, gradient); None at the end.
        self.gradients: queue.SimpleQueue[tuple[int, Array] | None] = queue.SimpleQueue()
        # By index, of those that were sent.
        self.totals: dict[int, int] = {}
        # The call. None before it has begun, and once it is another's.
        self.stream: ByteStream | None = None
        self.error: AdamantError | None = None
        self.is_cancelled = False
        self._connection = connection
        self._header = header
        self._chunks = _framing.Chunks(connection._message_bytes)
        self._dtype = dtype

    def run(self) -> None:
        try:
            self.stream = self._connection._take_idle() or self._connection._transport.open("Step")
            self.stream.write(_framing.frame_header(self._header))
            while not self.is_cancelled and (item := self.gradients.get()) is not None:
                tensor, gradient = item
                self.totals[tensor] = Words(gradient).total()
                self._send(tensor, gradient, wire_dtype(gradient.dtype) if self._dtype is None else self._dtype)
        except AdamantError as error:
            self.error = error
        except RuntimeError as error:
            # The client has been closed.
            self.error = make_error(grpc.StatusCode.CANCELLED, str(error))
        if (self.is_cancelled or self.error is not None) and self.stream is not None:
            self.stream.close()
            self.stream = None

    def _send(self, tensor: int, gradient: Array, dtype: int) -> None:
        assert self.stream is not None
        for message in self._chunks.add(tensor, gradient, dtype):
            self.stream.write(message)

    def rest(self, sources: Sequence[_framing.Source]) -> Iterator[bytes]:
        """The messages of what has not been sent."""
        for source in sources:
            for tensor, array, dtype in zip(source.tensors, source.arrays, source.dtypes):
                if tensor not in self.totals:
                    yield from self._chunks.add(tensor, array, dtype)
        yield from self._chunks.end()

    def cancel(self) -> None:
        stream = self.stream
        if stream is not None:
            stream.cancel()


class _Watching:
    """EventStream on a call of which the first event has come."""

    def __init__(self, stream: ByteStream, first: v1.WatchParameterSetResponse) -> None:
        self._stream = stream
        self._first: v1.WatchParameterSetResponse | None = first

    def next(self) -> v1.WatchParameterSetResponse | None:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        with interruptible(self._stream):
            message = self._stream.read()
        return None if message is None else v1.WatchParameterSetResponse.FromString(message)

    def cancel(self) -> None:
        with interruptible():
            self._stream.cancel()

    def close(self) -> None:
        with interruptible():
            self._stream.close()
