"""Linear(2, 16), ReLU, Linear(16, 1) in fp32, every product and sum rounded, in the order of the reference."""

from __future__ import annotations

import numpy as np

from adamant.v1.parameter_set_pb2 import TensorSpec
from adamant_client import Floats

INPUTS, HIDDEN = 2, 16
SHAPES = {
    "layers.0.weight": (HIDDEN, INPUTS),
    "layers.0.bias": (HIDDEN,),
    "layers.1.weight": (1, HIDDEN),
    "layers.1.bias": (1,),
}
TENSORS = [TensorSpec(name=name, shape=shape) for name, shape in SHAPES.items()]


def initial_parameters() -> list[Floats]:
    """What PyTorch draws after manual_seed(0): its generator is that of RandomState."""
    random = np.random.RandomState(0)
    parameters = []
    for shape, fan_in in zip(SHAPES.values(), (INPUTS, INPUTS, HIDDEN, HIDDEN), strict=True):
        k = np.float32(fan_in**-0.5)
        bits = random.randint(0, 2**32, size=shape, dtype=np.uint32) & 0xFFFFFF
        u = bits.astype(np.float32) * np.float32(2**-24)
        parameters.append(u * (k + k) - k)
    return parameters


def loss_and_gradients(parameters: list[Floats], x: Floats, y: np.float32) -> tuple[np.float32, list[Floats]]:
    """(output - y)^2, and its derivative by each parameter."""
    w1, b1, w2, b2 = parameters
    # Not `w1 @ x`: BLAS adds in an order of its own, and fuses.
    z = b1 + w1[:, 0] * x[0] + w1[:, 1] * x[1]
    h = np.maximum(z, 0)
    output = b2[0]
    for product in w2[0] * h:
        output = output + product

    error = output - y
    d_output = 2 * error
    dz = np.where(z > 0, d_output * w2[0], np.float32(0))
    return error * error, [np.outer(dz, x), dz, (d_output * h)[np.newaxis], np.array([d_output])]
