"""What adamant-tensorboard writes, as TensorBoard reads it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import adamant
import adamant.tensorboard


def scalars(logdir):
    """By tag, steps and values."""
    read = EventAccumulator(str(logdir))
    read.Reload()
    return {
        tag: [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in read.Tensors(tag)]
        for tag in read.Tags()["tensors"]
    }


@pytest.fixture
def program(server, name, tmp_path):
    """adamant-tensorboard, as it watches the set."""
    started = []

    def start(logdir=tmp_path, target=server.address, of=name):
        command = [sys.executable, "-m", "adamant.tensorboard", f"--target={target}", f"--set={of}"]
        started.append(subprocess.Popen([*command, f"--logdir={logdir}"], stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def wait_until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def create(client, name):
    groups = [adamant.Group("a", adamant.Adam(lr=0.5), ["x"]), adamant.Group("b", adamant.SGD(lr=0.25), ["y"])]
    client.create(name, {"x": (3,), "y": (1,)}, groups=groups)
    return client.open_steps(name)


def test_every_step_is_there(client, name, tmp_path):
    steps = create(client, name)
    with client.watch(name) as events:
        recorder = adamant.tensorboard.Recorder(
            writer := adamant.tensorboard.Writer(str(tmp_path)), iter(range(9)).__next__
        )
        recorder.take(next(events))
        grads = {"x": np.full(3, 2, np.float32), "y": np.full(1, 2, np.float32)}
        for i in range(3):
            steps.step(grads, metrics={"loss": 3.0 - i})
        steps.step({"x": np.full(3, np.nan, np.float32), "y": grads["y"]})
        steps.step(grads, overrides={"a": {"learning_rate": 0.125}})
        for _ in range(5):
            recorder.take(next(events))
    writer.close()
    read = scalars(tmp_path)
    assert read == {
        "grad_norm": [(step, 4.0) for step in (1, 2, 3, 4)],
        "learning_rate/a": [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.125)],
        "learning_rate/b": [(step, 0.25) for step in (1, 2, 3, 4)],
        "metrics/loss": [(1, 3.0), (2, 2.0), (3, 1.0)],
        "skipped": [(3, 1.0)],
        # The skipped one took a tick of this clock.
        "step_time": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)],
    }


def test_staleness_and_what_was_missed(client, name, tmp_path):
    client.create(name, {"x": (1,)}, max_staleness=3)
    first, second = client.open_steps(name), client.open_steps(name)
    one = [np.ones(1, np.float32)]
    with client.watch(name) as events:
        seen = [next(events)]
        first.step(one)
        second.step(one, asynchronous=True)
        seen += [next(events), next(events)]
    seen[1].missed = 2
    adamant.tensorboard.record(seen, str(tmp_path))
    read = scalars(tmp_path)
    assert read["staleness"] == [(2, 1.0)]
    assert read["missed"] == [(1, 2.0)]


def test_the_program_writes_until_the_set_is_deleted(client, name, program, tmp_path):
    steps = create(client, name)
    process = program()
    one = {"x": np.ones(3, np.float32), "y": np.ones(1, np.float32)}
    wait_until(lambda: steps.step(one) and list(tmp_path.glob("events*")))
    wait_until(lambda: steps.step(one) and scalars(tmp_path).get("grad_norm"))
    for _ in range(5):
        last = steps.step(one).step
        # While it is written.
        wait_until(lambda: scalars(tmp_path)["grad_norm"][-1][0] == last)  # noqa: B023
    client.delete(name)
    assert process.wait() == 0
    assert [step for step, _ in scalars(tmp_path)["learning_rate/a"]][-5:] == list(range(last - 4, last + 1))


def test_the_program_ends_at_ctrl_c_and_has_written(client, name, program, tmp_path):
    steps = create(client, name)
    process = program()
    one = {"x": np.ones(3, np.float32), "y": np.ones(1, np.float32)}
    wait_until(lambda: steps.step(one) and list(tmp_path.glob("events*")))
    wait_until(lambda: steps.step(one) and scalars(tmp_path).get("grad_norm"))
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_set_that_is_not_there_is_an_error(program):
    process = program(of="nobody/has/this")
    assert process.wait() == 1
    assert "expected the name of a set" in process.stderr.read()
