"""The allocator's settings, for programs that step megabytes."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

# Smaller blocks glibc keeps as it comes.
_LEAST_BYTES = 64 << 10
# From blocks of more than 32 MiB glibc learns nothing.
_MOST_BYTES = 16 << 20
_expected = _LEAST_BYTES


def expect(size: int) -> None:
    """Lets malloc know that blocks of `size` bytes, a few at a time, come and go.

    glibc hands back to the kernel what is freed and is larger than any block that was freed before, or more than twice
    as much in all; each page of the next message has then to be fetched again. A step of 100,000 parameters took 1.05
    ms instead of 0.6 to 0.74, one of a million 10.7 to 11.9 instead of 7.4 to 10.5. What makes glibc keep more is a
    larger block that is freed, and nobody needs to have touched it. It keeps 32 MiB at most for that, and nothing where
    the program or the environment has set its thresholds.
    """
    global _expected
    if size > _expected:
        _expected = size
        np.empty(min(4 * size, _MOST_BYTES), np.uint8)


def tune_malloc() -> bool:
    """Makes glibc's malloc keep large blocks instead of handing them back to the kernel each time.

    Messages come and go by the megabyte: with glibc as it comes, large steps take up to 1.8 times as long. The price is
    that the process keeps memory that it has freed, which is why nobody but the program itself may call this: once, at
    its start. Returns whether there was something to set: with another libc, nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
