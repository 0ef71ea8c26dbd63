#include "server/store/set_records.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "google/protobuf/util/time_util.h"
#include "server/core/set/requests.h"

namespace adamant::store {
namespace {

v1::Checkpoint DescribeCheckpoint(const StoredRecord& base) {
  v1::Checkpoint description;
  description.set_incarnation(base.incarnation());
  description.set_step(base.step());
  *description.mutable_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(base.base().checkpoint_time_ns());
  description.set_bytes(base.base().checkpoint_bytes());
  return description;
}

}  // namespace

bool IsChange(StoredRecord::KindCase kind) {
  return kind == StoredRecord::kCommitted || kind == StoredRecord::kWritten;
}

void AddGroups(const google::protobuf::RepeatedPtrField<v1::ParameterGroup>& groups, v1::ParameterSet* configuration) {
  if (groups.empty()) return;
  configuration->mutable_groups()->MergeFrom(groups);
  configuration->set_config_revision(configuration->config_revision() + 1);
}

SetRecords::SetRecords(StoredRecord base, int64_t base_number, std::vector<KeptRecord> kept,
                       std::shared_ptr<const core::Schema> schema, v1::WriteHeader write, v1::ParameterSetSpec spec)
    : spec_(std::move(spec)),
      schema_(std::move(schema)),
      write_(std::move(write)),
      base_(std::move(base)),
      base_number_(base_number),
      kept_(std::make_move_iterator(kept.begin()), std::make_move_iterator(kept.end())) {}

StoredRecord SetRecords::base() const {
  core::MutexLock lock(&mutex_);
  return base_;
}

std::shared_ptr<const core::Schema> SetRecords::schema() const {
  core::MutexLock lock(&mutex_);
  return schema_;
}

int64_t SetRecords::changes() const {
  core::MutexLock lock(&mutex_);
  return absl::c_count_if(kept_, [](const KeptRecord& kept) { return kept.is_replayed && IsChange(kept.kind); });
}

std::vector<ElementPlace> SetRecords::places() const {
  core::MutexLock lock(&mutex_);
  std::vector<ElementPlace> places;
  for (const KeptRecord& kept : kept_) {
    if (kept.place.has_value()) places.push_back(*kept.place);
  }
  return places;
}

bool SetRecords::IsBase(uint64_t incarnation, int64_t step) const {
  core::MutexLock lock(&mutex_);
  return has_checkpoint() && base_.incarnation() == incarnation && base_.step() == step &&
         !base_.base().uninitialized();
}

bool SetRecords::WantsCheckpoint(const v1::Checkpoints& terms, uint64_t incarnation, int64_t step) const {
  core::MutexLock lock(&mutex_);
  const bool is_same = incarnation == base_.incarnation();
  if (is_same && step == base_.step()) return false;
  if (!is_same || !has_checkpoint()) return true;
  if (terms.has_steps() && step - base_.step() >= terms.steps()) return true;
  return terms.has_seconds() && absl::ToUnixNanos(absl::Now()) - base_.base().checkpoint_time_ns() >=
                                    static_cast<int64_t>(terms.seconds() * 1e9);
}

std::optional<int64_t> SetRecords::CheckpointedStep(uint64_t incarnation) const {
  core::MutexLock lock(&mutex_);
  if (!has_checkpoint() || base_.incarnation() != incarnation) return std::nullopt;
  return base_.step();
}

void SetRecords::Describe(v1::ParameterSet* set) const {
  core::MutexLock lock(&mutex_);
  if (has_checkpoint()) *set->mutable_last_checkpoint() = DescribeCheckpoint(base_);
  if (restored_from_.has_value()) *set->mutable_restored_from() = *restored_from_;
}

bool SetRecords::EndsWithConfiguration(int64_t number) const {
  core::MutexLock lock(&mutex_);
  return !kept_.empty() && kept_.back().number == number && kept_.back().kind == StoredRecord::kConfiguration;
}

void SetRecords::BeginChange() {
  core::MutexLock lock(&mutex_);
  ++under_way_;
}

void SetRecords::EndChange() {
  core::MutexLock lock(&mutex_);
  --under_way_;
}

void SetRecords::Add(KeptRecord record) {
  core::MutexLock lock(&mutex_);
  const auto behind =
      absl::c_find_if(kept_, [&record](const KeptRecord& other) { return other.number >= record.number; });
  if (behind != kept_.end() && behind->number == record.number) {
    *behind = std::move(record);
  } else {
    kept_.insert(behind, std::move(record));
  }
}

void SetRecords::NoteWrite(const v1::WriteHeader& header) {
  core::MutexLock lock(&mutex_);
  write_ = header;
}

void SetRecords::NoteGrowth(const v1::AddTensorsRequest& request, std::shared_ptr<const core::Schema> schema) {
  core::MutexLock lock(&mutex_);
  spec_.mutable_tensors()->MergeFrom(request.tensors());
  spec_.mutable_groups()->MergeFrom(request.groups());
  schema_ = std::move(schema);
  write_.Clear();
}

void SetRecords::NoteFirstRecord(int64_t number, const StoredRecord& record) {
  core::MutexLock lock(&mutex_);
  if (record.has_base()) {
    base_ = record;
    base_number_ = number;
    return;
  }
  if (record.rolled_back().has_restored_from()) restored_from_ = record.rolled_back().restored_from();
  kept_.push_back(
      {.number = number, .incarnation = record.incarnation(), .step = record.step(), .kind = record.kind_case()});
  write_.Clear();
}

int64_t SetRecords::LastCovered(const NewBase& base) const {
  int64_t last = base_.base().covers();
  for (const KeptRecord& kept : kept_) {
    bool is_part = false;
    switch (kept.kind) {
      case StoredRecord::kCommitted:
      case StoredRecord::kWritten:
        is_part = kept.incarnation == base.info.incarnation && kept.step == base.info.step;
        break;
      case StoredRecord::kGrown:
        is_part = kept.tensors <= static_cast<int64_t>(base.schema->tensors().size());
        break;
      case StoredRecord::kRolledBack:
        // Made before anything was read.
        is_part = true;
        break;
      default:
        break;
    }
    if (is_part) last = std::max(last, kept.number);
  }
  // One of them may take the place of the configuration that is last here, or have a number before the last base's:
  // commits are told of in any order.
  if (under_way_ > 0) return last;
  // What comes next and changes no element is a part, too: else a set of which no step is put down would keep it for
  // good. A configuration is, because it is in the base's, or among what is done again.
  for (const KeptRecord& kept : kept_) {
    if (kept.number <= last) continue;
    if (kept.kind != StoredRecord::kConfiguration && kept.kind != StoredRecord::kBase) return last;
    last = kept.number;
  }
  return std::max(last, base_number_);
}

StoredRecord SetRecords::MakeBase(const NewBase& base, const std::string& name, int64_t bytes, int64_t* first) const {
  core::MutexLock lock(&mutex_);
  const int64_t covers = LastCovered(base);
  // Steps that are remembered still.
  *first = covers + 1;
  int64_t remembered = 0;
  for (auto kept = kept_.rbegin(); kept != kept_.rend() && remembered < core::kRememberedSteps; ++kept) {
    if (kept->number > covers || kept->kind != StoredRecord::kCommitted) continue;
    if (kept->incarnation != base.info.incarnation) break;
    *first = kept->number;
    ++remembered;
  }
  StoredRecord record;
  record.set_incarnation(base.info.incarnation);
  record.set_step(base.info.step);
  StoredBase* const stored = record.mutable_base();
  *stored->mutable_configuration() = base_.base().configuration();
  v1::ParameterSet* const configuration = stored->mutable_configuration()->mutable_set();
  for (const KeptRecord& kept : kept_) {
    if (kept.number >= *first && !base.write.has_value()) break;
    if (kept.configuration != nullptr) *configuration = *kept.configuration;
    if (kept.kind == StoredRecord::kGrown && kept.is_replayed) AddGroups(kept.groups, configuration);
  }
  *stored->mutable_spec() = spec_;
  stored->mutable_spec()->clear_tensors();
  for (size_t i = 0; i < base.schema->tensors().size(); ++i) {
    *stored->mutable_spec()->add_tensors() = spec_.tensors(static_cast<int>(i));
  }
  *stored->mutable_spec()->mutable_groups() = stored->configuration().set().groups();
  stored->set_checkpoint(name);
  stored->set_checkpoint_time_ns(absl::ToUnixNanos(base.info.create_time));
  stored->set_checkpoint_bytes(bytes);
  stored->set_covers(covers);
  *stored->mutable_write() = base.write.has_value() ? *base.write : write_;
  stored->mutable_update_counts()->Add(base.info.update_counts.begin(), base.info.update_counts.end());
  stored->set_round(base.info.description.round());
  stored->set_last_digest(base.last_digest);
  *stored->mutable_statistics() = base.info.description.statistics();
  return record;
}

std::vector<std::optional<ElementPlace>> SetRecords::Rebase(const NewBase& base, int64_t number,
                                                            const StoredRecord& record, int64_t first) {
  core::MutexLock lock(&mutex_);
  base_ = record;
  base_number_ = number;
  if (base.write.has_value()) write_ = *base.write;
  std::vector<std::optional<ElementPlace>> covered;
  for (KeptRecord& kept : kept_) {
    if (kept.number > record.base().covers() || !kept.is_replayed) continue;
    kept.is_replayed = false;
    if (IsChange(kept.kind)) covered.push_back(std::exchange(kept.place, std::nullopt));
  }
  while (!kept_.empty() && kept_.front().number < first) kept_.pop_front();
  return covered;
}

}  // namespace adamant::store
