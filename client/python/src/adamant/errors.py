"""What goes wrong, as exceptions: one class for each of the server's reasons, and some for the connection's.

    try:
        stream.step(gradients, parameters)
    except adamant.StepMismatchError as error:  # Another client stepped the set.
        stream.refresh(parameters)

All are AdamantErrors. What the caller does wrong, and the client can see for itself, is a TypeError, a ValueError or a
RuntimeError instead; then nothing was sent.
"""

from __future__ import annotations

import grpc

from adamant import v1

_DETAIL_URL = "type.googleapis.com/adamant.v1.ErrorDetail"
_RETRY_URL = "type.googleapis.com/google.rpc.RetryInfo"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class AdamantError(Exception):
    """A call has failed for good: whatever retries it had are used up.

    Raised itself only for a reason that this version does not know.
    """

    code: grpc.StatusCode
    """Of what kind it is."""
    message: str
    """For a person to read: what was wrong, what was expected, and what the server got."""
    detail: v1.ErrorDetail
    """Set, step, tensor, offset, field: what applies. Empty where the error is not the server's."""
    retry_delay: float | None
    """Seconds that the server asks to wait before the call is tried again; None if it is not worth trying as it is."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        detail: v1.ErrorDetail | None = None,
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(code, message, detail, retry_delay)
        self.code = code
        self.message = message
        self.detail = v1.ErrorDetail() if detail is None else detail
        self.retry_delay = retry_delay

    @property
    def reason(self) -> str:
        """The reason's name as in error.proto without its prefix, such as STEP_MISMATCH; empty if there is none."""
        value = self.detail.reason
        if value == v1.ERROR_REASON_UNSPECIFIED:
            return ""
        if value not in v1.ErrorReason.values():
            return str(value)
        return v1.ErrorReason.Name(value)[len("ERROR_REASON_") :]

    def __str__(self) -> str:
        return f"{self.message} [{self.reason or self.code.name}]"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.code.value[0], self.message, self.detail.SerializeToString(), self.retry_delay)

    def with_suffix(self, suffix: str) -> AdamantError:
        """The same error, with more to say."""
        return type(self)(self.code, self.message + suffix, self.detail, self.retry_delay)


class TransportError(AdamantError):
    """An error that is not the server's: gRPC's own, or the connection's."""


class UnavailableError(TransportError):
    """The server could not be reached, or the connection was lost. Whether a step was applied is not known."""


class DeadlineExceededError(TransportError):
    """The call took longer than it may. Whether a step was applied is not known."""


class CancelledError(TransportError):
    """The call was cancelled on this side."""


class MalformedMessageError(AdamantError):
    """The bytes are not a message of their type."""


class UnknownFieldError(AdamantError):
    """The request has a field that this server does not know: `field` is its path and number. It is older than the
    client."""


class InvalidFieldError(AdamantError):
    """`field` is missing, out of range, or in conflict with another."""


class UnexpectedMessageError(AdamantError):
    """A header is missing or came twice, or the stream ended before its last message."""


class MessageTooLargeError(AdamantError):
    """A message, a header, a request or its metadata is larger than the server takes."""


class UnknownTensorError(AdamantError):
    """The set does not have this tensor."""


class MalformedChunkError(AdamantError):
    """A chunk has no elements where there should be some, or none that fit together."""


class ChunkOutOfOrderError(AdamantError):
    """A chunk does not start where the one before it in its tensor ended."""


class ChunkOutOfRangeError(AdamantError):
    """A chunk reaches over the end of its tensor."""


class IncompleteError(AdamantError):
    """The step or write ended before all elements had come. The set's tensors are others than the client knew."""


class ValueOutOfRangeError(AdamantError):
    """A value that no write may bring: not finite, or too large for its slot. `tensor` and `offset` say where."""


class TensorNotCarriedError(AdamantError):
    """The step or write does not bring this tensor: its header names others, or a group has frozen it."""


class NonFiniteGradientError(AdamantError):
    """The gradient is not finite, and the set rejects such steps. `tensor` and `offset` say where."""


class SetNotFoundError(AdamantError):
    """There is no such set, or it was deleted meanwhile."""


