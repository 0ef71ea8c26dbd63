#include "tests/power/set_history.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant::power {
namespace {

using core::Arrays;
using core::Gradient;
using core::ReasonOf;
using core::SequentialModel;

template <typename... Parts>
absl::Status Wrong(const Parts&... parts) {
  return absl::InternalError(absl::StrCat(parts...));
}

// A step of all tensors, or of one.
absl::StatusOr<e2e::StepReply> Send(e2e::TestClient* client, const SequentialModel& model, const v1::StepHeader& header,
                                    const core::Values& gradient) {
  std::vector<int32_t> brought;
  std::vector<int64_t> sizes = e2e::TensorSizes(model.spec());
  for (int32_t i = 0; i < model.tensors(); ++i) {
    if (model.IsBrought(i, header)) {
      brought.push_back(i);
    } else {
      sizes[i] = 0;
    }
  }
  e2e::StepStream stream(client->stub());
  stream.Send(e2e::StepMessages(header, e2e::Only(e2e::Chunks(model.spec(), gradient, 65521), brought)));
  return stream.ReadReply(sizes);
}

}  // namespace

SetHistory::SetHistory(v1::ParameterSetSpec spec, uint64_t seed) : spec_(std::move(spec)), random_(seed) {
  changes_.push_back({.begun = 0, .answered = 0, .after = {}, .safe = 0});
}

void SetHistory::Add(int64_t begun, const Disk& disk, SetState after, bool is_safe) {
  const size_t safe = is_safe ? changes_.size() : changes_.back().safe;
  changes_.push_back({.begun = begun, .answered = disk.position(), .after = std::move(after), .safe = safe});
}

absl::Status SetHistory::Act(e2e::TestClient* client, const Disk& disk) {
  if (now().model == nullptr) return Create(client, disk);
  const uint64_t action = random_() % 32;
  if (action == 0) return Delete(client, disk);
  if (action <= 2) return Write(client, disk);
  if (action <= 4) return Configure(client, disk);
  if (action <= 6) return Checkpoint(client, disk);
  return Step(client, disk);
}

void SetHistory::NoteShutdown(int64_t begun, int64_t answered) {
  changes_.push_back({.begun = begun, .answered = answered, .after = now(), .safe = changes_.size()});
}

absl::Status SetHistory::Create(e2e::TestClient* client, const Disk& disk) {
  const int64_t begun = disk.position();
  const absl::StatusOr<v1::CreateParameterSetResponse> created = client->Create(spec_);
  if (!created.ok()) return created.status();
  Add(begun, disk,
      {.model = std::make_shared<SequentialModel>(spec_),
       .incarnation = created->parameter_set().incarnation(),
       .config_revision = created->parameter_set().config_revision()},
      /*is_safe=*/true);
  return absl::OkStatus();
}

absl::Status SetHistory::Delete(e2e::TestClient* client, const Disk& disk) {
  const int64_t begun = disk.position();
  if (absl::Status status = client->Delete(spec_.name()); !status.ok()) return status;
  Add(begun, disk, {}, /*is_safe=*/true);
  return absl::OkStatus();
}

// Of everything, or of the parameters: these are as safe as a step.
absl::Status SetHistory::Write(e2e::TestClient* client, const Disk& disk) {
  Arrays arrays = now().model->arrays();
  arrays.parameters = Gradient(now().model->parameter_count(), random_());
  v1::WriteHeader header;
  header.set_mode(v1::WRITE_MODE_PARAMETERS);
  const bool is_full = random_() % 2 == 0;
  if (is_full) {
    arrays.step += 10;
    header = core::FullHeader(arrays.step);
    header.mutable_update_counts()->Add(arrays.update_counts.begin(), arrays.update_counts.end());
  }
  const int64_t begun = disk.position();
  const absl::StatusOr<v1::WriteTensorsResponse> written = client->Write(spec_, header, arrays);
  if (!written.ok()) return written.status();
  SetState after = now();
  auto model = std::make_shared<SequentialModel>(*after.model);
  *model->mutable_arrays() = std::move(arrays);
  after.model = std::move(model);
  after.incarnation = written->incarnation();
  after.step_id.clear();
  Add(begun, disk, std::move(after), is_full || keeps_steps());
  return absl::OkStatus();
}

