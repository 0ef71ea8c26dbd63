"""The messages and enums of the protocol, adamant.v1. Made by generate.py from proto/adamant/v1; do not edit."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any as _Any
from typing import ClassVar, Generic, TypeVar

_M = TypeVar("_M", bound="Message")
_T = TypeVar("_T")

class Message:
    """What every message can do (google.protobuf.message.Message)."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...
    def ParseFromString(self, serialized: bytes) -> int: ...
    @classmethod
    def FromString(cls: type[_M], serialized: bytes) -> _M: ...
    def CopyFrom(self: _M, other: _M) -> None: ...
    def MergeFrom(self: _M, other: _M) -> None: ...
    def Clear(self) -> None: ...
    def ClearField(self, field_name: str) -> None: ...
    def HasField(self, field_name: str) -> bool: ...
    def WhichOneof(self, oneof_group: str) -> str | None: ...
    def ListFields(self) -> list[tuple[_Any, _Any]]: ...
    def ByteSize(self) -> int: ...
    def IsInitialized(self) -> bool: ...
    DESCRIPTOR: ClassVar[_Any]

class _Repeated(MutableSequence[_T]):
    """A field with many values. Of messages, `add` makes one in place."""

    def add(self, **fields: _Any) -> _T: ...
    def insert(self, index: int, value: _T) -> None: ...
    def __getitem__(self, index: _Any) -> _Any: ...
    def __setitem__(self, index: _Any, value: _Any) -> None: ...
    def __delitem__(self, index: _Any) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_T]: ...

class _Enum(Generic[_T]):
    """An enum: its values are ints."""

    @classmethod
    def Name(cls, number: int) -> str: ...
    @classmethod
    def Value(cls, name: str) -> int: ...
    @classmethod
    def keys(cls) -> list[str]: ...
    @classmethod
    def values(cls) -> list[int]: ...
    @classmethod
    def items(cls) -> list[tuple[str, int]]: ...
    DESCRIPTOR: ClassVar[_Any]

class Any(Message):
    type_url: str
    value: bytes

class Duration(Message):
    seconds: int
    nanos: int
    def __init__(self, *, seconds: int = ..., nanos: int = ...) -> None: ...

class FieldMask(Message):
    paths: _Repeated[str]
    def __init__(self, *, paths: Iterable[str] = ...) -> None: ...

class Timestamp(Message):
    seconds: int
    nanos: int
    def __init__(self, *, seconds: int = ..., nanos: int = ...) -> None: ...

class ErrorReason(_Enum[int]):
    """Which failure it is, where the gRPC code says only of what kind. The code that each reason comes with stands beside
    it. More reasons may be added: treat one that you do not know as its code says.
    """

    # No reason was recorded: a fault of the server. INTERNAL.
    ERROR_REASON_UNSPECIFIED: ClassVar[int]
    # The message is not a valid protocol buffer of its type. INVALID_ARGUMENT.
    ERROR_REASON_MALFORMED_MESSAGE: ClassVar[int]
    # The message has a field that this server does not know; `field` is its path, with its number at the end.
    # INVALID_ARGUMENT.
    ERROR_REASON_UNKNOWN_FIELD: ClassVar[int]
    # `field` is missing, out of range, or in conflict with another field. INVALID_ARGUMENT.
    ERROR_REASON_INVALID_FIELD: ClassVar[int]
    # The first message has no header, or a later one has one, or the stream ended before its last message.
    # INVALID_ARGUMENT.
    ERROR_REASON_UNEXPECTED_MESSAGE: ClassVar[int]
    # A message is larger than 4 MiB, a header of a step or write than 512 KiB, a request that neither moves tensors nor
    # creates a set than 64 KiB, or a call's metadata than 32 KiB; the text says what to send instead.
    # INVALID_ARGUMENT. Far above, gRPC itself is first: a message larger by more than 64 KiB, and metadata above 128
    # KiB, end RESOURCE_EXHAUSTED without details, the latter with all calls of the connection.
    ERROR_REASON_MESSAGE_TOO_LARGE: ClassVar[int]
    # A chunk names a tensor index that the set does not have. INVALID_ARGUMENT.
    ERROR_REASON_UNKNOWN_TENSOR: ClassVar[int]
    # A chunk carries no element of a tensor that has some, or both `data` and `values`, or bytes that are not whole
    # elements; or rows, or parts of rows, where there are to be none. INVALID_ARGUMENT.
    ERROR_REASON_MALFORMED_CHUNK: ClassVar[int]
    # A chunk does not start where the previous one of its tensor ended, which is `expected_offset`: elements are missing
    # or repeated. INVALID_ARGUMENT.
    ERROR_REASON_CHUNK_OUT_OF_ORDER: ClassVar[int]
    # A chunk reaches over the end of its tensor, or starts before its beginning; or has a row that there is not, or more
    # rows than were announced. INVALID_ARGUMENT.
    ERROR_REASON_CHUNK_OUT_OF_RANGE: ClassVar[int]
    # The last message came before all elements, or announced rows, did; the detail names the lowest tensor and the first
    # element that is missing. INVALID_ARGUMENT.
    ERROR_REASON_INCOMPLETE: ClassVar[int]
    # A value that a write may not bring: not finite, or too large for its slot. INVALID_ARGUMENT.
    ERROR_REASON_VALUE_OUT_OF_RANGE: ClassVar[int]
    # A chunk is of a tensor that the step or write does not bring: its header names others, or a group has frozen it.
    # INVALID_ARGUMENT.
    ERROR_REASON_TENSOR_NOT_CARRIED: ClassVar[int]
    # The gradient is not finite, or would not be once it is scaled, and the set rejects such steps
    # (`NonFinitePolicy`); the detail names the lowest tensor and the first element. INVALID_ARGUMENT.
    ERROR_REASON_NON_FINITE_GRADIENT: ClassVar[int]
    # No set of this name; also when it was deleted while the call was under way. NOT_FOUND.
    ERROR_REASON_SET_NOT_FOUND: ClassVar[int]
    # A set of this name exists. ALREADY_EXISTS.
    ERROR_REASON_SET_EXISTS: ClassVar[int]
    # A set of this name exists with another specification; `field` is the first that differs. ALREADY_EXISTS.
    ERROR_REASON_SPEC_MISMATCH: ClassVar[int]
    # The set awaits its first write, or a full write that broke off is to be repeated. FAILED_PRECONDITION.
    ERROR_REASON_UNINITIALIZED: ClassVar[int]
    # The schema's fingerprint is not the one that the client expects. FAILED_PRECONDITION.
    ERROR_REASON_SCHEMA_MISMATCH: ClassVar[int]
    # The set's state was replaced (written, or deleted and created anew) since the client read it. ABORTED.
    ERROR_REASON_INCARNATION_MISMATCH: ClassVar[int]
    # A step's commit failed half way: the state is not known. Only a full write helps. DATA_LOSS.
    ERROR_REASON_POISONED: ClassVar[int]
    # Another write to this set is under way. ABORTED.
    ERROR_REASON_WRITE_IN_PROGRESS: ClassVar[int]
    # The set is not at `expected_step`; the detail holds the step that it is at. ABORTED.
    ERROR_REASON_STEP_MISMATCH: ClassVar[int]
    # The request is too old to be remembered, and an earlier attempt may have been applied. ABORTED.
    ERROR_REASON_OUTCOME_UNKNOWN: ClassVar[int]
    # The request_id was used before with another header. ALREADY_EXISTS.
    ERROR_REASON_REQUEST_ID_REUSED: ClassVar[int]
    # A newer attempt of the same request_id took over, or was there first. ABORTED.
    ERROR_REASON_SUPERSEDED: ClassVar[int]
    # The set's configuration is not the one of the `config_revision` that the request demands; or it was changed while a
    # step was under way, so that the step does not fit it any more. ABORTED.
    ERROR_REASON_CONFIG_CHANGED: ClassVar[int]
    # The rank's contribution to the round has arrived already, under another request_id. ABORTED.
    ERROR_REASON_RANK_TAKEN: ClassVar[int]
    # The round that the contribution is for has not begun. ABORTED.
    ERROR_REASON_ROUND_MISMATCH: ClassVar[int]
    # Workers cannot change while a round is open. FAILED_PRECONDITION.
    ERROR_REASON_ROUND_OPEN: ClassVar[int]
    # The memory that the request needs did not become free within `ServerLimits.admission_wait`. RESOURCE_EXHAUSTED,
    # with RetryInfo.
    ERROR_REASON_BUDGET_EXHAUSTED: ClassVar[int]
    # The request could not fit if the server did nothing else, or it is a StepOnce for a set that only Step serves.
    # FAILED_PRECONDITION.
    ERROR_REASON_TOO_LARGE: ClassVar[int]
    # As many calls as the server carries are open, and `ServerLimits.max_waiting_calls` more wait; or the call was idle,
    # or its request did not come, and another waited for its place. RESOURCE_EXHAUSTED, with RetryInfo.
    ERROR_REASON_TOO_MANY_STREAMS: ClassVar[int]
    # The client neither sent nor took data for longer than a call may (`ServerLimits.think_time`, `patience` and
    # `min_rate`); the message says what the server was waiting for. DEADLINE_EXCEEDED. A reply that is cut off in the
    # middle ends with the code and the message alone; grpc-go may then report INTERNAL, `unexpected EOF`, instead.
    ERROR_REASON_STALLED: ClassVar[int]
    # A read that was allowed to abort met a newer step. ABORTED.
    ERROR_REASON_SNAPSHOT_GONE: ClassVar[int]
    # The server is shutting down. UNAVAILABLE.
    ERROR_REASON_DRAINING: ClassVar[int]
    # The set's device, or the one that a set is to be created on, has failed, and the server must be restarted before it
    # can be used again. UNAVAILABLE.
    ERROR_REASON_DEVICE_LOST: ClassVar[int]
    # A device failed in what the request asked of it, and may do so no more; nothing has changed. UNAVAILABLE.
    ERROR_REASON_DEVICE_FAILED: ClassVar[int]
    # What was asked for needs a data directory, and the server has none. FAILED_PRECONDITION.
    ERROR_REASON_NO_DATA_DIRECTORY: ClassVar[int]
    # There is no room on the disk of the data directory; nothing has changed. RESOURCE_EXHAUSTED, with RetryInfo.
    ERROR_REASON_DISK_EXHAUSTED: ClassVar[int]
    # The data directory failed, so that it is not known what of a change is on disk: nothing durable is changed until the
    # server is restarted, and then it shows. UNAVAILABLE.
    ERROR_REASON_STORE_FAILED: ClassVar[int]
    # What the data directory had of it is damaged. DATA_LOSS.
    ERROR_REASON_DAMAGED: ClassVar[int]
    # The set has no such checkpoint. NOT_FOUND.
    ERROR_REASON_CHECKPOINT_NOT_FOUND: ClassVar[int]

