"""Calls as bytes: what carries the messages, and knows nothing of what is in them.

This is one of two seams (the other is `_connection.Connection`, which knows of steps and tensors): whatever else than
grpcio is to carry the calls implements `Transport`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import queue
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grpc

from adamant import _fork, _malloc
from adamant.errors import AdamantError, UnavailableError, from_status, make_error

try:
    # `signal` without its enums, which would take as long as all the rest that a small step does in Python.
    import _signal  # type: ignore[import-not-found]
except ImportError:
    _signal = signal
try:
    from grpc._cython import cygrpc
except ImportError:  # Another grpcio than the client knows.
    cygrpc = None

_PATH = "/adamant.v1.OptimizerService/"
_STATUS_KEY = "grpc-status-details-bin"

# The largest message that a server takes or sends, and room for what gRPC counts into a message besides.
MAX_MESSAGE_BYTES = 4 << 20
_HEADROOM_BYTES = 64 << 10


class Cancellable(Protocol):
    """What `interruptible` ends."""

    def cancel(self) -> None:
        """From any thread."""


class ByteStream(Protocol):
    """One call with any number of messages either way. For one thread at a time, but for `cancel`."""

    def set_timeout(self, seconds: float | None) -> None:
        """From now on the call may take so long, and then ends DEADLINE_EXCEEDED. None: as long as it likes."""

    def write(self, message: bytes, *, last: bool = False) -> None:
        """Sends a message. `last` says that the other side is to speak next. Raises how the call has ended, if it
        has."""

    def done_writing(self) -> None:
        """No message follows."""

    def read(self, *, ahead: bool = False) -> bytes | None:
        """The next message, or None where the call has ended well. `ahead` asks for the one after it as well."""

    def cancel(self) -> None:
        """Ends the call, and a `read` or `write` that waits. From any thread."""

    def close(self) -> None:
        """Ends the call, if it has not, and lets go of what it held."""


class Transport(Protocol):
    """A way to one server. Thread-safe."""

    target: str

    def unary(self, method: str, request: bytes, timeout: float) -> bytes:
        """One message each way."""

    def open(self, method: str) -> ByteStream:
        """Begins a call. Whether it reaches the server shows where it is used."""

    def connect(self, timeout: float) -> None:
        """Returns if the server can be reached; otherwise UnavailableError, within `timeout` seconds, says why not."""

    def close(self) -> None:
        """Ends all calls."""


def is_local(target: str) -> bool:
    """Whether `target`, in any form that gRPC takes, says by itself that it is on this machine. Resolves no names."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = rest.split("/", 3)[-1] if rest.startswith("//") else rest.lstrip("/")
    target = target.replace("%5B", "[").replace("%5b", "[").replace("%5D", "]").replace("%5d", "]")
    return all(_is_local_host(_host(endpoint)) for endpoint in target.split(","))


def _host(endpoint: str) -> str:
    if endpoint.startswith("["):
        return endpoint[1:].partition("]")[0]
    return endpoint if endpoint.count(":") > 1 else endpoint.partition(":")[0]