absl::Status SetHistory::Configure(e2e::TestClient* client, const Disk& disk) {
  auto model = std::make_shared<SequentialModel>(*now().model);
  v1::ParameterGroup* const group = model->mutable_spec()->mutable_groups(1);
  group->set_learning_rate(static_cast<double>(1 + random_() % 1000) / 4096);
  v1::UpdateParameterGroupRequest request;
  request.set_set(spec_.name());
  request.mutable_group()->set_name(group->name());
  request.mutable_group()->set_learning_rate(group->learning_rate());
  request.mutable_update_mask()->add_paths("learning_rate");
  const int64_t begun = disk.position();
  const auto updated = client->Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request);
  if (!updated.ok()) return updated.status();
  SetState after = now();
  after.model = std::move(model);
  after.config_revision = updated->parameter_set().config_revision();
  Add(begun, disk, std::move(after), keeps_steps());
  return absl::OkStatus();
}

absl::Status SetHistory::Checkpoint(e2e::TestClient* client, const Disk& disk) {
  v1::CheckpointRequest request;
  request.set_set(spec_.name());
  const int64_t begun = disk.position();
  const auto made = client->Call(&v1::OptimizerService::Stub::Checkpoint, request);
  if (!made.ok()) return made.status();
  if (made->checkpoint().step() != now().model->arrays().step) return Wrong("a checkpoint of another step");
  Add(begun, disk, now(), /*is_safe=*/true);
  return absl::OkStatus();
}

absl::Status SetHistory::Step(e2e::TestClient* client, const Disk& disk) {
  const SequentialModel& model = *now().model;
  const uint64_t seed = random_();
  const core::Values gradient = Gradient(model.parameter_count(), seed);
  v1::StepHeader header =
      e2e::StepHeader(spec_.name(), absl::StrCat("step ", ++requests_), model.arrays().step, /*attempt=*/1);
  header.set_incarnation(now().incarnation);
  if (random_() % 4 == 0) header.add_tensors(static_cast<int32_t>(random_() % model.tensors()));
  const int64_t begun = disk.position();
  const absl::StatusOr<e2e::StepReply> reply = Send(client, model, header, gradient);
  if (!reply.ok()) return reply.status();
  SetState after = now();
  auto stepped = std::make_shared<SequentialModel>(model);
  stepped->Apply(gradient, header);
  after.model = std::move(stepped);
  ++after.applied;
  after.step_id = header.request_id();
  const v1::StepResult& result = reply->result;
  if (result.outcome() != v1::STEP_OUTCOME_APPLIED || result.step() != after.model->arrays().step) {
    return Wrong("step ", header.request_id(), ": ", result.ShortDebugString());
  }
  Add(begun, disk, std::move(after), keeps_steps());
  changes_.back().header = header;
  changes_.back().seed = seed;
  if (keeps_steps() && result.durable_step() != result.step()) return Wrong("a step that is not kept");
  // A checkpoint may have been made meanwhile.
  for (size_t i = changes_.size(); i-- > changes_.back().safe && result.has_durable_step();) {
    const SetState& state = changes_[i].after;
    if (state.incarnation != now().incarnation || state.model->arrays().step != result.durable_step()) continue;
    changes_.back().safe = std::max(changes_.back().safe, i);
    break;
  }
  return absl::OkStatus();
}

