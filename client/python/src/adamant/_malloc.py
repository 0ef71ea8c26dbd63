"""The allocator's settings, for programs that step megabytes."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


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