ERROR_REASON_UNSPECIFIED: int
ERROR_REASON_MALFORMED_MESSAGE: int
ERROR_REASON_UNKNOWN_FIELD: int
ERROR_REASON_INVALID_FIELD: int
ERROR_REASON_UNEXPECTED_MESSAGE: int
ERROR_REASON_MESSAGE_TOO_LARGE: int
ERROR_REASON_UNKNOWN_TENSOR: int
ERROR_REASON_MALFORMED_CHUNK: int
ERROR_REASON_CHUNK_OUT_OF_ORDER: int
ERROR_REASON_CHUNK_OUT_OF_RANGE: int
ERROR_REASON_INCOMPLETE: int
ERROR_REASON_VALUE_OUT_OF_RANGE: int
ERROR_REASON_TENSOR_NOT_CARRIED: int
ERROR_REASON_NON_FINITE_GRADIENT: int
ERROR_REASON_SET_NOT_FOUND: int
ERROR_REASON_SET_EXISTS: int
ERROR_REASON_SPEC_MISMATCH: int
ERROR_REASON_UNINITIALIZED: int
ERROR_REASON_SCHEMA_MISMATCH: int
ERROR_REASON_INCARNATION_MISMATCH: int
ERROR_REASON_POISONED: int
ERROR_REASON_WRITE_IN_PROGRESS: int
ERROR_REASON_STEP_MISMATCH: int
ERROR_REASON_OUTCOME_UNKNOWN: int
ERROR_REASON_REQUEST_ID_REUSED: int
ERROR_REASON_SUPERSEDED: int
ERROR_REASON_CONFIG_CHANGED: int
ERROR_REASON_RANK_TAKEN: int
ERROR_REASON_ROUND_MISMATCH: int
ERROR_REASON_ROUND_OPEN: int
ERROR_REASON_BUDGET_EXHAUSTED: int
ERROR_REASON_TOO_LARGE: int
ERROR_REASON_TOO_MANY_STREAMS: int
ERROR_REASON_STALLED: int
ERROR_REASON_SNAPSHOT_GONE: int
ERROR_REASON_DRAINING: int
ERROR_REASON_DEVICE_LOST: int
ERROR_REASON_DEVICE_FAILED: int
ERROR_REASON_NO_DATA_DIRECTORY: int
ERROR_REASON_DISK_EXHAUSTED: int
ERROR_REASON_STORE_FAILED: int
ERROR_REASON_DAMAGED: int
ERROR_REASON_CHECKPOINT_NOT_FOUND: int

class ErrorDetail(Message):
    """What is wrong and where. Fields that do not apply are left out."""
    # Which failure it is: what a program decides by.
    reason: int
    # Name of the parameter set; its first 512 bytes.
    set: str
    # The set's incarnation when the error was found, in [1, 2^53).
    incarnation: int
    # The set's step when the error was found, at least 0.
    step: int
    # Index of the tensor, as ListTensors gives it, or as the client sent it where there is no such tensor.
    tensor: int
    # Element offset in that tensor: the chunk's as the client sent it, or that of the element which is missing or bad.
    offset: int
    # Path of the field in the request, such as `spec.groups[2].adam.beta1`; an unknown field stands in it by its number.
    # Its first 512 bytes.
    field: str
    # With CHUNK_OUT_OF_ORDER and INCOMPLETE: the element offset at which the tensor's next chunk was expected to start.
    # With CHUNK_OUT_OF_RANGE: the tensor's number of elements, where its chunks have to end.
    expected_offset: int
    def __init__(
        self,
        *,
        reason: int | None = ...,
        set: str | None = ...,
        incarnation: int | None = ...,
        step: int | None = ...,
        tensor: int | None = ...,
        offset: int | None = ...,
        field: str | None = ...,
        expected_offset: int | None = ...,
    ) -> None: ...

class ErrorStatus(Message):
    """google.rpc.Status, by field number: what the trailer `grpc-status-details-bin` holds. At most 4 KiB."""
    # The gRPC status code, as in the trailer `grpc-status`.
    code: int
    # For a person to read, as in the trailer `grpc-message`: what was wrong, what was expected, and what the client sent
    # (`got`). Its wording may change; programs look at `ErrorDetail.reason`.
    message: str
    # One `ErrorDetail`; beside it a `google.rpc.RetryInfo` where the same call is worth trying again.
    details: _Repeated[Any]
    def __init__(
        self,
        *,
        code: int | None = ...,
        message: str | None = ...,
        details: Iterable[Any] = ...,
    ) -> None: ...

class RetryInfo(Message):
    """google.rpc.RetryInfo, by field number. RESOURCE_EXHAUSTED without it does not get better by trying again: gRPC itself
    uses that code for messages and headers that are too large.
    """
    # How long to wait before the call is tried again. It differs from call to call, so that clients do not all come back
    # at once.
    retry_delay: Duration
    def __init__(
        self,
        *,
        retry_delay: Duration | None = ...,
    ) -> None: ...

class Slot(_Enum[int]):
    """One of the arrays that a set holds for each tensor, all of the tensor's shape."""

    # In a TensorChunk of a write: PARAMETER. In one of a step: the gradient, which is no slot; in one of its reply: the
    # updated parameters. Chunks of a read name their slot. In the slots that a read asks for: INVALID_ARGUMENT
    # (INVALID_FIELD).
    SLOT_UNSPECIFIED: ClassVar[int]
    # The parameters themselves.
    SLOT_PARAMETER: ClassVar[int]
    # Running mean of the gradient, m.
    SLOT_EXP_AVG: ClassVar[int]
    # Running mean of the squared gradient, v.
    SLOT_EXP_AVG_SQ: ClassVar[int]
    # Largest v so far, element by element: of sets with a group that has `Adam.amsgrad`.
    SLOT_MAX_EXP_AVG_SQ: ClassVar[int]
    # Running sum of the gradient, torch's momentum_buffer: of sets with a group that has `Sgd`.
    SLOT_MOMENTUM_BUFFER: ClassVar[int]

SLOT_UNSPECIFIED: int
SLOT_PARAMETER: int
SLOT_EXP_AVG: int
SLOT_EXP_AVG_SQ: int
SLOT_MAX_EXP_AVG_SQ: int
SLOT_MOMENTUM_BUFFER: int

class Dtype(_Enum[int]):
    """How elements travel. Inside the server they are fp32."""

    # As DTYPE_FLOAT32.
    DTYPE_UNSPECIFIED: ClassVar[int]
    # IEEE 754 binary32: 4 bytes.
    DTYPE_FLOAT32: ClassVar[int]
    # The upper half of a binary32: 2 bytes.
    DTYPE_BFLOAT16: ClassVar[int]
    # IEEE 754 binary16: 2 bytes.
    DTYPE_FLOAT16: ClassVar[int]

DTYPE_UNSPECIFIED: int
DTYPE_FLOAT32: int
DTYPE_BFLOAT16: int
DTYPE_FLOAT16: int

class Initialization(_Enum[int]):
    """How a new set gets its first parameters. Its moments start at zero in any case."""

    # In a request: INVALID_ARGUMENT (INVALID_FIELD). State your wish.
    INITIALIZATION_UNSPECIFIED: ClassVar[int]
    # All parameters are zero: the set can be stepped at once.
    INITIALIZATION_ZEROS: ClassVar[int]
    # The set is UNINITIALIZED until its first WriteTensors.
    INITIALIZATION_WRITTEN: ClassVar[int]

INITIALIZATION_UNSPECIFIED: int
INITIALIZATION_ZEROS: int
INITIALIZATION_WRITTEN: int

class NonFinitePolicy(_Enum[int]):
    """What becomes of a step whose gradient is not finite, or would not be once it is scaled. It never reaches parameters
    or state.
    """

    # As NON_FINITE_POLICY_SKIP.
    NON_FINITE_POLICY_UNSPECIFIED: ClassVar[int]
    # The step is skipped, its outcome SKIPPED_NON_FINITE.
    NON_FINITE_POLICY_SKIP: ClassVar[int]
    # The step fails, INVALID_ARGUMENT (NON_FINITE_GRADIENT), and its stream with it.
    NON_FINITE_POLICY_REJECT: ClassVar[int]

NON_FINITE_POLICY_UNSPECIFIED: int
NON_FINITE_POLICY_SKIP: int
NON_FINITE_POLICY_REJECT: int

class ParameterSetState(_Enum[int]):
    """What a set can be used for now."""

    # Never sent.
    PARAMETER_SET_STATE_UNSPECIFIED: ClassVar[int]
    # The set answers steps, reads and writes.
    PARAMETER_SET_STATE_READY: ClassVar[int]
    # The set awaits a write: its first one, or, after a full write that broke off, another full one. Steps and reads are
    # FAILED_PRECONDITION (UNINITIALIZED).
    PARAMETER_SET_STATE_UNINITIALIZED: ClassVar[int]
    # A commit failed half way: the set awaits a full write. Steps are DATA_LOSS (POISONED); the parameters before that
    # commit can be read.
    PARAMETER_SET_STATE_POISONED: ClassVar[int]

PARAMETER_SET_STATE_UNSPECIFIED: int
PARAMETER_SET_STATE_READY: int
PARAMETER_SET_STATE_UNINITIALIZED: int
PARAMETER_SET_STATE_POISONED: int

class Adam(Message):
    """Adam as in Kingma & Ba, algorithm 1: eps outside of the root, after bias correction. The arithmetic is fp32.
    Values are validated, and compared with those of an existing set, after rounding to float; one out of range is
    INVALID_ARGUMENT (INVALID_FIELD). Bias correction counts each tensor's own updates (`Tensor.update_count`).
    """
    # Decay of the running mean, in [0, 1 - 2^-20]. Default 0.9.
    beta1: float
    # Decay of the running mean of squares, in [0, 1 - 2^-20]. Default 0.999.
    beta2: float
    # Added to the denominator, in [max(1e-16, sqrt(2^-125 / (1 - beta2))), 2^32]. Default 1e-8.
    eps: float
    # How strongly parameters are drawn towards zero, in [0, 2^32]. Default 0. Added to the gradient, times the parameter
    # (L2, torch's Adam), unless `decoupled_weight_decay`.
    weight_decay: float
    # Decays parameters by learning_rate * weight_decay, apart from the gradient: AdamW (Loshchilov & Hutter).
    decoupled_weight_decay: bool
    # Divides by the largest v so far instead of v (Reddi et al.). Takes another array: SLOT_MAX_EXP_AVG_SQ. Cannot
    # change while the set lives.
    amsgrad: bool
    # Ascends: the gradient counts negative.
    maximize: bool
    def __init__(
        self,
        *,
        beta1: float | None = ...,
        beta2: float | None = ...,
        eps: float | None = ...,
        weight_decay: float | None = ...,
        decoupled_weight_decay: bool | None = ...,
        amsgrad: bool | None = ...,
        maximize: bool | None = ...,
    ) -> None: ...

