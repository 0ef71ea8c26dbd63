#include "server/rpc/step_call.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::rpc {

StepCall::StepCall(core::Registry* registry, OpenCalls* open_calls, grpc::GenericCallbackServerContext* context,
                   CallShape shape)
    : UploadCall("step",
                 shape == CallShape::kOnce ? v1::StepOnceRequest::descriptor()->full_name()
                                           : v1::StepRequest::descriptor()->full_name(),
                 open_calls, context, shape),
      registry_(registry) {}

void StepCall::OnOpen() {
  // Of a unary call the whole is one operation; a stream may stay idle between two steps for as long as it likes.
  if (shape() == CallShape::kOnce) {
    BeginOperation({.bytes = wire::kMaxMessageBytes});
  } else {
    EndOperation();
  }
  Read();
}

absl::StatusOr<std::shared_ptr<core::StepAttempt>> StepCall::NewAttempt(const v1::StepHeader& header) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = FindSet(header.set());
  if (!set.ok()) return set.status();
  const int64_t array_bytes = (*set)->schema().flat_size() * static_cast<int64_t>(sizeof(float));
  if (shape() == CallShape::kOnce && array_bytes > core::kSmallStepBytes) {
    v1::ErrorDetail detail;
    detail.set_reason(v1::ERROR_REASON_TOO_LARGE);
    detail.set_set(header.set());
    return Error(absl::StatusCode::kFailedPrecondition,
                 absl::StrCat(header.set(), ": the reply takes ", array_bytes, " bytes, and StepOnce sends at most ",
                              core::kSmallStepBytes, "; use Step"),
                 detail);
  }
  if (shape() == CallShape::kStream) {
    BeginOperation({.bytes = 2 * array_bytes, .may_think = true, .holds_memory = array_bytes > core::kSmallStepBytes});
  }
  std::shared_ptr<core::StepAttempt> attempt =
      (*set)->NewStep(header, std::static_pointer_cast<StepCall>(shared_from_this()));
  core::MutexLock lock(&reply_mutex_);
  reply_dtype_ = header.reply_dtype();
  if (shape() == CallShape::kStream) computing_ = attempt.get();
  return attempt;
}

absl::StatusOr<std::shared_ptr<core::ParameterSet>> StepCall::FindSet(const std::string& name) {
  // The registry's mutex is shared by all sets, and most streams are for one.
  std::shared_ptr<core::ParameterSet> set = set_.lock();
  if (set != nullptr && set->name() == name && !set->deleted()) return set;
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> found = registry_->Find(name, "header.set");
  if (found.ok()) set_ = *found;
  return found;
}

void StepCall::OnComputed(const core::StepAttempt* attempt,
                          const std::shared_ptr<const core::StepParameters>& parameters, int64_t blocks) {
  {
    core::MutexLock lock(&reply_mutex_);
    if (attempt != computing_) return;
    BeginReply(parameters);
    computed_ = std::max(computed_, blocks * core::kBlockElements);
  }
  WriteNext();
}

void StepCall::OnReply(core::StepReply reply) {
  {
    core::MutexLock lock(&reply_mutex_);
    computing_ = nullptr;
    BeginReply(reply.parameters);
    result_ = std::move(reply.result);
  }
  WriteNext();
}

void StepCall::BeginReply(const std::shared_ptr<const core::StepParameters>& parameters) {
  if (parameters_ != nullptr) return;
  parameters_ = parameters;
  computed_ = 0;
  // Where the step asked for no parameters there is none to cut.
  const auto sizes = parameters->snapshot != nullptr ? parameters->selection->sizes() : absl::Span<const int64_t>();
  overflowed_ = 0;
  next_row_ = 0;
  cutter_.emplace(sizes, v1::SLOT_UNSPECIFIED, FormatOf(reply_dtype_).has_value() ? wire::ChunkForm::kData : form(),
                  FormatOf(reply_dtype_).has_value() ? reply_dtype_ : v1::DTYPE_FLOAT32);
}

void StepCall::WriteNext() {
  std::shared_ptr<const core::StepParameters> parameters;
  bool has_result;
  {
    core::MutexLock lock(&reply_mutex_);
    if (writing_ || parameters_ == nullptr || !FindAvailable()) return;
    writing_ = true;
    parameters = parameters_;
    has_result = result_.has_value();
  }
  // Without the mutex: threads that compute would wait for elements to be narrowed.
  wire::TensorMessageBuilder builder(parameters);
  AddElements(*parameters, &builder);
  if (has_result && cutter_->done() && AddRows(*parameters, &builder)) {
    core::MutexLock lock(&reply_mutex_);
    result_->set_overflowed(overflowed_);
    builder.SetHeader(*result_);
    // The memory returns when gRPC has let go of it.
    parameters_.reset();
    result_.reset();
  }
  parameters.reset();
  Write(builder.Finish());
}

