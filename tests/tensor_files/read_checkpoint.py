#!/usr/bin/env python3
"""Reads with safetensors, where it is installed, the checkpoint that checkpoint_test has written.

    read_checkpoint.py FOLDER

Exits with 1 if anything in it is another than expected.
"""

import json
import pathlib
import sys

import numpy as np
from load import read

folder = pathlib.Path(sys.argv[1])
SHAPES = {"weight": (2, 3), "größe/層": (17,), "empty": (0, 4), "scalar": (), "__metadata___": (1,), 'quote"\\': (2,)}
names = list(SHAPES)


def expected(name: str, slot: int) -> np.ndarray:
    """Element i of a tensor is 1000 times its place in the set, and 100 times the slot's, and i."""
    place = names.index(name)
    shape = SHAPES[name]
    return (1000 * place + 100 * slot + np.arange(np.prod(shape, dtype=int), dtype=np.float32)).reshape(shape)


parameters, metadata = read(folder / "parameters.safetensors")
assert metadata == {"format": "pt"}, metadata
assert set(parameters) == set(names), parameters.keys()
for name in names:
    np.testing.assert_array_equal(parameters[name], expected(name, 1), strict=True)

state, _ = read(folder / "optimizer.safetensors")
# Only where the set's own names stand alone does one of them need another.
own = {name: name.replace("__metadata___", "__metadata__") for name in names}
slots = {"exp_avg": 2, "exp_avg_sq": 3}
assert set(state) == {f"{slot}/{own[name]}" for slot in slots for name in names}, state.keys()
for slot, number in slots.items():
    for name in names:
        np.testing.assert_array_equal(state[f"{slot}/{own[name]}"], expected(name, number), strict=True)

manifest = json.loads((folder / "MANIFEST.json").read_text())["manifest"]
assert manifest["format"] == 1 and manifest["set"] == "run/größe", manifest
assert int(manifest["step"]) == 7 and int(manifest["incarnation"]) == 2**53 - 1, manifest
for file in manifest["files"]:
    assert (folder / file["name"]).stat().st_size == int(file["bytes"]), file
print("The checkpoint is as it should be.")
