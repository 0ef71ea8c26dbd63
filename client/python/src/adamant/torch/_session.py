"""One optimizer's parameter set: everything about it that changes."""

from __future__ import annotations

import contextlib
import operator
import os
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import grpc
import numpy as np
import torch

import adamant
from adamant import errors, v1
from adamant._connection import BegunStep
from adamant._own_set import end
from adamant.torch._bars import Bars
from adamant.torch._mirror import Array, Layout, Memory, Mirror, as_array, bits_of, check_disjoint
from adamant.torch._overlap import Overlap

ParamGroup = Mapping[str, Any]

_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MASTER = "master_param"
# Of a parameter's entry in a state dict: what the server keeps.
_ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", _MASTER)
STATE_KEYS = frozenset({"step", *_ARRAYS})
_IF_GONE = ": load_state_dict() of a checkpoint makes it again, with the parameters that are here"


def _number(value: Any) -> float:
    """A hyperparameter, which may be a tensor."""
    return float(value)


def _optimizer(group: ParamGroup, kind: str) -> adamant.Adam | adamant.SGD:
    """As a specification names what torch's group is updated by."""
    common = {"lr": _number(group["lr"]), "weight_decay": _number(group["weight_decay"]), "maximize": group["maximize"]}
    if kind == "sgd":
        return adamant.SGD(
            momentum=_number(group["momentum"]),
            dampening=_number(group["dampening"]),
            nesterov=bool(group["nesterov"]),
            **common,
        )
    beta1, beta2 = group["betas"]
    adam = adamant.AdamW if _is_decoupled(group) else adamant.Adam
    return adam(
        betas=(_number(beta1), _number(beta2)), eps=_number(group["eps"]), amsgrad=bool(group["amsgrad"]), **common
    )


def _is_decoupled(group: ParamGroup) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _fixed(group: v1.ParameterGroup) -> dict[str, Any]:
    """What no step can override."""
    if group.WhichOneof("optimizer") == "sgd":
        sgd = group.sgd
        return {
            "optimizer": "SGD",
            "dampening": np.float32(sgd.dampening),
            "has_momentum": sgd.momentum != 0,
            "nesterov": sgd.nesterov,
            "maximize": sgd.maximize,
        }
    adam = group.adam
    return {
        "optimizer": "Adam",
        "amsgrad": adam.amsgrad,
        "decoupled_weight_decay": adam.decoupled_weight_decay,
        "maximize": adam.maximize,
    }


