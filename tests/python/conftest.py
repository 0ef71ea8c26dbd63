"""Real servers, on ports of their own, and a network between them and the client that does what a test says.

The server's program is what $ADAMANT_SERVER or --server names.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import adamant
from adamant import _client, _transport


def pytest_configure() -> None:
    # What is started in the background of a shell ignores it, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", default=os.environ.get("ADAMANT_SERVER"), help="path of adamant-server")


class Server:
    """A server's process."""

    def __init__(self, program: str, *flags: str, listen: str = "127.0.0.1:0") -> None:
        command = [program, f"--listen={listen}", "--log_level=warning", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        prefix = "listening on "
        assert line.startswith(prefix), f"{program}: expected `{prefix}ADDRESS`, got {line!r}"
        self.address = line[len(prefix) :].strip()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert self.process.returncode == 0, f"the server ended with exit code {self.process.returncode}"


@pytest.fixture(scope="session")
def server_program(request: pytest.FixtureRequest) -> str:
    program = request.config.getoption("--server")
    assert program, "expected the path of adamant-server in $ADAMANT_SERVER or --server"
    return str(program)


@pytest.fixture(scope="session")
def server(server_program: str) -> Iterator[Server]:
    """One for all tests."""
    started = Server(server_program)
    yield started
    started.stop()


@pytest.fixture
def start_server(server_program: str) -> Iterator[Callable[..., Server]]:
    """Starts one with flags of the test's own."""
    started: list[Server] = []

    def start(*flags: str, listen: str = "127.0.0.1:0") -> Server:
        started.append(Server(server_program, *flags, listen=listen))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()


@pytest.fixture(params=["core", "public"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How streams are carried: by grpcio's insides, or by its public interface alone."""
    if request.param == "public":

        class PublicTransport(_transport.GrpcTransport):
            def __init__(self, target: str, options: Any = ()) -> None:
                super().__init__(target, options, public_calls=True)

        monkeypatch.setattr(_client, "GrpcTransport", PublicTransport)
    return str(request.param)


@pytest.fixture
def client(server: Server) -> Iterator[adamant.Client]:
    with adamant.Client(server.address) as made:
        yield made


_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """Of a set that no other test has."""
    return f"test/{next(_numbers)}"


class Network:
    """Carries bytes between one client and a server, until it is told otherwise. A connection that it cuts is cut on
    both sides; later ones are carried again."""

    def __init__(self, address: str) -> None:
        self._server = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._connections: list[tuple[socket.socket, socket.socket]] = []
        # What happens to bytes on their way, by direction: called with each piece, returns whether it is carried on.
        self._hooks: dict[str, Callable[[bytes], bool]] = {}
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_before_reply(self) -> threading.Event:
        """What the server sends next, of at least so many bytes as are no mere acknowledgement, is lost, and the
        connection with it."""
        return self._cut("down", 0)

    def cut_request_after(self, count: int) -> threading.Event:
        """The connection is lost once the client has sent so many bytes more."""
        return self._cut("up", count)

    def hold(self, direction: str, after: int = 0, then: Callable[[], None] | None = None) -> Callable[[], None]:
        """Keeps back everything in a direction (`up`: to the server) from so many bytes on, calls `then` when something
        has been kept back, and returns what lets go of it."""
        released = threading.Event()
        count = 0
        told = False

        def hook(piece: bytes) -> bool:
            nonlocal count, told
            count += _payload(piece)
            if count <= after:
                return True
            if not told:
                told = True
                if then is not None:
                    then()
            released.wait()
            return True

        self._hooks[direction] = hook

        def release() -> None:
            self._hooks.pop(direction, None)
            released.set()

        return release

    def cut(self) -> None:
        """All connections are lost."""
        with self._lock:
            connections, self._connections = self._connections, []
        for pair in connections:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._hooks.clear()
        # Which wakes who waits for a connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _cut(self, direction: str, after: int) -> threading.Event:
        done = threading.Event()
        count = 0

        def hook(piece: bytes) -> bool:
            nonlocal count
            count += _payload(piece)
            if count <= after:
                return True
            self._hooks.pop(direction, None)
            # First, since the client may be through with its next attempt before this thread goes on.
            done.set()
            self.cut()
            return False

        self._hooks[direction] = hook
        return done

    def _accept(self) -> None:
        while True:
            try:
                down, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            host, _, port = self._server.rpartition(":")
            try:
                up = socket.create_connection((host, int(port)))
            except OSError:
                down.close()
                continue
            for each in (down, up):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.append((down, up))
            threading.Thread(target=self._carry_both_ways, args=(down, up), daemon=True).start()

    def _carry_both_ways(self, down: socket.socket, up: socket.socket) -> None:
        upwards = threading.Thread(target=self._carry, args=(down, up, "up"), daemon=True)
        upwards.start()
        self._carry(up, down, "down")
        upwards.join()
        # A peer that has only been shut down would take what the other still sends into its buffer, and keep it there.
        for each in (down, up):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()

    def _carry(self, of: socket.socket, to: socket.socket, direction: str) -> None:
        try:
            while piece := of.recv(1 << 16):
                hook = self._hooks.get(direction)
                if hook is None or hook(piece):
                    to.sendall(piece)
        except OSError:
            pass
        for each in (of, to):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _payload(piece: bytes) -> int:
    """The bytes of messages in a piece: headers, pings, settings and window updates do not count."""
    at = count = 0
    while at + 9 <= len(piece):
        length = int.from_bytes(piece[at : at + 3], "big")
        if piece[at + 3] == 0:
            count += length
        at += 9 + length
    return count if at == len(piece) else max(count, len(piece))


@pytest.fixture
def network(server: Server) -> Iterator[Network]:
    """To the server that all tests share."""
    made = Network(server.address)
    yield made
    made.close()