absl::Status SetHistory::CheckAfterCut(e2e::TestClient* client, int64_t position) {
  // Calls that were answered, and the one that was under way.
  size_t answered = 0;
  while (answered + 1 < changes_.size() && changes_[answered + 1].answered <= position) ++answered;
  size_t last = answered;
  if (last + 1 < changes_.size() && changes_[last + 1].begun <= position) ++last;
  const size_t first = changes_[answered].safe;
  const std::string expected =
      absl::StrCat(spec_.name(), ": changes ", first, " to ", last, " may be the last, ", answered, " was answered: ");

  const absl::StatusOr<e2e::SetState> found = client->ReadState(spec_);
  const auto none = [&](size_t i) { return changes_[i].after.model == nullptr; };
  if (!found.ok()) {
    if (ReasonOf(found.status()) != v1::ERROR_REASON_SET_NOT_FOUND) return Wrong(expected, found.status().ToString());
    for (size_t i = first; i <= last; ++i) {
      if (none(i)) return absl::OkStatus();
    }
    return Wrong(expected, "it is gone");
  }
  const v1::ParameterSet& description = found->description;
  if (description.state() != v1::PARAMETER_SET_STATE_READY) {
    return Wrong(expected, "it is ", v1::ParameterSetState_Name(description.state()));
  }
  size_t is = last + 1;
  for (size_t i = last + 1; i-- > first && is > last;) {
    if (none(i) || !(changes_[i].after.model->arrays() == found->arrays)) continue;
    const bool is_of_now = description.incarnation() == changes_[i].after.incarnation;
    // One that has kept its steps, or has lost none, has kept its name.
    if (keeps_steps() && !is_of_now) continue;
    // The configuration is kept by itself.
    if (keeps_steps() && changes_[i].after.config_revision != description.config_revision()) continue;
    is = i;
  }
  if (is > last) {
    return Wrong(expected, "it is none of them, at step ", found->arrays.step, ", ", description.ShortDebugString());
  }
  const SetState& state = changes_[is].after;
  const SetState& told = changes_[answered].after;
  if (keeps_steps()) {
    if (description.statistics().applied() != state.applied) {
      return Wrong(expected, description.statistics().applied(), " steps instead of ", state.applied);
    }
    if (description.has_restored_from()) return Wrong(expected, "it was taken back");
  } else {
    const bool has_lost =
        is < answered && told.model != nullptr &&
        (state.incarnation != told.incarnation || state.model->arrays().step != told.model->arrays().step);
    if (has_lost && (description.incarnation() == told.incarnation || description.incarnation() == state.incarnation)) {
      return Wrong(expected, "it was taken back to ", is, ", and is of an incarnation that there was");
    }
    bool is_configured = false;
    for (size_t i = answered; i <= last; ++i) {
      is_configured |= !none(i) && changes_[i].after.config_revision == description.config_revision();
    }
    if (!is_configured) return Wrong(expected, "revision ", description.config_revision(), " was lost");
  }

  SequentialModel model = *state.model;
  *model.mutable_spec()->mutable_groups() = {description.groups().begin(), description.groups().end()};
  // The step under way was applied if and only if its effect is there.
  for (size_t i = answered; keeps_steps() && i <= last; ++i) {
    const Change& change = changes_[i];
    // Writes make it forget.
    if (change.header.request_id().empty() || change.after.incarnation != state.incarnation) continue;
    const auto known = client->GetStepResult(spec_.name(), change.header.request_id());
    if (!known.ok()) return Wrong(expected, known.status().ToString());
    if ((known->state() == v1::STEP_STATE_COMMITTED) != (i <= is)) {
      return Wrong(expected, change.header.request_id(), " is ", known->ShortDebugString(), " after ", is);
    }
    if (i != last) continue;
    v1::StepHeader again = change.header;
    again.set_attempt(2);
    const core::Values gradient = Gradient(model.parameter_count(), change.seed);
    const absl::StatusOr<e2e::StepReply> reply = Send(client, model, again, gradient);
    if (!reply.ok()) return Wrong(expected, "asked again: ", reply.status().ToString());
    if (reply->result.replayed() != (i <= is))
      return Wrong(expected, "asked again: ", reply->result.ShortDebugString());
    if (i > is) model.Apply(gradient, again);
  }
  // It goes on.
  const core::Values gradient = Gradient(model.parameter_count(), static_cast<uint64_t>(position));
  const v1::StepHeader next = e2e::StepHeader(spec_.name(), "after the cut", model.arrays().step);
  const absl::StatusOr<e2e::StepReply> reply = Send(client, model, next, gradient);
  if (!reply.ok()) return Wrong(expected, "the next step: ", reply.status().ToString());
  model.Apply(gradient, next);
  const absl::StatusOr<Arrays> arrays = client->ReadArrays(spec_);
  if (!arrays.ok()) return Wrong(expected, arrays.status().ToString());
  if (!(*arrays == model.arrays())) return Wrong(expected, "the next step has other bits");
  return absl::OkStatus();
}

}  // namespace adamant::power
