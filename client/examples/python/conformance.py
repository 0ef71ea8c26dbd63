"""Checks one promise of a server, as seen from Python; exits with 1 if it is broken. tests/interop/conformance runs it.

python conformance.py chunks|replay|error|health|reflection|bf16 HOST:PORT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc
import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from adam import Adam
from adamant.v1.error_pb2 import ERROR_REASON_CHUNK_OUT_OF_ORDER, ErrorDetail
from adamant.v1.parameter_set_pb2 import (
    DTYPE_BFLOAT16,
    DTYPE_FLOAT32,
    INITIALIZATION_WRITTEN,
    INITIALIZATION_ZEROS,
    Initialization,
    TensorSpec,
)
from adamant.v1.service_pb2 import STEP_STATE_COMMITTED, GetStepResultRequest
from adamant.v1.service_pb2_grpc import OptimizerServiceStub
from adamant.v1.step_pb2 import StepHeader, TensorChunk
from adamant_client import (
    TIMEOUT,
    Floats,
    StepStream,
    error_detail,
    read_parameters,
    temporary_set,
    to_chunks,
    write_parameters,
)

SERVICE = "adamant.v1.OptimizerService"


class Broken(Exception):
    """A promise is."""


def expect(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise Broken(f"{what}: expected {expected}, got {got}")


def expect_same_bits(what: str, expected: Floats, got: Floats) -> None:
    for i in np.flatnonzero(expected.view(np.uint32) != got.view(np.uint32))[:1]:
        raise Broken(f"{what}: element {i}: expected {expected[i]!r}, got {got[i]!r}")


def pseudo_random(count: int, seed: int) -> Floats:
    """In [-1, 1), as every language here makes them: seed 0 are parameters, 1 and on gradients.

    Every 16th is so small that Adam takes some of them for zero.
    """
    bits = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed * 2246822519 % 2**32)
    values = (bits >> 8).astype(np.float32) * np.float32(2**-23) - 1
    values[::16] *= np.float32(2**-57)
    return values


def one_tensor(
    stub: OptimizerServiceStub, shape: list[int], initialization: Initialization
) -> AbstractContextManager[str]:
    return temporary_set(stub, "conformance/python", [TensorSpec(name="x", shape=shape)], initialization)


def header(name: str, step: int) -> StepHeader:
    return StepHeader(set=name, request_id=f"step {step}", expected_step=step)


def check_chunks(channel: grpc.Channel) -> None:
    """A tensor of several messages, each way, with gRPC's default limits."""
    stub, elements = OptimizerServiceStub(channel), 3_000_000
    with one_tensor(stub, [elements // 3, 3], INITIALIZATION_WRITTEN) as name:
        local, parameters = Adam(pseudo_random(elements, 0)), np.empty(elements, np.float32)
        write_parameters(stub, name, [local.p])
        with StepStream(stub) as steps:
            for step in range(3):
                gradient = pseudo_random(elements, step + 1)
                steps.step(header(name, step), to_chunks([gradient]), [parameters])
                local.update(gradient)
                expect_same_bits(f"the reply of step {step + 1}", local.p, parameters)
        parameters.fill(0)
        expect("the step of a read", 3, read_parameters(stub, name, [parameters]).step)
        expect_same_bits("a read", local.p, parameters)


def check_replay(channel: grpc.Channel) -> None:
    """A step that is sent again is answered, not applied again."""
    stub, gradient = OptimizerServiceStub(channel), np.array([0.5, -0.25], np.float32)
    local = Adam(np.zeros(2, np.float32))
    local.update(gradient)
    with one_tensor(stub, [2], INITIALIZATION_ZEROS) as name:
        results = []
        for _ in range(2):
            parameters = np.zeros(2, np.float32)
            with StepStream(stub) as steps:
                results.append(steps.step(header(name, 0), to_chunks([gradient]), [parameters]))
            expect_same_bits("the reply", local.p, parameters)
        expect("replayed", [False, True], [result.replayed for result in results])
        results[1].replayed = False
        expect("the result of the second time", results[0], results[1])
        asked = stub.GetStepResult(GetStepResultRequest(set=name, request_id="step 0"), timeout=TIMEOUT)
        expect("what became of the step", (STEP_STATE_COMMITTED, 1), (asked.state, asked.step))


def check_error(channel: grpc.Channel) -> None:
    """An error says in a form for programs what was wrong and where."""
    stub = OptimizerServiceStub(channel)
    with one_tensor(stub, [4], INITIALIZATION_ZEROS) as name:
        gap = TensorChunk(tensor=0, offset=1, values=[1, 1, 1])
        try:
            with StepStream(stub) as steps:
                steps.step(header(name, 0), [gap], [np.zeros(4, np.float32)])
        except grpc.RpcError as error:
            expect("the code", grpc.StatusCode.INVALID_ARGUMENT, error.code())
            got = error_detail(error)
        else:
            raise Broken("a gap between chunks: expected an error, got none")
        if got is None:
            raise Broken("the error has no ErrorDetail")
        # What is zero is there, and not absent. Whether the detail says where the set stands is not looked at.
        got.ClearField("incarnation")
        got.ClearField("step")
        expected = ErrorDetail(
            reason=ERROR_REASON_CHUNK_OUT_OF_ORDER,
            set=name,
            tensor=0,
            offset=1,
            expected_offset=0,
            field="chunks[0].offset",
        )
        expect("the detail", expected, got)


def check_health(channel: grpc.Channel) -> None:
    stub = HealthStub(channel)
    for service in ("", SERVICE):
        response = stub.Check(HealthCheckRequest(service=service), timeout=TIMEOUT)
        expect(f"the health of {service!r}", HealthCheckResponse.SERVING, response.status)
    try:
        stub.Check(HealthCheckRequest(service="nobody"), timeout=TIMEOUT)
    except grpc.RpcError as error:
        expect("the health of nobody", grpc.StatusCode.NOT_FOUND, error.code())
    else:
        raise Broken("the health of nobody: expected NOT_FOUND, got OK")


def check_reflection(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    expect(f"{SERVICE} among the services", True, SERVICE in database.get_services())
    step = DescriptorPool(database).FindServiceByName(SERVICE).FindMethodByName("Step")
    expect("Step streams both ways", (True, True), (step.client_streaming, step.server_streaming))


def check_bf16(channel: grpc.Channel) -> None:
    """Gradients in 16 bits are widened exactly, and a reply in 16 bits is rounded to the nearest."""
    stub, elements = OptimizerServiceStub(channel), 4096
    with one_tensor(stub, [elements], INITIALIZATION_ZEROS) as name:
        local, parameters = Adam(np.zeros(elements, np.float32)), np.empty(elements, np.float32)
        with StepStream(stub) as steps:
            for step, dtype in enumerate((DTYPE_FLOAT32, DTYPE_BFLOAT16)):
                upper = pseudo_random(elements, step + 1).view(np.uint32) >> 16  # Of a float: the bf16 below it.
                request = header(name, step)
                request.reply_dtype = dtype
                chunk = TensorChunk(dtype=DTYPE_BFLOAT16, data=upper.astype("<u2").tobytes())
                steps.step(request, [chunk], [parameters])
                local.update((upper << 16).view(np.float32))
                bits = local.p.view(np.uint32)
                if dtype == DTYPE_BFLOAT16:
                    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
                expect_same_bits(f"reply {step}", bits.astype(np.uint32).view(np.float32), parameters)


CASES: dict[str, Callable[[grpc.Channel], None]] = {
    "chunks": check_chunks,
    "replay": check_replay,
    "error": check_error,
    "health": check_health,
    "reflection": check_reflection,
    "bf16": check_bf16,
}


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in CASES:
        sys.exit(f"usage: conformance.py {'|'.join(CASES)} HOST:PORT")
    case, target = sys.argv[1:]
    with grpc.insecure_channel(target) as channel:
        try:
            CASES[case](channel)
        except Broken as broken:
            sys.exit(f"conformance {case}: {broken}")


if __name__ == "__main__":
    main()
