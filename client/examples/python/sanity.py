"""Trains a small network whose optimizer lives on a server, and checks that the losses are those of the reference.

python sanity.py localhost:50051
"""

from __future__ import annotations

import sys
import uuid

import grpc
import numpy as np

from adamant.v1.parameter_set_pb2 import INITIALIZATION_WRITTEN
from adamant.v1.service_pb2_grpc import OptimizerServiceStub
from adamant.v1.step_pb2 import STEP_OUTCOME_APPLIED, StepHeader, StepOutcome
from adamant_client import StepStream, temporary_set, to_chunks, write_parameters
from network import TENSORS, initial_parameters, loss_and_gradients

EPOCHS = 50
# PyTorch's, of epochs 5, 10, ..., 50, each before its update.
REFERENCE_LOSSES = "0.809774 0.721449 0.638959 0.562460 0.491979 0.428558 0.372196 0.320848 0.274360 0.232563".split()


def train(stub: OptimizerServiceStub) -> list[str]:
    """Returns the loss of every fifth epoch."""
    losses = []
    x, y = np.array([1, 2], np.float32), np.float32(1)
    parameters = initial_parameters()
    with temporary_set(stub, "examples/python", TENSORS, INITIALIZATION_WRITTEN) as name:
        incarnation = write_parameters(stub, name, parameters).incarnation
        with StepStream(stub) as steps:
            for epoch in range(1, EPOCHS + 1):
                loss, gradients = loss_and_gradients(parameters, x, y)
                if epoch % 5 == 0:
                    print(f"Epoch {epoch:02}: loss = {loss:.6f}")
                    losses.append(f"{loss:.6f}")
                # Exactly once: this step, from this state, whatever becomes of the connection.
                header = StepHeader(
                    set=name, incarnation=incarnation, request_id=uuid.uuid4().hex, expected_step=epoch - 1
                )
                result = steps.step(header, to_chunks(gradients), parameters)
                if result.outcome != STEP_OUTCOME_APPLIED:
                    raise RuntimeError(f"epoch {epoch}: {StepOutcome.Name(result.outcome)}")
    return losses


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: sanity.py HOST:PORT")
    with grpc.insecure_channel(sys.argv[1]) as channel:
        losses = train(OptimizerServiceStub(channel))
    if losses != REFERENCE_LOSSES:
        sys.exit(f"expected the losses {REFERENCE_LOSSES}, got {losses}")
    print("The losses match the reference.")


if __name__ == "__main__":
    main()
