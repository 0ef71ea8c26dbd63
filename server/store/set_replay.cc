#include "server/store/set_replay.h"

#include <map>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "server/store/checkpoint.h"
#include "server/store/element_files.h"
#include "server/store/errors.h"
#include "server/store/set_folder.h"

namespace adamant::store {
namespace {

core::RestoredRows RowsOf(const StoredStep& step) {
  core::RestoredRows rows;
  rows.counts.assign(step.row_counts().begin(), step.row_counts().end());
  int64_t row = 0;
  for (const int64_t count : rows.counts) {
    // They were copied together, in order.
    for (int64_t place = 0; place < count && row < step.row_indices_size(); ++place, ++row) {
      rows.rows.push_back({.index = step.row_indices(static_cast<int>(row)), .place = place});
    }
  }
  return rows;
}

// By record of a step: the digest that there was after it, as far as later records, or the base, say.
std::map<int64_t, std::string> DigestsAfter(const Records& records, const StoredBase& base) {
  std::map<int64_t, std::string> digests;
  std::string next;
  uint64_t incarnation = 0;
  for (auto record = records.rbegin(); record != records.rend(); ++record) {
    if (!record->second.has_committed()) continue;
    const bool goes_on = incarnation == record->second.incarnation();
    digests[record->first] = goes_on ? next : record->first <= base.covers() ? base.last_digest() : "";
    next = record->second.committed().previous_digest();
    incarnation = record->second.incarnation();
  }
  return digests;
}

}  // namespace

absl::StatusOr<ReplayedSet> ReplaySet(const StoreParts& parts, const StoredSet& stored, const Records& records,
                                      const core::Resources& resources,
                                      absl::FunctionRef<void(const ReplayedStep&)> observe) {
  const auto last_base =
      std::find_if(records.rbegin(), records.rend(), [](const auto& record) { return record.second.has_base(); });
  if (last_base == records.rend()) return Damaged("none of its records is a whole state");
  ReplayedSet set;
  set.base = last_base->second;
  set.base_number = last_base->first;
  const StoredRecord& base = set.base;
  const StoredBase& state = base.base();
  v1::ParameterSetSpec& spec = set.spec;
  spec = state.has_spec() ? state.spec() : stored.spec();
  *spec.mutable_groups() = state.configuration().set().groups();
  core::RestoredState restored;
  restored.incarnation = base.incarnation();
  restored.step = base.step();
  restored.uninitialized = state.uninitialized();
  restored.update_counts.assign(state.update_counts().begin(), state.update_counts().end());
  restored.configuration = state.configuration().set();
  restored.write = state.write();
  restored.last_digest = state.last_digest();
  for (const StoredRemembrance& stored_step : state.remembered()) {
    core::RememberedStep& step = restored.remembered.emplace_back();
    const int keys = std::min(stored_step.request_ids_size(), stored_step.header_hashes_size());
    for (int key = 0; key < keys; ++key) {
      step.keys.push_back({stored_step.request_ids(key), stored_step.header_hashes(key)});
    }
    step.result = stored_step.result();
  }
  restored.statistics = state.statistics();
  restored.round = state.round();
  restored.create_time = absl::FromUnixNanos(stored.create_time_ns());

  // Nobody has kept what it had when it changed: it awaits a write of what it has become by that.
  const bool is_lost = state.uninitialized() && !stored.spec().durability().has_every_step();
  if (is_lost) {
    for (const auto& [record_number, record] : records) {
      if (record.has_configuration()) restored.configuration = record.configuration().set();
      if (!record.has_grown() || record_number <= state.covers()) continue;
      spec.mutable_tensors()->MergeFrom(record.grown().request().tensors());
      AddGroups(record.grown().request().groups(), &restored.configuration);
      restored.incarnation = record.incarnation();
    }
    *spec.mutable_groups() = restored.configuration.groups();
  }

  const std::string directory = SetDirectory(parts, stored);
  std::unique_ptr<core::Restoration> restoration;
  absl::StatusOr<std::unique_ptr<core::Restoration>> begun = absl::UnknownError("");
  if (state.checkpoint().empty()) {
    begun = core::Restoration::Begin(resources, spec, restored, nullptr);
  } else {
    absl::StatusOr<class Checkpoint> checkpoint =
        Checkpoint::Open(parts.file_system, absl::StrCat(directory, "/checkpoints/", state.checkpoint()));
    if (!checkpoint.ok()) {
      return checkpoint.status().code() == absl::StatusCode::kNotFound ? Damaged(checkpoint.status().message())
                                                                       : checkpoint.status();
    }
    if (checkpoint->info().incarnation != base.incarnation() || checkpoint->info().step != base.step()) {
      return Damaged(absl::StrCat("the checkpoint ", state.checkpoint(), " is of another state than its name says"));
    }
    begun = core::Restoration::Begin(
        resources, spec, restored,
        [&checkpoint](const core::Schema& schema, absl::Span<const v1::Slot> slots, core::PutElements put) {
          absl::Status status;
          for (const v1::Slot slot : slots) {
            if (!status.ok()) break;
            status = checkpoint->Read(slot, schema, [&](int tensor, int64_t offset, absl::Span<const float> elements) {
              return put(slot, tensor, offset, elements);
            });
          }
          return status;
        });
  }
  if (!begun.ok()) return begun.status();
  restoration = *std::move(begun);

  const std::map<int64_t, std::string> digests = DigestsAfter(records, state);
  v1::WriteHeader& write = set.write;
  write = state.write();
  auto tensors = static_cast<int64_t>(spec.tensors_size());
  const int32_t slots = stored.spec().durability().every_step().journal_steps();
  uint64_t incarnation = base.incarnation();
  for (const auto& [record_number, record] : records) {
    const bool is_covered = record_number <= state.covers();
    KeptRecord keep = {.number = record_number,
                       .incarnation = record.incarnation(),
                       .step = record.step(),
                       .kind = record.kind_case(),
                       .is_replayed = !is_covered};
    absl::Status status;
    switch (record.kind_case()) {
      case StoredRecord::kBase:
        continue;
      case StoredRecord::kConfiguration:
        keep.configuration = std::make_shared<const v1::ParameterSet>(record.configuration().set());
        // The base's is as it was before the first of all.
        if (!is_lost) status = restoration->ConfigureAgain(*keep.configuration);
        break;
      case StoredRecord::kCommitted: {
        const StoredStep& step = record.committed();
        const std::vector<v1::StepHeader> headers(step.headers().begin(), step.headers().end());
        if (headers.empty()) return Damaged(absl::StrCat("record ", record_number, " is of a step without a header"));
        const bool asks = absl::c_any_of(headers, [](const auto& header) { return header.digest_state(); });
        if (is_covered) {
          if (record.incarnation() != base.incarnation()) break;
          v1::StepResult result = step.result();
          if (asks) result.set_state_digest(digests.at(record_number));
          restoration->Remember(headers, result);
          break;
        }
        if (record.incarnation() != incarnation || !step.has_gradient()) {
          return Damaged(absl::StrCat("record ", record_number, " is of a step that cannot be made again"));
        }
        core::StepRecord again = {.headers = headers,
                                  .divisor = std::nullopt,
                                  .result = step.result(),
                                  .previous_digest = step.previous_digest()};
        if (step.has_divisor()) again.divisor = step.divisor();
        if (step.gradient().has_slot()) keep.place = {step.gradient().slot().file(), step.gradient().slot().slot()};
        status = restoration->StepAgain(again, RowsOf(step), [&](const core::BroughtElements& to) {
          return ReadElements(parts, stored, slots, step.gradient(), to);
        });
        if (!status.ok()) break;
        ++set.steps;
        observe({record.step(), asks ? restoration->last_digest() : "", asks && !digests.at(record_number).empty()});
        break;
      }
      case StoredRecord::kWritten: {
        if (is_covered) break;
        const StoredElements& parameters = record.written().parameters();
        if (parameters.has_slot()) keep.place = {parameters.slot().file(), parameters.slot().slot()};
        write = record.written().header();
        incarnation = record.incarnation();
        status = restoration->WriteAgain({write, incarnation, record.step()}, [&](const core::BroughtElements& to) {
          return ReadElements(parts, stored, slots, parameters, to);
        });
        break;
      }
      case StoredRecord::kGrown: {
        if (is_covered) {
          keep.tensors = 0;  // those of the base, or fewer
          break;
        }
        const v1::AddTensorsRequest& request = record.grown().request();
        if (is_lost) {
          keep.tensors = tensors;
          keep.groups = request.groups();
          incarnation = record.incarnation();
          break;
        }
        spec.mutable_tensors()->MergeFrom(request.tensors());
        spec.mutable_groups()->MergeFrom(request.groups());
        tensors += request.tensors_size();
        keep.tensors = tensors;
        keep.groups = request.groups();
        write.Clear();
        incarnation = record.incarnation();
        status = restoration->GrowAgain({request, incarnation});
        break;
      }
      case StoredRecord::kRolledBack:
        // A base behind it is of a state behind it, whatever it says that it covers: nothing is read before a rollback.
        if (is_covered || record_number < set.base_number) break;
        write.Clear();
        incarnation = record.incarnation();
        restoration->RollBackAgain(incarnation);
        break;
      case StoredRecord::KIND_NOT_SET:
        return Damaged(absl::StrCat("record ", record_number, " is of a kind that this version does not know"));
    }
    if (!status.ok()) return status;
    set.kept.push_back(std::move(keep));
  }
  set.restoration = std::move(restoration);
  return set;
}

}  // namespace adamant::store
