"""How far transfers are, for somebody at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Bars:
    """A bar of tqdm's for each transfer that is `shown`, where standard error is a terminal."""

    def __init__(self) -> None:
        try:
            import tqdm
        except ImportError:
            raise ImportError(
                "progress: expected tqdm to be installed: pip install 'adamant-client[progress]'"
            ) from None
        self._make = tqdm.tqdm
        self._label: str | None = None
        self._bar: Any = None

    @contextlib.contextmanager
    def shown(self, label: str) -> Iterator[None]:
        """Transfers in here are shown under this label, or under that of what this is a part of."""
        if self._label is not None:
            yield
            return
        self._label = label
        try:
            yield
        finally:
            self._label = None
            self._end()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Client's `on_progress`."""
        if self._label is None:
            return
        if done == 0:
            self._end()
            label = f"{self._label} ({what})"
            self._bar = self._make(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
        self._bar.update(done - self._bar.n)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
