"""Sets that are one optimizer's own, and end with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from adamant._client import Client
from adamant._options import RetryPolicy, Timeouts
from adamant.errors import AdamantError

# At the end of a program nobody wants to wait for a server that is not there.
_RETRY = RetryPolicy(max_attempts=1, total_timeout=5)
_TIMEOUTS = Timeouts(connect=1, unary=3)


def end(client: Client, pid: int, own_sets: Sequence[str]) -> None:
    """Closes an optimizer's client, and deletes the sets that are its own. Not in another process than the one that it
    was made in: a forked child's copy of the optimizer is none."""
    if os.getpid() != pid:
        return
    client.close()
    for name in own_sets:
        # It may be gone, and so may the server.
        with contextlib.suppress(AdamantError), Client(client.target, retry=_RETRY, timeouts=_TIMEOUTS) as hasty:
            hasty.delete(name)
