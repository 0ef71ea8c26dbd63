// What a stream knows of its set, put into each step's header and checked against each step's spans.
#include "adamant/step_stream.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

template <typename Tensors>
absl::Status CheckSizes(absl::string_view what, const std::vector<v1::Tensor>& expected, Tensors tensors) {
  if (tensors.size() != expected.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": expected a span for each of ", expected.size(), " tensors, got ", tensors.size()));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (static_cast<int64_t>(tensors[i].size()) != expected[i].element_count()) {
      return absl::InvalidArgumentError(absl::StrCat(what, "[", i, "]: expected the ", expected[i].element_count(),
                                                     " elements of `", expected[i].name(), "`, got ",
                                                     tensors[i].size()));
    }
  }
  return absl::OkStatus();
}

// A tensor's memory.
struct Range {
  const float* begin;
  const float* end;
  bool written;
};

absl::Status CheckNoOverlap(ConstTensors gradients, MutableTensors parameters) {
  std::vector<Range> ranges;
  ranges.reserve(gradients.size() + parameters.size());
  // A span without elements may begin within another, and overlaps nothing.
  for (absl::Span<const float> g : gradients) {
    if (!g.empty()) ranges.push_back({g.data(), g.data() + g.size(), false});
  }
  for (absl::Span<float> p : parameters) {
    if (!p.empty()) ranges.push_back({p.data(), p.data() + p.size(), true});
  }
  const std::less<const float*> before;
  std::sort(ranges.begin(), ranges.end(), [&](const Range& a, const Range& b) { return before(a.begin, b.begin); });
  // How far the ranges seen so far reach, those that are read and those that are written.
  const float* reach[2] = {nullptr, nullptr};
  for (const Range& range : ranges) {
    if (before(range.begin, reach[!range.written])) {
      return absl::InvalidArgumentError("a span of the gradients overlaps one of the parameters");
    }
    reach[range.written] = std::max(reach[range.written], range.end, before);
  }
  return absl::OkStatus();
}

}  // namespace

StepStream::StepStream(std::shared_ptr<Connection> connection, const v1::ParameterSet& set,
                       std::vector<v1::Tensor> tensors)
    : connection_(std::move(connection)),
      set_(set.name()),
      schema_fingerprint_(set.schema_fingerprint()),
      tensors_(std::move(tensors)),
      incarnation_(set.incarnation()),
      step_(set.step()) {}

absl::StatusOr<v1::StepResult> StepStream::Step(ConstTensors gradients, MutableTensors parameters,
                                                absl::string_view request_id) {
  absl::Status status = CheckSizes("gradients", tensors_, gradients);
  if (status.ok()) status = CheckSizes("parameters", tensors_, parameters);
  if (status.ok()) status = CheckNoOverlap(gradients, parameters);
  if (!status.ok()) return status;

  StepCall call;
  call.header.set_set(set_);
  call.header.set_incarnation(incarnation_);
  call.header.set_schema_fingerprint(schema_fingerprint_);
  call.header.set_request_id(std::string(request_id));
  call.header.set_expected_step(step_);
  call.gradients = gradients;
  call.parameters = parameters;
  absl::StatusOr<v1::StepResult> result = connection_->Step(call);
  if (result.ok()) step_ = result->parameters_step();
  return result;
}

absl::Status StepStream::Refresh(MutableTensors parameters) {
  absl::Status status = CheckSizes("parameters", tensors_, parameters);
  if (!status.ok()) return status;
  ReadCall call;
  call.request.set_set(set_);
  call.targets = {{v1::SLOT_PARAMETER, parameters}};
  absl::StatusOr<v1::ReadHeader> header = connection_->Read(call);
  if (!header.ok()) return header.status();
  incarnation_ = header->incarnation();
  step_ = header->step();
  return absl::OkStatus();
}

}  // namespace adamant