def _is_local_host(host: str) -> bool:
    if host.rstrip(".").lower() in ("localhost", "ip6-localhost", "ip6-loopback"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_unspecified


def channel_options(target: str, options: Sequence[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """What a channel to `target` is made with; `options` hold over what the library would set.

    The bandwidth probe stays as gRPC has it, on: without it gRPC's window for a connection is 64 KiB between two
    messages, so that each begins with a round trip.
    """
    ours: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + _HEADROOM_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + _HEADROOM_BYTES),
        # How much of a reply may be under way on a stream.
        ("grpc.http2.lookahead_bytes", 4 << 20),
        # Attempts are repeated by what they mean, in `_connection`.
        ("grpc.enable_retries", 0),
        # A connection for each client, not one for all clients of a process.
        ("grpc.use_local_subchannel_pool", 1),
        # A server that comes back is found within a second.
        ("grpc.initial_reconnect_backoff_ms", 300),
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A network that is lost without a word is found out within the sum of the two, while a call is open.
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 15_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if is_local(target):
        # The proxy of the environment would look for it on a machine of its own.
        ours.append(("grpc.enable_http_proxy", 0))
    given = {name for name, _ in options}
    return [*options, *((name, value) for name, value in ours if name not in given)]


class _Line:
    """A channel, and how many calls are on it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.retired = False


class GrpcTransport:
    """By grpcio, without its stubs: requests and replies are bytes."""

    def __init__(self, target: str, options: Sequence[tuple[str, Any]] = (), *, public_calls: bool = False) -> None:
        """`public_calls`: streams by grpcio's public interface alone (see _CoreStream)."""
        self.target = target
        self._options = channel_options(target, options)
        self._public_calls = public_calls
        self._generation = _fork.generation
        self._lock = threading.Lock()
        self._watchdog = _Watchdog()
        # Its thread is not to outlive a client that nobody has closed.
        weakref.finalize(self, _stop, self._watchdog, self._generation).atexit = False
        # None once closed.
        self._line: _Line | None = self._make_line()

    def unary(self, method: str, request: bytes, timeout: float) -> bytes:
        with interruptible() as interrupt:
            return self._unary_on(self._acquire(), interrupt, method, request, timeout)

    def open(self, method: str) -> ByteStream:
        return self._open_on(self._acquire(), method)

    def _open_on(self, line: _Line, method: str) -> ByteStream:
        """Takes over what `_acquire` gave."""
        try:
            stream: Any = None
            if not self._public_calls:
                stream = _CoreStream.open(line.channel, _PATH + method)
                # A grpcio that has other insides does not get them by the next call, either.
                self._public_calls = stream is None
            if stream is None:
                stream = _PublicStream(line.channel, _PATH + method)
        except BaseException:
            self._release(line)
            raise
        stream.attach(self._watchdog, lambda: self._release(line))
        return stream  # type: ignore[no-any-return]

    def connect(self, timeout: float) -> None:
        with interruptible() as interrupt, self._call() as line:
            try:
                self._unary_on(self._acquire(line), interrupt, "GetServerInfo", b"", timeout)
            except AdamantError as error:
                # Whatever has a reason comes from a server.
                if error.reason or error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return
                if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
                    # A server that has much to do may be late with an answer. It is there all the same.
                    if _is_connected(line.channel):
                        return
                    error = make_error(grpc.StatusCode.UNAVAILABLE, "nobody has answered yet")
                # A channel that has failed may wait for minutes before it resolves a name again. A new one begins anew.
                self._replace(line)
                raise UnavailableError(grpc.StatusCode.UNAVAILABLE, f"{self.target}: {error.message}") from None

    def close(self) -> None:
        self._watchdog.stop()
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.channel.close()

    def _make_line(self) -> _Line:
        return _Line(grpc.insecure_channel(self.target, options=self._options))

    def _unary_on(self, line: _Line, interrupt: interruptible, method: str, request: bytes, timeout: float) -> bytes:
        """As a stream of one message each way, which Ctrl-C does no harm. Takes over what `_acquire` gave."""
        with contextlib.closing(self._open_on(line, method)) as stream:
            interrupt.attach(stream)
            try:
                stream.set_timeout(timeout)
                stream.write(request)
                stream.done_writing()
                reply = stream.read()
                if reply is None or stream.read() is not None:
                    raise make_error(grpc.StatusCode.INTERNAL, "the server did not send one answer")
                return reply
            finally:
                interrupt.detach()

    @contextlib.contextmanager
    def _call(self) -> Iterator[_Line]:
        line = self._acquire()
        try:
            yield line
        finally:
            self._release(line)

    def _acquire(self, line: _Line | None = None) -> _Line:
        """Counts a call on `line`, or on the one that there is now."""
        _fork.check(self._generation)
        with self._lock:
            line = line or self._line
            if line is None:
                raise RuntimeError("this adamant.Client is closed")
            line.calls += 1
            return line

    def _release(self, line: _Line) -> None:
        with self._lock:
            line.calls -= 1
            done = line.retired and line.calls == 0
        if done:
            line.channel.close()

    def _replace(self, failed: _Line) -> None:
        with self._lock:
            if self._line is failed:
                self._line = self._make_line()
                failed.retired = True


def _trailer(metadata: Any) -> bytes | None:
    for key, value in metadata or ():
        if key == _STATUS_KEY:
            return value  # type: ignore[no-any-return]
    return None


def _from_rpc_error(error: Any) -> AdamantError:
    return from_status(error.code().value[0], error.details() or "", _trailer(error.trailing_metadata()))


_SIGINT = int(signal.SIGINT)
# Within this time a channel says that it is connected, if it is.
_STATE_TIMEOUT = 0.3


def _is_connected(channel: grpc.Channel) -> bool:
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(timeout=_STATE_TIMEOUT)
        return True
    except grpc.FutureTimeoutError:
        return False
    finally:
        ready.cancel()


class interruptible:
    """While it is entered, Ctrl-C cancels the call, and KeyboardInterrupt is raised when it has ended.

    A KeyboardInterrupt that strikes in the middle of grpcio can leave one of its locks locked, and with it the channel
    (seen in one of a hundred). So nothing is raised there. A handler of the program's own is left alone.
    """

    def __init__(self, stream: Cancellable | None = None) -> None:
        """Without a stream: that is begun meanwhile, and then `attach`ed."""
        self._stream = stream
        self._installed = False
        self.signalled = False

    def attach(self, stream: Cancellable) -> None:
        self._stream = stream
        if self.signalled:
            stream.cancel()

    def detach(self) -> None:
        """The call is over: from now on Ctrl-C waits for the end, and cancels nothing."""
        self._stream = None

    def __enter__(self) -> interruptible:
        in_main = threading.get_ident() == threading.main_thread().ident
        if in_main and _signal.getsignal(_SIGINT) is signal.default_int_handler:
            self._installed = True
            _signal.signal(_SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            _signal.signal(_SIGINT, signal.default_int_handler)
            if self.signalled:
                raise KeyboardInterrupt

    def _handle(self, *_: object) -> None:
        self.signalled = True
        if self._stream is None:
            return
        # Not from here: this may be inside of a function of gRPC's.
        threading.Thread(target=self._stream.cancel, name="adamant-cancel", daemon=True).start()


class _Watchdog:
    """Ends calls that take too long. grpcio's deadlines are those of whole calls, and a stream carries many steps.

    Setting a deadline costs a step an assignment: the thread wakes up at the earliest that it knows of, and looks.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._streams: weakref.WeakSet[_TimedStream] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wake = math.inf
        self._stopped = False

    def add(self, stream: _TimedStream) -> None:
        with self._condition:
            self._streams.add(stream)

    def see(self, deadline: float) -> None:
        """After a stream's `deadline` has been set to this."""
        if deadline >= self._wake:
            return
        with self._condition:
            self._wake = min(self._wake, deadline)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="adamant-watchdog", daemon=True)
                self._thread.start()
            self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._stopped and (left := self._wake - time.monotonic()) > 0:
                    self._condition.wait(None if left == math.inf else left)
                if self._stopped:
                    return
                # First, so that whoever sets a deadline while it is looked for takes the lock, and waits.
                self._wake = math.inf
                now = time.monotonic()
                late = [stream for stream in self._streams if stream.deadline <= now]
                self._wake = min(
                    (stream.deadline for stream in self._streams if stream.deadline > now), default=math.inf
                )
            for stream in late:
                stream.expire()


def _stop(watchdog: _Watchdog, generation: int) -> None:
    # In a forked child there is no thread, and its lock may be locked for good.
    if generation == _fork.generation:
        watchdog.stop()


class _TimedStream:
    """What both kinds of streams share: the time that they may take."""

    deadline = math.inf

    def __init__(self) -> None:
        self._generation = _fork.generation
        self._timeout = math.inf
        self._timed_out = False
        self._watchdog: _Watchdog | None = None
        self._on_close: Any | None = None

    def attach(self, watchdog: _Watchdog, on_close: Any) -> None:
        self._watchdog = watchdog
        self._on_close = on_close
        watchdog.add(self)

    def set_timeout(self, seconds: float | None) -> None:
        if seconds is None:
            self.deadline = math.inf
            return
        self._timeout = seconds
        self.deadline = deadline = time.monotonic() + seconds
        if self._watchdog is not None:
            self._watchdog.see(deadline)

    def expire(self) -> None:
        self._timed_out = True
        self.deadline = math.inf
        self.cancel()

    def cancel(self) -> None:
        raise NotImplementedError

    def _closed(self) -> None:
        self.deadline = math.inf
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close()

    def _expired(self) -> AdamantError:
        return make_error(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self._timeout:.6g} s")


class _CoreStream(_TimedStream):
    """A call that is driven by the thread that uses it, as grpcio's own blocking unary calls are.

    By grpcio's public interface every message of a stream passes through two more threads, which is most of what a
    small step takes: one of 65 parameters takes 175 us with them and 75 without. What is used here of its insides has
    been there, as it is, since 1.60 and before; `open` returns None where it is not.
    """

    @classmethod
    def open(cls, channel: Any, path: str) -> _CoreStream | None:
        try:
            return cls(channel, path)
        except (AttributeError, TypeError):
            return None

    def __init__(self, channel: Any, path: str) -> None:
        super().__init__()
        self._outstanding = 0
        # A signal handler of the program's raised in the middle of one of gRPC's functions, which may or may not have
        # done its work: to wait for an operation could be to wait forever. Such a call is cancelled, and what it holds
        # is left to the channel.
        self._interrupted = False
        self._writing = False
        self._reading = False
        self._ended = False
        self._messages: deque[bytes] = deque()
        self._status: Any = None
        send_initial = (cygrpc.SendInitialMetadataOperation(None, 0),)
        self._write_operation = cygrpc.SendMessageOperation
        self._read_operation = cygrpc.ReceiveMessageOperation
        self._call = channel._channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            path.encode(),
            None,
            None,
            None,
            None,
            (
                (send_initial, "begin"),
                ((cygrpc.ReceiveInitialMetadataOperation(0),), "begin"),
                ((cygrpc.ReceiveStatusOnClientOperation(0),), "status"),
            ),
            None,
        )
        self._outstanding = 3

    def write(self, message: bytes, *, last: bool = False) -> None:
        while self._writing and self._status is None:
            # The server may answer before it has everything, if it knows the step already. Neither may then wait for
            # the other to read.
            if self._messages and not self._reading:
                self._start_read()
            self._drive()
        if self._status is not None:
            raise self._error()
        _malloc.expect(len(message))
        operation = self._write_operation(message, 0)
        if self._reading or not last:
            self._writing = self._operate((operation,), "write")
            if not self._reading:
                self._start_read()
        else:
            # Both at once saves a wait.
            self._writing = self._reading = self._operate((operation, self._read_operation(0)), "both")
        if self._status is not None:
            raise self._error()

    def done_writing(self) -> None:
        while self._writing and self._status is None:
            self._drive()
        # A call that has ended by now may have ended well: the reader will tell.
        if self._status is None:
            self._operate((cygrpc.SendCloseFromClientOperation(0),), "close")

    def read(self, *, ahead: bool = False) -> bytes | None:
        if not self._messages and not self._reading and not self._ended:
            self._start_read()
        while not self._messages:
            if self._ended or not self._reading:
                while self._status is None:
                    self._drive()
                if self._status.code() == 0 and not self._timed_out:
                    return None
                raise self._error()
            self._drive()
        message = self._messages.popleft()
        if ahead and not self._reading and not self._ended:
            self._start_read()
        return message

    def cancel(self) -> None:
        self._call.cancel(1, "cancelled by the client")

    def close(self) -> None:
        if self._outstanding and self._generation == _fork.generation:
            self.cancel()
            while self._outstanding and not self._interrupted:
                self._drive()
            self._outstanding = 0
        self._closed()

    def __del__(self) -> None:
        # After a constructor that failed there is nothing; in a forked child nobody would answer.
        if getattr(self, "_outstanding", 0) and self._generation == _fork.generation:
            self.close()

    def _operate(self, operations: tuple[Any, ...], tag: str) -> bool:
        try:
            begun = self._call.operate(operations, tag)
        except ValueError as error:
            if "closed" not in str(error).lower():
                raise
            raise make_error(grpc.StatusCode.CANCELLED, str(error)) from None
        except BaseException:
            self._interrupted = True
            raise
        if begun:
            self._outstanding += 1
        return begun  # type: ignore[no-any-return]

    def _start_read(self) -> None:
        self._reading = self._operate((self._read_operation(0),), "read")

    def _drive(self) -> None:
        """Waits until an operation is over. There must be one: gRPC forgets a call that has none."""
        try:
            event = self._call.next_event()
        except BaseException:
            self._interrupted = True
            raise
        self._outstanding -= 1
        tag = event.tag
        if tag == "read" or tag == "both":
            self._reading = False
            if tag == "both":
                self._writing = False
            message = event.batch_operations[-1].message()
            if message is None:
                self._ended = True
            else:
                _malloc.expect(len(message))
                self._messages.append(message)
        elif tag == "write":
            self._writing = False
        elif tag == "status":
            self._status = event.batch_operations[0]

    def _error(self) -> AdamantError:
        if self._timed_out:
            return self._expired()
        status = self._status
        if status.code() == 0:
            return make_error(grpc.StatusCode.UNAVAILABLE, "the server ended the call before all was sent")
        details = status.details()
        if isinstance(details, bytes):
            details = details.decode(errors="replace")
        return from_status(status.code(), details or "", _trailer(status.trailing_metadata()))


class _PublicStream(_TimedStream):
    """A call by grpcio's public interface."""

    # Messages that are made and not sent yet.
    _AHEAD = 2

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        super().__init__()
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(self._AHEAD)
        # Neither of what gRPC holds refers to the stream, so that one that nobody holds any more ends.
        self._call = channel.stream_stream(path)(_consume(self._requests, self._room))
        room = self._room
        self._call.add_callback(room.release)

    def write(self, message: bytes, *, last: bool = False) -> None:
        self._room.acquire()
        if self._call.is_active():
            _malloc.expect(len(message))
            self._requests.put(message)
            return
        self._room.release()
        while self.read() is not None:
            pass
        raise make_error(grpc.StatusCode.UNAVAILABLE, "the server ended the call before all was sent")

    def done_writing(self) -> None:
        self._requests.put(None)

    def read(self, *, ahead: bool = False) -> bytes | None:
        try:
            message: bytes = next(self._call)
            _malloc.expect(len(message))
            return message
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise (self._expired() if self._timed_out else _from_rpc_error(error)) from None

    def cancel(self) -> None:
        self._call.cancel()

    def close(self) -> None:
        if self._generation == _fork.generation:
            self._call.cancel()
            self._requests.put(None)
        self._closed()

    def __del__(self) -> None:
        if getattr(self, "_call", None) is not None:
            self.close()


def _consume(requests: queue.SimpleQueue[bytes | None], room: threading.Semaphore) -> Iterator[bytes]:
    while (message := requests.get()) is not None:
        yield message
        # gRPC asks for the next when this one is on its way.
        room.release()
