"""Torch's optimizers with their state on a server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

import adamant
from adamant._client import Durability, durability_message
from adamant.torch._bars import Bars
from adamant.torch._session import STATE_KEYS, Session

# As torch's own steps: dynamo is not to trace a call over the network, nor to be imported for saying so.
_not_traced = torch._disable_dynamo  # type: ignore[attr-defined]

_ORIGIN = "adamant"


class _Remote(torch.optim.Optimizer):
    """What all remote optimizers have beside torch's.

    The constructor with its checks, `param_groups`, hooks and `zero_grad` are torch's. All that changes is the
    session's, which is one even where a wrapper copies the optimizer's attributes (Lightning). `state` holds each
    parameter's number of updates (`step`) from the beginning, and nothing else: moments come with `state_dict`.
    """

    _kind: str
    _session: Session | None = None

    # A scaled gradient goes up as it is, and GradScaler need not unscale it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        *args: Any,
        target: str | None = None,
        name: str | None = None,
        attach: str = "pull",
        max_grad_norm: float | None = None,
        on_non_finite: str | None = None,
        local_changes: str = "push",
        wire_dtype: str | None = None,
        workers: int = 1,
        rank: int = 0,
        overlap: bool = False,
        durability: Durability | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        """Torch's arguments, and then, all by name:

        target: the server's address. None: $ADAMANT_TARGET.
        name: of the parameter set. None: a set of its own, which `close` deletes. A named one is made if it is not
            there, and stays.
        attach: whose parameters win where the named set is there already: the server's ("pull"), or the ones here
            ("push"); "error" refuses a set that has stepped.
        max_grad_norm: clips the gradient's norm on the server: torch's clip_grad_norm_.
        on_non_finite: a gradient that is not finite is passed over ("skip", the default; `last_result` says so), or
            the step raises ("reject", adamant.NonFiniteGradientError).
        local_changes: what becomes of parameters that were written here since the last step: the server gets them
            ("push"), the step raises ("raise"), or nobody looks and they are lost ("ignore", which saves two passes
            over the parameters a step). Of a 16-bit parameter the elements that were not written keep the bits
            that only the server has.
        wire_dtype: how gradients and parameters travel: "float32", "bfloat16" or "float16". None: each as it is.
            The server computes in 32 bits, and keeps them.
        workers, rank: with more than one worker, each with an optimizer of the same `name` and a rank from 0, `step`
            waits for all of them, and applies the mean of their gradients.
        overlap: sends gradients while the backward pass still computes others, where a step takes more than one
            message. The numbers are the same: where a gradient, or a hyperparameter, is another one when `step` comes,
            all is sent again. Costs a pass over the gradients a step. For parameters on the CPU.
        durability: what of the set outlives the server's process, as `Client.create` has it: "nothing", "every_step",
            "checkpoints:1000,5m". None: the server's default.
        progress: draws a bar of tqdm's for each transfer of all parameters, or of their state, on a terminal.

        max_grad_norm, on_non_finite and durability are the set's: of one that is there already they must be the same,
        if they are given; of durability, which of the three it is. `foreach`, `fused` and `capturable` are checked by
        torch, and mean nothing here; `differentiable` is refused.
        """
        _check_choice("attach", attach, ("pull", "push", "error"))
        _check_choice("local_changes", local_changes, ("push", "raise", "ignore"))
        _check_choice("on_non_finite", on_non_finite, ("skip", "reject", None))
        _check_choice("wire_dtype", wire_dtype, ("float32", "bfloat16", "float16", None))
        if not 1 <= workers <= 64 or not 0 <= rank < workers:
            raise ValueError(f"workers and rank: expected 1 to 64 and 0 to workers - 1, got {workers} and {rank}")
        if workers > 1 and name is None:
            raise ValueError("name: expected one that all workers know, got none")
        super().__init__(params, *args, **kwargs)
        _check_groups(self.param_groups)
        bars = Bars() if progress else None
        self._session = Session(
            adamant.Client(target, on_progress=bars),
            self.param_groups,
            kind=self._kind,
            name=name,
            attach=attach,
            max_grad_norm=max_grad_norm,
            on_non_finite=on_non_finite,
            local_changes=local_changes,
            wire_dtype=wire_dtype,
            workers=workers,
            rank=rank,
            overlap=overlap,
            durability=None if durability is None else durability_message(durability),
            bars=bars,
        )
        self._show_steps()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows torch's arguments where a signature is looked for."""
        super().__init_subclass__(**kwargs)
        # Not those of classes that others derive, as Lightning does.
        if _Remote in cls.__bases__:
            torchs = list(inspect.signature(cls.__bases__[1]).parameters.values())
            ours = inspect.signature(_Remote.__init__).parameters.values()
            added = [parameter for parameter in ours if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
            cls.__signature__ = inspect.Signature([*torchs, *added])  # type: ignore[attr-defined]

    @property
    def set_name(self) -> str:
        """The parameter set's name."""
        return self._attached.name

    @property
    def client(self) -> adamant.Client:
        """The connection to the server."""
        return self._attached.client

    @property
    def last_result(self) -> adamant.StepResult | None:
        """What became of the last step that the server was sent: its outcome, the gradient's norm, and more."""
        return self._attached.last_result

    @property
    def _attached(self) -> Session:
        assert self._session is not None
        return self._session

    @_not_traced
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Sends the gradients of the parameters that have one, and brings back these parameters.

        Every group's hyperparameters go with it. Nothing is sent where no parameter has a gradient. Raises
        adamant.AdamantError; after that, unless it is about what was sent (INVALID_ARGUMENT), `pull` and compute a new
        gradient. After Ctrl-C the parameters are those that
        the set has, with the step or without it: `last_result` tells.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # GradScaler's, for the time of this call.
        found_inf: torch.Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() != 0:
            return loss
        scale: torch.Tensor | None = getattr(self, "grad_scale", None)
        self._attached.step(self.param_groups, 1.0 if scale is None else float(scale))
        return loss

    @_not_traced
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        if self._session is not None:
            self._session.forget_gradients()
        super().zero_grad(set_to_none)

    @_not_traced
    def pull(self) -> None:
        """Brings the set's current parameters here, whoever has stepped it, and goes on from there."""
        self._attached.pull()

    @_not_traced
    def push(self) -> None:
        """Writes the parameters that are here into the set, whoever has stepped it, and goes on from there. Moments and
        steps are kept."""
        self._attached.push()

    def close(self) -> None:
        """Deletes the set, if it was made without a name, and ends the connection. The optimizer is of no use after
        that. It happens by itself when nobody has the optimizer any more, or the program ends."""
        if self._session is not None:
            self._session.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_not_traced
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds tensors to the set."""
        super().add_param_group(param_group)
        if self._session is None:
            # Torch's constructor calls it for the first ones.
            return
        try:
            _check_groups(self.param_groups[-1:])
            self._session.add_group(self.param_groups[-1], self.param_groups)
        except BaseException:
            self.param_groups.pop()
            raise
        self._show_steps()

    @_not_traced
    def state_dict(self) -> dict[str, Any]:
        """As torch's own, whose optimizers can load it, with moments that are read from the server. Beside it, under
        "adamant", stands which state of which set it is; and beside the moments of a parameter that has fewer bits
        here than on the server, the server's (`master_param`)."""
        entries, origin = self._attached.read_state(self.param_groups)
        shown = dict(self.state)
        try:
            for mirror, entry in zip(self._attached.mirrors, entries):
                self.state[mirror.parameter] = {**shown.get(mirror.parameter, {}), **entry}
            result = super().state_dict()
        finally:
            self.state.clear()
            self.state.update(shown)
        result[_ORIGIN] = origin
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state dict of this class or of torch's. The set's moments and counts become those, its parameters the
        ones here. Where it is the very state that the set has, nothing is sent."""
        loaded: dict[str, Any] = {}

        def take(_optimizer: torch.optim.Optimizer, hooked: dict[str, Any]) -> dict[str, Any]:
            # Behind the user's hooks. Torch would round moments to their parameter's type.
            loaded.update(hooked)
            return {**hooked, "state": {}}

        handle = self.register_load_state_dict_pre_hook(take)
        self._loaded: dict[str, Any] | None = loaded
        try:
            super().load_state_dict(state_dict)
        finally:
            self._loaded = None
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Torch's load_state_dict ends with this, before its hooks."""
        loaded = getattr(self, "_loaded", None)
        if loaded is None:
            super().__setstate__(state)
            return
        before = self.state, self.param_groups
        super().__setstate__(state)
        ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        entries = [loaded["state"].get(i) or {} for i in ids]
        try:
            _check_groups(self.param_groups)
            self._attached.write_state(entries, self.param_groups, loaded.get(_ORIGIN))
        except BaseException:
            self.state, self.param_groups = before
            raise
        for mirror, entry in zip(self._attached.mirrors, entries):
            # What others keep there stays, as with torch.
            self.state[mirror.parameter] = {key: value for key, value in entry.items() if key not in STATE_KEYS}
        self._show_steps()

    def _show_steps(self) -> None:
        """So that nobody takes it for an optimizer without state, and makes one by stepping: torch's
        get_optimizer_state_dict does."""
        for mirror, step in zip(self._attached.mirrors, self._attached.steps):
            self.state[mirror.parameter]["step"] = step

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: two of them would step one set. Save its "
            "state_dict(), or make another one that attaches to a set by name"
        )


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}")


def _check_groups(groups: list[dict[str, Any]]) -> None:
    for group in groups:
        if group.get("differentiable"):
            raise ValueError("differentiable: expected False, got True: no gradient goes through a server")


class RemoteAdam(_Remote, torch.optim.Adam):
    """torch.optim.Adam on a server."""

    _kind = "adam"


class RemoteAdamW(_Remote, torch.optim.AdamW):
    """torch.optim.AdamW on a server."""

    _kind = "adam"


class RemoteSGD(_Remote, torch.optim.SGD):
    """torch.optim.SGD on a server."""

    _kind = "sgd"
