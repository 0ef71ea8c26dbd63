"""The examples of client/python/README.md run."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "client/python/README.md"


def test_the_examples_run(start_server, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.setenv("ADAMANT_TARGET", start_server().address)
    session: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, str(README), "exec"), session)
    finally:
        session["client"].close()
    said = capsys.readouterr().out
    assert re.match(r"step 100: gradient norm [\d.]+, learning rate 0\.01\n", said)
    assert "mlp 105 48" in said
    assert "expected the name of a set" in said
