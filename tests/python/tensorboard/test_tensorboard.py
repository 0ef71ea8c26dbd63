"""What adamant-tensorboard writes, as TensorBoard reads it."""

from __future__ import annotations

import signal
import subprocess
import sys

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


# The program, which tells of each event that it has written.
PROGRAM = """
import sys

from adamant import tensorboard

take = tensorboard.Recorder.take


def take_and_tell(self, event):
    take(self, event)
    print(event.WhichOneof("event"), event.step, flush=True)


tensorboard.Recorder.take = take_and_tell
sys.exit(tensorboard.main())
"""


@pytest.fixture
def program(server, name, tmp_path):
    """adamant-tensorboard, as it watches the set."""
    started = []

    def start(logdir=tmp_path, target=server.address, of=name):
        command = [sys.executable, "-c", PROGRAM, f"--target={target}", f"--set={of}", f"--logdir={logdir}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


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
    assert process.stdout.readline() == "current 0\n"
    one = {"x": np.ones(3, np.float32), "y": np.ones(1, np.float32)}
    for step in range(1, 6):
        steps.step(one)
        assert process.stdout.readline() == f"committed {step}\n"
        # While it is written.
        assert [at for at, _ in scalars(tmp_path)["grad_norm"]] == list(range(1, step + 1))
    client.delete(name)
    assert process.wait() == 0
    assert [step for step, _ in scalars(tmp_path)["learning_rate/a"]] == [1, 2, 3, 4, 5]


def test_the_program_ends_at_ctrl_c_and_has_written(client, name, program, tmp_path):
    steps = create(client, name)
    process = program()
    assert process.stdout.readline() == "current 0\n"
    steps.step({"x": np.ones(3, np.float32), "y": np.ones(1, np.float32)})
    assert process.stdout.readline() == "committed 1\n"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert [step for step, _ in scalars(tmp_path)["grad_norm"]] == [1]


def test_a_set_that_is_not_there_is_an_error(program):
    process = program(of="nobody/has/this")
    assert process.wait() == 1
    assert "expected the name of a set" in process.stderr.read()
