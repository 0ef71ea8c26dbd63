"""Steps of one parameter set, one after the other: the hot path of a trainer."""

from __future__ import annotations

import enum
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import grpc
import numpy as np

from adamant import _fork, _framing, v1
from adamant._arrays import (
    FLOAT32,
    Array,
    Arrays,
    by_index,
    check,
    check_no_overlap,
    dtype_argument,
    wire_dtype,
)
from adamant._connection import BegunStep, Connection, ReadCall, StepCall, new_request_id
from adamant.errors import (
    AdamantError,
    ConfigChangedError,
    IncompleteError,
    TensorNotCarriedError,
)

_F4 = np.dtype("<f4")
# A trainer brings its tensors in one way, or in a few ways; one that draws them for each step must not fill the memory.
_MOST_LAYOUTS = 16


class StepOutcome(enum.IntEnum):
    """What a step that was carried out led to. Faults are exceptions."""

    APPLIED = v1.STEP_OUTCOME_APPLIED
    """The step was applied."""
    SKIPPED_NON_FINITE = v1.STEP_OUTCOME_SKIPPED_NON_FINITE
    """The gradient is not finite. Nothing changed."""
    ACCUMULATED = v1.STEP_OUTCOME_ACCUMULATED
    """The contribution counts in its round, which goes on."""
    REFUSED_STALE = v1.STEP_OUTCOME_REFUSED_STALE
    """The set is further on than its `max_staleness` allows. Nothing changed; the parameters are those of now."""
    REFUSED_LATE = v1.STEP_OUTCOME_REFUSED_LATE
    """The round that the contribution was for is over. Nothing changed; the parameters are those of now."""


@dataclass(frozen=True)
class NonFinite:
    """Where a gradient is not finite."""

    tensor: str
    """The lowest tensor that has such an element."""
    offset: int
    """The first such element of it, in row-major order."""
    rank: int | None
    """The contribution to a round that has it; None where only their sum does, or there is no round."""


@dataclass
class StepResult:
    """What became of a step."""

    outcome: StepOutcome
    step: int
    """The set's step after this one, or as it still is where it was not applied."""
    incarnation: int
    grad_norm: float
    """Euclidean norm of the whole gradient, divided by `grad_scale` and before clipping."""
    learning_rates: dict[str, float]
    """By group, as the step used them. Empty unless applied."""
    staleness: int
    """Of an asynchronous step: how many steps the set was further on."""
    replayed: bool
    """The reply was lost and asked for again; this is the step's original result."""
    parameters_step: int
    """The step that the parameters belong to: `step`, or a later one when replayed."""
    config_revision: int
    overflowed: int
    """Parameters that are infinite only because `reply_dtype` has no room for them."""
    round: int
    """In a set with workers: the round that the next contribution is for."""
    contributions: int
    """In a set with workers: of how many contributions the step was made."""
    non_finite: NonFinite | None
    """Where the gradient is not finite, if that is why the step was skipped."""
    durable_step: int | None
    """The last step of the set that outlives the server's process, as its durability promises: with `every_step` the
    set's, with checkpoints that of the last one. None: nothing of the set is kept, or not yet."""
    state_digest: bytes | None
    """Where the step asked for it and was applied: SHA-256 of the set's new state and of the digest before it. Two runs
    that have the same here are the same to the bit."""
    parameters: dict[str, Array] | None
    """The updated parameters by name, if the step brought some back and was given no `out`."""

    @property
    def applied(self) -> bool:
        """Whether the step was applied."""
        return self.outcome == StepOutcome.APPLIED


@dataclass(frozen=True)
class Contribution:
    """In a set with workers, a step is one contribution to their round."""

    rank: int
    """Which of them, in [0, workers.count)."""
    weight: float = 1.0
    """What it counts beside the others: the round's step applies their weighted mean."""
    ack_when_folded: bool = False
    """Returns as soon as it counts (ACCUMULATED), and brings back no parameters: for one client that contributes
    several ranks of a round, one after the other, to all of them but the last. That is gradient accumulation."""


Rows = Mapping[Union[str, int], tuple[Array, Array]]
"""Of tensors, by name or index: which rows, int64, and the gradient of each of them, one after the other."""

Overrides = Union[Mapping[str, Mapping[str, float]], Iterable[v1.GroupOverride]]
"""Hyperparameters for one step: by group, those of v1.GroupOverride by name."""


