"""How long a client waits, and how often it tries again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed attempt is followed by another.

    Retried are UNAVAILABLE, RESOURCE_EXHAUSTED if the server says how long to wait, and attempts that ran into their
    own timeout; nothing else. That is safe: steps and writes carry a request_id. Times are in seconds.
    """

    max_attempts: int = 10
    """Attempts of one call, the first included; at least 1. In a step, asking for its outcome is part of the
    attempt."""
    total_timeout: float = 600.0
    """The whole call, waits included: its last attempt is cut short at this."""
    initial_backoff: float = 0.1
    """The wait before the second attempt; each later one is `multiplier` times the one before, up to `max_backoff`. A
    wait that the server asks for is kept to where it is longer."""
    max_backoff: float = 10.0
    multiplier: float = 2.0
    jitter: float = 0.5
    """In [0, 1]. A wait is drawn evenly from [1 - jitter, 1] times its nominal length."""

    def __post_init__(self) -> None:
        _check(self.max_attempts >= 1, "max_attempts", "at least 1", self.max_attempts)
        _check(self.total_timeout > 0, "total_timeout", "more than 0", self.total_timeout)
        _check(self.initial_backoff >= 0, "initial_backoff", "at least 0", self.initial_backoff)
        _check(self.max_backoff >= self.initial_backoff, "max_backoff", "at least initial_backoff", self.max_backoff)
        _check(self.multiplier >= 1, "multiplier", "at least 1", self.multiplier)
        _check(0 <= self.jitter <= 1, "jitter", "0 to 1", self.jitter)


@dataclass(frozen=True)
class Timeouts:
    """How long things may take, in seconds."""

    connect: float = 30.0
    """How long a call waits for a connection, each time that there is none."""
    unary: float = 10.0
    """One attempt of a call that moves no tensors."""
    step: float = 60.0
    """One attempt of a step: gradient up, parameters back."""
    transfer: float = 300.0
    """One attempt of a read or write of parameters or of the whole state, and of what the server does with all of a
    set: a checkpoint, a restore, a fork."""

    def __post_init__(self) -> None:
        for name in ("connect", "unary", "step", "transfer"):
            _check(getattr(self, name) > 0, name, "more than 0", getattr(self, name))


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")
