"""Optimizers on a real server, beside torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import adamant.torch as remote

torch.set_num_threads(1)

# Each remote optimizer, and the one that it stands for.
PAIRS = {
    remote.RemoteAdam: torch.optim.Adam,
    remote.RemoteAdamW: torch.optim.AdamW,
    remote.RemoteSGD: torch.optim.SGD,
}


@pytest.fixture
def make(server: Any) -> Iterator[Callable[..., Any]]:
    """Makes an optimizer of a class on the server that all tests share, and closes it at the end."""
    made = []

    def make(cls: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("target", server.address)
        made.append(cls(params, *args, **kwargs))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


@pytest.fixture
def adam(make: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(make, remote.RemoteAdam)


@pytest.fixture
def sgd(make: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(make, remote.RemoteSGD)