class SetExistsError(AdamantError):
    """A set of this name exists."""


class SpecMismatchError(AdamantError):
    """A set of this name exists with another specification: `field` is the first that differs."""


class UninitializedError(AdamantError):
    """The set awaits its first write, or a full write after one that broke off."""


class SchemaMismatchError(AdamantError):
    """The set's tensors are others than the client knew."""


class IncarnationMismatchError(AdamantError):
    """The set was written, or deleted and created anew, since the client read it: refresh."""


class PoisonedError(AdamantError):
    """A commit failed half way, and the state is not known: only a full write helps."""


class WriteInProgressError(AdamantError):
    """Another write to the set is under way."""


class StepMismatchError(AdamantError):
    """Another client stepped the set: refresh, and compute a new gradient. `detail.step` is where it stands."""


class OutcomeUnknownError(AdamantError):
    """The request is too old to be remembered, and may have been applied: refresh."""


class RequestIdReusedError(AdamantError):
    """The request_id was used before, for another step or write."""


class SupersededError(AdamantError):
    """A newer attempt of the same request took over."""


class ConfigChangedError(AdamantError):
    """The configuration is another one than the request demands or fits."""


class RankTakenError(AdamantError):
    """The rank's contribution to the round has arrived already, under another request_id."""


class RoundMismatchError(AdamantError):
    """The round that the contribution is for has not begun."""


class RoundOpenError(AdamantError):
    """Workers cannot change while a round is open."""


class BudgetExhaustedError(AdamantError):
    """There was no room in the server's memory, for as long as the client tried."""


class TooLargeError(AdamantError):
    """The request could never fit this server."""


class TooManyStreamsError(AdamantError):
    """The server carried as many calls as it can, for as long as the client tried."""


class StalledError(AdamantError):
    """The client neither sent nor took data for longer than a call may."""


class SnapshotGoneError(AdamantError):
    """A read that was allowed to abort met a newer step: read again."""


class DrainingError(AdamantError):
    """The server is shutting down."""


class DeviceLostError(AdamantError):
    """The set's device has failed, and the server must be restarted before it can be used again."""


class DeviceFailedError(AdamantError):
    """A device failed in a read or a create, which changed nothing."""


class NoDataDirectoryError(AdamantError):
    """What was asked for needs a data directory, and the server has none."""


class DiskExhaustedError(AdamantError):
    """There is no room on the disk of the server's data directory; nothing has changed."""


class StoreFailedError(AdamantError):
    """The server's data directory has failed: nothing durable changes until the server is restarted, which shows what
    of the change is on disk."""


class DamagedError(AdamantError):
    """What the server's data directory had of it is damaged."""


class CheckpointNotFoundError(AdamantError):
    """The set has no such checkpoint."""