class Sgd(Message):
    """Stochastic gradient descent as in PyTorch. With g the gradient, weight decay added: buf = momentum * buf + (1 -
    dampening) * g, and g alone at a tensor's first update; p -= learning_rate * buf, or with Nesterov's momentum p -=
    learning_rate * (g + momentum * buf); without momentum p -= learning_rate * g. The arithmetic is fp32; values are
    validated after rounding to float; one out of range is INVALID_ARGUMENT (INVALID_FIELD).
    """
    # In [0, 1 - 2^-20]. Default 0: then `buf` stays as it is.
    momentum: float
    # In [0, 1]. Default 0.
    dampening: float
    # Nesterov's momentum. Needs a momentum above 0 and a dampening of 0.
    nesterov: bool
    # Added to the gradient, times the parameter (L2), in [0, 2^32]. Default 0.
    weight_decay: float
    # Ascends: the gradient counts negative.
    maximize: bool
    def __init__(
        self,
        *,
        momentum: float | None = ...,
        dampening: float | None = ...,
        nesterov: bool | None = ...,
        weight_decay: float | None = ...,
        maximize: bool | None = ...,
    ) -> None: ...

class Schedule(Message):
    """How the learning rate goes on from step to step. With s the set's step before the one that is applied, from 0: while
    s < warmup_steps it is learning_rate times a factor that rises linearly from warmup_start_factor (at s = 0) to 1 (at
    s = warmup_steps); after that it is what `decay` makes of k = s - warmup_steps, and never below `floor`. Each is what
    torch.optim.lr_scheduler gives: LinearLR for the warmup, though that takes no factor of 0, and SequentialLR for the
    whole. The set's step counts, not a tensor's: a group that was frozen is at the others' learning rate when it thaws.
    Values are validated as the doubles that they are; one out of range is INVALID_ARGUMENT (INVALID_FIELD).
    """
    # At least 0. Default 0: no warmup.
    warmup_steps: int
    # In [0, 1]. Default 0.
    warmup_start_factor: float
    # Least learning rate after the warmup, in [0, learning_rate]. Default 0.
    floor: float
    # To a part of it, on a straight line.
    linear: LinearDecay
    # To `floor`, on half a cosine.
    cosine: CosineDecay
    # By a factor every step.
    exponential: ExponentialDecay
    # By a factor every so many steps.
    step: StepDecay
    # By a factor at each of some steps.
    multi_step: MultiStepDecay
    # To zero, on a power of what is left.
    polynomial: PolynomialDecay
    def __init__(
        self,
        *,
        warmup_steps: int | None = ...,
        warmup_start_factor: float | None = ...,
        floor: float | None = ...,
        linear: LinearDecay | None = ...,
        cosine: CosineDecay | None = ...,
        exponential: ExponentialDecay | None = ...,
        step: StepDecay | None = ...,
        multi_step: MultiStepDecay | None = ...,
        polynomial: PolynomialDecay | None = ...,
    ) -> None: ...

class LinearDecay(Message):
    """learning_rate * (1 + (end_factor - 1) * min(k, steps) / steps): LinearLR from 1."""
    # At least 1.
    steps: int
    # In [0, 1]. Default 0.
    end_factor: float
    def __init__(
        self,
        *,
        steps: int | None = ...,
        end_factor: float | None = ...,
    ) -> None: ...

class CosineDecay(Message):
    """floor + (learning_rate - floor) * (1 + cos(pi * min(k, steps) / steps)) / 2: CosineAnnealingLR, which goes up again
    after `steps`, while this stays.
    """
    # At least 1.
    steps: int
    def __init__(
        self,
        *,
        steps: int | None = ...,
    ) -> None: ...

class ExponentialDecay(Message):
    """learning_rate * gamma^k: ExponentialLR."""
    # In (0, 1].
    gamma: float
    def __init__(
        self,
        *,
        gamma: float | None = ...,
    ) -> None: ...

class StepDecay(Message):
    """learning_rate * gamma^(k / steps), the quotient rounded down: StepLR."""
    # At least 1.
    steps: int
    # In (0, 1].
    gamma: float
    def __init__(
        self,
        *,
        steps: int | None = ...,
        gamma: float | None = ...,
    ) -> None: ...

class MultiStepDecay(Message):
    """learning_rate * gamma^n, where n milestones are at most k: MultiStepLR."""
    # 1 to 64, the first at least 1, each more than the one before.
    milestones: _Repeated[int]
    # In (0, 1].
    gamma: float
    def __init__(
        self,
        *,
        milestones: Iterable[int] = ...,
        gamma: float | None = ...,
    ) -> None: ...

class PolynomialDecay(Message):
    """learning_rate * (1 - min(k, steps) / steps)^power: PolynomialLR."""
    # At least 1.
    steps: int
    # In (0, 64].
    power: float
    def __init__(
        self,
        *,
        steps: int | None = ...,
        power: float | None = ...,
    ) -> None: ...

class ParameterGroup(Message):
    """Tensors that are updated alike: with one optimizer, its hyperparameters, and one learning rate."""
    # 1 to 64 characters of [A-Za-z0-9_.-], unique in the set; otherwise INVALID_ARGUMENT (INVALID_FIELD). May be empty
    # in a set of one group, which is then named `default`.
    name: str
    # What an update is multiplied with, in [0, 2^32], and at most 2^58 * (1 - beta1) * eps, or 2^38 * (1 - beta1) * eps
    # where beta2 < beta1^2: with more, gradients and moments that are permitted could make a parameter infinite, for
    # good. With the default betas and an eps of 1e-16 that is 2.88. Default 1e-3. Out of range: INVALID_ARGUMENT
    # (INVALID_FIELD).
    learning_rate: float
    # Adam, with these hyperparameters.
    adam: Adam
    # SGD, with these hyperparameters.
    sgd: Sgd
    # How the learning rate changes from step to step. None: it does not.
    schedule: Schedule
    # The group's tensors take no part in steps: they keep their parameters, their state and their counts of updates, a
    # step need not and must not bring them, and they may be thawed at any time (UpdateParameterGroup).
    frozen: bool
    def __init__(
        self,
        *,
        name: str | None = ...,
        learning_rate: float | None = ...,
        adam: Adam | None = ...,
        sgd: Sgd | None = ...,
        schedule: Schedule | None = ...,
        frozen: bool | None = ...,
    ) -> None: ...

class TensorSpec(Message):
    """One tensor of a specification. Its index, which chunks name it by, is its position there, from 0."""
    # Unique in the set: 1 to 512 bytes of UTF-8 without control characters; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    name: str
    # Extents, outermost first, row-major: at most 8, none negative, otherwise INVALID_ARGUMENT (INVALID_FIELD). None: a
    # scalar, which has one element. A tensor with an extent of 0 has no elements: it is listed and counted, and needs no
    # chunk.
    shape: _Repeated[int]
    # Name of the group that the tensor belongs to. Empty: the set's first. Unknown: INVALID_ARGUMENT (INVALID_FIELD).
    group: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        shape: Iterable[int] = ...,
        group: str | None = ...,
    ) -> None: ...

class Clipping(Message):
    """What is done to a gradient before its groups see it."""
    # Elements whose magnitude is larger are drawn to it: torch's clip_grad_value_. In [2^-40, 2^64]; otherwise
    # INVALID_ARGUMENT (INVALID_FIELD).
    max_value: float
    # A gradient whose norm, over all tensors of the step, is larger is scaled down to it: torch's clip_grad_norm_. In
    # [2^-40, 2^64]; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    max_norm: float
    def __init__(
        self,
        *,
        max_value: float | None = ...,
        max_norm: float | None = ...,
    ) -> None: ...

class ParameterSetSpec(Message):
    """What a client asks for. Whatever is out of range in it is INVALID_ARGUMENT (INVALID_FIELD), with the path of the
    field.
    """
    # Segments of the letters A to Z and a to z, digits and `. _ - + = : @ ~`, joined by `/`; no segment is empty, `.` or
    # `..`; at most 255 bytes. Such as `Qwen/Qwen2.5-0.5B` or `exp/seed=3`.
    name: str
    # 1 to 65,536 tensors. Names and shapes may take as much as the request, which is one message, has room for: 4 MiB.
    tensors: _Repeated[TensorSpec]
    # At most 1,024. None: one group named `default` with all defaults.
    groups: _Repeated[ParameterGroup]
    # What the parameters are until a client writes or steps them. Must be given.
    initialization: int
    # At most 32; keys 1 to 63 and values at most 255 bytes of UTF-8. For the client's own use, and ListParameterSets. Of
    # no account where specifications are compared (IF_EXISTS_USE_IF_SAME_SPEC).
    labels: MutableMapping[str, str]
    # Where the set lives: a name from `GetServerInfoResponse.devices`, `cpu` or `cuda:N`. Empty: the server's default,
    # `cpu` unless it was started with another. Steps have the same bits everywhere.
    device: str
    # What is done to every gradient. None: nothing.
    clipping: Clipping
    # Default: skip.
    non_finite_policy: int
    # How many steps a gradient may be behind (`StepHeader.base_step`), in [0, 64]. Default 0.
    max_staleness: int
    # Who makes the set's steps together. None: each step is one client's.
    workers: Workers
    # What of the set outlives the server's process. None: the server's default, nothing unless it was started with
    # another. FAILED_PRECONDITION (NO_DATA_DIRECTORY) where that is anything and the server has no data directory. Where
    # specifications are compared it is of account only if it is given.
    durability: Durability
    def __init__(
        self,
        *,
        name: str | None = ...,
        tensors: Iterable[TensorSpec] = ...,
        groups: Iterable[ParameterGroup] = ...,
        initialization: int | None = ...,
        labels: Mapping[str, str] = ...,
        device: str | None = ...,
        clipping: Clipping | None = ...,
        non_finite_policy: int | None = ...,
        max_staleness: int | None = ...,
        workers: Workers | None = ...,
        durability: Durability | None = ...,
    ) -> None: ...

class Durability(Message):
    """What of a set is there again when the server has been restarted, whether it was shut down, was killed, or its machine
    lost power.
    """
    # Nothing: the set is gone.
    nothing: Nothing
    # The state of the last checkpoint. Steps after it are lost, and the set is of another incarnation then, unless the
    # server was shut down in time to make one last checkpoint.
    checkpoints: Checkpoints
    # Every step, write and change that was answered: the set is in the state that it was in, to the bit, and remembers
    # what it remembered.
    every_step: EveryStep
    def __init__(
        self,
        *,
        nothing: Nothing | None = ...,
        checkpoints: Checkpoints | None = ...,
        every_step: EveryStep | None = ...,
    ) -> None: ...

class Nothing(Message):
    """Nothing is kept."""
    def __init__(self) -> None: ...

class Checkpoints(Message):
    """Checkpoints from time to time. At least one of the fields must be given. They do not stop the set's steps."""
    # One after each so many steps, in [1, 2^53].
    steps: int
    # One after each so many seconds in which there was a step, in [1, 604800].
    seconds: float
    def __init__(
        self,
        *,
        steps: int | None = ...,
        seconds: float | None = ...,
    ) -> None: ...

class EveryStep(Message):
    """Each step's gradient is journaled before the step is applied: 4 bytes a parameter, and a sync of the disk, a step."""
    # How many steps are journaled at most before a checkpoint takes their place, in [2, 1024]; it begins when half of
    # them are. The journal takes as many times 4 bytes a parameter on disk, from the set's creation on, beside two
    # checkpoints. Default 16. A set whose gradients have at most 4 KiB takes no room beforehand, and keeps at least
    # 1,024.
    journal_steps: int
    def __init__(
        self,
        *,
        journal_steps: int | None = ...,
    ) -> None: ...

