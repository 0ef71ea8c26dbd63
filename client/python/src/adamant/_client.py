"""A client of an Adamant server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Union, overload

import numpy as np

from adamant import _fork, _framing, _native, v1
from adamant._arrays import Array, Arrays, by_index, check, wire_dtype
from adamant._connection import EventStream, OnProgress, ReadCall, RetryingConnection, WriteCall, new_request_id
from adamant._optimizers import Adam, Group, Optimizer
from adamant._options import RetryPolicy, Timeouts
from adamant._step_stream import StepStream
from adamant._transport import MAX_MESSAGE_BYTES, GrpcTransport
from adamant.errors import (
    AdamantError,
    CancelledError,
    IncarnationMismatchError,
    UninitializedError,
    WriteInProgressError,
)

# 1 MiB of elements with room for what goes with them.
_MESSAGE_BYTES = (1 << 20) + (1 << 10)

_SLOTS = {
    "parameter": v1.SLOT_PARAMETER,
    "exp_avg": v1.SLOT_EXP_AVG,
    "exp_avg_sq": v1.SLOT_EXP_AVG_SQ,
    "max_exp_avg_sq": v1.SLOT_MAX_EXP_AVG_SQ,
    "momentum_buffer": v1.SLOT_MOMENTUM_BUFFER,
}


Durability = Union[str, v1.Nothing, v1.EveryStep, v1.Checkpoints, v1.Durability]
"""What of a set outlives the server's process; see `Client.create`."""


@dataclass
class State:
    """The parameters, or the whole state, of a set at one step."""

    step: int
    tensors: dict[str, dict[str, Array]]
    """By slot (`parameter`, `exp_avg`, `exp_avg_sq`, `max_exp_avg_sq`, `momentum_buffer`) and tensor."""
    incarnation: int = 0
    """That it was read from."""
    update_counts: list[int] | None = None
    """How many updates each tensor has had, where they are not `step` for all of them."""

    @property
    def parameters(self) -> dict[str, Array]:
        """By name."""
        return self.tensors["parameter"]


def optimizer_slots(described: v1.ParameterSet) -> list[str]:
    """The arrays that a set has beside its parameters, as its groups' optimizers need them. Each of them has all
    tensors, also those of groups that make no use of it."""
    slots = []
    adam = any(group.WhichOneof("optimizer") == "adam" for group in described.groups)
    if adam:
        slots += ["exp_avg", "exp_avg_sq"]
        if any(group.adam.amsgrad for group in described.groups):
            slots.append("max_exp_avg_sq")
    if any(group.sgd.momentum > 0 for group in described.groups):
        slots.append("momentum_buffer")
    return slots


class Watch:
    """What happens to a set, as it happens: an iterator of v1.WatchParameterSetResponse, and a context manager.

    The first event is how the set stands (`current`), the last that it was deleted. Of a watch that is too slow events
    are dropped, and counted (`missed`). Iterating is for one thread at a time; `cancel` is for any.
    """

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._cancelled = False

    def __iter__(self) -> Iterator[v1.WatchParameterSetResponse]:
        return self

    def __next__(self) -> v1.WatchParameterSetResponse:
        try:
            event = self._stream.next()
        except CancelledError:
            if not self._cancelled:
                raise
            event = None
        if event is None:
            self._stream.close()
            raise StopIteration
        return event

    def cancel(self) -> None:
        """Ends it: an iteration that waits, too."""
        self._cancelled = True
        self._stream.cancel()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled = True
        self._stream.close()


