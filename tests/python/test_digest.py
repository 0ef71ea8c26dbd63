"""What a digest of a set's state is, computed once more; and that a journal leads to the same ones again."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

import numpy as np
import pytest

import adamant

LEAF = 65536
# SLOT_* in order of their numbers.
SLOTS = ["parameter", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"]


def digest_of(client: adamant.Client, name: str, previous: bytes | None) -> bytes:
    state = client.read_state(name)
    tensors = [tensor.name for tensor in client.list_tensors(name)]
    root = hashlib.sha256(previous or bytes(32))
    root.update(struct.pack("<q", state.step))
    for index, tensor in enumerate(tensors):
        root.update(struct.pack("<q", state.update_counts[index] if state.update_counts else state.step))
        for slot in SLOTS:
            if slot not in state.tensors:
                continue
            elements = np.ravel(state.tensors[slot][tensor])
            for begin in range(0, elements.size, LEAF):
                root.update(hashlib.sha256(elements[begin : begin + LEAF].astype("<f4").tobytes()).digest())
    return root.digest()


@pytest.mark.parametrize(
    "optimizer", [adamant.Adam(lr=0.1), adamant.Adam(lr=0.1, amsgrad=True), adamant.SGD(lr=0.1, momentum=0.9)]
)
def test_a_digest_is_the_hash_of_all_state_and_of_the_one_before(client, name, optimizer):
    client.create(name, {"w": (3, 5), "table": (70_000, 2), "b": (1,)}, optimizer)
    steps = client.open_steps(name)
    random = np.random.default_rng(1)
    previous = None
    for _ in range(3):
        gradients = {"w": random.normal(size=(3, 5)), "table": random.normal(size=(70_000, 2)), "b": [1.0]}
        gradients = {name: np.asarray(values, np.float32) for name, values in gradients.items()}
        result = steps.step(gradients, digest_state=True)
        assert result.state_digest == digest_of(client, name, previous)
        previous = result.state_digest
    # A part of the tensors, of which the others' counts differ from then on.
    result = steps.step({"b": np.ones(1, np.float32)}, tensors=["b"], digest_state=True)
    assert result.state_digest == digest_of(client, name, previous)
    assert steps.step(gradients).state_digest is None


def replay_program(server_program: str) -> str:
    return os.environ.get("ADAMANT_REPLAY") or str(pathlib.Path(server_program).with_name("adamant-replay"))


def replay(server_program: str, directory: object, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [replay_program(server_program), *flags, str(directory)], capture_output=True, text=True, check=False
    )


def test_a_journal_leads_to_the_same_digests_again(start_server, server_program, tmp_path):
    data = tmp_path / "data"
    server = start_server(f"--data_dir={data}")
    with adamant.Client(server.address) as client:
        client.create("kept", {"w": (5000,)}, adamant.Adam(lr=0.1), durability="every_step")
        steps = client.open_steps("kept")
        gradient = np.linspace(-1, 1, 5000, dtype=np.float32)
        # With checkpoints between them, by which the chain goes on.
        digests = [steps.step([gradient * n], digest_state=n % 5 != 0).state_digest for n in range(1, 31)]
        assert replay(server_program, data).returncode == 1, "a server has it open"
        server.process.kill()
        server.process.wait()

    def contents():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.rglob("*") if path.is_file()}

    before = contents()
    for isa in ("scalar", ""):
        result = replay(server_program, data, "--steps", *([f"--isa={isa}"] if isa else []))
        assert result.returncode == 0, result.stdout + result.stderr
        lines = result.stdout.splitlines()
        again = [line.split() for line in lines[:-1]]
        assert again, "there was nothing to be made again"
        for line in again:
            expected = digests[int(line[1]) - 1]
            assert line[0] == "kept"
            assert line[2:] == ([expected.hex()] if expected else [])
        assert lines[-1].startswith(f"kept: {len(again)} steps made again, from {30 - len(again)} to 30; ")
        assert lines[-1].endswith(f"the last one is {digests[-2].hex()}")
    # Nothing was changed by that: the chain goes on.
    assert contents() == before
    server = start_server(f"--data_dir={data}")
    with adamant.Client(server.address) as client:
        result = client.open_steps("kept").step([gradient], digest_state=True)
        assert (result.step, result.state_digest) == (31, digest_of(client, "kept", digests[-2]))


def test_a_copy_that_nobody_may_write_to_is_replayed(start_server, server_program, tmp_path):
    data = tmp_path / "data"
    server = start_server(f"--data_dir={data}")
    with adamant.Client(server.address) as client:
        client.create("kept", {"w": (5000,)}, adamant.Adam(lr=0.1), durability="every_step")
        steps = client.open_steps("kept")
        for step in range(6):
            steps.step([np.ones(5000, np.float32)], digest_state=True)
            if step == 2:
                client.checkpoint("kept")
    server.process.kill()
    server.process.wait()
    # Root may write to anything, and another user may not look everywhere.
    user = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy(replay_program(server_program), folder)
        copy = pathlib.Path(shutil.copytree(data, pathlib.Path(folder, "copy")))
        for path in (copy, *copy.rglob("*")):
            if user is not None:
                os.chown(path, user, user)
            path.chmod(0o555 if path.is_dir() else 0o444)
        result = subprocess.run(
            [program, str(copy)],
            capture_output=True,
            text=True,
            check=False,
            user=user,
            env={**os.environ, "TMPDIR": "/tmp"},
        )
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kept: 3 steps made again, from 3 to 6; 3 digests, of which 2 could be checked" in result.stdout


def test_what_is_no_data_directory_is_refused(server_program, tmp_path):
    result = replay(server_program, tmp_path)
    assert result.returncode == 1
    assert "is no data directory" in result.stderr
    assert list(tmp_path.iterdir()) == []