class _Layout:
    """What is the same for all steps that bring the same tensors in the same way."""

    def __init__(self, carried: Sequence[int], sizes: Sequence[int], dtypes: Sequence[int]) -> None:
        framed = [(t, n, d) for t, n, d in zip(carried, sizes, dtypes) if n]
        self.framed = [t for t, _, _ in framed]
        self.dtypes = [d for _, _, d in framed]
        self.small = _framing.SmallMessages(self.framed, [n for _, n, _ in framed], self.dtypes)
        # Whether none of the tensors is without elements, which do not travel.
        self.is_whole = len(framed) == len(carried)
        # How the reply to such a step is made.
        self.records: dict[int, _framing.ReplyRecord] = {}


class StepStream:
    """Made by Client.open_steps. For one thread at a time; any number of streams may step one set or many side by side.

    A stream stands at one state of its set, (incarnation, step), that of the parameters which it brought last, and
    steps from there and from nowhere else: when another client was faster, `step` fails rather than applying a gradient
    to parameters that it was not computed from. Asynchronous steps are those that may be behind.

    It holds nothing that would have to be closed.
    """

    def __init__(
        self, connection: Connection, described: v1.ParameterSet, tensors: Sequence[v1.Tensor], message_bytes: int
    ) -> None:
        self._connection = connection
        self._generation = _fork.generation
        # Of the thread's own, so that one whose Ctrl-C struck just before or behind a step is not shut out itself.
        self._busy = threading.RLock()
        self._message_bytes = message_bytes
        self._set = described.name
        self._fingerprint = described.schema_fingerprint
        self._incarnation = described.incarnation
        self._step = described.step
        self._tensors = list(tensors)
        self._names = [tensor.name for tensor in tensors]
        self._index = {name: i for i, name in enumerate(self._names)}
        self._shapes = [tuple(tensor.shape) for tensor in tensors]
        self._sizes = [tensor.element_count for tensor in tensors]
        self._pending: str | None = None
        self._last_header: v1.StepHeader | None = None
        # Of the step that is about to be sent.
        self._begun: BegunStep | None = None
        self._last_result: StepResult | None = None
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, ...]], _Layout] = {}
        self._take_configuration(described)

    @property
    def set_name(self) -> str:
        """The set that is stepped."""
        return self._set

    @property
    def tensors(self) -> Sequence[v1.Tensor]:
        """The set's tensors in order of their index: what each array is for, and its shape."""
        return self._tensors

    @property
    def incarnation(self) -> int:
        """Of the state that the next step starts from."""
        return self._incarnation

    @property
    def step_number(self) -> int:
        """The step of the state that the next step starts from."""
        return self._step

    @property
    def round_number(self) -> int:
        """In a set with workers: the round that the next contribution is for."""
        return self._round

    @property
    def pending(self) -> str | None:
        """The request_id of a step of which it is not known whether it was applied: it was interrupted, or the server
        could not be reached in time. Until `refresh` has found out, only a step with this request_id can follow."""
        return self._pending

    @property
    def last_result(self) -> StepResult | None:
        """Of the last step of which it is known what became of it; `refresh` finds out about one that is `pending`."""
        return self._last_result

    def step(
        self,
        grads: Arrays,
        out: Arrays | None = None,
        *,
        tensors: Sequence[str | int] | None = None,
        rows: Rows | None = None,
        overrides: Overrides | None = None,
        grad_scale: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        gradient_dtype: object = None,
        reply_dtype: object = "float32",
        omit_parameters: bool = False,
        digest_state: bool = False,
        contribution: Contribution | None = None,
        asynchronous: bool = False,
        request_id: str | None = None,
        begun: BegunStep | None = None,
    ) -> StepResult:
        """Applies a gradient, and brings the updated parameters back.

        grads: an array for each tensor, as a list in the order of `tensors` or as a dict by name, of the tensor's shape
            or flat. float32, float16 and bfloat16 (ml_dtypes', or its bits as uint16) go up from where they lie, as
            they are. One that is not C-contiguous costs a copy; another type is a TypeError.
        out: arrays to put the parameters into, likewise; C-contiguous, writable, float32 or, with 16 bits, of any type
            that may go up. None of them may overlap a gradient: a ValueError where that is large or sent again.
            None: new ones, in `StepResult.parameters`.
        tensors: names or indices of the tensors that the step brings. The others keep their parameters and their state,
            their places in `grads` and `out` are not looked at, and a dict need not have them. None: all that no group
            has frozen.
        rows: of these tensors some rows alone, for example {"embedding": (touched, gradient)} with `touched` of int64,
            indices into the tensor's first extent, and `gradient` of shape [touched.size, *shape[1:]] or flat. In any
            order; what comes for a row more than once is added up. Their places in `grads` are not looked at. The other
            rows keep their parameters and their state. What comes back are these rows: each at its place in `out`, or,
            without `out`, in order and each once, which is that of np.unique(touched).
        overrides: hyperparameters that hold for this step alone, instead of their groups': for example
            {"default": {"learning_rate": 1e-4}}.
        grad_scale: what the gradient was multiplied with; it is divided out before anything else is done with it.
        metrics: what was measured, such as the loss: shown to those who watch the set.
        gradient_dtype, reply_dtype: how gradient and parameters travel: "float32", "bfloat16" or "float16". What is of
            another type is converted on the way, rounded to the nearest; the set keeps all of its bits. A
            gradient_dtype of None leaves every array as it is.
        omit_parameters: brings back no parameters.
        digest_state: asks for `StepResult.state_digest`: the server reads and hashes all of the new state.
        contribution: in a set with workers, which contribution to their round this is. Returns when the round has
            become a step, which takes the other workers.
        asynchronous: the gradient counts although the set has moved on since, by as many steps as its `max_staleness`.
        request_id: names the step, so that a program that was restarted in the middle of it may repeat it: 1 to 64
            printable ASCII characters, new for every step. None: a random one.
        begun: what `begin` began, of which `grads` has what was sent. Where it is another step than this one, all is
            sent again.

        On return all parameters are of the one step `parameters_step`, and `step_number` is that. Look at `outcome`: a
        gradient that is not finite is SKIPPED_NON_FINITE, which is no error, and left the set as it was. Of a step that
        brings some of the tensors, or rows, only their parameters come back; if others stepped between, the rest is
        older, and `step_number` stays, until `refresh`.

        Failed attempts are repeated as RetryPolicy says, without ever stepping twice. On an exception the content of
        `out` is indeterminate and `step_number` is as before. After StepMismatchError, IncarnationMismatchError and
        their like: refresh, and compute a new gradient. After UnavailableError, DeadlineExceededError or
        KeyboardInterrupt it is not known whether the step was applied (`pending`): `refresh` finds out, and so does
        `step` with the same gradient and the same request_id.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this StepStream is in a step of another thread: open one for each")
        try:
            _fork.check(self._generation)
            if self._pending is not None and request_id != self._pending:
                raise RuntimeError(
                    f"it is not known whether the last step, {self._pending}, was applied: refresh the parameters first"
                )
            header = v1.StepHeader(
                set=self._set,
                incarnation=self._incarnation,
                schema_fingerprint=self._fingerprint,
                request_id=request_id or (begun.header.request_id if begun is not None else new_request_id()),
            )
            if asynchronous:
                header.base_step = self._step
            else:
                header.expected_step = self._step
            if tensors is not None:
                header.tensors.extend(self._indices(tensors))
            sparse = [] if rows is None else self._rows(rows, out is None)
            for each in sparse:
                header.sparse.add(tensor=each.tensor, rows=each.rows.size)
            if overrides is not None:
                if isinstance(overrides, Mapping):
                    for group, values in overrides.items():
                        header.overrides.add(group=group, **values)
                else:
                    header.overrides.extend(overrides)
            if grad_scale != 1:
                header.grad_scale = grad_scale
            if metrics:
                header.metrics.update(metrics)
            wire = None if gradient_dtype is None else dtype_argument("gradient_dtype", gradient_dtype)
            reply = FLOAT32 if reply_dtype == "float32" else dtype_argument("reply_dtype", reply_dtype)
            if reply != FLOAT32:
                header.reply_dtype = reply
            brings_back = not omit_parameters
            header.omit_parameters = omit_parameters
            header.digest_state = digest_state
            if contribution is not None:
                header.rank = contribution.rank
                header.round = self._round
                if contribution.weight != 1:
                    header.weight = contribution.weight
                header.ack_when_folded = contribution.ack_when_folded
                brings_back = brings_back and not contribution.ack_when_folded
            self._last_header = header
            if begun is not None and begun.header != header:
                # An attempt that is not complete ends with the next one of the same request.
                begun.cancel()
                begun = None
            self._begun = begun
            while True:
                try:
                    result = self._send(header, grads, sparse, out, wire, reply, brings_back, contribution is not None)
                    break
                except (ConfigChangedError, TensorNotCarriedError, IncompleteError):
                    # Nothing was applied. If other tensors are frozen now than the stream knew, then that was why.
                    if not self._learn_configuration():
                        raise
            self._move_on(result, header, brings_back)
            self._last_result = result
            return result
        finally:
            self._busy.release()

    def begin(self, overrides: Iterable[v1.GroupOverride], gradient_dtype: object = None) -> BegunStep | None:
        """Begins to send the gradient of a step that is to be like the last one but for its `overrides`: from where the
        stream is now. None: there was none, it was asynchronous or brought rows of a tensor, or it is not known what
        became of it."""
        last = self._last_header
        if last is None or self._pending is not None or last.HasField("base_step") or last.sparse:
            return None
        header = v1.StepHeader()
        header.CopyFrom(last)
        header.request_id = new_request_id()
        header.incarnation = self._incarnation
        header.expected_step = self._step
        if header.HasField("round"):
            header.round = self._round
        del header.overrides[:]
        header.overrides.extend(overrides)
        wire = None if gradient_dtype is None else dtype_argument("gradient_dtype", gradient_dtype)
        return self._connection.begin_step(header, wire)

    def refresh(self, out: Arrays | None = None) -> dict[str, Array] | None:
        """Brings the set's current parameters into `out`, which is as in `step`, and moves the stream to their state.
        Without `out` they are returned in new arrays, by name.

        Where a step is `pending` it finds out first what became of it: if it was applied, `last_result` is its result
        (without parameters). On an exception the content of `out` is indeterminate and the stream stays where it was.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this StepStream is in a step of another thread: open one for each")
        try:
            _fork.check(self._generation)
            everything = list(range(len(self._names)))
            targets, fresh = self._targets(out, everything, None)
            result = self._find_out(self._pending) if self._pending is not None else None
            header = self._connection.read(ReadCall(v1.ReadTensorsRequest(set=self._set), {v1.SLOT_PARAMETER: targets}))
            if result is not None:
                self._last_result = result
            self._pending = None
            self._incarnation = header.incarnation
            self._step = header.step
            if self._round:
                # If the round has moved on since the read, then so has the step, and the next contribution is refused.
                self._learn_configuration()
            return fresh
        finally:
            self._busy.release()

    def move_to(self, incarnation: int, step: int) -> None:
        """Moves the stream to a state whose parameters the caller has: that of a write of its own, for example, which
        returned both. What was `pending` is no more."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this StepStream is in a step of another thread: open one for each")
        try:
            _fork.check(self._generation)
            self._pending = None
            self._incarnation = incarnation
            self._step = step
            if self._round:
                # The write has ended the round that was open.
                self._learn_configuration()
        finally:
            self._busy.release()

    def _send(
        self,
        header: v1.StepHeader,
        grads: Arrays,
        rows: Sequence[_framing.Rows],
        out: Arrays | None,
        wire: int | None,
        reply: int,
        brings_back: bool,
        contributes: bool,
    ) -> StepResult:
        brought = tuple(header.tensors) or self._not_frozen
        carried = brought
        if rows:
            sparse = {each.tensor for each in rows}
            carried = tuple(i for i in brought if i not in sparse)
            # Those of `rows` are the server's to refuse.
            brought = tuple(sorted(sparse.union(brought)))
            for each in rows:
                each.dtype = wire or wire_dtype(each.values.dtype)
        flags = self._flags(carried)
        arrays = self._sources(grads, carried, flags)
        dtypes = tuple(map(wire_dtype, [array.dtype for array in arrays]))
        travel = dtypes if wire is None else (wire,) * len(dtypes)
        layout = self._layouts.get((carried, travel))
        if layout is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[carried, travel] = _Layout(carried, [self._sizes[i] for i in carried], travel)
        targets: Sequence[Array | None] | None = None
        fresh = None
        if brings_back:
            targets, fresh = self._targets(out, brought, self._flags(brought) if rows else flags, rows)
        framed = arrays if layout.is_whole else [array for array in arrays if array.size]
        small = layout.small
        header_room = self._message_bytes - small.framed_bytes - small.data_bytes - 16
        make = None

        def check_overlap() -> None:
            if targets is not None:
                sent = [*arrays, *(each.values for each in rows)]
                check_no_overlap(sent, [array for array in targets if array is not None])

        if not rows and travel == dtypes and len(framed) <= _framing.MAX_CHUNKS and header.ByteSize() <= header_room:

            def make(header_bytes: bytes) -> bytes:
                return small.make(header_bytes, framed)

        else:
            check_overlap()
        source = _framing.Source(v1.SLOT_UNSPECIFIED, layout.framed, framed, layout.dtypes)
        call = StepCall(
            header=header,
            small=make,
            sources=[source],
            check_again=check_overlap,
            parameters=targets,
            # That of a reply with whole tensors is of no use for one without, or with rows.
            record=_framing.ReplyRecord()
            if targets is None or rows
            else layout.records.setdefault(reply, _framing.ReplyRecord()),
            round_timeout=self._round_timeout if contributes else 0.0,
            rows=rows,
        )
        begun, self._begun = self._begun, None
        # Not known from here on, unless it turns out.
        self._pending = header.request_id
        try:
            result = self._connection.step(call) if begun is None else begun.step(call)
        except AdamantError as error:
            # A server that says why it does not apply a step has not applied it; one that is out of reach may have.
            if error.reason and error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._pending = None
            raise
        self._pending = None
        return self._result(result, fresh)

    def _flags(self, carried: Sequence[int]) -> list[bool] | None:
        """By index, whether a tensor is one of `carried`; None where all are."""
        if len(carried) == len(self._names):
            return None
        flags = [False] * len(self._names)
        for i in carried:
            flags[i] = True
        return flags

    def _rows(self, rows: Rows, compact: bool) -> list[_framing.Rows]:
        """`rows` by ascending tensor; how they travel is left open."""
        found = {}
        for tensor, (numbers, values) in rows.items():
            (i,) = self._indices([tensor], "rows")
            name, shape = self._names[i], self._shapes[i]
            if i in found:
                raise ValueError(f"rows: tensor {name!r} is there by its name and by its index")
            if not shape:
                raise ValueError(f"rows[{name!r}]: expected a tensor that has rows, got a scalar")
            numbers = np.asarray(numbers)
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise TypeError(
                    f"rows[{name!r}]: expected rows in one dimension of int64, got {numbers.ndim} of {numbers.dtype}"
                )
            # uint64 has numbers that are none of int64: they wrap to negative ones.
            numbers = np.ascontiguousarray(numbers, np.int64)
            outside = numbers[(numbers < 0) | (numbers >= shape[0])]
            if outside.size:
                raise ValueError(f"rows[{name!r}]: expected rows below {shape[0]}, got {outside[0]}")
            of_rows = (numbers.size, *shape[1:])
            checked = check("rows", values, name, of_rows, math.prod(of_rows))
            found[i] = _framing.Rows(i, shape, numbers, checked, FLOAT32, compact)
        return [found[i] for i in sorted(found)]

    def _sources(self, grads: Arrays, carried: Sequence[int], flags: Sequence[bool] | None) -> list[Array]:
        arrays = by_index("gradients", grads, self._names, flags)
        if flags is not None:
            arrays = [arrays[i] for i in carried]
        return [
            # The usual ones are let by without a call.
            array
            if type(array) is np.ndarray
            and array.dtype is _F4
            and array.shape == self._shapes[i]
            and array.flags.c_contiguous
            else check("gradients", array, self._names[i], self._shapes[i], self._sizes[i])
            for i, array in zip(carried, arrays)
        ]

    def _targets(
        self,
        out: Arrays | None,
        carried: Sequence[int],
        flags: Sequence[bool] | None,
        rows: Sequence[_framing.Rows] = (),
    ) -> tuple[list[Array | None], dict[str, Array] | None]:
        """Where the parameters go, by index, and in new arrays, if there is no `out`, by name."""
        fresh = None
        shapes = self._shapes
        if out is None:
            if rows:
                shapes = list(shapes)
                for each in rows:
                    shapes[each.tensor] = (each.distinct.size, *each.shape[1:])
            fresh = {self._names[i]: np.empty(shapes[i], _F4) for i in carried}
            found: Sequence[Any] = [fresh.get(name) for name in self._names]
        else:
            found = by_index("out", out, self._names, flags)
        if flags is None:
            chosen: Sequence[tuple[int, Any]] = list(enumerate(found))
        else:
            chosen = [(i, found[i]) for i in carried]
        checked: list[Array | None] = [
            array
            if type(array) is np.ndarray and array.dtype is _F4 and array.shape == shapes[i] and array.flags.carray
            else check("out", array, self._names[i], shapes[i], math.prod(shapes[i]), writable=True)
            for i, array in chosen
        ]
        if flags is None:
            return checked, fresh
        targets: list[Array | None] = [None] * len(self._names)
        for i, target in zip(carried, checked):
            targets[i] = target
        return targets, fresh

    def _indices(self, tensors: Sequence[str | int], what: str = "tensors") -> list[int]:
        indices = set()
        for tensor in tensors:
            index = self._index.get(tensor) if isinstance(tensor, str) else tensor
            if index is None or not 0 <= index < len(self._names):
                raise ValueError(f"{what}: expected names or indices of the set's {len(self._names)}, got {tensor!r}")
            indices.add(index)
        if not indices:
            raise ValueError("tensors: expected at least one, got none")
        return sorted(indices)

    def _result(self, result: v1.StepResult, fresh: dict[str, Array] | None) -> StepResult:
        non_finite = None
        if result.HasField("non_finite_tensor"):
            rank = result.non_finite_rank if result.HasField("non_finite_rank") else None
            non_finite = NonFinite(self._names[result.non_finite_tensor], result.non_finite_offset, rank)
        return StepResult(
            outcome=StepOutcome(result.outcome),
            step=result.step,
            incarnation=result.incarnation,
            grad_norm=result.grad_norm,
            learning_rates=dict(zip(self._groups, result.learning_rates)),
            staleness=result.staleness,
            replayed=result.replayed,
            parameters_step=result.parameters_step,
            config_revision=result.config_revision,
            overflowed=result.overflowed,
            round=result.round,
            contributions=result.contributions,
            non_finite=non_finite,
            durable_step=result.durable_step if result.HasField("durable_step") else None,
            state_digest=result.state_digest or None,
            parameters=fresh,
        )

    def _move_on(self, result: StepResult, header: v1.StepHeader, brings_back: bool) -> None:
        if header.HasField("rank"):
            self._round = result.round
        if result.outcome == StepOutcome.ACCUMULATED:
            return
        if not brings_back:
            if not header.HasField("base_step"):
                self._step = result.step
            return
        # Of a step that brought some tensors, or rows, the rest is of its step, too, if nobody else was there between.
        if not (header.tensors or header.sparse) or result.parameters_step <= self._step + 1:
            self._step = result.parameters_step

    def _find_out(self, request_id: str) -> StepResult | None:
        """What became of a step; None if it was not applied."""
        request = v1.GetStepResultRequest(set=self._set, incarnation=self._incarnation, request_id=request_id)
        pause = 0.001
        while True:
            try:
                reply = self._connection.unary("GetStepResult", request.SerializeToString())
            except AdamantError as error:
                # The set is another one by now, or there is none: that much is known of the step.
                if error.reason in ("INCARNATION_MISMATCH", "UNINITIALIZED", "POISONED"):
                    return None
                raise
            response = v1.GetStepResultResponse.FromString(reply)
            if response.state == v1.STEP_STATE_COMMITTED:
                response.result.replayed = True
                return self._result(response.result, None)
            if response.state != v1.STEP_STATE_IN_FLIGHT:
                return None
            # It was cancelled: what has not arrived whole ends, and the rest has its turn soon.
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _learn_configuration(self) -> bool:
        """Returns whether the configuration is another one than before."""
        reply = self._connection.unary("GetParameterSet", v1.GetParameterSetRequest(name=self._set).SerializeToString())
        described = v1.GetParameterSetResponse.FromString(reply).parameter_set
        self._round = described.round
        if described.config_revision == self._config_revision:
            return False
        self._take_configuration(described)
        return True

    def _take_configuration(self, described: v1.ParameterSet) -> None:
        self._config_revision = described.config_revision
        self._round = described.round
        self._round_timeout = described.workers.round_timeout_seconds
        self._groups = [group.name for group in described.groups]
        frozen = {group.name for group in described.groups if group.frozen}
        self._not_frozen = tuple(i for i, tensor in enumerate(self._tensors) if tensor.group not in frozen)