class Workers(Message):
    """Workers that make each step together: a round. Each sends one contribution (`StepHeader.rank`), and what they send
    becomes one gradient; the bits of the step do not depend on who comes first. A round begins with its first
    contribution. When all have come it becomes a step, and everybody gets the new parameters. A rank for which no call
    is open when `round_timeout_seconds` are over is left out, and so is one that breaks off after that, or has not
    arrived whole when as much time is over again; before, it may come again. A round fails if fewer than `quorum` are
    left: each gets REFUSED_LATE, and the set's step stays. Writes, and additions of tensors, end the round that is open
    (ABORTED, INCARNATION_MISMATCH; as soon as a full write begins: FAILED_PRECONDITION, UNINITIALIZED). A call that
    waits for its round keeps its place (`ServerLimits.max_streams`): there should be more of them than workers.

    A round takes `window` + 1 times 4 bytes a parameter of the budget for steps under way, or `count` times that where
    the aggregation is no mean, from its first contribution to its end: CreateParameterSet is FAILED_PRECONDITION
    (TOO_LARGE) where that could never be had.
    """
    # How many contributions a round has, in [1, 64].
    count: int
    # With how many a round may become a step, in [1, count]. Default: `count`.
    quorum: int
    # How many contributions arrive at the same time, in [1, count]: the lowest ranks that are still to come. The others
    # wait, and their memory is their clients'. Default: the smaller of 2 and `count`. Of no account where the
    # aggregation is no mean: all arrive.
    window: int
    # In (0, 86400]. Default 60.
    round_timeout_seconds: float
    # A contribution whose norm, without its `grad_scale`, is larger is scaled down to this, whatever it weighs. In
    # [2^-40, 2^64]. Default: none.
    max_contribution_norm: float
    # Element by element, the mean of all but the largest and the smallest.
    trimmed_mean: TrimmedMean
    # Element by element, the one in the middle, or the mean of the two.
    median: Median
    def __init__(
        self,
        *,
        count: int | None = ...,
        quorum: int | None = ...,
        window: int | None = ...,
        round_timeout_seconds: float | None = ...,
        max_contribution_norm: float | None = ...,
        trimmed_mean: TrimmedMean | None = ...,
        median: Median | None = ...,
    ) -> None: ...

class TrimmedMean(Message):
    """Yin et al., 2018: up to `trim` workers that send any numbers do little harm. Contributions that are not finite are
    left out as long as the quorum allows, as with Median; where contributions are averaged one skips the round.
    """
    # How many are left out at each end: at least 1, and fewer than half of the quorum.
    trim: int
    def __init__(
        self,
        *,
        trim: int | None = ...,
    ) -> None: ...

class Median(Message):
    """Yin et al., 2018."""
    def __init__(self) -> None: ...

class ParameterSet(Message):
    """What the server holds. Tensors are listed by ListTensors."""
    # As in the specification.
    name: str
    # Drawn at random at create, at every write, and when tensors are added, in [1, 2^53): a double keeps it.
    # (incarnation, step) names one state of the set; a request may demand the incarnation that its client knows.
    incarnation: int
    # Number of steps applied so far, at least 0. A full write sets it. Schedules count with it, and a client's next step
    # starts from it (`StepHeader.expected_step`).
    step: int
    # What the set can be used for now.
    state: int
    # In the order of the specification, with every default resolved.
    groups: _Repeated[ParameterGroup]
    # As in the specification that created the set.
    labels: MutableMapping[str, str]
    # Of names, shapes and order of the tensors, not of their groups; the same on every server, in [1, 2^53): a double
    # keeps it. A client that was built for one schema can demand it.
    schema_fingerprint: int
    # Number of tensors, those without elements included.
    tensor_count: int
    # Elements of all tensors, without padding, at most 2^53.
    parameter_count: int
    # What the set takes of the server's state budget, in bytes: see CreateParameterSet. What it takes of a device's own
    # memory is not in it.
    state_bytes: int
    # Advanced by one whenever the configuration changes: by UpdateParameterGroup, which changes a group, by
    # UpdateParameterSet, which changes labels, clipping, policy, staleness and workers, and by AddTensors if it adds
    # groups. Starts at 1.
    config_revision: int
    # When the set was created, by the server's clock.
    create_time: Timestamp
    # Where the set lives, such as `cpu` or `cuda:0`; never empty.
    device: str
    # What became of the steps that were sent, since the server has had the set.
    statistics: SetStatistics
    # What is done to every gradient.
    clipping: Clipping
    # Never UNSPECIFIED.
    non_finite_policy: int
    # How many steps a gradient may be behind, in [0, 64].
    max_staleness: int
    # As in the specification, with every default resolved; none where each step is one client's.
    workers: Workers
    # In a set with workers: the round that contributions are for now, from 1. It advances when a round becomes a step,
    # is skipped, or fails, and never goes back while the set lives.
    round: int
    # What of the set outlives the server's process, with every default resolved.
    durability: Durability
    # The last checkpoint that is on disk. None: there is none yet.
    last_checkpoint: Checkpoint
    # The checkpoint that the set was taken back to when the server was restarted, which may have lost steps after it; of a
    # set that had none, its creation, at step 0 and without bytes. None: no step was lost at the last start.
    restored_from: Checkpoint
    def __init__(
        self,
        *,
        name: str | None = ...,
        incarnation: int | None = ...,
        step: int | None = ...,
        state: int | None = ...,
        groups: Iterable[ParameterGroup] = ...,
        labels: Mapping[str, str] = ...,
        schema_fingerprint: int | None = ...,
        tensor_count: int | None = ...,
        parameter_count: int | None = ...,
        state_bytes: int | None = ...,
        config_revision: int | None = ...,
        create_time: Timestamp | None = ...,
        device: str | None = ...,
        statistics: SetStatistics | None = ...,
        clipping: Clipping | None = ...,
        non_finite_policy: int | None = ...,
        max_staleness: int | None = ...,
        workers: Workers | None = ...,
        round: int | None = ...,
        durability: Durability | None = ...,
        last_checkpoint: Checkpoint | None = ...,
        restored_from: Checkpoint | None = ...,
    ) -> None: ...

class Checkpoint(Message):
    """A whole state of a set on the server's disk."""
    # With `step`, which state it is; in [1, 2^53).
    incarnation: int
    # At least 0.
    step: int
    # When it was complete, by the server's clock.
    time: Timestamp
    # What its files take on disk.
    bytes: int
    def __init__(
        self,
        *,
        incarnation: int | None = ...,
        step: int | None = ...,
        time: Timestamp | None = ...,
        bytes: int | None = ...,
    ) -> None: ...

class SetStatistics(Message):
    """Counts since the set was created, which a write does not set back."""
    # Steps that were applied.
    applied: int
    # Steps that were skipped because their gradient was not finite, or rejected for that.
    non_finite: int
    # Requests that had been applied before, and were answered with their original result.
    replayed: int
    # Steps that were refused because they were stale, or late for their round.
    refused: int
    # `StepResult.grad_norm` of the last step that was applied. 0 before the first.
    last_grad_norm: float
    # `StepHeader.metrics` of the last applied step that had some.
    last_metrics: MutableMapping[str, float]
    def __init__(
        self,
        *,
        applied: int | None = ...,
        non_finite: int | None = ...,
        replayed: int | None = ...,
        refused: int | None = ...,
        last_grad_norm: float | None = ...,
        last_metrics: Mapping[str, float] = ...,
    ) -> None: ...

class Tensor(Message):
    """One tensor as the server holds it."""
    # What chunks name it by: its position in the specification, from 0.
    index: int
    # As in the specification.
    name: str
    # Extents, outermost first, as in the specification. None: a scalar.
    shape: _Repeated[int]
    # Name of the group that it belongs to; never empty.
    group: str
    # The product of the extents, at most 2^53. 0: the tensor needs no chunk.
    element_count: int
    # How many updates the tensor has had: what its bias correction counts with. The set's step, less the steps that did
    # not bring the tensor, if nobody has written another one (`WriteHeader.update_counts`).
    update_count: int
    def __init__(
        self,
        *,
        index: int | None = ...,
        name: str | None = ...,
        shape: Iterable[int] = ...,
        group: str | None = ...,
        element_count: int | None = ...,
        update_count: int | None = ...,
    ) -> None: ...

class StepOutcome(_Enum[int]):
    """What a step that was carried out led to. Faults are status errors, and end the stream."""

    # Never sent.
    STEP_OUTCOME_UNSPECIFIED: ClassVar[int]
    # The step was applied.
    STEP_OUTCOME_APPLIED: ClassVar[int]
    # The gradient is not finite, or too large to be squared (2^63 and above) once it is scaled. Nothing changed, the
    # step did not advance, and the request is not remembered.
    STEP_OUTCOME_SKIPPED_NON_FINITE: ClassVar[int]
    # The set is further on from `base_step` than its `max_staleness`. Nothing changed, and the request is not
    # remembered: compute a gradient from the parameters in this reply.
    STEP_OUTCOME_REFUSED_STALE: ClassVar[int]
    # The contribution counts in the round, which goes on: the answer to `ack_when_folded`. Nothing has changed yet.
    STEP_OUTCOME_ACCUMULATED: ClassVar[int]
    # The round that the contribution was for is over: it has become a step, was skipped, or has failed for want of
    # contributions. The contribution changed nothing, and is not remembered: compute a gradient from the parameters in
    # this reply, if it has some, for its `round`.
    STEP_OUTCOME_REFUSED_LATE: ClassVar[int]

STEP_OUTCOME_UNSPECIFIED: int
STEP_OUTCOME_APPLIED: int
STEP_OUTCOME_SKIPPED_NON_FINITE: int
STEP_OUTCOME_REFUSED_STALE: int
STEP_OUTCOME_ACCUMULATED: int
STEP_OUTCOME_REFUSED_LATE: int