bool StepCall::FindAvailable() {
  const core::Schema& schema = parameters_->selection->schema();
  if (result_.has_value()) {
    cutter_->SetAvailable(schema.tensors().size(), 0);
    return true;
  }
  // The last blocks come with the result.
  if (cutter_->done() || computed_ == schema.flat_size()) return false;
  const int64_t sent = schema.tensors()[cutter_->tensor()].begin + cutter_->offset();
  if (computed_ - sent < wire::kChunkElements) return false;
  const int tensor = schema.TensorAt(computed_);
  const core::Schema::Tensor& place = schema.tensors()[tensor];
  cutter_->SetAvailable(tensor, std::min(computed_, place.end) - place.begin);
  return true;
}

void StepCall::AddElements(const core::StepParameters& parameters, wire::TensorMessageBuilder* builder) {
  const core::Schema& schema = parameters.selection->schema();
  const core::Snapshot* const snapshot = parameters.snapshot.get();
  const std::optional<kernels::Format16> format = FormatOf(cutter_->dtype());
  const kernels::NarrowFunction narrow = format.has_value() ? parameters.host_kernels->narrow[*format] : nullptr;
  const auto source = [&](int32_t tensor, int64_t begin, int64_t end, wire::TensorMessageBuilder* to) {
    const int64_t base = schema.tensors()[tensor].begin;
    core::ForEachRun(base + begin, base + end, [&](int64_t block, int64_t run_begin, int64_t run_end) {
      const float* const elements = snapshot->blocks()[block].data() + run_begin;
      const int64_t count = run_end - run_begin;
      if (narrow != nullptr) {
        overflowed_ += narrow(elements, to->AddNarrowed(count), count);
      } else {
        to->AddElements(elements, count);
      }
    });
    return true;
  };
  cutter_->Fill(MessageLimit(), source, builder);
}

int64_t StepCall::MessageLimit() const {
  // One message for a unary call: NewAttempt saw to it that everything fits.
  return shape() == CallShape::kOnce ? wire::kMaxMessageBytes : wire::kMessageBytes;
}

bool StepCall::AddRows(const core::StepParameters& parameters, wire::TensorMessageBuilder* builder) {
  const core::RowWork* const work = parameters.rows.get();
  if (work == nullptr) return true;
  const int64_t limit = MessageLimit();
  const v1::Dtype dtype = cutter_->dtype();
  const std::optional<kernels::Format16> format = FormatOf(dtype);
  const kernels::NarrowFunction narrow = format.has_value() ? parameters.host_kernels->narrow[*format] : nullptr;
  for (const core::RowWork::Tensor& tensor : work->tensors) {
    // Rows without elements are not worth a word.
    if (tensor.width == 0) next_row_ = std::max(next_row_, tensor.end);
    while (next_row_ < tensor.end) {
      // No more than the message has room for by any means.
      const auto most = static_cast<size_t>(limit / (tensor.width * wire::ElementBytes(dtype)) + 1);
      std::vector<int64_t> rows;
      for (size_t i = next_row_; i < std::min(tensor.end, next_row_ + most); ++i) {
        rows.push_back(work->rows[i].index);
      }
      const int64_t count = wire::RowsThatFit(rows, tensor.width, dtype, *builder, limit);
      if (count == 0) return false;
      rows.resize(count);
      builder->BeginRows(tensor.tensor, rows, narrow != nullptr ? wire::ChunkForm::kData : form(), count * tensor.width,
                         dtype);
      work->ForEachRow(next_row_, next_row_ + count, [&](const core::RowWork::Place& place) {
        const int64_t end = place.values + place.end - place.begin;
        core::ForEachRun(place.values, end, [&](int64_t block, int64_t begin, int64_t run_end) {
          const float* const elements = work->values[block].data() + begin;
          if (narrow != nullptr) {
            overflowed_ += narrow(elements, builder->AddNarrowed(run_end - begin), run_end - begin);
          } else {
            builder->AddElements(elements, run_end - begin);
          }
        });
      });
      next_row_ += count;
    }
  }
  return true;
}

void StepCall::OnWritten() {
  bool over;
  {
    core::MutexLock lock(&reply_mutex_);
    writing_ = false;
    over = parameters_ == nullptr;
  }
  if (!over) {
    WriteNext();
  } else if (shape() == CallShape::kOnce) {
    End(absl::OkStatus());
  } else {
    EndOperation();
    Read();
  }
}

}  // namespace adamant::rpc
