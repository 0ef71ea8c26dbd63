"""What a client does to its process, and what it does in another."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections import deque

import numpy as np
import pytest

import adamant
from adamant import _malloc, _transport

FORK = """
import os, sys
import numpy as np
import adamant

client = adamant.Client(sys.argv[1])
client.create("fork", {"w": (2,)}, exist_ok=True)
steps = client.open_steps("fork")
one = [np.ones(2, np.float32)]
before = steps.step(one).step
child = os.fork()
if child == 0:
    refused = 0
    for use in (lambda: client.get("fork"), lambda: steps.step(one), lambda: steps.refresh(), lambda:
    client.watch("fork"),
                lambda: client.open_steps("fork"), lambda: client.close()):
        try:
            use()
        except RuntimeError as error:
            refused += "forked child" in str(error)
    del steps, client
    os._exit(refused)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 6, status
assert steps.step(one).step == before + 1
client.close()
print("fine")
"""


def test_a_forked_child_is_refused(server):
    done = subprocess.run([sys.executable, "-c", FORK, server.address], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


EXIT = """
import sys
import numpy as np
import adamant

client = adamant.Client(sys.argv[1])
client.create("exit", {"w": (2,)}, exist_ok=True)
steps = client.open_steps("exit")
steps.step([np.ones(2, np.float32)])
watch = client.watch("exit")
next(watch)
print("fine")
"""


def test_a_program_ends_without_closing_anything(server):
    done = subprocess.run([sys.executable, "-c", EXIT, server.address], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


KEEPS = """
import ctypes, sys
import numpy as np
import adamant

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [("others", ctypes.c_int * 5)]

libc.mallinfo.restype = Mallinfo

def mapped(size):
    before = libc.mallinfo().hblks
    assert libc.malloc(size)
    return libc.mallinfo().hblks - before

print(mapped(1_200_000))
with adamant.Client(sys.argv[1]) as client:
    client.create("keeps", {"w": (100_000,)}, exist_ok=True)
    {use}
print(mapped(1_200_000))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="of glibc")
@pytest.mark.parametrize(
    "use", ['client.open_steps("keeps").step([np.ones(100_000, np.float32)])', 'client.read("keeps")']
)
def test_what_a_message_takes_is_kept_for_the_next(server, use):
    """Blocks of three messages come from the kernel each time, until there was one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    program = KEEPS.replace("{use}", use)
    done = subprocess.run(
        [sys.executable, "-c", program, server.address], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "1\n0\n"), done.stderr


def test_mallocs_settings_are_left_alone(server, name, monkeypatch):
    calls = []

    class Libc:
        gnu_get_libc_version = None

        def mallopt(self, setting, value):
            calls.append((setting, value))
            return 1

    with adamant.Client(server.address) as client:
        client.create(name, {"w": (500_000,)})
        # Not before the client has loaded the library that it may use.
        monkeypatch.setattr(_malloc.sys, "platform", "linux")
        monkeypatch.setattr(_malloc.ctypes, "CDLL", lambda _: Libc())
        client.open_steps(name).step([np.ones(500_000, np.float32)])
    assert not calls
    assert adamant.tune_malloc()
    assert calls == [(-3, 1 << 30), (-1, 1 << 30), (-2, 64 << 20)]


@pytest.mark.usefixtures("calls")
def test_what_nobody_holds_any_more_ends(server, name):
    with adamant.Client(server.address) as client:
        client.create(name, {"w": (2,)})
        client.open_steps(name).step([np.ones(2, np.float32)])
        idle = client._connection._idle
        (stream,) = idle
        ended = weakref.ref(stream)
        idle.clear()
        del stream
        gc.collect()
        assert ended() is None


def test_a_client_that_nobody_holds_any_more_leaves_no_thread(server, name):
    client = adamant.Client(server.address)
    client.create(name, {"w": (3,)})
    client.open_steps(name).step([np.ones(3, np.float32)])
    thread = client._connection._transport._watchdog._thread
    assert thread.is_alive()
    del client
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_gradients_are_not_kept(server, name):
    with adamant.Client(server.address) as client:
        for size in (10, 500_000):
            client.create(f"{name}/{size}", {"w": (size,)})
            steps = client.open_steps(f"{name}/{size}")
            gradient, out = np.ones(size, np.float32), np.zeros(size, np.float32)
            held = [weakref.ref(gradient), weakref.ref(out)]
            steps.step([gradient], [out])
            del gradient, out
            gc.collect()
            assert [each() for each in held] == [None, None]


def test_streams_of_many_threads_step_side_by_side(server, name):
    with adamant.Client(server.address) as client:
        sizes = [3, 1000, 400_000] * 3
        errors: deque[BaseException] = deque()

        def train(i, size):
            try:
                client.create(f"{name}/{i}", {"w": (size,)}, adamant.SGD(lr=1.0))
                steps = client.open_steps(f"{name}/{i}")
                out = [np.zeros(size, np.float32)]
                for k in range(1, 11):
                    steps.step([np.ones(size, np.float32)], out)
                    assert (out[0] == -k).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=train, args=each) for each in enumerate(sizes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


def test_another_grpcio_than_the_client_knows_is_used_by_its_public_interface(server, name, monkeypatch):
    monkeypatch.setattr(_transport, "cygrpc", None)
    with adamant.Client(server.address) as client:
        client.create(name, {"w": (2,)}, adamant.SGD(lr=1.0))
        result = client.open_steps(name).step([np.ones(2, np.float32)])
        assert result.parameters["w"].tolist() == [-1, -1]
        assert isinstance(client._connection._idle[0], _transport._PublicStream)
