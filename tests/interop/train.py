#!/usr/bin/env python3
"""A client made of nothing but grpcio: trains the reference model, and checks what the service promises.

    train.py HOST:PORT

Stubs are generated at each run by `protoc` and gRPC's Python plugin; the channel has gRPC's default options.
Exits with 1 at the first promise that is broken.
"""
import importlib
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from array import array

import grpc

PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../proto")
LOSSES = "0.809774 0.721449 0.638959 0.562460 0.491979 0.428558 0.372196 0.320848 0.274360 0.232563".split()
CHUNK = 1 << 18  # Elements: 1 MiB, so that every message is below gRPC's default limit of 4 MiB.

with tempfile.TemporaryDirectory() as stubs:
    files = [f"adamant/v1/{name}.proto" for name in ("error", "parameter_set", "step", "service")]
    outputs = ["--python_out", stubs, "--grpc_python_out", stubs]
    plugin = f"--plugin=protoc-gen-grpc_python={shutil.which('grpc_python_plugin')}"
    subprocess.run(["protoc", "-I", PROTO, plugin, *outputs, *files], check=True)
    sys.path.insert(0, stubs)
    sets, steps, service, service_grpc = (
        importlib.import_module("adamant.v1." + name)
        for name in ("parameter_set_pb2", "step_pb2", "service_pb2", "service_pb2_grpc"))


def expect(condition, promise):
    if not condition:
        sys.exit(f"FAILED: {promise}")


def f32(x):  # Rounds correctly what is one product or one sum of two floats, computed in double.
    return array("f", [x])[0]


def create(stub, shapes, initialization):
    tensors = [sets.TensorSpec(name=name, shape=shape) for name, shape in shapes.items()]
    spec = sets.ParameterSetSpec(name=f"interop/{os.getpid()}", tensors=tensors, initialization=initialization)
    stub.CreateParameterSet(service.CreateParameterSetRequest(spec=spec))
    return spec.name


def messages(header, gradients):
    """One step: a message for each MiB of gradient, or one message if each tensor has less."""
    chunks = [steps.TensorChunk(tensor=i, offset=at, data=g[at:at + CHUNK].tobytes())
              for i, g in enumerate(gradients) for at in range(0, len(g), CHUNK)]
    groups = [chunks] if len(chunks) == len(gradients) else [[chunk] for chunk in chunks]
    for i, group in enumerate(groups):
        yield steps.StepRequest(header=None if i else header, last=i + 1 == len(groups), chunks=group)


def reply(responses, tensors):
    """One reply: an array of parameters for each tensor, and the result."""
    parameters = [array("f") for _ in range(tensors)]
    for response in responses:
        for chunk in response.chunks:
            expect(chunk.offset == len(parameters[chunk.tensor]), "the chunks of a reply come in order")
            parameters[chunk.tensor].frombytes(chunk.data)
        if response.HasField("result"):
            return parameters, response.result
    sys.exit("FAILED: a reply ends with its result")


def initial_weights():
    """As PyTorch draws them after manual_seed(0) for Linear(2, 16), then Linear(16, 1): weights before biases."""
    state = [0]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    random.setstate((3, (*state, 624), None))
    for size, fan_in in ((32, 2), (16, 2), (16, 16), (1, 16)):
        k = f32(fan_in**-0.5)
        yield array("f", (f32(random.getrandbits(32) % 2**24 / 2**24 * (k + k)) - k for _ in range(size)))


def loss_and_gradient(w1, b1, w2, b2, x=(1.0, 2.0), y=1.0):
    z = [f32(f32(b1[i] + f32(w1[2 * i] * x[0])) + f32(w1[2 * i + 1] * x[1])) for i in range(16)]
    h = [max(zi, 0.0) for zi in z]
    o = b2[0]
    for i in range(16):
        o = f32(o + f32(w2[i] * h[i]))
    error = f32(o - y)
    do = 2 * error
    dz = [f32(do * w2[i]) if z[i] > 0 else 0.0 for i in range(16)]
    gradients = [dzi * xj for dzi in dz for xj in x], dz, [do * hi for hi in h], [do]
    return f32(error * error), [array("f", g) for g in gradients]


def train_reference_model(stub):
    name = create(stub, {"w1": [16, 2], "b1": [16], "w2": [1, 16], "b2": [1]}, sets.INITIALIZATION_WRITTEN)
    parameters = list(initial_weights())
    chunks = [steps.TensorChunk(tensor=i, data=p.tobytes()) for i, p in enumerate(parameters)]
    header = service.WriteHeader(set=name, mode=service.WRITE_MODE_PARAMETERS)
    stub.WriteTensorsOnce(service.WriteTensorsOnceRequest(header=header, chunks=chunks))
    requests, losses = queue.SimpleQueue(), []
    responses = stub.Step(iter(requests.get, None))  # One stream carries all steps.
    for step in range(50):
        loss, gradients = loss_and_gradient(*parameters)
        losses.append(f"{loss:.6f}")
        for message in messages(steps.StepHeader(set=name, request_id=f"step {step}", expected_step=step), gradients):
            requests.put(message)
        parameters, result = reply(responses, 4)
        expect(result.step == step + 1, "every step is applied")
    requests.put(None)
    stub.DeleteParameterSet(service.DeleteParameterSetRequest(name=name))
    print("Losses:", *losses[4::5])
    expect(losses[4::5] == LOSSES, f"the losses are {LOSSES}")


def step_large_tensor(stub, size=3_000_000, count=6, broken=3):
    name = create(stub, {"table": [size // 3, 3]}, sets.INITIALIZATION_ZEROS)
    gradient, parameters = array("f", (i % 7 - 3 for i in range(size))), array("f", bytes(4 * size))
    for step in range(count):
        snapshot = stub.ReadTensors(service.ReadTensorsRequest(set=name))
        first = next(snapshot)  # The rest is read after the step.
        header = steps.StepHeader(set=name, request_id=f"step {step}", expected_step=step)
        if step == broken:
            call = stub.Step(messages(header, [gradient]))
            next(call)  # The reply begins: the step is complete.
            call.cancel()
            state = service.STEP_STATE_IN_FLIGHT
            while state == service.STEP_STATE_IN_FLIGHT:
                state = stub.GetStepResult(service.GetStepResultRequest(set=name, request_id=header.request_id)).state
            expect(state == service.STEP_STATE_COMMITTED, "a complete step is applied although its call is cancelled")
            header.attempt = 2
        (updated,), result = reply(stub.Step(messages(header, [gradient])), 1)
        expect((result.step, result.replayed) == (step + 1, step == broken), "a retry is answered, not applied again")
        expect(all((p - q) * g < 0 or p == q and g == 0 for p, q, g in zip(updated, parameters, gradient)),
               "parameters go against their gradients")
        data = b"".join(chunk.data for response in (first, *snapshot) for chunk in response.chunks)
        expect(first.header.step == step and data == parameters.tobytes(), "a read is one snapshot")
        parameters = updated
    stub.DeleteParameterSet(service.DeleteParameterSetRequest(name=name))
    print(f"{count} steps of {size} parameters during as many reads; one step was cancelled, retried and applied once")


with grpc.insecure_channel(sys.argv[1]) as channel:
    client = service_grpc.OptimizerServiceStub(channel)
    train_reference_model(client)
    step_large_tensor(client)