class Client:
    """A server's parameter sets, over numpy. Thread-safe, and a context manager, which closes it.

    All functions wait until their call has succeeded, has failed for good, or has used up its retries; what they raise
    then is an AdamantError (see adamant.errors). A client belongs to the process that made it: in a forked child it
    refuses to work. Arrays are passed as `StepStream.step` says.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        message_bytes: int = _MESSAGE_BYTES,
        channel_options: Sequence[tuple[str, Any]] = (),
        on_wait: Callable[[AdamantError], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Connects when the first call needs it, which waits for a server that is not there yet (Timeouts.connect).

        target: host:port, unix:path, or any name that gRPC resolves. None: what $ADAMANT_TARGET says.
        message_bytes: how large messages with tensors are made, in [1 KiB, 4 MiB]. A step that fits into one is sent
            whole; a larger one sends its header ahead.
        channel_options: options of gRPC's channel; they hold over what the library would set, and have all calls go
            through grpcio.
        on_wait: called when a call begins to wait, with the reason: once each time that there is no connection, and
            before each attempt after the first. For a line in a log.
        on_progress: called while a read or write of tensors is under way: with "read" or "write", how many bytes have
            moved, and how many there are. It begins with 0, again where an attempt is repeated. Has them go through
            grpcio.
        """
        if target is None:
            target = os.environ.get("ADAMANT_TARGET", "")
            if not target:
                raise ValueError("target: expected the server's address, here or in $ADAMANT_TARGET, got none")
        if not target:
            raise ValueError("target: expected the server's address, got an empty string")
        if not 1 << 10 <= message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"message_bytes: expected 1024 to {MAX_MESSAGE_BYTES}, got {message_bytes}")
        self._target = target
        self._generation = _fork.generation
        self._message_bytes = message_bytes
        self._timeouts = timeouts or Timeouts()
        transport = GrpcTransport(target, channel_options)
        policy = retry or RetryPolicy()
        # Options of a channel are for grpcio's.
        library = None if channel_options else _native.find_library()
        if library is None:
            self._connection = RetryingConnection(
                transport, policy, self._timeouts, message_bytes, on_wait, on_progress
            )
        else:
            self._connection = _native.NativeConnection(
                library, transport, policy, self._timeouts, message_bytes, on_wait, on_progress
            )

    @property
    def target(self) -> str:
        """The server's address."""
        return self._target

    def close(self) -> None:
        """Ends all calls, those of step streams and watches among them."""
        _fork.check(self._generation)
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def server_info(self) -> v1.GetServerInfoResponse:
        """What the server is, can do, and has left."""
        return v1.GetServerInfoResponse.FromString(self._unary("GetServerInfo", v1.GetServerInfoRequest()))

    def create(
        self,
        name: str | v1.ParameterSetSpec,
        tensors: Mapping[str, Any] | None = None,
        optimizer: Optimizer | None = None,
        *,
        groups: Sequence[Group] = (),
        exist_ok: bool = False,
        labels: Mapping[str, str] | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        on_non_finite: str = "skip",
        max_staleness: int = 0,
        workers: v1.Workers | None = None,
        device: str = "",
        durability: Durability | None = None,
    ) -> v1.ParameterSet:
        """Creates a set, and returns it as it is then.

            client.create("mlp", {"w": w, "b": b}, adamant.Adam(lr=1e-3))

        name: the set's; or all of its specification, which leaves only `tensors` and `exist_ok` to be given beside it.
        tensors: by name, in the set's order, arrays, which are written, or shapes, and then all parameters are zero.
        optimizer: of a set whose tensors are all updated alike. None: Adam with its defaults.
        groups: instead of it, where they are not: each tensor belongs to one.
        exist_ok: use the set of that name, if it has the same specification, as it is, with the parameters that it has;
            so N workers may all create it. Otherwise SetExistsError, or SpecMismatchError.
        max_grad_norm, max_grad_value: torch's clip_grad_norm_ and clip_grad_value_; at most one.
        on_non_finite: "skip" or "reject" a step whose gradient is not finite.
        durability: what of the set outlives the server's process: "nothing", "every_step", "every_step:64" (which is
            v1.EveryStep(journal_steps=64)), "checkpoints:1000", "checkpoints:5m" or "checkpoints:1000,5m" (which is
            v1.Checkpoints(steps=1000, seconds=300)). None: the server's default, and with `exist_ok` what the set has.

        An attempt whose reply was lost may have created the set, and without `exist_ok` the next one then raises
        SetExistsError.
        """
        arrays = None
        if isinstance(name, v1.ParameterSetSpec):
            spec = name
            arrays = tensors
        else:
            if not tensors:
                raise ValueError("tensors: expected at least one, by name, got none")
            given = [isinstance(value, np.ndarray) for value in tensors.values()]
            if any(given) and not all(given):
                raise ValueError("tensors: expected arrays, or shapes, got some of both")
            arrays = tensors if all(given) else None
            spec = _spec(name, tensors, optimizer, groups, arrays is not None)
            if labels:
                spec.labels.update(labels)
            _configure(spec, max_grad_norm, max_grad_value, on_non_finite, max_staleness, workers)
            spec.device = device
            if durability is not None:
                spec.durability.CopyFrom(durability_message(durability))
        if arrays is not None:
            # Before there is a set that would have to be deleted.
            sources = self._parameter_sources([(tensor.name, tuple(tensor.shape)) for tensor in spec.tensors], arrays)
        request = v1.CreateParameterSetRequest(
            spec=spec, if_exists=v1.IF_EXISTS_USE_IF_SAME_SPEC if exist_ok else v1.IF_EXISTS_FAIL
        )
        response = v1.CreateParameterSetResponse.FromString(self._unary("CreateParameterSet", request))
        described = response.parameter_set
        if arrays is None or (not response.created and described.state != v1.PARAMETER_SET_STATE_UNINITIALIZED):
            return described
        return self._initialize(described, sources)

    def get(self, name: str) -> v1.ParameterSet:
        """Describes a set."""
        reply = self._unary("GetParameterSet", v1.GetParameterSetRequest(name=name))
        return v1.GetParameterSetResponse.FromString(reply).parameter_set

    def list(self, prefix: str = "", *, labels: Mapping[str, str] | None = None) -> Iterator[v1.ParameterSet]:
        """All sets whose name starts with `prefix` and that have these labels, in order of name."""
        request = v1.ListParameterSetsRequest(name_prefix=prefix, labels=dict(labels or {}))
        while True:
            page = v1.ListParameterSetsResponse.FromString(self._unary("ListParameterSets", request))
            yield from page.parameter_sets
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def list_tensors(self, name: str) -> Sequence[v1.Tensor]:
        """All of a set's tensors, in order of index."""
        tensors: list[v1.Tensor] = []
        request = v1.ListTensorsRequest(name=name)
        while True:
            page = v1.ListTensorsResponse.FromString(self._unary("ListTensors", request))
            tensors.extend(page.tensors)
            if not page.next_page_token:
                return tensors
            request.page_token = page.next_page_token

    def delete(self, name: str, *, incarnation: int | None = None) -> None:
        """Deletes the set: this very incarnation, or the one that it has now. If it is another one by the time:
        IncarnationMismatchError."""
        if incarnation is None:
            incarnation = self.get(name).incarnation
        self._unary("DeleteParameterSet", v1.DeleteParameterSetRequest(name=name, incarnation=incarnation))

    @overload
    def read(
        self,
        name: str,
        out: Arrays | None = None,
        *,
        tensors: Sequence[str] | None = None,
        incarnation: int | None = None,
        if_newer_than_step: None = None,
        may_abort: bool = False,
    ) -> State: ...

    @overload
    def read(
        self,
        name: str,
        out: Arrays | None = None,
        *,
        tensors: Sequence[str] | None = None,
        incarnation: int | None = None,
        if_newer_than_step: int,
        may_abort: bool = False,
    ) -> State | None: ...

    def read(
        self,
        name: str,
        out: Arrays | None = None,
        *,
        tensors: Sequence[str] | None = None,
        incarnation: int | None = None,
        if_newer_than_step: int | None = None,
        may_abort: bool = False,
    ) -> State | None:
        """The parameters of one step, while steps of others go on: into `out`, or new arrays.

        tensors: names of those to read, in any order. The others do not come, and `out` needs no arrays for them.
        if_newer_than_step: reads nothing, and returns None, unless the set is beyond this step. Demand the incarnation,
            too, to be told of a write that took it back.
        may_abort: where the server has no room to keep the snapshot, read on until the next step, and only then fail.
        """
        known = self.list_tensors(name)
        names = [tensor.name for tensor in known]
        if tensors is not None:
            for tensor in tensors:
                if tensor not in names:
                    raise ValueError(f"tensors: the set has no tensor {tensor!r}")
            if not tensors:
                raise ValueError("tensors: expected at least one name; None reads all")
        wanted = [tensors is None or each in tensors for each in names]
        arrays: Sequence[Array | None]
        if out is None:
            arrays = [np.empty(tuple(tensor.shape), np.float32) for tensor in known]
        else:
            arrays = by_index("out", out, names, wanted)
        arrays = [array if is_wanted else None for array, is_wanted in zip(arrays, wanted)]
        return self._read(name, known, {"parameter": arrays}, incarnation, if_newer_than_step, may_abort)

    @overload
    def read_state(self, name: str, *, incarnation: int | None = None, if_newer_than_step: None = None) -> State: ...

    @overload
    def read_state(self, name: str, *, incarnation: int | None = None, if_newer_than_step: int) -> State | None: ...

    def read_state(
        self, name: str, *, incarnation: int | None = None, if_newer_than_step: int | None = None
    ) -> State | None:
        """Everything of one step that a checkpoint needs; otherwise as `read`."""
        described = self.get(name)
        tensors = self.list_tensors(name)
        slots = ["parameter", *optimizer_slots(described)]
        arrays = {slot: [np.empty(tuple(t.shape), np.float32) for t in tensors] for slot in slots}
        return self._read(name, tensors, arrays, incarnation, if_newer_than_step, False)

    def write(
        self,
        name: str,
        parameters: Arrays,
        *,
        tensors: Sequence[str] | None = None,
        incarnation: int | None = None,
        request_id: str | None = None,
    ) -> v1.WriteTensorsResponse:
        """Replaces all parameters, or those of `tensors`, in one go. Moments and step are kept. The set has another
        incarnation then, to which open step streams move by `refresh`."""
        known = self.list_tensors(name)
        indices = {tensor.name: tensor.index for tensor in known}
        chosen: list[int] = []
        for tensor in tensors or ():
            if tensor not in indices:
                raise ValueError(f"tensors: the set has no tensor {tensor!r}")
            chosen.append(indices[tensor])
        header = v1.WriteHeader(set=name, mode=v1.WRITE_MODE_PARAMETERS, tensors=sorted(chosen))
        described = [(tensor.name, tuple(tensor.shape)) for tensor in known]
        sources = self._parameter_sources(described, parameters, sorted(chosen) or None)
        return self._write(header, [sources], incarnation, request_id)

    def write_state(
        self,
        name: str,
        state: State,
        *,
        incarnation: int | None = None,
        request_id: str | None = None,
    ) -> v1.WriteTensorsResponse:
        """Replaces everything: restores what `read_state` returned, bit for bit."""
        known = [(tensor.name, tuple(tensor.shape)) for tensor in self.list_tensors(name)]
        header = v1.WriteHeader(set=name, mode=v1.WRITE_MODE_FULL, step=state.step)
        if state.update_counts is not None:
            header.update_counts.extend(state.update_counts)
        sources = []
        for slot, arrays in state.tensors.items():
            if slot not in _SLOTS:
                raise ValueError(f"state: expected slots of {', '.join(_SLOTS)}, got {slot!r}")
            sources.append(self._parameter_sources(known, arrays, slot=_SLOTS[slot], what=slot))
        return self._write(header, sources, incarnation, request_id)

    def update_group(
        self,
        name: str,
        group: str | v1.ParameterGroup = "",
        fields: Sequence[str] | None = None,
        *,
        learning_rate: float | None = None,
        schedule: v1.Schedule | None = None,
        frozen: bool | None = None,
        adam: Mapping[str, Any] | None = None,
        sgd: Mapping[str, Any] | None = None,
        incarnation: int | None = None,
        config_revision: int | None = None,
    ) -> v1.ParameterSet:
        """Changes a group between two steps, and returns the set as it is then.

            client.update_group("mlp", "default", learning_rate=1e-4, adam={"weight_decay": 0.1})

        group: its name (empty: the set's first); or all of its values, of which `fields` change, named as in
            UpdateParameterGroupRequest.update_mask.
        config_revision: demands that nobody has changed the configuration since; otherwise ConfigChangedError.
        """
        if isinstance(group, v1.ParameterGroup):
            if not fields:
                raise ValueError("fields: expected the names of those that are to change, got none")
            values, mask = group, list(fields)
        else:
            values, mask = v1.ParameterGroup(name=group), []
            if learning_rate is not None:
                values.learning_rate = learning_rate
                mask.append("learning_rate")
            if schedule is not None:
                values.schedule.CopyFrom(schedule)
                mask.append("schedule")
            if frozen is not None:
                values.frozen = frozen
                mask.append("frozen")
            for optimizer, message in (("adam", values.adam), ("sgd", values.sgd)):
                for field, value in ((adam if optimizer == "adam" else sgd) or {}).items():
                    setattr(message, field, value)
                    mask.append(f"{optimizer}.{field}")
            if not mask:
                raise ValueError("update_group: expected something to change, got nothing")
        request = v1.UpdateParameterGroupRequest(set=name, group=values, update_mask=v1.FieldMask(paths=mask))
        _demand(request, incarnation, config_revision)
        reply = self._unary("UpdateParameterGroup", request)
        return v1.UpdateParameterGroupResponse.FromString(reply).parameter_set

    def update_set(
        self,
        name: str | v1.ParameterSetSpec,
        fields: Sequence[str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        clipping: v1.Clipping | None = None,
        non_finite_policy: int | None = None,
        max_staleness: int | None = None,
        workers: v1.Workers | None = None,
        incarnation: int | None = None,
        config_revision: int | None = None,
    ) -> v1.ParameterSet:
        """Changes what a set has beside its groups, and returns it as it is then. `name`: the set's; or its values, of
        which `fields` change, named as in UpdateParameterSetRequest.update_mask."""
        if isinstance(name, v1.ParameterSetSpec):
            if not fields:
                raise ValueError("fields: expected the names of those that are to change, got none")
            values, mask = name, list(fields)
        else:
            values, mask = v1.ParameterSetSpec(name=name), []
            if labels is not None:
                values.labels.update(labels)
                mask.append("labels")
            if clipping is not None:
                values.clipping.CopyFrom(clipping)
                mask.append("clipping")
            if non_finite_policy is not None:
                values.non_finite_policy = non_finite_policy
                mask.append("non_finite_policy")
            if max_staleness is not None:
                values.max_staleness = max_staleness
                mask.append("max_staleness")
            if workers is not None:
                values.workers.CopyFrom(workers)
                mask.append("workers")
            if not mask:
                raise ValueError("update_set: expected something to change, got nothing")
        request = v1.UpdateParameterSetRequest(spec=values, update_mask=v1.FieldMask(paths=mask))
        _demand(request, incarnation, config_revision)
        return v1.UpdateParameterSetResponse.FromString(self._unary("UpdateParameterSet", request)).parameter_set

    def add_tensors(
        self,
        name: str,
        tensors: Mapping[str, Any],
        *,
        group: str = "",
        groups: Sequence[Group] = (),
        incarnation: int | None = None,
    ) -> v1.ParameterSet:
        """Adds tensors behind those that the set has, and returns it as it is then: another incarnation, to which open
        step streams do not move.

        tensors: by name, arrays or shapes. Shapes are zero; arrays are written, in a second call. Until that has
            returned the set has zeros there.
        group: one that the set has, to which those belong that none of `groups` names. Empty: the set's first.
        groups: new ones.
        """
        given = {key: value for key, value in tensors.items() if isinstance(value, np.ndarray)}
        of_group = {tensor: added.name for added in groups for tensor in added.tensors}
        unknown = sorted(of_group.keys() - tensors.keys())
        if unknown:
            raise ValueError(f"groups: tensor {unknown[0]!r} is none of those to add")
        request = v1.AddTensorsRequest(
            set=name,
            # So that a retry adds nothing twice.
            schema_fingerprint=self.get(name).schema_fingerprint,
            tensors=[
                v1.TensorSpec(name=key, shape=_shape(value), group=of_group.get(key, group))
                for key, value in tensors.items()
            ],
            groups=[added.to_proto() for added in groups],
        )
        if incarnation is not None:
            request.incarnation = incarnation
        described = v1.AddTensorsResponse.FromString(self._unary("AddTensors", request)).parameter_set
        if given:
            self.write(name, given, tensors=list(given), incarnation=described.incarnation)
            described = self.get(name)
        return described

    def checkpoint(self, name: str, *, incarnation: int | None = None) -> v1.Checkpoint:
        """Has the server put all of the set on its disk, as it is at some time during the call, while steps go on.

        An attempt whose reply was lost is repeated: that makes another checkpoint, if the set has moved on."""
        request = v1.CheckpointRequest(set=name)
        if incarnation is not None:
            request.incarnation = incarnation
        return v1.CheckpointResponse.FromString(self._unary("Checkpoint", request)).checkpoint

    def checkpoints(self, name: str) -> Sequence[v1.Checkpoint]:
        """What the set can be taken back to, the newest first."""
        reply = self._unary("ListCheckpoints", v1.ListCheckpointsRequest(set=name))
        return v1.ListCheckpointsResponse.FromString(reply).checkpoints

    def restore_checkpoint(
        self, name: str, checkpoint: v1.Checkpoint, *, incarnation: int | None = None
    ) -> v1.ParameterSet:
        """Takes the set back to one of its checkpoints, and returns it as it is then: another incarnation, to which
        open step streams move by `refresh`.

        An attempt whose reply was lost may have done so. Repeated, it does so again, and steps that came in between are
        undone: demand the set's incarnation where others step it. Then the next attempt raises
        IncarnationMismatchError, and the set shows where it stands."""
        request = v1.RestoreCheckpointRequest(
            set=name, checkpoint_incarnation=checkpoint.incarnation, checkpoint_step=checkpoint.step
        )
        if incarnation is not None:
            request.incarnation = incarnation
        reply = self._unary("RestoreCheckpoint", request)
        return v1.RestoreCheckpointResponse.FromString(reply).parameter_set

    def fork(
        self,
        name: str,
        new_name: str,
        *,
        device: str = "",
        durability: Durability | None = None,
        incarnation: int | None = None,
    ) -> v1.ParameterSet:
        """Makes a new set that is what the set is now, and returns it.

        device: where it lives. Empty: where the other one does.
        durability: what of it outlives the server's process, as `create` has it. None: what of the other one does.

        An attempt whose reply was lost may have made it, and the next one then raises SetExistsError.
        """
        request = v1.ForkRequest(set=name, name=new_name, device=device)
        if durability is not None:
            request.durability.CopyFrom(durability_message(durability))
        if incarnation is not None:
            request.incarnation = incarnation
        return v1.ForkResponse.FromString(self._unary("Fork", request)).parameter_set

    def watch(self, name: str) -> Watch:
        """What happens to the set, as it happens. It does not connect again by itself, and holds a call open."""
        _fork.check(self._generation)
        return Watch(self._connection.watch(v1.WatchParameterSetRequest(name=name)))

    def get_step_result(
        self, name: str, request_id: str, *, incarnation: int | None = None
    ) -> v1.GetStepResultResponse:
        """What became of the step that was sent with this request_id."""
        request = v1.GetStepResultRequest(set=name, request_id=request_id)
        if incarnation is not None:
            request.incarnation = incarnation
        return v1.GetStepResultResponse.FromString(self._unary("GetStepResult", request))

    def open_steps(self, name: str) -> StepStream:
        """Steps of a set, from its current state on. Write a new set's parameters before."""
        described = self.get(name)
        return StepStream(self._connection, described, self.list_tensors(name), self._message_bytes)

    def _unary(self, method: str, request: v1.Message) -> bytes:
        _fork.check(self._generation)
        return self._connection.unary(method, request.SerializeToString())

    def _parameter_sources(
        self,
        tensors: Sequence[tuple[str, tuple[int, ...]]],
        arrays: Arrays,
        chosen: Sequence[int] | None = None,
        slot: int = v1.SLOT_PARAMETER,
        what: str = "parameters",
    ) -> _framing.Source:
        indices = range(len(tensors)) if chosen is None else chosen
        flags = None if chosen is None else [i in set(chosen) for i in range(len(tensors))]
        found = by_index(what, arrays, [name for name, _ in tensors], flags)
        checked = []
        for i in indices:
            name, shape = tensors[i]
            checked.append(check(what, found[i], name, shape, int(np.prod(shape, dtype=np.int64))))
        return _framing.Source(slot, list(indices), checked, [wire_dtype(array.dtype) for array in checked])

    def _write(
        self,
        header: v1.WriteHeader,
        sources: Sequence[_framing.Source],
        incarnation: int | None,
        request_id: str | None,
    ) -> v1.WriteTensorsResponse:
        _fork.check(self._generation)
        if incarnation is not None:
            header.incarnation = incarnation
        header.request_id = new_request_id() if request_id is None else request_id
        return self._connection.write(WriteCall(header, sources))

    def _initialize(self, described: v1.ParameterSet, sources: _framing.Source) -> v1.ParameterSet:
        """The first write of a set that others may be about to write as well: it happens once."""
        header = v1.WriteHeader(set=described.name, mode=v1.WRITE_MODE_PARAMETERS)
        end = time.monotonic() + self._timeouts.transfer
        while True:
            try:
                self._write(header, [sources], described.incarnation, None)
                return self.get(described.name)
            except (IncarnationMismatchError, WriteInProgressError, UninitializedError):
                now = self.get(described.name)
                if now.state != v1.PARAMETER_SET_STATE_UNINITIALIZED:
                    return now
                if time.monotonic() >= end:
                    raise
                # Another one's write is under way, or has broken off.
                time.sleep(0.05)

    def _read(
        self,
        name: str,
        tensors: Sequence[v1.Tensor],
        arrays: Mapping[str, Sequence[Array | None]],
        incarnation: int | None,
        if_newer_than_step: int | None,
        may_abort: bool,
    ) -> State | None:
        _fork.check(self._generation)
        request = v1.ReadTensorsRequest(set=name, may_abort=may_abort)
        if incarnation is not None:
            request.incarnation = incarnation
        if if_newer_than_step is not None:
            request.if_newer_than_step = if_newer_than_step
        targets: dict[int, Sequence[Array | None]] = {
            _SLOTS[slot]: [
                None
                if array is None
                else check("out", array, tensor.name, tuple(tensor.shape), tensor.element_count, writable=True)
                for array, tensor in zip(found, tensors)
            ]
            for slot, found in arrays.items()
        }
        # They are None in every slot alike.
        missing = {i for found in arrays.values() for i, array in enumerate(found) if array is None}
        if missing:
            request.tensors.extend(i for i in range(len(tensors)) if i not in missing)
        header = self._connection.read(ReadCall(request, targets))
        if header.not_modified:
            return None
        return State(
            step=header.step,
            tensors={
                slot: {tensor.name: array for tensor, array in zip(tensors, found) if array is not None}
                for slot, found in arrays.items()
            },
            incarnation=header.incarnation,
            update_counts=list(header.update_counts) or None,
        )


def _shape(value: Any) -> tuple[int, ...]:
    shape = value.shape if isinstance(value, np.ndarray) else value
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _spec(
    name: str, tensors: Mapping[str, Any], optimizer: Optimizer | None, groups: Sequence[Group], written: bool
) -> v1.ParameterSetSpec:
    if optimizer is not None and groups:
        raise ValueError("optimizer and groups: expected one of them, got both")
    of_group: dict[str, str] = {}
    for group in groups:
        for tensor in group.tensors:
            if tensor not in tensors:
                raise ValueError(f"groups: group {group.name!r} has tensor {tensor!r}, which the set has not")
            if of_group.setdefault(tensor, group.name) != group.name:
                raise ValueError(f"groups: tensor {tensor!r} is in {of_group[tensor]!r} and in {group.name!r}")
    missing = [tensor for tensor in tensors if groups and tensor not in of_group]
    if missing:
        raise ValueError(f"groups: tensor {missing[0]!r} is in none of them")
    return v1.ParameterSetSpec(
        name=name,
        tensors=[
            v1.TensorSpec(name=key, shape=_shape(value), group=of_group.get(key, "")) for key, value in tensors.items()
        ],
        groups=[group.to_proto() for group in groups] or [(optimizer or Adam()).to_group()],
        initialization=v1.INITIALIZATION_WRITTEN if written else v1.INITIALIZATION_ZEROS,
    )


def durability_message(durability: Durability) -> v1.Durability:
    """What the protocol has for it. ValueError if it is none."""
    if isinstance(durability, v1.Durability):
        return durability
    if isinstance(durability, v1.EveryStep):
        return v1.Durability(every_step=durability)
    if isinstance(durability, v1.Checkpoints):
        return v1.Durability(checkpoints=durability)
    if isinstance(durability, v1.Nothing):
        return v1.Durability(nothing=durability)
    if durability == "nothing":
        return v1.Durability(nothing=v1.Nothing())
    if isinstance(durability, str):
        every_step = re.fullmatch(r"every_step(?::([1-9]\d*))?", durability, re.ASCII)
        if every_step:
            return v1.Durability(every_step=v1.EveryStep(journal_steps=int(every_step[1] or 0)))
        kind, _, terms = durability.partition(":")
        if kind == "checkpoints":
            checkpoints = v1.Checkpoints()
            for term in terms.split(","):
                number = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)([smh])", term, re.ASCII)
                if not number or checkpoints.HasField("steps" if number[1] else "seconds"):
                    break
                if number[1]:
                    checkpoints.steps = int(number[1])
                else:
                    checkpoints.seconds = float(number[2]) * {"s": 1, "m": 60, "h": 3600}[number[3]]
            else:
                return v1.Durability(checkpoints=checkpoints)
    raise ValueError(
        "durability: expected 'nothing', 'every_step', 'every_step:64', 'checkpoints:1000', 'checkpoints:5m', "
        f"'checkpoints:1000,5m', v1.EveryStep or v1.Checkpoints, got {durability!r}"
    )


def _configure(
    spec: v1.ParameterSetSpec,
    max_grad_norm: float | None,
    max_grad_value: float | None,
    on_non_finite: str,
    max_staleness: int,
    workers: v1.Workers | None,
) -> None:
    if max_grad_norm is not None and max_grad_value is not None:
        raise ValueError("max_grad_norm and max_grad_value: expected at most one of them, got both")
    if max_grad_norm is not None:
        spec.clipping.max_norm = max_grad_norm
    if max_grad_value is not None:
        spec.clipping.max_value = max_grad_value
    policies = {"skip": v1.NON_FINITE_POLICY_SKIP, "reject": v1.NON_FINITE_POLICY_REJECT}
    if on_non_finite not in policies:
        raise ValueError(f"on_non_finite: expected 'skip' or 'reject', got {on_non_finite!r}")
    spec.non_finite_policy = policies[on_non_finite]
    spec.max_staleness = max_staleness
    if workers is not None:
        spec.workers.CopyFrom(workers)


def _demand(request: Any, incarnation: int | None, config_revision: int | None) -> None:
    if incarnation is not None:
        request.incarnation = incarnation
    if config_revision is not None:
        request.config_revision = config_revision
