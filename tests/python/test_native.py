"""Which library carries large steps. What it does is tested by the other tests, which run with it as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import adamant
from adamant import _native

LIBRARY = os.environ.get("ADAMANT_C_LIBRARY")


def run(library: str) -> subprocess.CompletedProcess[str]:
    code = "import adamant; print(type(adamant.Client('localhost:1')._connection).__name__)"
    environment = {**os.environ, "ADAMANT_C_LIBRARY": library}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_an_empty_name_is_no_library() -> None:
    assert run("").stdout == "RetryingConnection\n"


def test_a_library_that_is_not_there_is_an_error_that_names_it() -> None:
    assert "OSError: /no/such/library.so" in run("/no/such/library.so").stderr


def test_another_library_is_an_error_that_names_it() -> None:
    libc = "libc.so.6"
    assert f"OSError: {libc}: expected libadamant_c.so, got another library" in run(libc).stderr


@pytest.mark.skipif(not LIBRARY, reason="$ADAMANT_C_LIBRARY names no libadamant_c.so")
def test_steps_that_need_several_messages_go_through_the_library(
    client: adamant.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"large": (1 << 20,), "small": (3,)}
    client.create(name, sizes, adamant.SGD(lr=1.0))
    library = _native.find_library()
    assert library is not None
    steps = []
    step = library.step
    monkeypatch.setattr(library, "step", lambda *arguments: steps.append(1) or step(*arguments))
    stream = client.open_steps(name)
    gradients = {key: np.ones(shape, np.float32) for key, shape in sizes.items()}
    assert stream.step(gradients).parameters is not None
    assert len(steps) == 1
    stream.step({"small": gradients["small"]}, tensors=["small"])
    assert len(steps) == 1
    # Of 16 bits: by hand-framed messages.
    stream.step({key: value.astype(np.float16) for key, value in gradients.items()})
    assert len(steps) == 1
    # Rows that go to their places do, and those that come back by themselves do not.
    rows = {"large": (np.arange(1 << 20)[::-1], gradients["large"])}
    out = {key: np.zeros(shape, np.float32) for key, shape in sizes.items()}
    stream.step(gradients, out, rows=rows)
    assert len(steps) == 2
    result = stream.step(gradients, rows=rows)
    assert len(steps) == 2
    stream.step(gradients, rows=rows, omit_parameters=True)
    assert len(steps) == 3
    assert result.parameters is not None
    np.testing.assert_array_equal(out["large"], np.full(1 << 20, -3))
    np.testing.assert_array_equal(result.parameters["large"], np.full(1 << 20, -4))
    state = client.read(name)
    assert state is not None
    np.testing.assert_array_equal(state.parameters["large"][:3], [-5, -5, -5])
    np.testing.assert_array_equal(state.parameters["small"], [-6, -6, -6])


@pytest.mark.skipif(not LIBRARY, reason="$ADAMANT_C_LIBRARY names no libadamant_c.so")
@pytest.mark.parametrize(("size", "tensors", "through"), [(1_000, 1, 0), (100_000, 1, 1), (100_000, 1_000, 0)])
def test_steps_of_one_message_go_through_the_library_where_that_is_faster(
    client: adamant.Client, name: str, monkeypatch: pytest.MonkeyPatch, size: int, tensors: int, through: int
) -> None:
    client.create(name, {f"t{i}": (size // tensors,) for i in range(tensors)}, adamant.SGD(lr=1.0))
    library = _native.find_library()
    assert library is not None
    steps = []
    step = library.step
    monkeypatch.setattr(library, "step", lambda *arguments: steps.append(1) or step(*arguments))
    stream = client.open_steps(name)
    gradients = [np.ones(size // tensors, np.float32) for _ in range(tensors)]
    for gradient in gradients:
        gradient.flags.writeable = False
    out = [np.zeros_like(gradient) for gradient in gradients]
    stream.step(gradients, out)
    assert len(steps) == through
    assert all((array == -1).all() for array in out)
    # Into the gradient, which is copied into the message by grpcio alone.
    stream.step(out, out)
    assert len(steps) == through
    assert all((array == 0).all() for array in out)


@pytest.mark.skipif(not LIBRARY, reason="$ADAMANT_C_LIBRARY names no libadamant_c.so")
def test_a_closed_client_says_so(server: object, client: adamant.Client, name: str) -> None:
    client.create(name, {"w": (1 << 20,)}, adamant.SGD(lr=1.0))
    other = adamant.Client(client.target)
    stream = other.open_steps(name)
    other.close()
    with pytest.raises(RuntimeError, match=r"this adamant\.Client is closed"):
        stream.step([np.ones(1 << 20, np.float32)])


@pytest.mark.skipif(not LIBRARY, reason="$ADAMANT_C_LIBRARY names no libadamant_c.so")
def test_however_often_ctrl_c_is_pressed_the_call_ends_first(
    client: adamant.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refers to the memory of arrays that may be gone after that."""
    client.create(name, {"w": (1 << 20,)}, adamant.SGD(lr=1.0))
    library = _native.find_library()
    assert library is not None
    stream = client.open_steps(name)
    step = library.step
    main = threading.main_thread().ident
    assert main is not None
    ended = []

    def step_and_interrupt(*arguments: object) -> int:
        for _ in range(300):
            signal.pthread_kill(main, signal.SIGINT)
            # The other thread is to see it.
            os.sched_yield()
        code: int = step(*arguments)
        ended.append(code)
        return code

    monkeypatch.setattr(library, "step", step_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.step([np.ones(1 << 20, np.float32)])
    assert ended
    monkeypatch.undo()
    parameters = stream.refresh()
    assert parameters is not None
    np.testing.assert_array_equal(parameters["w"], np.full(1 << 20, -stream.step_number))
