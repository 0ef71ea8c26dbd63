"""Which process this is: gRPC's threads and sockets are not the child's after a fork."""

from __future__ import annotations

import os

# How many forks lie between this process and the one that imported the module.
generation = 0


def _count() -> None:
    global generation
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


def check(made_in: int) -> None:
    """Raises where what was made in another process is used in this one."""
    if made_in != generation:
        raise RuntimeError(
            "this adamant.Client belongs to the process that made it, and not to its forked child: "
            "make a client in the child (or start processes with the multiprocessing method `spawn`)"
        )
