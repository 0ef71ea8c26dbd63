#!/usr/bin/env python3
"""Writes golden/: small files as safetensors and numpy themselves write them.

    generate.py [--check]

--check writes nothing, and exits with 1 where a file differs from what it would write. Needs `safetensors`, `numpy` and
`ml_dtypes`, from PyPI. What is in the files stands in tensor_file_test.cc, too.
"""

import io
import pathlib
import sys

import ml_dtypes
import numpy as np
from safetensors.numpy import save

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Every class of number: zeros, denormals, the least and the largest, infinite ones, one third rounded.
HALVES = np.array([0.0, -0.0, 2.0**-24, 2.0**-14, 1 / 3, -1.5, 65504.0, np.inf, -np.inf], np.float16)
BFLOATS = np.array([0.0, -0.0, 2.0**-133, 2.0**-126, 1 / 3, -1.5, 3.3895314e38, np.inf], ml_dtypes.bfloat16)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def files() -> dict[str, bytes]:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    return {
        "model.safetensors": save(
            {
                "weight": matrix,
                "bias": np.array([1.5, -2.5, 3.5], np.float32),
                "scale": np.array(0.125, np.float32),
                "empty": np.zeros((0, 4), np.float32),
                "half": HALVES,
                "bfloat": BFLOATS,
                "größe/層": np.array([7.0], np.float32),
                "steps": np.array([3, 4], np.int64),
            },
            # One alone: safetensors writes several in any order.
            metadata={"made by": 'a "test"\n'},
        ),
        # What a set can begin with.
        "mixed.safetensors": save(
            {
                "weight": matrix,
                "half": HALVES[:7],
                "bfloat": BFLOATS[:6],
                "scale": np.array(0.125, np.float32),
                "steps": np.array([3, 4], np.int64),
            },
            metadata={"format": "pt"},
        ),
        # The bytes of the second begin at an odd multiple of two.
        "askew.safetensors": save({"a": np.array([1.0], np.float16), "b": np.array([2.0, 3.0], np.float16)}),
        "none.safetensors": save({}),
        "matrix.npy": npy(matrix),
        "vector.npy": npy(np.array([1.5, -2.5], np.float32)),
        "scalar.npy": npy(np.array(0.125, np.float32)),
        "empty.npy": npy(np.zeros((0, 4), np.float32)),
        "half.npy": npy(HALVES),
        "version2.npy": npy(matrix, (2, 0)),
        "version3.npy": npy(matrix, (3, 0)),
        "double.npy": npy(matrix.astype(np.float64)),
        "columns.npy": npy(np.asfortranarray(matrix)),
        "big_endian.npy": npy(matrix.astype(">f4")),
        "matrix.raw": matrix.tobytes(),
    }


def main() -> int:
    changed = [
        name for name, data in files().items() if not (GOLDEN / name).exists() or (GOLDEN / name).read_bytes() != data
    ]
    if "--check" in sys.argv[1:]:
        print(
            "\n".join(f"{name} is another one than today's" for name in changed) or "All files are as today's would be."
        )
        return 1 if changed else 0
    GOLDEN.mkdir(exist_ok=True)
    for name, data in files().items():
        (GOLDEN / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
