#!/usr/bin/env python3
"""Reads with numpy and safetensors what tensor_file_test has written, where they are installed.

    read.py FOLDER

Exits with 1 if anything in it is another than expected. Without the package `safetensors` it reads that format by the
letter of its definition, with the standard library alone.
"""

import json
import pathlib
import struct
import sys

import numpy as np

folder = pathlib.Path(sys.argv[1])
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "F32", tensor
        arrays[name] = np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4").reshape(tensor["shape"])
    return arrays, metadata


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        from safetensors import safe_open
    except ImportError:
        return load(path)
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


arrays, metadata = read(folder / "written.safetensors")
assert set(arrays) == {"weight", "größe/層", "empty", "scalar"}, arrays.keys()
assert metadata == {"format": "pt", "quote": '"\n'}, metadata
np.testing.assert_array_equal(arrays["weight"], WEIGHT)
assert arrays["scalar"].shape == () and arrays["scalar"] == 0.5
assert arrays["empty"].shape == (0, 4)
np.testing.assert_array_equal(np.load(folder / "written.npy"), WEIGHT)
np.testing.assert_array_equal(np.load(folder / "scalar.npy"), np.float32(0.5))
np.testing.assert_array_equal(np.load(folder / "vector.npy"), np.array([1, 2, 3], np.float32))
np.testing.assert_array_equal(np.fromfile(folder / "written.raw", "<f4"), [0, 1, 2, 3, 4, 5, 0.5])
print("All files are as they should be.")