class TensorChunk(Message):
    """A run of consecutive elements of one tensor. A tensor of any size travels as as many chunks as it needs: split it
    anywhere.

    Send at most 1 MiB of elements in a chunk and a message: 262,144 of four bytes
    (`ServerLimits.recommended_chunk_elements`), or twice as many of two. A message has at most 4 MiB (4,194,304 bytes)
    with everything in it, so a chunk of 1,048,576 elements of four bytes never fits, and one of 1,048,000 does. Small
    tensors may share a message: at most `ServerLimits.max_chunks_per_message` chunks, or it is INVALID_ARGUMENT
    (MALFORMED_MESSAGE).

    The chunks of one tensor (and slot) come in ascending order without gaps: each starts where the one before ended;
    those of a tensor that comes in rows, in any order.
    Tensors may come in any order, and interleaved, so that a backward pass can be overlapped. A tensor without elements
    (an extent is 0) needs no chunk; one without elements at offset 0 is allowed.
    """
    # Index of the tensor, from 0. Not below the number of tensors, or negative: INVALID_ARGUMENT (UNKNOWN_TENSOR).
    tensor: int
    # Element of the tensor, in row-major order from 0, that the chunk starts with. Not where the tensor's chunk before
    # ended: INVALID_ARGUMENT (CHUNK_OUT_OF_ORDER). Over the tensor's end: INVALID_ARGUMENT (CHUNK_OUT_OF_RANGE). Below
    # 2^53.
    offset: int
    # Which array of the tensor. A step carries gradients and leaves this out; otherwise INVALID_ARGUMENT
    # (INVALID_FIELD), as is a slot that the write's mode does not replace. Not given, in a write: PARAMETER. Given in
    # every chunk of a read.
    slot: int
    # The type of the elements in `data`. Not given: FLOAT32. Chunks of one tensor may differ in it. One that is none of
    # Dtype's, or one of 16 bits with `values`: INVALID_ARGUMENT (INVALID_FIELD). A 16-bit element is widened exactly.
    dtype: int
    # Of a sparse tensor (`StepHeader.sparse`): the rows that the chunk's elements are, each an index into the tensor's
    # first extent; then the chunk has as many whole rows of elements, and no `offset`, or it is INVALID_ARGUMENT
    # (MALFORMED_CHUNK). In any order, and more than once where a row's gradients are to be added: they are, in fp32, in
    # the order in which they come. In replies: ascending, each once. Below 0 or not below the extent: INVALID_ARGUMENT
    # (CHUNK_OUT_OF_RANGE); in a chunk of another tensor: INVALID_ARGUMENT (MALFORMED_CHUNK).
    rows: _Repeated[int]
    # The elements as numbers, or as `data`; both, or neither for a tensor that has elements, is INVALID_ARGUMENT
    # (MALFORMED_CHUNK). Convenient from JSON and the command line. The same bytes on the wire as fp32 `data`, and as
    # fast for the server; which is faster for a client is a matter of its language.
    values: _Repeated[float]
    # The elements as bytes, instead of `values`: for each as many as `dtype` says, little-endian. A number of bytes that
    # is not a multiple of that is INVALID_ARGUMENT (MALFORMED_CHUNK).
    data: bytes
    def __init__(
        self,
        *,
        tensor: int | None = ...,
        offset: int | None = ...,
        slot: int | None = ...,
        dtype: int | None = ...,
        rows: Iterable[int] = ...,
        values: Iterable[float] = ...,
        data: bytes | None = ...,
    ) -> None: ...

class StepHeader(Message):
    """What a step is about. A field that the server does not know is INVALID_ARGUMENT (UNKNOWN_FIELD): a wish is never
    silently ignored.
    """
    # Name of the parameter set. None of that name: NOT_FOUND (SET_NOT_FOUND).
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Demands this schema; another one is FAILED_PRECONDITION (SCHEMA_MISMATCH). Not given: any.
    schema_fingerprint: int
    # Makes the step exactly-once: 1 to 64 printable ASCII characters, new for every step, the same for every attempt of
    # it. Needs `expected_step` or `base_step`. Otherwise INVALID_ARGUMENT (INVALID_FIELD). A step without a request_id
    # is applied once for each time that it is sent. The set remembers the requests of its last 64 steps. A remembered
    # one is not applied again: its original result comes back with `replayed`, and with the parameters as they are now.
    # With another header than before (other than `attempt`, `reply_dtype` and `omit_parameters`): ALREADY_EXISTS
    # (REQUEST_ID_REUSED). A write makes the set forget: demand `incarnation`, too, so that a retry that comes after one
    # is not applied.
    request_id: str
    # The n-th try to deliver this request_id, from 1. Default 1. An attempt ends one under way that has the same or a
    # lower number, unless that has arrived whole: that one is ABORTED (SUPERSEDED). So is an attempt that comes while
    # one with a higher number is under way. Negative or 0, or given without a request_id: INVALID_ARGUMENT
    # (INVALID_FIELD).
    attempt: int
    # The set's step that this step starts from; it makes it `expected_step + 1`. If the set is elsewhere when the step's
    # turn comes: ABORTED (STEP_MISMATCH); ABORTED (OUTCOME_UNKNOWN) if it is more than 64 steps on and `attempt`
    # above 1. Negative, or given with `base_step`: INVALID_ARGUMENT (INVALID_FIELD).
    expected_step: int
    # For asynchronous workers, instead of `expected_step`: the step of the parameters that the gradient was computed
    # from. When the step's turn comes the set may be further on by as many steps as its `max_staleness`: then the step
    # is applied to the parameters of that moment; further on, and its outcome is REFUSED_STALE. Above the set's step:
    # ABORTED (STEP_MISMATCH); more than 64 behind with an `attempt` above 1: ABORTED (OUTCOME_UNKNOWN). Negative:
    # INVALID_ARGUMENT (INVALID_FIELD).
    base_step: int
    # Indices of the tensors that the step brings, ascending; the others keep parameters, state and count of updates, and
    # are not part of the reply. Empty: all that no group has frozen. One that there is not, that is frozen, or not above
    # the one before: INVALID_ARGUMENT (INVALID_FIELD).
    tensors: _Repeated[int]
    # Hyperparameters for this step alone, instead of the set's: so a trainer whose own scheduler changes them every step
    # sends a few bytes with it. At most one a group; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    overrides: _Repeated[GroupOverride]
    # What the gradient was multiplied with, by a scaled loss: it is divided out before anything else is done with it,
    # and `grad_norm` is without it. In [2^-48, 2^48], otherwise INVALID_ARGUMENT (INVALID_FIELD). Default 1.
    grad_scale: float
    # How the parameters of the reply travel, rounded to the nearest. Default: fp32.
    reply_dtype: int
    # What the client measured, such as its loss: shown by GetParameterSet and to those who watch. At most 32, with names
    # of 1 to 63 bytes of UTF-8; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    metrics: MutableMapping[str, float]
    # Reply with the result alone, without parameters.
    omit_parameters: bool
    # Tensors of which the step brings some rows only, by ascending index, each one that the step brings (`tensors`);
    # otherwise INVALID_ARGUMENT (INVALID_FIELD). The other rows, and their state, are left alone: no moment decays, and
    # no weight. What the rows change counts as one update of the tensor, however many there are, or none. What is
    # measured, clipped and checked are the sums of what comes for each row. The step holds 4 bytes an element and 16 a
    # row, as announced here; the tensor's size is of no account.
    sparse: _Repeated[SparseRows]
    # In a set with workers, and only there, as are the next three: which of its workers' contributions to the round this
    # is, in [0, ParameterSet.workers.count). Otherwise INVALID_ARGUMENT (INVALID_FIELD). It counts once a round: one
    # that comes while another of its rank is arriving takes over from that (ABORTED, SUPERSEDED), and one that comes
    # after it under another request_id is ABORTED (RANK_TAKEN). All contributions to a round bring the same tensors,
    # with the same `overrides`, and without `base_step` and `sparse`; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    rank: int
    # The round that the contribution is for: `StepResult.round` of the reply before, or `ParameterSet.round`. Must be
    # given. An earlier one: the outcome is REFUSED_LATE. One that has not begun: ABORTED (ROUND_MISMATCH).
    round: int
    # What the contribution counts, beside the others: the step's gradient is their weighted mean. In [2^-48, 2^48];
    # must not be given where the workers' aggregation is no mean; otherwise INVALID_ARGUMENT (INVALID_FIELD). Default 1.
    weight: float
    # Reply as soon as the contribution counts, with ACCUMULATED and without parameters, and not when the round has
    # become a step: for a client that sends several ranks of one round, one after the other, all of them but the last.
    ack_when_folded: bool
    # Asks for `StepResult.state_digest`: all of the new state is read and hashed before the set's next step, some 9 ns a
    # parameter with two processors. In a round one contribution that asks is enough. It takes room
    # of what readers have, some 350 bytes a tensor, and on a device with memory of its own as much as a read of the
    # optimizer's slots. Without it the step is RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED), or FAILED_PRECONDITION (TOO_LARGE)
    # where there never could be.
    digest_state: bool
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        schema_fingerprint: int | None = ...,
        request_id: str | None = ...,
        attempt: int | None = ...,
        expected_step: int | None = ...,
        base_step: int | None = ...,
        tensors: Iterable[int] = ...,
        overrides: Iterable[GroupOverride] = ...,
        grad_scale: float | None = ...,
        reply_dtype: int | None = ...,
        metrics: Mapping[str, float] = ...,
        omit_parameters: bool | None = ...,
        sparse: Iterable[SparseRows] = ...,
        rank: int | None = ...,
        round: int | None = ...,
        weight: float | None = ...,
        ack_when_folded: bool | None = ...,
        digest_state: bool | None = ...,
    ) -> None: ...

class SparseRows(Message):
    """A tensor that comes in rows."""
    # Index of the tensor, which has at least one extent, and rows of at most 524,288 elements; otherwise
    # INVALID_ARGUMENT (INVALID_FIELD).
    tensor: int
    # How many rows come, those that come more than once counted so often. At least 0. More or fewer than that:
    # INVALID_ARGUMENT (CHUNK_OUT_OF_RANGE, INCOMPLETE).
    rows: int
    def __init__(
        self,
        *,
        tensor: int | None = ...,
        rows: int | None = ...,
    ) -> None: ...

class GroupOverride(Message):
    """A group's hyperparameters for one step: those that are given hold instead of the group's, within the same ranges and
    with the same errors as there.
    """
    # Name of the group. Empty: the set's first. Unknown: INVALID_ARGUMENT (INVALID_FIELD).
    group: str
    # Instead of what the schedule says, too.
    learning_rate: float
    # `Adam.beta1`. For a group with another optimizer: INVALID_ARGUMENT (INVALID_FIELD), as the next two.
    beta1: float
    # `Adam.beta2`.
    beta2: float
    # `Adam.eps`.
    eps: float
    # `Adam.weight_decay` or `Sgd.weight_decay`.
    weight_decay: float
    # `Sgd.momentum`: 0 if and only if the group's is 0. For a group with another optimizer: INVALID_ARGUMENT
    # (INVALID_FIELD).
    momentum: float
    def __init__(
        self,
        *,
        group: str | None = ...,
        learning_rate: float | None = ...,
        beta1: float | None = ...,
        beta2: float | None = ...,
        eps: float | None = ...,
        weight_decay: float | None = ...,
        momentum: float | None = ...,
    ) -> None: ...

