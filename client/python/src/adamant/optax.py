"""optax.adam, with parameters and state on an Adamant server.

    optimizer = adamant.optax.remote_adam(1e-3, target="localhost:50051")
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)

Under `jax.jit` as well: what is sent is sent by ordered `io_callback`s. On one device, and not under `vmap` or `grad`.
An error is that of a callback: it comes when somebody waits for the result, and JAX may run no other ordered callback
in the process after it.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import io_callback

import adamant
from adamant import errors, v1
from adamant._client import Durability, durability_message
from adamant._own_set import end


class RemoteAdamState(NamedTuple):
    """Names the step of the set that the next update starts from. Everything else is on the server."""

    count: Any


class _Remote:
    """One set, as the callbacks see it: they come one after the other."""

    def __init__(
        self,
        optimizer: adamant.Adam,
        target: str | None,
        name: str | None,
        durability: v1.Durability | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._durability = durability
        self._client = adamant.Client(target)
        self._name = f"optax/{uuid.uuid4().hex}" if name is None else name
        self._steps: adamant.StepStream | None = None
        # At the latest when the program ends.
        weakref.finalize(self, end, self._client, os.getpid(), [self._name] if name is None else [])

    def create(self, names: Sequence[str], params: Sequence[Any]) -> Any:
        arrays = {name: np.asarray(param) for name, param in zip(names, params)}
        try:
            self._client.create(self._name, arrays, self._optimizer, durability=self._durability)
        except errors.SetExistsError:
            # It goes on from these parameters, with the moments that it has.
            self._client.write(self._name, arrays)
        self._steps = self._client.open_steps(self._name)
        return np.int32(self._steps.step_number)

    def step(self, count: Any, learning_rate: Any, grads: Sequence[Any], params: Sequence[Any]) -> Any:
        if self._steps is None:
            # The state was made by another process.
            self._steps = self._client.open_steps(self._name)
        steps = self._steps
        if steps.pending is not None:
            # Of the last one nobody knows yet whether it was applied.
            steps.refresh()
        if int(count) != steps.step_number:
            raise RuntimeError(
                f"the state is not that of the set {self._name!r}: expected count {steps.step_number}, got {int(count)}"
            )
        group = next(iter(steps.tensors)).group
        new = [np.empty(param.shape, param.dtype) for param in params]
        result = steps.step(
            [np.asarray(grad) for grad in grads], new, overrides={group: {"learning_rate": float(learning_rate)}}
        )
        return np.int32(result.step), new


def remote_adam(
    learning_rate: float | Callable[[Any], Any],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    target: str | None = None,
    name: str | None = None,
    durability: Durability | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on a server. The last of a chain: its updates lead from `params`, which `update` needs, to the server's.

    learning_rate: a number, or a schedule: of the number of steps.
    target: the server's address. None: $ADAMANT_TARGET.
    name: of the parameter set. None: a set of its own, which ends with the transformation, or the program. A named one
        is made by `init`, or, if it is there, gets the parameters that `init` is given; a state that was saved goes on
        with it without `init`, as long as nobody has stepped it since.
    durability: what of a set that `init` makes outlives the server's process, as `Client.create` has it.

    A gradient that is not finite is passed over: the updates are zero, and `count` stays.
    """
    rate = learning_rate if callable(learning_rate) else float(learning_rate)
    adam = adamant.Adam(lr=1e-3 if callable(rate) else rate, betas=(b1, b2), eps=eps)
    remote = _Remote(adam, target, name, None if durability is None else durability_message(durability))

    def init(params: Any) -> RemoteAdamState:
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        names = [jax.tree_util.keystr(path) or "params" for path, _ in leaves]
        for key, leaf in zip(names, leaves):
            _check(key, leaf[1])
        count = io_callback(
            lambda *arrays: remote.create(names, arrays),
            jax.ShapeDtypeStruct((), jnp.int32),
            *(leaf for _, leaf in leaves),
            ordered=True,
        )
        return RemoteAdamState(count)

    def update(updates: Any, state: RemoteAdamState, params: Any = None, **_: Any) -> tuple[Any, RemoteAdamState]:
        if params is None:
            raise ValueError("params: expected those that the gradient was computed from, got None")
        tree: Any
        leaves, tree = jax.tree_util.tree_flatten(params)
        grads = tree.flatten_up_to(updates)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        count, new = io_callback(
            remote.step,
            (jax.ShapeDtypeStruct((), jnp.int32), shapes),
            state.count,
            rate(state.count) if callable(rate) else rate,
            grads,
            leaves,
            ordered=True,
        )
        # Not applied to what came: apply_updates adds them up again, and may round. The next ones make up for it.
        differences = [(after - before).astype(before.dtype) for after, before in zip(new, leaves)]
        return tree.unflatten(differences), RemoteAdamState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(name: str, leaf: Any) -> None:
    if leaf.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise TypeError(f"params{name}: expected float32, bfloat16 or float16, got {leaf.dtype}")


__all__ = ["RemoteAdamState", "remote_adam"]
