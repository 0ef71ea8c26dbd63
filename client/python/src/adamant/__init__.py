"""A client of Adamant, an optimizer as a service: gradients go up, updated parameters come back.

    client = adamant.Client("localhost:50051")
    client.create("mlp", {"w": w, "b": b}, adamant.Adam(lr=1e-3))
    steps = client.open_steps("mlp")
    while training:
        gradients = ...                        # computed from w and b
        steps.step(gradients, {"w": w, "b": b})  # updated parameters are back in w and b

`adamant.v1` has the protocol's messages, where every field is described.
"""

from __future__ import annotations

from adamant import errors, v1
from adamant._client import Client, State, Watch, optimizer_slots
from adamant._malloc import tune_malloc
from adamant._optimizers import SGD, Adam, AdamW, Group
from adamant._options import RetryPolicy, Timeouts
from adamant._step_stream import Contribution, NonFinite, StepOutcome, StepResult, StepStream
from adamant.errors import *  # noqa: F403

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Client",
    "Contribution",
    "Group",
    "NonFinite",
    "RetryPolicy",
    "State",
    "StepOutcome",
    "StepResult",
    "StepStream",
    "Timeouts",
    "Watch",
    "errors",
    "optimizer_slots",
    "tune_malloc",
    "v1",
    *errors.__all__,
]

__version__ = "0.1.0"
