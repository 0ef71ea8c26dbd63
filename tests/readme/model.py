#!/usr/bin/env python3
"""What the reader of the documents' Python example supplies, `loss_and_gradients`, and what no reader sees: whether each
gradient was computed from the parameters of the last reply. Adam runs here, too, in numpy and in double, over the same
gradients, and tells.

    model.py BLOCK...   runs the blocks as one program, and exits with 1 if a gradient was stale or a result is wrong
"""
import sys

import numpy as np

LEARNING_RATE, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8
# A step moves a parameter by about the learning rate; fp32 and double are closer than this after some hundred.
TOLERANCE = 1e-4


class Model:
    """The sum of (p - target)^2 over all parameters, with targets so far away that every parameter moves in every step.
    """

    def __init__(self):
        self.step = 0
        self.stale = 0

    def loss_and_gradients(self, parameters):
        if self.step == 0:  # The set is new: zeros.
            self.parameters, self.m, self.v = ([np.zeros(p.shape) for p in parameters] for _ in range(3))
            self.targets = [10 * (-1.0)**np.arange(p.size).reshape(p.shape) for p in parameters]
        self.stale += not self.follows(parameters)
        gradients = [(2 * (p - target)).astype(np.float32) for p, target in zip(parameters, self.targets)]
        self.step += 1
        for p, m, v, g in zip(self.parameters, self.m, self.v, gradients):
            m += (1 - BETA1) * (g - m)
            v += (1 - BETA2) * (np.square(g, dtype=np.float64) - v)
            p -= LEARNING_RATE * m / (1 - BETA1**self.step) / (np.sqrt(v / (1 - BETA2**self.step)) + EPS)
        return self.loss(parameters), gradients

    def loss(self, parameters):
        return sum(np.square(p - target, dtype=np.float64).sum() for p, target in zip(parameters, self.targets))

    def follows(self, parameters):
        """Whether these are the parameters after all gradients so far."""
        return all(np.allclose(p, q, rtol=0, atol=TOLERANCE) for p, q in zip(parameters, self.parameters))


def main(paths):
    namespace = {"__name__": "__main__"}
    largest = 0
    for path in paths:
        model = Model()
        namespace["loss_and_gradients"] = model.loss_and_gradients
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), namespace)
        if model.step == 0:
            sys.exit(f"FAILED: {path}: no gradient was asked for")
        parameters = namespace["parameters"]
        largest = max(largest, *(p.size for p in parameters))
        print(f"{model.step} gradients, {model.stale} of them stale; loss {model.loss(parameters):.6g},"
              f" and {model.loss(model.parameters):.6g} with numpy's Adam")
        if model.stale:
            sys.exit("FAILED: a gradient was computed from other parameters than those of the last reply")
        if not model.follows(parameters) or namespace["state"].step != model.step:
            sys.exit("FAILED: the last reply's parameters are not those of the last step")
    if largest <= 1 << 18:
        sys.exit("FAILED: no tensor takes more than one chunk")


main(sys.argv[1:])