class StepRequest(Message):
    """One message of a step. The first has the header; any may have chunks; the last says so. A small step is one message.
    A large step should send its header alone, so that it is admitted before the gradient moves.

    The time between two messages is the client's, for the rest of its backward pass: `ServerLimits.think_time` (10
    minutes) as long as nobody waits for what the step holds (memory, or a place among the calls), else as long as a
    message may be under way (`ServerLimits.patience` and the time of its bytes). A longer silence ends the call
    DEADLINE_EXCEEDED (STALLED); the message says what the server was waiting for. Before its first step and between two
    a stream may be idle for as long as it likes, until others wait for its place: then for `patience`, or hardly at all
    if its connection holds more than its share of the places, and it ends RESOURCE_EXHAUSTED (TOO_MANY_STREAMS), with
    RetryInfo.
    """
    # In the step's first message only, and there it must be; otherwise INVALID_ARGUMENT (UNEXPECTED_MESSAGE).
    header: StepHeader
    # The step is complete. From here on it is applied whatever becomes of the call. If elements are missing:
    # INVALID_ARGUMENT (INCOMPLETE), and nothing was applied.
    last: bool
    # Gradient: in all messages together every element of every tensor that the step brings exactly once. One that it
    # does not bring: INVALID_ARGUMENT (TENSOR_NOT_CARRIED).
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        header: StepHeader | None = ...,
        last: bool | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class StepResult(Message):
    """What became of a step."""
    # Whether the step was applied, and if not, why.
    outcome: int
    # The set's step after this one, or as it still is when skipped: what to expect next.
    step: int
    # The incarnation that the step belongs to, in [1, 2^53).
    incarnation: int
    # Euclidean norm of the whole gradient, divided by `grad_scale` and before clipping, computed in double. Not finite
    # where the gradient is not.
    grad_norm: float
    # The learning rate that each group used, in the order of the set's groups. Empty unless applied.
    learning_rates: _Repeated[float]
    # The `ParameterSet.config_revision` that was used, from 1.
    config_revision: int
    # The request had been applied before; this is its original result. Only `parameters_step` and `round` are of now.
    replayed: bool
    # The step that the parameters in this reply belong to: `step`, or a later one when replayed.
    parameters_step: int
    # When skipped, and only then: index of the lowest tensor that has a bad element.
    non_finite_tensor: int
    # When skipped, and only then: offset of the first such element in that tensor.
    non_finite_offset: int
    # With `base_step`: how many steps the set was further on when the step's turn came.
    staleness: int
    # Parameters in this reply that are infinite only because `reply_dtype` has no room for them.
    overflowed: int
    # In a set with workers: the round that the next contribution is for. As `parameters_step` it is of now where the
    # request is replayed.
    round: int
    # In a set with workers: of how many contributions the step was made.
    contributions: int
    # When a round is skipped because one contribution is not finite: its rank. Not given where only their sum is not.
    non_finite_rank: int
    # The last step that outlives the server's process, as `ParameterSet.durability` promises: with `EveryStep` that of
    # the set, otherwise that of the last checkpoint. As `parameters_step` it is of now where the request is replayed. Not
    # given where nothing of the set is kept, or not yet.
    durable_step: int
    # Where the header has `digest_state` and the step was applied: 32 bytes, SHA-256 of the set's new state and of the
    # digest before it in this incarnation, if there is one. The same on every machine: two runs that have the same here
    # are the same to the bit, in all that the set has, from their first digest on. docs/durability.md says what is
    # hashed.
    state_digest: bytes
    def __init__(
        self,
        *,
        outcome: int | None = ...,
        step: int | None = ...,
        incarnation: int | None = ...,
        grad_norm: float | None = ...,
        learning_rates: Iterable[float] = ...,
        config_revision: int | None = ...,
        replayed: bool | None = ...,
        parameters_step: int | None = ...,
        non_finite_tensor: int | None = ...,
        non_finite_offset: int | None = ...,
        staleness: int | None = ...,
        overflowed: int | None = ...,
        round: int | None = ...,
        contributions: int | None = ...,
        non_finite_rank: int | None = ...,
        durable_step: int | None = ...,
        state_digest: bytes | None = ...,
    ) -> None: ...

class StepResponse(Message):
    """One message of a reply. At most 4 MiB, and 1 MiB by choice: a client's default limit takes all of them."""
    # In the reply's last message only. Until it has come, parameters of this reply are provisional: discard them if the
    # stream ends first.
    result: StepResult
    # Updated parameters: in all messages of the reply together every element of every tensor that the step brought whole
    # exactly once, tensors ascending; and behind them, of those that came in rows, each of these rows once. In the form
    # (`values` or `data`) that the step's first chunk had, and as `data` where `reply_dtype` is one of 16 bits. None
    # with `omit_parameters`; and no rows where the request is replayed, since the set does not remember which they
    # were: read the parameters.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        result: StepResult | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class StepOnceRequest(Message):
    """A whole step in one message."""
    # What the step is about. Must be given; otherwise INVALID_ARGUMENT (UNEXPECTED_MESSAGE).
    header: StepHeader
    # As in StepRequest.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        header: StepHeader | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class StepOnceResponse(Message):
    """A whole reply in one message."""
    # What became of the step.
    result: StepResult
    # As in StepResponse.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        result: StepResult | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class IfExists(_Enum[int]):
    """What to do when a set of that name exists."""

    # As IF_EXISTS_FAIL.
    IF_EXISTS_UNSPECIFIED: ClassVar[int]
    # Fail: ALREADY_EXISTS (SET_EXISTS).
    IF_EXISTS_FAIL: ClassVar[int]
    # Use the set as it is, with the state that it has, if its specification is the same with all defaults resolved;
    # otherwise ALREADY_EXISTS (SPEC_MISMATCH), naming the first field that differs. So N workers may all create. Labels
    # take no part in the comparison, nor does a durability that is not given; hyperparameters are compared after
    # rounding to float.
    IF_EXISTS_USE_IF_SAME_SPEC: ClassVar[int]

IF_EXISTS_UNSPECIFIED: int
IF_EXISTS_FAIL: int
IF_EXISTS_USE_IF_SAME_SPEC: int

class WriteMode(_Enum[int]):
    """What a write replaces."""

    # In a request: INVALID_ARGUMENT (INVALID_FIELD). State your wish.
    WRITE_MODE_UNSPECIFIED: ClassVar[int]
    # Parameters only. Moments and step are kept (zero for a new set). After a full write that broke off:
    # FAILED_PRECONDITION (UNINITIALIZED); of a POISONED set: DATA_LOSS (POISONED). Both need a full write.
    WRITE_MODE_PARAMETERS: ClassVar[int]
    # Every slot and the step: restores what a read of every slot returned, bit for bit. On a device with memory of its
    # own it holds all of that in the server's inflight budget, 4 bytes a parameter and slot, until it commits, and one
    # that breaks off changes nothing.
    WRITE_MODE_FULL: ClassVar[int]

WRITE_MODE_UNSPECIFIED: int
WRITE_MODE_PARAMETERS: int
WRITE_MODE_FULL: int

class StepState(_Enum[int]):
    """How far a step that was sent with a request_id has come."""

    # Never sent.
    STEP_STATE_UNSPECIFIED: ClassVar[int]
    # The step was applied; `result` is the original one, marked as replayed.
    STEP_STATE_COMMITTED: ClassVar[int]
    # An attempt is arriving, or awaits its turn.
    STEP_STATE_IN_FLIGHT: ClassVar[int]
    # Not remembered: never sent, skipped, failed, or applied more than 64 steps ago or before the last write to the set,
    # which `incarnation` shows.
    STEP_STATE_UNKNOWN: ClassVar[int]
    # The contribution has arrived whole, and counts in the round that is open: do not send it again. A round that fails
    # forgets it.
    STEP_STATE_ACCUMULATED: ClassVar[int]

STEP_STATE_UNSPECIFIED: int
STEP_STATE_COMMITTED: int
STEP_STATE_IN_FLIGHT: int
STEP_STATE_UNKNOWN: int
STEP_STATE_ACCUMULATED: int

class DeviceState(_Enum[int]):
    """What a device is good for now."""

    # Never sent.
    DEVICE_STATE_UNSPECIFIED: ClassVar[int]
    # Sets can be created there, stepped and written.
    DEVICE_STATE_OK: ClassVar[int]
    # The device failed in a way that ends only with the server: its sets answer reads of parameters alone, creates and
    # writes are UNAVAILABLE (DEVICE_LOST), and steps poison. Other devices go on.
    DEVICE_STATE_LOST: ClassVar[int]

DEVICE_STATE_UNSPECIFIED: int
DEVICE_STATE_OK: int
DEVICE_STATE_LOST: int

class CreateParameterSetRequest(Message):
    """A set to create. A field that the server does not know is INVALID_ARGUMENT (UNKNOWN_FIELD), here and in the messages
    within.
    """
    # What the set is to be.
    spec: ParameterSetSpec
    # What to do when a set of that name exists. Default: fail.
    if_exists: int
    def __init__(
        self,
        *,
        spec: ParameterSetSpec | None = ...,
        if_exists: int | None = ...,
    ) -> None: ...

class CreateParameterSetResponse(Message):
    """A set that is there now."""
    # The set as it is now: new at step 0, or, where it existed, at the step that it has.
    parameter_set: ParameterSet
    # False when the set existed.
    created: bool
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
        created: bool | None = ...,
    ) -> None: ...

class GetParameterSetRequest(Message):
    """A set to describe."""
    # Name of the parameter set.
    name: str
    def __init__(
        self,
        *,
        name: str | None = ...,
    ) -> None: ...

class GetParameterSetResponse(Message):
    """What a set is."""
    # The set as it is now.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class ListParameterSetsRequest(Message):
    """Which sets to list, and how many at once."""
    # At most 1,000, which is also the default. A page has fewer where it would be larger than 1 MiB, and where many sets
    # lack the labels: it looks at 1,000 sets at most. Negative, or more: INVALID_ARGUMENT (INVALID_FIELD).
    page_size: int
    # `next_page_token` of the page before. Empty: the first page. Not one of ours: INVALID_ARGUMENT (INVALID_FIELD).
    page_token: str
    # Only sets whose name starts with this. Empty: all.
    name_prefix: str
    # Only sets that have all of these labels, with these values. Empty: all. Pages may then be short, or have no set at
    # all, with more behind them: go on until there is no `next_page_token`.
    labels: MutableMapping[str, str]
    def __init__(
        self,
        *,
        page_size: int | None = ...,
        page_token: str | None = ...,
        name_prefix: str | None = ...,
        labels: Mapping[str, str] = ...,
    ) -> None: ...

class ListParameterSetsResponse(Message):
    """One page of sets."""
    # In ascending order of name, compared byte by byte. May be empty on any page. A set that exists from the first page
    # to the last is on one of them, once.
    parameter_sets: _Repeated[ParameterSet]
    # Empty on the last page, and on no other: a page without sets may not be the last.
    next_page_token: str
    def __init__(
        self,
        *,
        parameter_sets: Iterable[ParameterSet] = ...,
        next_page_token: str | None = ...,
    ) -> None: ...

class ListTensorsRequest(Message):
    """Which set's tensors to list, and how many at once."""
    # Name of the parameter set.
    name: str
    # At most 4,096, which is also the default. Negative, or more: INVALID_ARGUMENT (INVALID_FIELD).
    page_size: int
    # `next_page_token` of the page before. Empty: the first page. Not one of ours: INVALID_ARGUMENT (INVALID_FIELD).
    page_token: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        page_size: int | None = ...,
        page_token: str | None = ...,
    ) -> None: ...

class ListTensorsResponse(Message):
    """One page of tensors."""
    # In ascending order of index, those without elements included.
    tensors: _Repeated[Tensor]
    # Empty on the last page.
    next_page_token: str
    def __init__(
        self,
        *,
        tensors: Iterable[Tensor] = ...,
        next_page_token: str | None = ...,
    ) -> None: ...