REASONS: dict[int, type[AdamantError]] = {
    v1.ERROR_REASON_MALFORMED_MESSAGE: MalformedMessageError,
    v1.ERROR_REASON_UNKNOWN_FIELD: UnknownFieldError,
    v1.ERROR_REASON_INVALID_FIELD: InvalidFieldError,
    v1.ERROR_REASON_UNEXPECTED_MESSAGE: UnexpectedMessageError,
    v1.ERROR_REASON_MESSAGE_TOO_LARGE: MessageTooLargeError,
    v1.ERROR_REASON_UNKNOWN_TENSOR: UnknownTensorError,
    v1.ERROR_REASON_MALFORMED_CHUNK: MalformedChunkError,
    v1.ERROR_REASON_CHUNK_OUT_OF_ORDER: ChunkOutOfOrderError,
    v1.ERROR_REASON_CHUNK_OUT_OF_RANGE: ChunkOutOfRangeError,
    v1.ERROR_REASON_INCOMPLETE: IncompleteError,
    v1.ERROR_REASON_VALUE_OUT_OF_RANGE: ValueOutOfRangeError,
    v1.ERROR_REASON_TENSOR_NOT_CARRIED: TensorNotCarriedError,
    v1.ERROR_REASON_NON_FINITE_GRADIENT: NonFiniteGradientError,
    v1.ERROR_REASON_SET_NOT_FOUND: SetNotFoundError,
    v1.ERROR_REASON_SET_EXISTS: SetExistsError,
    v1.ERROR_REASON_SPEC_MISMATCH: SpecMismatchError,
    v1.ERROR_REASON_UNINITIALIZED: UninitializedError,
    v1.ERROR_REASON_SCHEMA_MISMATCH: SchemaMismatchError,
    v1.ERROR_REASON_INCARNATION_MISMATCH: IncarnationMismatchError,
    v1.ERROR_REASON_POISONED: PoisonedError,
    v1.ERROR_REASON_WRITE_IN_PROGRESS: WriteInProgressError,
    v1.ERROR_REASON_STEP_MISMATCH: StepMismatchError,
    v1.ERROR_REASON_OUTCOME_UNKNOWN: OutcomeUnknownError,
    v1.ERROR_REASON_REQUEST_ID_REUSED: RequestIdReusedError,
    v1.ERROR_REASON_SUPERSEDED: SupersededError,
    v1.ERROR_REASON_CONFIG_CHANGED: ConfigChangedError,
    v1.ERROR_REASON_RANK_TAKEN: RankTakenError,
    v1.ERROR_REASON_ROUND_MISMATCH: RoundMismatchError,
    v1.ERROR_REASON_ROUND_OPEN: RoundOpenError,
    v1.ERROR_REASON_BUDGET_EXHAUSTED: BudgetExhaustedError,
    v1.ERROR_REASON_TOO_LARGE: TooLargeError,
    v1.ERROR_REASON_TOO_MANY_STREAMS: TooManyStreamsError,
    v1.ERROR_REASON_STALLED: StalledError,
    v1.ERROR_REASON_SNAPSHOT_GONE: SnapshotGoneError,
    v1.ERROR_REASON_DRAINING: DrainingError,
    v1.ERROR_REASON_DEVICE_LOST: DeviceLostError,
    v1.ERROR_REASON_DEVICE_FAILED: DeviceFailedError,
    v1.ERROR_REASON_NO_DATA_DIRECTORY: NoDataDirectoryError,
    v1.ERROR_REASON_DISK_EXHAUSTED: DiskExhaustedError,
    v1.ERROR_REASON_STORE_FAILED: StoreFailedError,
    v1.ERROR_REASON_DAMAGED: DamagedError,
    v1.ERROR_REASON_CHECKPOINT_NOT_FOUND: CheckpointNotFoundError,
}

_TRANSPORT = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
}


def make_error(
    code: grpc.StatusCode, message: str, detail: v1.ErrorDetail | None = None, retry_delay: float | None = None
) -> AdamantError:
    """The error of the class that its reason, or its code, stands for."""
    reason = v1.ERROR_REASON_UNSPECIFIED if detail is None else detail.reason
    if reason == v1.ERROR_REASON_UNSPECIFIED:
        return _TRANSPORT.get(code, TransportError)(code, message, detail, retry_delay)
    return REASONS.get(reason, AdamantError)(code, message, detail, retry_delay)


def from_status(code: int, message: str, status: bytes | None) -> AdamantError:
    """The error of a call that ended so. `status` is its trailer `grpc-status-details-bin`."""
    detail = None
    retry_delay = None
    if status:
        try:
            for any_detail in v1.ErrorStatus.FromString(status).details:
                if any_detail.type_url == _DETAIL_URL:
                    detail = v1.ErrorDetail.FromString(any_detail.value)
                elif any_detail.type_url == _RETRY_URL:
                    delay = v1.RetryInfo.FromString(any_detail.value).retry_delay
                    retry_delay = delay.seconds + delay.nanos * 1e-9
        except Exception as error:  # Protobuf's DecodeError, wherever its version has it.
            message += f" (its details could not be read: {error})"
    return make_error(_CODES.get(code, grpc.StatusCode.UNKNOWN), message, detail, retry_delay)


def _restore(code: int, message: str, detail: bytes, retry_delay: float | None) -> AdamantError:
    return make_error(_CODES[code], message, v1.ErrorDetail.FromString(detail), retry_delay)


__all__ = ["AdamantError", "CancelledError", "DeadlineExceededError", "TransportError", "UnavailableError"]
__all__ += [error.__name__ for error in REASONS.values()]