class Session:
    """An optimizer's way to its set. It is shared by all that stand for the optimizer, such as Lightning's wrapper.

    Parameters are known here by their index in the set, which is their place among all of the optimizer's groups'.
    """

    def __init__(
        self,
        client: adamant.Client,
        groups: Sequence[ParamGroup],
        *,
        kind: str,
        name: str | None,
        attach: str,
        max_grad_norm: float | None,
        on_non_finite: str | None,
        local_changes: str,
        wire_dtype: str | None,
        workers: int,
        rank: int,
        overlap: bool,
        durability: v1.Durability | None,
        bars: Bars | None,
    ) -> None:
        self.client = client
        self.name = f"torch/{uuid.uuid4().hex}" if name is None else name
        self.last_result: adamant.StepResult | None = None
        # How many updates each parameter has had: together, and, in the same memory, one by one. By numpy, since torch
        # takes 20 us to add to a few numbers that are in no cache.
        self._counts = np.zeros(0, np.float32)
        self.steps: list[torch.Tensor] = []
        self._kind = kind
        self._local_changes = local_changes
        self._wire_dtype = wire_dtype
        self._contribution = adamant.Contribution(rank) if workers > 1 else None
        # Why the parameters here may be those of no step; then only `pull` or `push` helps.
        self._broken: str | None = None
        # The server no longer has the set; then only a state that is loaded makes it again.
        self._is_gone = False
        self._overrides: tuple[Any, list[v1.GroupOverride]] = ((), [])
        self.mirrors: list[Mirror] = []
        self._layout: Layout | None = None
        self._memory = Memory()
        self._overlap = Overlap(weakref.WeakMethod(self._begin)) if overlap else None
        self._param_groups = groups
        self._bars = bars
        # At the latest when the program ends.
        self._own_sets = [self.name] if name is None else []
        self._end = weakref.finalize(self, end, client, os.getpid(), self._own_sets)
        try:
            with self._shown("attach"):
                self._attach(groups, name is None, attach, max_grad_norm, on_non_finite, workers, durability)
        except BaseException:
            self._end()
            raise

    def _shown(self, label: str) -> contextlib.AbstractContextManager[None]:
        """Transfers are shown, if that is wished."""
        return contextlib.nullcontext() if self._bars is None else self._bars.shown(f"{label} {self.name}")

    # What the set is.

    def _attach(
        self,
        groups: Sequence[ParamGroup],
        is_own: bool,
        attach: str,
        max_grad_norm: float | None,
        on_non_finite: str | None,
        workers: int,
        durability: v1.Durability | None,
    ) -> None:
        self.mirrors = self._mirrors(groups)
        self._memory.add(self.mirrors)
        if self._overlap is not None:
            self._overlap.watch(self.mirrors)
        described = None
        if not is_own:
            with contextlib.suppress(errors.SetNotFoundError):
                described = self.client.get(self.name)
        if described is None:
            try:
                described = self._create(groups, max_grad_norm, on_non_finite, workers, durability)
            except errors.SetExistsError:
                # Another worker was faster.
                described = self.client.get(self.name)
        if described.state == v1.PARAMETER_SET_STATE_UNINITIALIZED:
            # But has not written yet, or never will.
            described = self._create(groups, max_grad_norm, on_non_finite, workers, durability, exist_ok=True)
        self._learn(described, groups)
        if is_own:
            self._remember()
            self._reload_counts()
            return
        # Also where it was made just now: of several who come at once, any may have been the first to write.
        self._check_attached(described, groups, max_grad_norm, on_non_finite, workers, durability)
        if attach == "error" and described.step > 0:
            raise RuntimeError(
                f"attach='error': the set {self.name!r} has stepped already: expected step 0, got {described.step}"
            )
        if attach == "push":
            self.push()
        else:
            self.pull()

    def _mirrors(self, groups: Iterable[ParamGroup]) -> list[Mirror]:
        """Of the parameters of groups that are new."""
        mirrors: list[Mirror] = []
        seen = set()
        for group in groups:
            names = group.get("param_names")
            for i, parameter in enumerate(group["params"]):
                index = len(self.mirrors) + len(mirrors)
                name = names[i] if names else str(index)
                # Torch warns of this, or refuses it.
                if id(parameter) in seen:
                    raise ValueError(f"parameter {name!r} is there twice")
                seen.add(id(parameter))
                mirrors.append(Mirror(parameter, name))
        check_disjoint([*self.mirrors, *mirrors])
        devices = sorted({str(mirror.parameter.device) for mirror in [*self.mirrors, *mirrors]})
        if len(devices) > 1:
            raise ValueError(f"expected parameters on one device, got some on each of {', '.join(devices)}")
        return mirrors

    def _groups(self, groups: Sequence[ParamGroup], mirrors: Sequence[Mirror], first: int = 0) -> list[adamant.Group]:
        made = []
        at = 0
        for i, group in enumerate(groups, first):
            count = len(group["params"])
            names = [mirror.name for mirror in mirrors[at : at + count]]
            made.append(adamant.Group(str(i), _optimizer(group, self._kind), names))
            at += count
        return made

    def _create(
        self,
        groups: Sequence[ParamGroup],
        max_grad_norm: float | None,
        on_non_finite: str | None,
        workers: int,
        durability: v1.Durability | None,
        exist_ok: bool = False,
    ) -> v1.ParameterSet:
        return self.client.create(
            self.name,
            {mirror.name: mirror.source() for mirror in self.mirrors},
            groups=self._groups(groups, self.mirrors),
            exist_ok=exist_ok,
            max_grad_norm=max_grad_norm,
            on_non_finite=on_non_finite or "skip",
            workers=v1.Workers(count=workers) if workers > 1 else None,
            durability=durability,
        )

    def _learn(self, described: v1.ParameterSet, groups: Sequence[ParamGroup]) -> None:
        """Finds out which of the set's groups are updated like which of the optimizer's, and opens its steps."""
        self.stream = self.client.open_steps(self.name)
        tensors = self.stream.tensors
        expected = [list(mirror.shape) for mirror in self.mirrors]
        got = [list(tensor.shape) for tensor in tensors]
        for i, (ours, theirs) in enumerate(zip(expected, got)):
            if ours != theirs:
                raise ValueError(
                    f"the set {self.name!r} is another model's: expected shape {ours} of tensor {i} "
                    f"({self.mirrors[i].name!r}), got {theirs} ({tensors[i].name!r})"
                )
        if len(expected) != len(got):
            raise ValueError(
                f"the set {self.name!r} is another model's: expected {len(expected)} tensors, got {len(got)}"
            )
        if any(group.get("param_names") for group in groups):
            for mirror, tensor in zip(self.mirrors, tensors):
                if mirror.name != tensor.name:
                    raise ValueError(
                        f"the set {self.name!r} is another model's: expected tensor {tensor.index} to be "
                        f"{mirror.name!r}, got {tensor.name!r}"
                    )
        self._tensor_names = [tensor.name for tensor in tensors]
        # Of each of the set's groups that has tensors: the optimizer's, and the values that steps cannot override.
        self._group_of: dict[str, int] = {}
        at = 0
        for i, group in enumerate(groups):
            for tensor in tensors[at : at + len(group["params"])]:
                if self._group_of.setdefault(tensor.group, i) != i:
                    raise ValueError(
                        f"the set {self.name!r} updates tensors alike (its group {tensor.group!r}) that are in the "
                        f"optimizer's groups {self._group_of[tensor.group]} and {i}"
                    )
            at += len(group["params"])
        self._described = described
        self._fixed_by_group = {group.name: _fixed(group) for group in described.groups if group.name in self._group_of}
        self._slots = adamant.optimizer_slots(described)

    def _check_attached(
        self,
        described: v1.ParameterSet,
        groups: Sequence[ParamGroup],
        max_grad_norm: float | None,
        on_non_finite: str | None,
        workers: int,
        durability: v1.Durability | None,
    ) -> None:
        """Raises where a set that was there before is not updated as the optimizer says."""
        for name, fixed in self._fixed_by_group.items():
            wanted = _fixed(_optimizer(groups[self._group_of[name]], self._kind).to_group())
            if wanted != fixed:
                raise ValueError(f"group {name!r} of the set {self.name!r}: expected {wanted}, got {fixed}")
        bound = described.clipping.max_norm if described.clipping.WhichOneof("bound") == "max_norm" else None
        if max_grad_norm is not None and (bound is None or np.float32(max_grad_norm) != np.float32(bound)):
            raise ValueError(f"max_grad_norm of the set {self.name!r}: expected {max_grad_norm}, got {bound}")
        policy = "reject" if described.non_finite_policy == v1.NON_FINITE_POLICY_REJECT else "skip"
        if on_non_finite is not None and on_non_finite != policy:
            raise ValueError(f"on_non_finite of the set {self.name!r}: expected {on_non_finite!r}, got {policy!r}")
        count = described.workers.count if described.HasField("workers") else 1
        if count != workers:
            raise ValueError(f"workers of the set {self.name!r}: expected {workers}, got {count}")
        level = described.durability.WhichOneof("level")
        expected = durability.WhichOneof("level") if durability is not None else level
        if level != expected:
            raise ValueError(f"durability of the set {self.name!r}: expected {expected!r}, got {level!r}")

    def _specification(self, name: str, groups: Sequence[ParamGroup]) -> v1.ParameterSetSpec:
        """Of a set that is what this one is, or was, but for how the optimizer's groups are updated now."""
        described = self._described
        spec = v1.ParameterSetSpec(
            name=name,
            tensors=[v1.TensorSpec(name=each.name, shape=each.shape, group=each.group) for each in self.stream.tensors],
            initialization=v1.INITIALIZATION_WRITTEN,
            labels=described.labels,
            device=described.device,
            non_finite_policy=described.non_finite_policy,
            max_staleness=described.max_staleness,
        )
        if described.HasField("clipping"):
            spec.clipping.CopyFrom(described.clipping)
        if described.HasField("workers"):
            spec.workers.CopyFrom(described.workers)
        if described.HasField("durability"):
            spec.durability.CopyFrom(described.durability)
        for group in described.groups:
            made = spec.groups.add()
            made.CopyFrom(group)
            if group.name in self._group_of:
                made.CopyFrom(_optimizer(groups[self._group_of[group.name]], self._kind).to_group(group.name))
                made.frozen = group.frozen
                if group.HasField("schedule"):
                    made.schedule.CopyFrom(group.schedule)
        return spec

    def _begin_momentum(self, groups: Sequence[ParamGroup]) -> None:
        """A set has a buffer for it, or none, as long as it lives: so another one takes its place."""
        begun = {
            name
            for name, fixed in self._fixed_by_group.items()
            if not fixed["has_momentum"] and _number(groups[self._group_of[name]]["momentum"]) != 0
        }
        if not self._own_sets:
            raise RuntimeError(
                f"group {min(begun)!r}: momentum cannot begin while the set {self.name!r} lives, which others may use: "
                f"expected 0, got {_number(groups[self._group_of[min(begun)]]['momentum'])}"
            )
        state = self.client.read_state(self.name, incarnation=self.stream.incarnation)
        if state.step != self.stream.step_number:
            raise RuntimeError(f"another client has stepped the set {self.name!r}: pull() first")
        tensors = self.stream.tensors
        buffers = state.tensors.setdefault("momentum_buffer", {})
        for tensor in tensors:
            buffers.setdefault(tensor.name, np.zeros(tuple(tensor.shape), np.float32))
        counts = state.update_counts or [state.step] * len(tensors)
        # A buffer begins as the gradient of a tensor's first update.
        counts = [0 if tensor.group in begun else count for tensor, count in zip(tensors, counts)]
        before = self.name
        name = f"torch/{uuid.uuid4().hex}"
        # Whatever is there at the end is deleted, wherever this may be interrupted.
        self._own_sets.append(name)
        described = self.client.create(self._specification(name, groups))
        written = self.client.write_state(name, adamant.State(state.step, state.tensors, update_counts=counts))
        self.name = name
        self._learn(described, groups)
        self.stream.move_to(written.incarnation, written.step)
        self._set_counts(counts)
        self.client.delete(before)
        self._own_sets.remove(before)

    @contextlib.contextmanager
    def _noticing_its_loss(self) -> Iterator[None]:
        try:
            yield
        except errors.SetNotFoundError as error:
            self._is_gone = True
            raise error.with_suffix(_IF_GONE) from None

    def add_group(self, group: ParamGroup, groups: Sequence[ParamGroup]) -> None:
        """The last of the optimizer's groups is new."""
        added = self._mirrors([group])
        if not added:
            return
        self._check()
        with self._noticing_its_loss(), self._shown("add_param_group"):
            self._add_group(group, groups, added)

    def _add_group(self, group: ParamGroup, groups: Sequence[ParamGroup], added: list[Mirror]) -> None:
        step = self.stream.step_number
        described = self.client.add_tensors(
            self.name,
            {mirror.name: mirror.source() for mirror in added},
            groups=self._groups([group], added, len(groups) - 1),
            incarnation=self.stream.incarnation,
        )
        self.mirrors += added
        self._layout = None
        self._memory.add(added)
        if self._overlap is not None:
            self._overlap.watch(added)
        self._learn(described, groups)
        self._remember(range(len(self.mirrors) - len(added), len(self.mirrors)))
        if self.stream.step_number != step:
            self._broken = "the set was stepped by somebody else while a group was added"
        self._reload_counts()

    # Steps.

    def step(self, groups: Sequence[ParamGroup], grad_scale: float) -> None:
        """Applies the gradients that there are."""
        self._check()
        # Another list after load_state_dict.
        self._param_groups = groups
        with self._noticing_its_loss():
            self._step(groups, grad_scale)

    def _step(self, groups: Sequence[ParamGroup], grad_scale: float) -> None:
        parameters = list(chain.from_iterable(group["params"] for group in groups))
        if len(parameters) != len(self.mirrors) or not all(
            map(operator.is_, parameters, [mirror.parameter for mirror in self.mirrors])
        ):
            raise RuntimeError(
                "the optimizer's parameters are others than those it was made with: make another optimizer"
            )
        found = [parameter.grad for parameter in parameters]
        carried = [i for i, gradient in enumerate(found) if gradient is not None]
        if not carried:
            return
        layout = self._lay_out()
        gradients = self._gradients(found, layout)
        self._notice_local_changes(layout)
        self._change_groups(groups)
        overrides = self._make_overrides(groups)
        begun = None if self._overlap is None else self._overlap.take(carried)
        last = self.last_result
        before = self.stream.step_number
        self._broken = "the last step was interrupted"
        try:
            result = self.stream.step(
                gradients,
                layout.targets,
                tensors=None if len(carried) == len(gradients) else carried,
                overrides=overrides,
                grad_scale=grad_scale,
                gradient_dtype=self._wire_dtype,
                reply_dtype=self._reply_dtype(layout, carried),
                contribution=self._contribution,
                begun=begun,
            )
            self.last_result = result
            self._arrived(layout, carried)
            if result.applied and result.parameters_step == before + 1:
                if len(carried) == len(gradients):
                    self._counts += 1
                else:
                    self._counts[carried] += 1
            elif result.parameters_step != before:
                # Others have stepped as well.
                self._reload_counts()
            self._broken = None
        except KeyboardInterrupt:
            # The set's parameters, with the step or without it.
            self.pull()
            raise
        except Exception as error:
            # After a refusal everything is as it was: the next step may do better.
            is_refusal = self.last_result is last and self._is_refusal(error)
            self._broken = None if is_refusal else f"the last step failed ({error})"
            raise

    def _gradients(self, found: Sequence[torch.Tensor | None], layout: Layout) -> list[Array | None]:
        """Of each its array, to be sent."""
        if not layout.is_complex:
            # numpy refuses whatever is not fp32 or fp16 on the CPU, is sparse, or has a history of its own.
            with contextlib.suppress(RuntimeError, TypeError):
                return [None if gradient is None else gradient.numpy() for gradient in found]
        for mirror, gradient in zip(self.mirrors, found):
            if gradient is not None and gradient.is_sparse and self._kind == "adam":
                raise RuntimeError(
                    "Adam does not support sparse gradients: expected dense ones, got a sparse one of "
                    f"parameter {mirror.name!r}"
                )
        return [None if gradient is None else mirror.gradient() for mirror, gradient in zip(self.mirrors, found)]

    def _lay_out(self) -> Layout:
        """Where parameters lie now."""
        if self._layout is None or not self._layout.holds():
            self._layout = Layout(self.mirrors)
        return self._layout

    def _begin(self) -> BegunStep | None:
        """A step with the hyperparameters of now."""
        if self._broken is not None or not self._end.alive:
            return None
        return self.stream.begin(self._make_overrides(self._param_groups), self._wire_dtype)

    def forget_gradients(self) -> None:
        """What has been sent of them is of no use."""
        if self._overlap is not None:
            self._overlap.cancel()

    def _is_refusal(self, error: Exception) -> bool:
        """Whether a step that has failed so has changed nothing, neither there nor here."""
        if self.stream.pending is not None:
            return False
        if not isinstance(error, errors.AdamantError):
            # It was never sent.
            return True
        # What the server finds wrong with a request it finds before it sends parameters. Of a gradient that is not
        # finite that is the end of the round, and the next one is to be learnt of.
        return error.code == grpc.StatusCode.INVALID_ARGUMENT and not (
            self._contribution is not None and isinstance(error, errors.NonFiniteGradientError)
        )

    def _reply_dtype(self, layout: Layout, carried: Sequence[int]) -> str:
        if self._wire_dtype is not None:
            return self._wire_dtype
        dtypes = {layout.dtypes[i] for i in carried}
        return _DTYPES.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"

    def _make_overrides(self, groups: Sequence[ParamGroup]) -> list[v1.GroupOverride]:
        """What schedulers, or whoever else, have made of the groups' hyperparameters, goes with every step."""
        values = []
        for group in groups:
            common = {"learning_rate": _number(group["lr"]), "weight_decay": _number(group["weight_decay"])}
            if self._kind == "sgd":
                values.append({**common, "momentum": _number(group["momentum"])})
            else:
                beta1, beta2 = group["betas"]
                eps = _number(group["eps"])
                values.append({**common, "beta1": _number(beta1), "beta2": _number(beta2), "eps": eps})
        known, overrides = self._overrides
        if values != known:
            overrides = [v1.GroupOverride(group=name, **values[i]) for name, i in self._group_of.items()]
            self._overrides = values, overrides
        return overrides

    def _change_groups(self, groups: Sequence[ParamGroup]) -> None:
        """What cannot go with a step, and somebody has changed."""
        for name, fixed in self._fixed_by_group.items():
            group = groups[self._group_of[name]]
            # Most steps end here.
            if (
                fixed["maximize"] == group["maximize"]
                and fixed.get("amsgrad") == group.get("amsgrad")
                and fixed.get("decoupled_weight_decay", False) == _is_decoupled(group)
                and fixed.get("nesterov") == group.get("nesterov")
                and ("has_momentum" not in fixed or fixed["has_momentum"] == (_number(group["momentum"]) != 0))
                and ("dampening" not in fixed or fixed["dampening"] == np.float32(_number(group["dampening"])))
            ):
                continue
            wanted = _fixed(_optimizer(group, self._kind).to_group())
            if wanted.get("amsgrad") != fixed.get("amsgrad"):
                raise RuntimeError(
                    f"group {name!r}: amsgrad cannot change while the set lives: expected {fixed['amsgrad']}, got "
                    f"{wanted['amsgrad']}"
                )
            if wanted.get("has_momentum", False) != fixed.get("has_momentum", False):
                if fixed["has_momentum"]:
                    raise RuntimeError(
                        f"group {name!r}: momentum cannot end while the set lives: expected more than 0, got "
                        f"{_number(group['momentum'])}"
                    )
                # Of all groups at once, with whatever else has changed.
                self._begin_momentum(groups)
                return
            changed = {key: value for key, value in wanted.items() if value != fixed[key]}
            wish: dict[str, Any] = {self._kind: changed}
            self.client.update_group(self.name, name, incarnation=self.stream.incarnation, **wish)
            self._fixed_by_group[name] = wanted

    def _check(self) -> None:
        if not self._end.alive:
            raise RuntimeError("the optimizer is closed")
        if self._is_gone:
            raise RuntimeError(f"the set {self.name!r} is gone{_IF_GONE}")
        if self._broken is not None:
            raise RuntimeError(
                f"{self._broken}, and the parameters may be those of no step: pull() them from the server, or push() "
                "those that are here, and compute a new gradient"
            )

    # Parameters.

    def pull(self) -> None:
        """Brings the set's parameters here."""
        if not self._end.alive:
            raise RuntimeError("the optimizer is closed")
        self._broken = "the last pull failed"
        layout = self._lay_out()
        with self._noticing_its_loss(), self._shown("pull"):
            self.stream.refresh(layout.targets)
        if self.stream.last_result is not None:
            self.last_result = self.stream.last_result
        self._arrived(layout, range(len(self.mirrors)))
        self._reload_counts()
        self._broken = None

    def push(self) -> None:
        """Writes the parameters that are here into the set."""
        if not self._end.alive:
            raise RuntimeError("the optimizer is closed")
        sources = [mirror.source() for mirror in self.mirrors]
        # What became of a step that is pending is of no account any more.
        with self._noticing_its_loss(), self._shown("push"):
            response = self.client.write(self.name, sources)
        self.stream.move_to(response.incarnation, response.step)
        self._remember()
        self._reload_counts()
        self._broken = None

    def _arrived(self, layout: Layout, indices: Sequence[int]) -> None:
        are_all = len(indices) == len(self.mirrors)
        if layout.copied:
            with torch.no_grad():
                for i in layout.copied if are_all else layout.copied.intersection(indices):
                    self.mirrors[i].arrived()
        parameters = layout.parameters if are_all else [layout.parameters[i] for i in indices]
        # Whoever has kept one for a backward pass is to be told.
        torch.autograd.graph.increment_version(parameters)
        if self._local_changes != "ignore":
            self._memory.remember(layout, None if are_all else indices)

    def _remember(self, indices: Sequence[int] | None = None) -> None:
        if self._local_changes != "ignore":
            self._memory.remember(self._lay_out(), indices)

    def _notice_local_changes(self, layout: Layout) -> None:
        """Writes into the set what was written into parameters here: torch's own optimizers would go on from that."""
        if self._local_changes == "ignore":
            return
        suspects, unsure = self._memory.compare(layout)
        # Those that are rounded here are looked at one element at a time.
        unsure += [i for i in suspects if self._precision(self.mirrors[i]) != torch.float32]
        changed = {i: self.mirrors[i].local() for i in suspects if i not in unsure}
        if unsure:
            state = self.client.read(self.name, incarnation=self.stream.incarnation)
            assert state is not None
            same = []
            for i in unsure:
                master = torch.from_numpy(state.parameters[self._tensor_names[i]])
                elements = self._with_masters(self.mirrors[i], master)
                if torch.equal(bits_of(elements), bits_of(master)):
                    same.append(i)
                else:
                    changed[i] = elements
            self._memory.remember(layout, same)
        if not changed:
            return
        names = [self._tensor_names[i] for i in sorted(changed)]
        if self._local_changes == "raise":
            raise RuntimeError(
                f"local_changes='raise': somebody has written into {len(names)} of {len(self.mirrors)} parameters, "
                f"{names[0]!r} first, since the last step: push() or pull()"
            )
        before = self.stream.step_number
        arrays = {self._tensor_names[i]: as_array(elements) for i, elements in changed.items()}
        # So that it may be repeated.
        request_id = uuid.uuid4().hex

        def write() -> v1.WriteTensorsResponse:
            return self.client.write(
                self.name, arrays, tensors=names, incarnation=self.stream.incarnation, request_id=request_id
            )

        try:
            response = write()
        except KeyboardInterrupt:
            # Written or not, which decides where the next step begins: now it is.
            self.stream.move_to(write().incarnation, before)
            self._memory.remember(layout, sorted(changed))
            raise
        # If others have stepped, this one's step is refused, as it would have been without the write.
        self.stream.move_to(response.incarnation, before)
        self._memory.remember(layout, sorted(changed))

    def _precision(self, mirror: Mirror) -> torch.dtype:
        """What a parameter is rounded to on its way here."""
        dtype = mirror.parameter.dtype
        if dtype in _DTYPES:
            return dtype
        return _TORCH_DTYPES[self._wire_dtype or "float32"]

    def _with_masters(self, mirror: Mirror, master: torch.Tensor) -> torch.Tensor:
        """The parameter as it is here, in fp32. An element that is what the set's is rounded to is the set's."""
        local = mirror.local()
        wide = local.float()
        rounded = master.to(self._precision(mirror)).to(local.dtype)
        same = bits_of(local) == bits_of(rounded)
        return torch.where(same, master, wide)

    # State.

    def _reload_counts(self) -> None:
        """How many updates each tensor has had, as the server counts."""
        counts = [tensor.update_count for tensor in self.client.list_tensors(self.name)]
        self._set_counts(counts)

    def _set_counts(self, counts: Sequence[int]) -> None:
        if len(self.steps) != len(counts):
            self._counts = np.zeros(len(counts), np.float32)
            self.steps = list(torch.from_numpy(self._counts))
        self._counts[:] = counts

    def origin(self, step: int) -> dict[str, Any]:
        """Names a state of the set."""
        return {"set": self.name, "incarnation": self.stream.incarnation, "step": step}

    def read_state(self, groups: Sequence[ParamGroup]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The state of each parameter, as torch's optimizers keep it, and the name of the whole: that of the parameters
        which are here."""
        self._check()
        try:
            with self._noticing_its_loss(), self._shown("state_dict"):
                entries, step = self._read_state(groups)
        except errors.IncarnationMismatchError as error:
            raise error.with_suffix(": somebody else has written the set: pull() first") from None
        if step != self.stream.step_number:
            raise RuntimeError(
                f"another client has stepped the set {self.name!r}: expected the state of step "
                f"{self.stream.step_number}, which the parameters here are of, got that of step {step}: pull() first"
            )
        return entries, self.origin(step)

    def _read_state(self, groups: Sequence[ParamGroup]) -> tuple[list[dict[str, Any]], int]:
        """Whatever state the set is in now, and its step."""
        state = self.client.read_state(self.name, incarnation=self.stream.incarnation)
        counts = state.update_counts or [state.step] * len(self.mirrors)
        entries: list[dict[str, Any]] = []
        at = 0
        for group in groups:
            slots = self._slots_of(group)
            for mirror, name, count in zip(self.mirrors[at:], self._tensor_names[at:], counts[at:]):
                if len(entries) - at == len(group["params"]):
                    break
                entry: dict[str, Any] = {"step": torch.tensor(float(count), dtype=torch.float32)}
                for slot in slots:
                    # Torch's SGD takes a buffer of zeros for one that has begun.
                    if slot != "momentum_buffer" or count > 0:
                        entry[slot] = self._as_torch(mirror, state.tensors[slot][name])
                if self._precision(mirror) != torch.float32:
                    entry[_MASTER] = self._as_torch(mirror, state.parameters[name])
                entries.append(entry)
            at += len(group["params"])
        return entries, state.step

    def _slots_of(self, group: ParamGroup) -> list[str]:
        if self._kind == "sgd":
            return ["momentum_buffer"] if _number(group["momentum"]) != 0 and "momentum_buffer" in self._slots else []
        return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]

    def _as_torch(self, mirror: Mirror, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if mirror.parameter.is_complex():
            tensor = torch.view_as_complex(tensor)
        return tensor.to(mirror.parameter.device)

    def write_state(
        self, entries: Sequence[Mapping[str, Any]], groups: Sequence[ParamGroup], origin: Mapping[str, Any] | None
    ) -> None:
        """Makes the set's state what `entries` say of each parameter, unless it is that state (`origin`) already.
        Parameters are those that are here."""
        with self._shown("load_state_dict"):
            self._load(entries, groups, origin)

    def _load(
        self, entries: Sequence[Mapping[str, Any]], groups: Sequence[ParamGroup], origin: Mapping[str, Any] | None
    ) -> None:
        if not self._is_gone:
            self._check()
        # Before anything changes.
        arrays = [
            {slot: self._as_slot(mirror, slot, entry[slot]) for slot in _ARRAYS if entry.get(slot) is not None}
            for mirror, entry in zip(self.mirrors, entries)
        ]
        is_here = origin is not None and dict(origin) == self.origin(self.stream.step_number)
        if not self._is_gone:
            try:
                if is_here and self._is_state(entries, groups):
                    return
                self._change_groups(groups)
                self._write_state(entries, arrays, origin)
                return
            except errors.SetNotFoundError:
                self._is_gone = True
        spec = self._specification(self.name, groups)
        # Of several workers one is the first.
        self._learn(self.client.create(spec, exist_ok=True), groups)
        self._write_state(entries, arrays, origin)
        self._is_gone = False
        self._broken = None

    def _write_state(
        self,
        entries: Sequence[Mapping[str, Any]],
        arrays: Sequence[Mapping[str, Array]],
        origin: Mapping[str, Any] | None,
    ) -> None:
        tensors: dict[str, dict[str, Array]] = {slot: {} for slot in ["parameter", *self._slots]}
        counts = []
        for i, (mirror, entry, given) in enumerate(zip(self.mirrors, entries, arrays)):
            begun = "momentum_buffer" in given
            # An SGD of torch's does not count. A buffer that there is none of is to begin.
            awaits = self._fixed_by_group[self.stream.tensors[i].group].get("has_momentum", False) and not begun
            counts.append(0 if awaits else int(entry.get("step", 1 if begun else 0)))
            name = self._tensor_names[i]
            tensors["parameter"][name] = given[_MASTER] if _MASTER in given else mirror.source()
            for slot in self._slots:
                tensors[slot][name] = given[slot] if slot in given else np.zeros(mirror.shape, np.float32)
        step = max([*counts, 0 if origin is None else int(origin["step"])])
        state = adamant.State(step, tensors, update_counts=counts)
        response = self.client.write_state(self.name, state, incarnation=self.stream.incarnation)
        self.stream.move_to(response.incarnation, response.step)
        self._set_counts(counts)
        self._remember()
        for i, entry in enumerate(entries):
            if entry.get(_MASTER) is not None:
                # These may be other parameters than the ones here: whichever are, the next step finds out.
                self._memory.forget(i)

    def _is_state(self, entries: Sequence[Mapping[str, Any]], groups: Sequence[ParamGroup]) -> bool:
        """Whether they are what the server has: somebody may have changed them since they were fetched."""
        current, step = self._read_state(groups)
        if step != self.stream.step_number:
            # Another client has stepped the set just now. That is not undone: the next step here is refused.
            return True
        for ours, theirs in zip(entries, current):
            if {key for key, value in ours.items() if value is not None and key in STATE_KEYS} != theirs.keys():
                return False
            for key, value in theirs.items():
                given = torch.as_tensor(ours[key], dtype=value.dtype, device=value.device)
                if not torch.equal(given, value):
                    return False
        return True

    def _as_slot(self, mirror: Mirror, slot: str, value: torch.Tensor) -> Array:
        real = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        if tuple(real.shape) != mirror.shape:
            raise ValueError(
                f"loaded state dict, {slot} of parameter {mirror.name!r}: expected shape {mirror.shape}, got "
                f"{tuple(real.shape)}"
            )
        return as_array(real.to("cpu", torch.float32).contiguous())

    def close(self) -> None:
        """Deletes the set, if it is the optimizer's own, and lets go of the connection."""
        if self._overlap is not None:
            self._overlap.close()
        self._end()
