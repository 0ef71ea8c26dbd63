#!/usr/bin/env python3
"""Reads with numpy and safetensors what tensor_file_test has written, where they are installed.

    read.py FOLDER

Exits with 1 if anything in it is another than expected.
"""

import pathlib
import sys

import numpy as np
from load import read

folder = pathlib.Path(sys.argv[1])
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)

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
