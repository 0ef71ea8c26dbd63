// Bytes and pointers to messages and spans, and back.
#include "client/c/include/adamant_c.h"

#include <google/protobuf/message_lite.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "adamant/connection.h"
#include "adamant/options.h"
#include "proto/wire/status.h"

struct adamant_connection {
  std::shared_ptr<adamant::Connection> connection;
};

struct adamant_watch {
  std::unique_ptr<adamant::EventStream> events;
};

namespace {

using adamant::Connection;
namespace v1 = adamant::v1;

adamant_bytes BytesOf(absl::string_view text) {
  adamant_bytes bytes = {.data = nullptr, .size = text.size()};
  if (text.empty()) return bytes;
  bytes.data = static_cast<uint8_t*>(std::malloc(text.size()));
  if (bytes.data == nullptr) std::abort();
  std::memcpy(bytes.data, text.data(), text.size());
  return bytes;
}

// What a function returns of `error`.
int32_t Tell(const absl::Status& error, adamant_status* status) {
  const auto code = static_cast<int32_t>(error.code());
  if (status == nullptr) return code;
  const grpc::Status image = adamant::wire::ToGrpcStatus(error);
  *status = {.code = code, .message = BytesOf(image.error_message()), .details = BytesOf(image.error_details())};
  return code;
}

int32_t Tell(const absl::StatusOr<std::string>& response, adamant_bytes* bytes, adamant_status* status) {
  if (response.ok()) *bytes = BytesOf(*response);
  return Tell(response.status(), status);
}

template <typename Message>
absl::StatusOr<std::string> Serialized(const absl::StatusOr<Message>& message) {
  if (!message.ok()) return message.status();
  return message->SerializeAsString();
}

absl::Status Parse(const void* bytes, size_t size, google::protobuf::MessageLite* message) {
  if (message->ParsePartialFromArray(bytes, static_cast<int>(size))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the ", size, " bytes are no ", message->GetTypeName()));
}

template <typename Response, typename Request>
absl::StatusOr<std::string> Call(Connection* connection, const void* bytes, size_t size,
                                 absl::StatusOr<Response> (Connection::*function)(const Request&)) {
  Request request;
  if (absl::Status status = Parse(bytes, size, &request); !status.ok()) return status;
  return Serialized((connection->*function)(request));
}

absl::StatusOr<std::string> CallByName(Connection* connection, absl::string_view method, const void* bytes,
                                       size_t size) {
  const auto call = [&](auto function) { return Call(connection, bytes, size, function); };
  if (method == "CreateParameterSet") return call(&Connection::CreateParameterSet);
  if (method == "GetParameterSet") return call(&Connection::GetParameterSet);
  if (method == "ListParameterSets") return call(&Connection::ListParameterSets);
  if (method == "ListTensors") return call(&Connection::ListTensors);
  if (method == "DeleteParameterSet") return call(&Connection::DeleteParameterSet);
  if (method == "AddTensors") return call(&Connection::AddTensors);
  if (method == "UpdateParameterGroup") return call(&Connection::UpdateParameterGroup);
  if (method == "UpdateParameterSet") return call(&Connection::UpdateParameterSet);
  if (method == "Checkpoint") return call(&Connection::Checkpoint);
  if (method == "ListCheckpoints") return call(&Connection::ListCheckpoints);
  if (method == "RestoreCheckpoint") return call(&Connection::RestoreCheckpoint);
  if (method == "Fork") return call(&Connection::Fork);
  if (method == "GetStepResult") return call(&Connection::GetStepResult);
  if (method == "GetServerInfo") return call(&Connection::GetServerInfo);
  return absl::UnimplementedError(absl::StrCat("there is no call `", method, "` that moves no tensors"));
}

std::vector<absl::Span<const float>> SpansOf(const adamant_source* tensors, int64_t count) {
  std::vector<absl::Span<const float>> spans;
  spans.reserve(count);
  for (int64_t i = 0; i < count; ++i) spans.emplace_back(tensors[i].data, tensors[i].count);
  return spans;
}

std::vector<absl::Span<float>> SpansOf(const adamant_destination* tensors, int64_t count) {
  std::vector<absl::Span<float>> spans;
  spans.reserve(count);
  for (int64_t i = 0; i < count; ++i) spans.emplace_back(tensors[i].data, tensors[i].count);
  return spans;
}

absl::StatusOr<std::string> Step(Connection* connection, const adamant_step_call& given) {
  adamant::StepCall call;
  if (absl::Status status = Parse(given.header, given.header_size, &call.header); !status.ok()) return status;
  const std::vector<absl::Span<const float>> gradients = SpansOf(given.gradients, given.tensor_count);
  std::vector<absl::Span<float>> parameters;
  if (given.parameters != nullptr) parameters = SpansOf(given.parameters, given.tensor_count);
  std::vector<adamant::RowsGradient> rows;
  for (int64_t i = 0; i < given.row_count; ++i) {
    const adamant_rows& one = given.rows[i];
    rows.push_back({.tensor = one.tensor,
                    .rows = absl::MakeConstSpan(one.rows, one.row_count),
                    .values = absl::MakeConstSpan(one.values, one.value_count)});
  }
  call.gradients = gradients;
  call.parameters = parameters;
  call.gradient_dtype = static_cast<v1::Dtype>(given.gradient_dtype);
  call.rows = rows;
  call.round_timeout = absl::Seconds(given.round_timeout);
  return Serialized(connection->Step(call));
}

absl::StatusOr<std::string> Write(Connection* connection, const void* header, size_t header_size,
                                  const adamant_source_slot* slots, int64_t slot_count) {
  adamant::WriteCall call;
  if (absl::Status status = Parse(header, header_size, &call.header); !status.ok()) return status;
  std::vector<std::vector<absl::Span<const float>>> spans;
  for (int64_t i = 0; i < slot_count; ++i) spans.push_back(SpansOf(slots[i].tensors, slots[i].tensor_count));
  for (int64_t i = 0; i < slot_count; ++i) call.sources.push_back({static_cast<v1::Slot>(slots[i].slot), spans[i]});
  return Serialized(connection->Write(call));
}

absl::StatusOr<std::string> Read(Connection* connection, const void* request, size_t request_size,
                                 const adamant_destination_slot* slots, int64_t slot_count) {
  adamant::ReadCall call;
  if (absl::Status status = Parse(request, request_size, &call.request); !status.ok()) return status;
  std::vector<std::vector<absl::Span<float>>> spans;
  for (int64_t i = 0; i < slot_count; ++i) spans.push_back(SpansOf(slots[i].tensors, slots[i].tensor_count));
  for (int64_t i = 0; i < slot_count; ++i) call.targets.push_back({static_cast<v1::Slot>(slots[i].slot), spans[i]});
  return Serialized(connection->Read(call));
}

adamant::ClientOptions OptionsOf(const adamant_options& given) {
  adamant::ClientOptions options;
  options.retry = {.max_attempts = given.max_attempts,
                   .total_timeout = absl::Seconds(given.total_timeout),
                   .initial_backoff = absl::Seconds(given.initial_backoff),
                   .max_backoff = absl::Seconds(given.max_backoff),
                   .multiplier = given.multiplier,
                   .jitter = given.jitter};
  options.connect_timeout = absl::Seconds(given.connect_timeout);
  options.unary_timeout = absl::Seconds(given.unary_timeout);
  options.step_timeout = absl::Seconds(given.step_timeout);
  options.transfer_timeout = absl::Seconds(given.transfer_timeout);
  options.message_bytes = given.message_bytes;
  if (given.on_wait != nullptr) {
    options.on_wait = [on_wait = given.on_wait, context = given.context](const absl::Status& reason) {
      adamant_status told;
      Tell(reason, &told);
      on_wait(context, &told);
      adamant_status_free(&told);
    };
  }
  if (given.interrupted != nullptr) {
    options.interrupted = [interrupted = given.interrupted, context = given.context] {
      return interrupted(context) != 0;
    };
  }
  return options;
}

}  // namespace

int32_t adamant_abi_version(void) { return ADAMANT_ABI_VERSION; }

void adamant_bytes_free(adamant_bytes* bytes) {
  std::free(bytes->data);
  *bytes = {.data = nullptr, .size = 0};
}

void adamant_status_free(adamant_status* status) {
  adamant_bytes_free(&status->message);
  adamant_bytes_free(&status->details);
}

adamant_options adamant_options_default(void) {
  const adamant::ClientOptions options;
  return {.max_attempts = options.retry.max_attempts,
          .total_timeout = absl::ToDoubleSeconds(options.retry.total_timeout),
          .initial_backoff = absl::ToDoubleSeconds(options.retry.initial_backoff),
          .max_backoff = absl::ToDoubleSeconds(options.retry.max_backoff),
          .multiplier = options.retry.multiplier,
          .jitter = options.retry.jitter,
          .connect_timeout = absl::ToDoubleSeconds(options.connect_timeout),
          .unary_timeout = absl::ToDoubleSeconds(options.unary_timeout),
          .step_timeout = absl::ToDoubleSeconds(options.step_timeout),
          .transfer_timeout = absl::ToDoubleSeconds(options.transfer_timeout),
          .message_bytes = options.message_bytes,
          .on_wait = nullptr,
          .interrupted = nullptr,
          .context = nullptr};
}

int32_t adamant_connect(const char* target, const adamant_options* options, adamant_connection** connection,
                        adamant_status* status) {
  absl::StatusOr<std::shared_ptr<Connection>> made =
      adamant::MakeConnection(target, OptionsOf(options != nullptr ? *options : adamant_options_default()));
  if (made.ok()) *connection = new adamant_connection{*std::move(made)};
  return Tell(made.status(), status);
}

void adamant_disconnect(adamant_connection* connection) { delete connection; }

int32_t adamant_call(adamant_connection* connection, const char* method, const void* request, size_t request_size,
                     adamant_bytes* response, adamant_status* status) {
  return Tell(CallByName(connection->connection.get(), method, request, request_size), response, status);
}

int32_t adamant_step(adamant_connection* connection, const adamant_step_call* call, adamant_bytes* result,
                     adamant_status* status) {
  return Tell(Step(connection->connection.get(), *call), result, status);
}

int32_t adamant_write(adamant_connection* connection, const void* header, size_t header_size,
                      const adamant_source_slot* slots, int64_t slot_count, adamant_bytes* response,
                      adamant_status* status) {
  return Tell(Write(connection->connection.get(), header, header_size, slots, slot_count), response, status);
}

int32_t adamant_read(adamant_connection* connection, const void* request, size_t request_size,
                     const adamant_destination_slot* slots, int64_t slot_count, adamant_bytes* header,
                     adamant_status* status) {
  return Tell(Read(connection->connection.get(), request, request_size, slots, slot_count), header, status);
}

int32_t adamant_watch_begin(adamant_connection* connection, const void* request, size_t request_size,
                            adamant_watch** watch, adamant_status* status) {
  v1::WatchParameterSetRequest message;
  if (absl::Status error = Parse(request, request_size, &message); !error.ok()) return Tell(error, status);
  absl::StatusOr<std::unique_ptr<adamant::EventStream>> events = connection->connection->Watch(message);
  if (events.ok()) *watch = new adamant_watch{*std::move(events)};
  return Tell(events.status(), status);
}

int32_t adamant_watch_next(adamant_watch* watch, adamant_bytes* event, int32_t* ended, adamant_status* status) {
  const absl::StatusOr<std::optional<v1::WatchParameterSetResponse>> next = watch->events->Next();
  if (next.ok()) {
    *ended = next->has_value() ? 0 : 1;
    *event = next->has_value() ? BytesOf((*next)->SerializeAsString()) : adamant_bytes{.data = nullptr, .size = 0};
  }
  return Tell(next.status(), status);
}

void adamant_watch_cancel(adamant_watch* watch) { watch->events->Cancel(); }

void adamant_watch_end(adamant_watch* watch) { delete watch; }
