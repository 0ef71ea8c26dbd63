"""The little that a Python program wants on top of the stubs: tensors as numpy arrays, and steps in lock-step."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_status import rpc_status
from numpy.typing import NDArray

from adamant.v1.error_pb2 import ErrorDetail
from adamant.v1.parameter_set_pb2 import DTYPE_BFLOAT16, Initialization, ParameterSetSpec, TensorSpec
from adamant.v1.service_pb2 import (
    WRITE_MODE_PARAMETERS,
    CreateParameterSetRequest,
    DeleteParameterSetRequest,
    ReadHeader,
    ReadTensorsRequest,
    WriteHeader,
    WriteTensorsRequest,
    WriteTensorsResponse,
)
from adamant.v1.service_pb2_grpc import OptimizerServiceStub
from adamant.v1.step_pb2 import StepHeader, StepRequest, StepResult, TensorChunk

Floats = NDArray[np.float32]

# 1 MiB of fp32: messages of that size are far below the 4 MiB that grpcio and the server take.
CHUNK_ELEMENTS = 1 << 18
# Of any one call but a stream of steps, in seconds. A call that finds no place on the server waits for one.
TIMEOUT = 60.0


@contextmanager
def temporary_set(
    stub: OptimizerServiceStub, prefix: str, tensors: Sequence[TensorSpec], initialization: Initialization
) -> Iterator[str]:
    """A set with a name of its own, trained by Adam with its defaults. Deleted at the end."""
    spec = ParameterSetSpec(name=f"{prefix}/{uuid.uuid4().hex}", tensors=tensors, initialization=initialization)
    stub.CreateParameterSet(CreateParameterSetRequest(spec=spec), timeout=TIMEOUT)
    try:
        yield spec.name
    finally:
        stub.DeleteParameterSet(DeleteParameterSetRequest(name=spec.name), timeout=TIMEOUT)


def write_parameters(stub: OptimizerServiceStub, name: str, parameters: Sequence[Floats]) -> WriteTensorsResponse:
    """Replaces the parameters of every tensor of the set."""

    def requests() -> Iterator[WriteTensorsRequest]:
        yield WriteTensorsRequest(header=WriteHeader(set=name, mode=WRITE_MODE_PARAMETERS))
        for chunk in to_chunks(parameters):
            yield WriteTensorsRequest(chunks=[chunk])
        yield WriteTensorsRequest(last=True)

    return stub.WriteTensors(requests(), timeout=TIMEOUT)


def read_parameters(stub: OptimizerServiceStub, name: str, parameters: Sequence[Floats]) -> ReadHeader:
    """Fills `parameters`, arrays of the tensors' sizes, with those of one single step, and returns which."""
    header = ReadHeader()
    for response in stub.ReadTensors(ReadTensorsRequest(set=name), timeout=TIMEOUT):
        if response.HasField("header"):
            header = response.header
        copy_chunks(response.chunks, parameters)
    return header


class StepStream:
    """Carries steps, one after the other, each answered before the next is sent. A context manager.

    `Step` takes an iterator of requests, which grpcio takes from in a thread of its own, ahead of replies. A generator
    that computes gradients would therefore compute them from old parameters, and nobody would notice. The queue holds
    what `step` has put there and nothing else.
    """

    def __init__(self, stub: OptimizerServiceStub) -> None:
        self._requests: queue.SimpleQueue[StepRequest | None] = queue.SimpleQueue()
        self._responses = stub.Step(iter(self._requests.get, None))

    def step(self, header: StepHeader, chunks: Sequence[TensorChunk], parameters: Sequence[Floats]) -> StepResult:
        """Sends a gradient, and puts the updated parameters into `parameters`.

        Raises grpc.RpcError; then the stream has ended, and `parameters` may be of no single step.
        """
        if sum(len(chunk.data) for chunk in chunks) <= 4 * CHUNK_ELEMENTS:
            self._requests.put(StepRequest(header=header, chunks=chunks, last=True))
        else:
            self._requests.put(StepRequest(header=header))  # Alone: the server makes room before the gradient moves.
            for chunk in chunks:
                self._requests.put(StepRequest(chunks=[chunk]))
            self._requests.put(StepRequest(last=True))
        for response in self._responses:
            copy_chunks(response.chunks, parameters)
            if response.HasField("result"):
                return response.result
        raise RuntimeError("the server ended the stream without a result")

    def __enter__(self) -> StepStream:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        self._requests.put(None)  # Else grpcio's thread waits in the queue for good.
        if exception_type is None:
            next(self._responses, None)  # Waits until the server has ended the call, too.
        else:
            self._responses.cancel()


def to_chunks(tensors: Sequence[Floats]) -> list[TensorChunk]:
    """Cuts tensors, in order of their index, into chunks."""
    return [
        TensorChunk(tensor=index, offset=begin, data=flat[begin : begin + CHUNK_ELEMENTS].tobytes())
        for index, flat in enumerate(np.ravel(tensor).astype("<f4", copy=False) for tensor in tensors)
        for begin in range(0, flat.size, CHUNK_ELEMENTS)
    ]


def copy_chunks(chunks: Sequence[TensorChunk], tensors: Sequence[Floats]) -> None:
    """Copies chunks that came as bytes, of fp32 or bf16, to where they belong. Requires: contiguous tensors."""
    for chunk in chunks:
        if chunk.dtype == DTYPE_BFLOAT16:
            part = (np.frombuffer(chunk.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            part = np.frombuffer(chunk.data, "<f4")
        # A view: reshape copies what is not contiguous, and the elements would go nowhere.
        tensors[chunk.tensor].reshape(-1, copy=False)[chunk.offset : chunk.offset + part.size] = part


def error_detail(error: grpc.RpcError) -> ErrorDetail | None:
    """What an error of this service carries beside its code and message."""
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        detail = ErrorDetail()
        if packed.Unpack(detail):
            return detail
    return None