class UpdateParameterGroupRequest(Message):
    """What to change of a group."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Demands that the configuration has not changed since: another revision than the set's is ABORTED (CONFIG_CHANGED).
    # Not given: any.
    config_revision: int
    # The group, by its name (empty: the set's first), and the new values. A field that is not given is its default.
    group: ParameterGroup
    # Which fields of the group are to change: `learning_rate`, `schedule`, `frozen`, `adam` or `sgd`, or one of their
    # fields, such as `adam.weight_decay`. The optimizer cannot become another one, nor take other arrays:
    # `adam.amsgrad`, and whether `sgd.momentum` is 0, stay as they are. Empty, or anything else: INVALID_ARGUMENT
    # (INVALID_FIELD).
    update_mask: FieldMask
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        config_revision: int | None = ...,
        group: ParameterGroup | None = ...,
        update_mask: FieldMask | None = ...,
    ) -> None: ...

class UpdateParameterGroupResponse(Message):
    """The set after the change."""
    # With the new `config_revision`.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class UpdateParameterSetRequest(Message):
    """What to change of a set."""
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Demands that the configuration has not changed since: another revision than the set's is ABORTED (CONFIG_CHANGED).
    # Not given: any.
    config_revision: int
    # The set, by its name, and the new values.
    spec: ParameterSetSpec
    # Which fields are to change: `labels` (all of them), `clipping`, `non_finite_policy`, `max_staleness`, `workers`.
    # Empty, or anything else: INVALID_ARGUMENT (INVALID_FIELD). `workers` while a round is open: FAILED_PRECONDITION
    # (ROUND_OPEN).
    update_mask: FieldMask
    def __init__(
        self,
        *,
        incarnation: int | None = ...,
        config_revision: int | None = ...,
        spec: ParameterSetSpec | None = ...,
        update_mask: FieldMask | None = ...,
    ) -> None: ...

class UpdateParameterSetResponse(Message):
    """The set after the change."""
    # With the new `config_revision`.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class AddTensorsRequest(Message):
    """Tensors to add to a set. At most 4 MiB."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Demands this schema, so that a retry adds nothing twice; another one is FAILED_PRECONDITION (SCHEMA_MISMATCH). Not
    # given: any.
    schema_fingerprint: int
    # At least one, with names that the set does not have, each of one of the set's groups or of `groups`. Otherwise
    # INVALID_ARGUMENT (INVALID_FIELD).
    tensors: _Repeated[TensorSpec]
    # Groups to add, with names that the set does not have, and no optimizer that takes other arrays than the set has.
    # Otherwise INVALID_ARGUMENT (INVALID_FIELD).
    groups: _Repeated[ParameterGroup]
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        schema_fingerprint: int | None = ...,
        tensors: Iterable[TensorSpec] = ...,
        groups: Iterable[ParameterGroup] = ...,
    ) -> None: ...

class AddTensorsResponse(Message):
    """The set with its new tensors."""
    # With the new incarnation and fingerprint.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class CheckpointRequest(Message):
    """A set to make a checkpoint of."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
    ) -> None: ...

class CheckpointResponse(Message):
    """A checkpoint that is on disk."""
    # Of the state that the set was in at some time between the request and this.
    checkpoint: Checkpoint
    def __init__(
        self,
        *,
        checkpoint: Checkpoint | None = ...,
    ) -> None: ...

class ListCheckpointsRequest(Message):
    """A set whose checkpoints are asked for."""
    # Name of the parameter set.
    set: str
    def __init__(
        self,
        *,
        set: str | None = ...,
    ) -> None: ...

class ListCheckpointsResponse(Message):
    """The checkpoints of a set."""
    # The newest first.
    checkpoints: _Repeated[Checkpoint]
    def __init__(
        self,
        *,
        checkpoints: Iterable[Checkpoint] = ...,
    ) -> None: ...

class RestoreCheckpointRequest(Message):
    """A checkpoint to take a set back to."""
    # Name of the parameter set.
    set: str
    # Demands that the set is of this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # `Checkpoint.incarnation` and `Checkpoint.step` of the checkpoint.
    checkpoint_incarnation: int
    # See `checkpoint_incarnation`.
    checkpoint_step: int
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        checkpoint_incarnation: int | None = ...,
        checkpoint_step: int | None = ...,
    ) -> None: ...

class RestoreCheckpointResponse(Message):
    """The set as it was taken back."""
    # With the new incarnation.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class ForkRequest(Message):
    """A set to make of another one."""
    # Name of the parameter set that there is.
    set: str
    # Demands this incarnation of it; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # The new set's, as `ParameterSetSpec.name`. ALREADY_EXISTS (SET_EXISTS) if a set has it.
    name: str
    # Where the new set lives, as `ParameterSetSpec.device`. Empty: where the other one does.
    device: str
    # What of the new set is kept, as `ParameterSetSpec.durability`. None: what of the other one is.
    durability: Durability
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        name: str | None = ...,
        device: str | None = ...,
        durability: Durability | None = ...,
    ) -> None: ...

class ForkResponse(Message):
    """The new set."""
    # As it is.
    parameter_set: ParameterSet
    def __init__(
        self,
        *,
        parameter_set: ParameterSet | None = ...,
    ) -> None: ...

class WatchParameterSetRequest(Message):
    """A set to watch."""
    # Name of the parameter set.
    name: str
    def __init__(
        self,
        *,
        name: str | None = ...,
    ) -> None: ...

class WatchParameterSetResponse(Message):
    """Something that happened to a set. Events of one set come in the order in which it happened."""
    # How many events before this one the watcher was too slow for.
    missed: int
    # The set's incarnation after the event.
    incarnation: int
    # The set's step after the event.
    step: int
    # Nothing yet: the set as it stands when the watch begins.
    current: ParameterSet
    # A step was applied.
    committed: CommittedEvent
    # A step was skipped, or rejected, because its gradient is not finite.
    skipped: SkippedEvent
    # The configuration was changed, or tensors were added: the set as it is now.
    config_changed: ParameterSet
    # The set was written, and is of another incarnation.
    written: WrittenEvent
    # The set was deleted. The stream ends after this.
    deleted: DeletedEvent
    # A round came to nothing for want of contributions.
    round_failed: RoundFailedEvent
    def __init__(
        self,
        *,
        missed: int | None = ...,
        incarnation: int | None = ...,
        step: int | None = ...,
        current: ParameterSet | None = ...,
        committed: CommittedEvent | None = ...,
        skipped: SkippedEvent | None = ...,
        config_changed: ParameterSet | None = ...,
        written: WrittenEvent | None = ...,
        deleted: DeletedEvent | None = ...,
        round_failed: RoundFailedEvent | None = ...,
    ) -> None: ...

class CommittedEvent(Message):
    """A step that was applied."""
    # Of its gradient, divided by grad_scale and before clipping.
    grad_norm: float
    # By group, as the step used them.
    learning_rates: _Repeated[float]
    # With `base_step`: how many steps the set was further on.
    staleness: int
    # `StepHeader.metrics`; of a round, the lowest rank's.
    metrics: MutableMapping[str, float]
    def __init__(
        self,
        *,
        grad_norm: float | None = ...,
        learning_rates: Iterable[float] = ...,
        staleness: int | None = ...,
        metrics: Mapping[str, float] = ...,
    ) -> None: ...

class SkippedEvent(Message):
    """A step whose gradient is not finite."""
    # The lowest tensor that has such an element.
    non_finite_tensor: int
    # The first such element of it.
    non_finite_offset: int
    # The contribution to a round that has it; not given where only their sum does.
    non_finite_rank: int
    def __init__(
        self,
        *,
        non_finite_tensor: int | None = ...,
        non_finite_offset: int | None = ...,
        non_finite_rank: int | None = ...,
    ) -> None: ...

class RoundFailedEvent(Message):
    """A round that came to nothing."""
    # Which one.
    round: int
    # How many contributions it had; fewer than `Workers.quorum`.
    contributions: int
    def __init__(
        self,
        *,
        round: int | None = ...,
        contributions: int | None = ...,
    ) -> None: ...

class WrittenEvent(Message):
    """A write that was applied."""
    # What it replaced.
    mode: int
    def __init__(
        self,
        *,
        mode: int | None = ...,
    ) -> None: ...

class DeletedEvent(Message):
    """There is nothing to say of it."""
    def __init__(self) -> None: ...

class DeleteParameterSetRequest(Message):
    """A set to delete."""
    # Name of the parameter set.
    name: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    def __init__(
        self,
        *,
        name: str | None = ...,
        incarnation: int | None = ...,
    ) -> None: ...

class DeleteParameterSetResponse(Message):
    """The set is gone. There is nothing to say of it."""
    def __init__(self) -> None: ...

class WriteHeader(Message):
    """What a write is about. A field that the server does not know is INVALID_ARGUMENT (UNKNOWN_FIELD)."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Demands this schema; another one is FAILED_PRECONDITION (SCHEMA_MISMATCH). Not given: any.
    schema_fingerprint: int
    # Makes the write safe to repeat: 1 to 64 printable ASCII characters, otherwise INVALID_ARGUMENT (INVALID_FIELD). The
    # set remembers the request_id that made its incarnation: the same request is not written again, and its result comes
    # back with `replayed`. A request that comes again while it is under way takes over: the older call ends ABORTED
    # (SUPERSEDED), unless it has arrived whole; then that one is applied, and the newer one is answered as replayed. The
    # same request_id with another header: ALREADY_EXISTS (REQUEST_ID_REUSED).
    request_id: str
    # What the write replaces. Must be given.
    mode: int
    # With mode FULL, and only then: the step to set, in [0, 2^53]. Otherwise INVALID_ARGUMENT (INVALID_FIELD).
    # A set at 2^53 takes no step: FAILED_PRECONDITION (TOO_LARGE).
    step: int
    # With mode FULL, and only then: how many updates each tensor has had, in order of index, each in [0, step]: what a
    # read returned (`ReadHeader.update_counts`). Empty: all have had `step`. Otherwise INVALID_ARGUMENT (INVALID_FIELD).
    update_counts: _Repeated[int]
    # With mode PARAMETERS, and only then: indices of the tensors that the write brings, ascending; the others keep their
    # parameters. Empty: all. Otherwise INVALID_ARGUMENT (INVALID_FIELD). The first write of a set brings all.
    tensors: _Repeated[int]
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        schema_fingerprint: int | None = ...,
        request_id: str | None = ...,
        mode: int | None = ...,
        step: int | None = ...,
        update_counts: Iterable[int] = ...,
        tensors: Iterable[int] = ...,
    ) -> None: ...

class WriteTensorsRequest(Message):
    """One message of a write. The first has the header; any may have chunks; the last says so. How long the client may be
    silent between two is as in StepRequest.
    """
    # In the first message only, and there it must be; otherwise INVALID_ARGUMENT (UNEXPECTED_MESSAGE).
    header: WriteHeader
    # The write is complete. From here on it is applied whatever becomes of the call. If elements are missing:
    # INVALID_ARGUMENT (INCOMPLETE).
    last: bool
    # In all messages together every element of every tensor that the write brings, in every slot that the mode writes,
    # exactly once. Parameters are at most 2^95, EXP_AVG and MOMENTUM_BUFFER at most 2^64 in magnitude, EXP_AVG_SQ and
    # MAX_EXP_AVG_SQ are in [0, 2^127]; anything else, and anything not finite, is INVALID_ARGUMENT (VALUE_OUT_OF_RANGE).
    # No step makes an infinite parameter from what is within these bounds (see ParameterGroup.learning_rate); moments
    # out of all proportion can make one above 2^95, which can be read, but not written.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        header: WriteHeader | None = ...,
        last: bool | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class WriteTensorsResponse(Message):
    """What became of a write."""
    # The set's new incarnation, in [1, 2^53).
    incarnation: int
    # The set's step now: when replayed, steps may have followed the write.
    step: int
    # The request_id had made this incarnation before; nothing was written.
    replayed: bool
    def __init__(
        self,
        *,
        incarnation: int | None = ...,
        step: int | None = ...,
        replayed: bool | None = ...,
    ) -> None: ...

