"""The server's Adam with its defaults, operation by operation, so that its results are the server's bit for bit."""

from __future__ import annotations

import numpy as np

from adamant_client import Floats

LEARNING_RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
MIN_NORMAL = np.float32(2.0**-126)
F = np.float32


class Adam:
    """Updates `p` in place. Weight decay, clipping and AMSGrad are left out."""

    def __init__(self, p: Floats) -> None:
        self.p, self.m, self.v = p, np.zeros_like(p), np.zeros_like(p)
        self._step = 0

    def update(self, gradient: Floats) -> None:
        self._step += 1
        step_size = _flush(F(LEARNING_RATE / (1 - _power(BETA1, self._step))))
        inv_sqrt_bc2 = F(1 / np.sqrt(1 - _power(BETA2, self._step)))
        g_min = max(F(np.sqrt(2.0**-125 / (1 - BETA2))), MIN_NORMAL)
        g = np.where(np.abs(gradient) >= g_min, gradient, F(0))
        self.m = _flush(_fma(F(BETA1), self.m, F(1 - BETA1) * g))
        self.v = _flush(_fma(F(BETA2), self.v, F(1 - BETA2) * (g * g)))
        d = _fma(np.sqrt(self.v), inv_sqrt_bc2, F(EPS))
        self.p = _fma(-step_size, self.m / d, self.p)


def _power(base: float, exponent: int) -> float:
    """Squares repeatedly: `**` of two machines may differ in the last bit."""
    power = 1.0
    while exponent > 0:
        if exponent % 2 == 1:
            power *= base
        base *= base
        exponent //= 2
    return power


def _flush(x: Floats) -> Floats:
    return np.where(np.abs(x) >= MIN_NORMAL, x, F(0))


def _fma(x: Floats, y: Floats, z: Floats) -> Floats:
    """x*y + z with one rounding, which numpy does not have.

    The product of two floats is exact in double. Their sum is rounded to odd, which keeps enough of what is cut off for
    the second rounding to be right.
    """
    product, addend = np.multiply(x, y, dtype=np.float64), np.asarray(z, np.float64)
    total = product + addend
    rest = total - product
    lost = (product - (total - rest)) + (addend - rest)
    bits = total.view(np.int64)
    towards_odd = np.where((lost > 0) == (total > 0), 1, -1)
    bits += np.where((lost != 0) & (bits % 2 == 0), towards_odd, 0)
    return total.astype(np.float32)
