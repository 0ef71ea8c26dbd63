"""The examples for PyTorch of client/python/README.md run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[3] / "client/python/README.md"


def test_the_examples_run(server, monkeypatch, capsys):
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python torch\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.setenv("ADAMANT_TARGET", server.address)
    torch.manual_seed(0)
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)
    optimizer = session["optimizer"]
    assert re.match(r"step 100: gradient norm [\d.]+\n", capsys.readouterr().out)
    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, rank: sent.append((tensor.shape, rank)))
    model = session["model"]
    session["step_on_rank_0"](model, optimizer, 0)
    assert optimizer.last_result.step == 101
    session["step_on_rank_0"](model, optimizer, 1)
    assert optimizer.last_result.step == 101
    assert sent == [((2, 16), 0), ((2,), 0)] * 2
    optimizer.close()
    with session["make_optimizer"](model, 0, 1) as made:
        assert made.set_name == "run/7"
        made.client.delete("run/7")