class WriteTensorsOnceRequest(Message):
    """A whole write in one message."""
    # What the write is about. Must be given; otherwise INVALID_ARGUMENT (UNEXPECTED_MESSAGE).
    header: WriteHeader
    # As in WriteTensorsRequest, but all of them.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        header: WriteHeader | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class WriteTensorsOnceResponse(Message):
    """What became of a write."""
    # The set's new incarnation, in [1, 2^53).
    incarnation: int
    # The set's step now: when replayed, steps may have followed the write.
    step: int
    # The request_id had made this incarnation before; nothing was written.
    replayed: bool
    def __init__(
        self,
        *,
        incarnation: int | None = ...,
        step: int | None = ...,
        replayed: bool | None = ...,
    ) -> None: ...

class ReadTensorsRequest(Message):
    """What to read. The reply's first message has the header; all of them are at most 4 MiB, and 1 MiB by choice."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # Which arrays, each at most once; otherwise INVALID_ARGUMENT (INVALID_FIELD). Empty: PARAMETER.
    slots: _Repeated[int]
    # Sends the header alone, with `not_modified`, unless the set is beyond this step. A write may take a set back to an
    # earlier step: demand the incarnation, too, to be told of that.
    if_newer_than_step: int
    # When there is no room to keep the snapshot: do not fail, but read on until a step commits or a write begins, and
    # only then fail, ABORTED (SNAPSHOT_GONE). Of no effect where moments are asked for that lie in a device's own
    # memory.
    may_abort: bool
    # Send chunks as `values` rather than `data`. Default: `data`.
    as_values: bool
    # Indices of the tensors to read, ascending. Empty: all. Otherwise INVALID_ARGUMENT (INVALID_FIELD). A read of parameters
    # alone is charged for what it holds: the 256 KiB blocks that have elements of these tensors.
    tensors: _Repeated[int]
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        slots: Iterable[int] = ...,
        if_newer_than_step: int | None = ...,
        may_abort: bool | None = ...,
        as_values: bool | None = ...,
        tensors: Iterable[int] = ...,
    ) -> None: ...

class ReadHeader(Message):
    """Which state of the set a read returns."""
    # The incarnation that everything in this reply belongs to, in [1, 2^53).
    incarnation: int
    # The step that everything in this reply belongs to.
    step: int
    # Nothing follows: the set is not beyond `if_newer_than_step`.
    not_modified: bool
    # READY, or POISONED: these are the parameters before the commit that failed, and steps are refused.
    state: int
    # Where not all tensors have had as many updates as `step`: how many each has had, in order of index. For
    # `WriteHeader.update_counts`.
    update_counts: _Repeated[int]
    def __init__(
        self,
        *,
        incarnation: int | None = ...,
        step: int | None = ...,
        not_modified: bool | None = ...,
        state: int | None = ...,
        update_counts: Iterable[int] = ...,
    ) -> None: ...

class ReadTensorsResponse(Message):
    """One message of what was read."""
    # In the first message only.
    header: ReadHeader
    # In all messages together every element of every tensor asked for in each slot asked for exactly once; slots in the
    # order asked for, tensors ascending.
    chunks: _Repeated[TensorChunk]
    def __init__(
        self,
        *,
        header: ReadHeader | None = ...,
        chunks: Iterable[TensorChunk] = ...,
    ) -> None: ...

class GetStepResultRequest(Message):
    """A step to ask after."""
    # Name of the parameter set.
    set: str
    # Demands this incarnation; another one is ABORTED (INCARNATION_MISMATCH). Not given: any.
    incarnation: int
    # As the step's header had it. Must be given; otherwise INVALID_ARGUMENT (INVALID_FIELD).
    request_id: str
    def __init__(
        self,
        *,
        set: str | None = ...,
        incarnation: int | None = ...,
        request_id: str | None = ...,
    ) -> None: ...

class GetStepResultResponse(Message):
    """What became of a step, as far as the set remembers."""
    # How far the step has come.
    state: int
    # With COMMITTED only.
    result: StepResult
    # The set's step now.
    step: int
    # The set's incarnation now, in [1, 2^53).
    incarnation: int
    def __init__(
        self,
        *,
        state: int | None = ...,
        result: StepResult | None = ...,
        step: int | None = ...,
        incarnation: int | None = ...,
    ) -> None: ...

class GetServerInfoRequest(Message):
    """Nothing needs to be said to be told of the server."""
    def __init__(self) -> None: ...

class ServerLimits(Message):
    """What requests are held against. Unless said otherwise a request over one of these is INVALID_ARGUMENT
    (INVALID_FIELD).
    """
    # Tensors of one set.
    max_tensors: int
    # Extents of one tensor.
    max_rank: int
    # Groups of one set.
    max_groups: int
    # Name of a set, in bytes.
    max_set_name_bytes: int
    # Name of a tensor, in bytes.
    max_tensor_name_bytes: int
    # Labels of one set.
    max_labels: int
    # The largest message that the server takes, and the largest that it sends, in bytes: 4 MiB. A larger one is
    # INVALID_ARGUMENT (MESSAGE_TOO_LARGE), or gRPC's RESOURCE_EXHAUSTED if it is larger by more than 64 KiB.
    max_message_bytes: int
    # Calls that move tensors, open at the same time. One more waits for a place.
    max_streams: int
    # Steps whose requests a set remembers, counted back from the last.
    remembered_steps: int
    # Chunks in one message. More are INVALID_ARGUMENT (MALFORMED_MESSAGE).
    max_chunks_per_message: int
    # Calls of any kind that may wait for a place at the same time, each within its deadline. When there is one more, it
    # or the last one of the connection with the most is RESOURCE_EXHAUSTED (TOO_MANY_STREAMS), with RetryInfo.
    max_waiting_calls: int
    # How large the server makes its own messages, in bytes, and a good size for a client's.
    recommended_message_bytes: int
    # A good size for one chunk, in elements. 1,048,576 elements are a message above 4 MiB.
    recommended_chunk_elements: int
    # Metadata of one call, in bytes, as HTTP/2 counts it (32 more for each entry). A call with more ends alone,
    # INVALID_ARGUMENT (MESSAGE_TOO_LARGE); one with more than 128 KiB ends its connection.
    max_metadata_bytes: int
    # Connections at the same time. One more is closed at once.
    max_connections: int
    # How long a message or a reply may be under way, beside the time that its bytes take at `min_rate`. Longer:
    # DEADLINE_EXCEEDED (STALLED). Also how long a Step stream may be idle between two steps while others wait for its
    # place, if its connection holds no more than its share of the places. Longer: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS),
    # with RetryInfo.
    patience: Duration
    # The lowest rate at which a client may send or take bytes, in bytes a second.
    min_rate: int
    # How long a step or write may be silent between two messages while nobody waits for what it holds; while somebody
    # does, and at least: as long as a message may be under way. Longer: DEADLINE_EXCEEDED (STALLED).
    think_time: Duration
    # How long a step or write waits for memory before it is RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED), with RetryInfo. Who
    # came first is served first, but one that fits passes those that still wait for others that came before them.
    admission_wait: Duration
    # Calls on one connection at the same time, of whatever kind. A client's gRPC library holds one more back until
    # another has ended: give long streams a connection of their own.
    max_calls_per_connection: int
    # The header of a step or write, in bytes, and any request that neither moves tensors nor creates a set. A larger one
    # is INVALID_ARGUMENT (MESSAGE_TOO_LARGE).
    max_request_bytes: int
    def __init__(
        self,
        *,
        max_tensors: int | None = ...,
        max_rank: int | None = ...,
        max_groups: int | None = ...,
        max_set_name_bytes: int | None = ...,
        max_tensor_name_bytes: int | None = ...,
        max_labels: int | None = ...,
        max_message_bytes: int | None = ...,
        max_streams: int | None = ...,
        remembered_steps: int | None = ...,
        max_chunks_per_message: int | None = ...,
        max_waiting_calls: int | None = ...,
        recommended_message_bytes: int | None = ...,
        recommended_chunk_elements: int | None = ...,
        max_metadata_bytes: int | None = ...,
        max_connections: int | None = ...,
        patience: Duration | None = ...,
        min_rate: int | None = ...,
        think_time: Duration | None = ...,
        admission_wait: Duration | None = ...,
        max_calls_per_connection: int | None = ...,
        max_request_bytes: int | None = ...,
    ) -> None: ...

class MemoryBudget(Message):
    """A part of the server's memory."""
    # `state`: parameters and moments. `inflight`: steps and writes under way. `read`: snapshots that readers hold.
    # `streams`: open calls that move tensors. `waiting`: calls that wait for a place. `cuda:N`: what sets hold of that
    # device's memory, 4 bytes a parameter and slot.
    name: str
    # The most that may be in use, in bytes.
    capacity_bytes: int
    # What is in use now, in bytes.
    used_bytes: int
    def __init__(
        self,
        *,
        name: str | None = ...,
        capacity_bytes: int | None = ...,
        used_bytes: int | None = ...,
    ) -> None: ...

class Device(Message):
    """What the server computes with, and where sets can live."""
    # `cpu` or `cuda:N`: what a specification calls it.
    name: str
    # What computes there, such as the instruction set of the kernels, or the name of a GPU.
    description: str
    # Threads of the server that compute there, or drive it, at the same time.
    threads: int
    # Memory of its own, in bytes; 0: the host's.
    memory_bytes: int
    # CUDA's, such as `9.0`; empty for others.
    compute_capability: str
    # Whether sets can live there now.
    state: int
    def __init__(
        self,
        *,
        name: str | None = ...,
        description: str | None = ...,
        threads: int | None = ...,
        memory_bytes: int | None = ...,
        compute_capability: str | None = ...,
        state: int | None = ...,
    ) -> None: ...

class GetServerInfoResponse(Message):
    """What a server is, can do, and has left."""
    # Version of the server, such as `0.1.0`.
    version: str
    # What requests are held against.
    limits: ServerLimits
    # The parts of the server's memory, and how much of each is in use now.
    budgets: _Repeated[MemoryBudget]
    # What the server computes with: the CPU, and CUDA devices where it has some.
    devices: _Repeated[Device]
    # What this server can do beyond what adamant.v1 started with. None yet.
    features: _Repeated[str]
    def __init__(
        self,
        *,
        version: str | None = ...,
        limits: ServerLimits | None = ...,
        budgets: Iterable[MemoryBudget] = ...,
        devices: Iterable[Device] = ...,
        features: Iterable[str] = ...,
    ) -> None: ...
