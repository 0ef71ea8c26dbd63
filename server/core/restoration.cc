#include "server/core/restoration.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/base/notification.h"
#include "server/core/set/growth.h"
#include "server/core/set/outcome_waiter.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/state_writing.h"
#include "server/core/set/step_attempt.h"
#include "server/core/set/step_commit.h"
#include "server/core/set/step_header.h"
#include "server/core/set/write_attempt.h"

namespace adamant::core {
namespace {

absl::Status Damaged(absl::string_view message) {
  return Error(absl::StatusCode::kDataLoss, v1::ERROR_REASON_DAMAGED, message);
}

// What kept a change from being made again: damage, unless this server is too small for it.
absl::Status AsDamage(absl::string_view what, const absl::Status& status) {
  if (status.ok() || status.code() == absl::StatusCode::kResourceExhausted) return status;
  if (GetErrorDetail(status).reason() == v1::ERROR_REASON_TOO_LARGE) return status;
  return Damaged(absl::StrCat(what, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Restoration>> Restoration::Begin(const Resources& resources,
                                                                const v1::ParameterSetSpec& spec, RestoredState state,
                                                                LoadElements load) {
  const bool is_zero = load == nullptr;
  v1::ParameterSetSpec configured = spec;
  // Nothing is put down while it comes back.
  configured.mutable_durability()->mutable_nothing();
  if (is_zero && !state.uninitialized) configured.set_initialization(v1::INITIALIZATION_ZEROS);
  absl::StatusOr<std::shared_ptr<SetRep>> made = ParameterSet::Make(resources, configured);
  if (!made.ok()) return AsDamage("the set cannot be made again", made.status());
  // Not std::make_unique: the constructor is private.
  std::unique_ptr<Restoration> restoration(new Restoration(*std::move(made)));
  SetRep& set = *restoration->set_;
  if (absl::Status status = restoration->ConfigureAgain(state.configuration); !status.ok()) return status;
  if (!is_zero) {
    absl::Status status =
        WriteState(restoration->set_, {state.step, state.update_counts, state.incarnation}, std::move(load));
    if (!status.ok()) return AsDamage("the state cannot be read", status);
  }
  MutexLock lock(&set.mutex);
  if (is_zero) {
    if (state.uninitialized) {
      set.lifecycle = Lifecycle(set.name, set.schema->fingerprint(), state.incarnation);
      if (set.snapshot != nullptr) set.unpublished = Snapshot::Release(std::move(set.snapshot));
    } else {
      set.lifecycle.Rewrite(state.incarnation, /*step=*/0);
      set.snapshot = std::make_shared<const Snapshot>(state.incarnation, 0, Snapshot::Release(std::move(set.snapshot)));
    }
  }
  set.requests.Forget();
  if (!state.write.request_id().empty()) set.requests.Rewrite(state.write);
  for (const RememberedStep& step : state.remembered) {
    std::vector<Requests::Key> keys;
    for (const RememberedStep::Key& key : step.keys) keys.push_back({key.request_id, key.header_hash});
    set.requests.Remember(Requests::Prepare(std::move(keys), step.result, set.trainable));
  }
  set.last_digest = {state.incarnation, state.last_digest};
  set.statistics = state.statistics;
  set.round_number = std::max<int64_t>(1, state.round);
  set.create_time = state.create_time;
  return restoration;
}

std::shared_ptr<const Schema> Restoration::schema() const {
  MutexLock lock(&set_->mutex);
  return set_->schema;
}

void Restoration::Remember(const std::vector<v1::StepHeader>& headers, const v1::StepResult& result) {
  std::vector<Requests::Key> keys;
  for (const v1::StepHeader& header : headers) keys.push_back({header.request_id(), HashHeader(header)});
  MutexLock lock(&set_->mutex);
  absl::StatusOr<std::shared_ptr<const TensorSelection>> selection = SelectTensors(*set_, headers.front());
  // What it brought was frozen since then, perhaps.
  std::shared_ptr<const TensorSelection> brought = selection.ok() ? *std::move(selection) : set_->trainable;
  set_->requests.Remember(Requests::Prepare(std::move(keys), result, std::move(brought)));
}

absl::Status Restoration::StepAgain(const StepRecord& record, const RestoredRows& rows, ReadElements read) {
  const v1::StepHeader& header = record.headers.front();
  std::shared_ptr<const TensorSelection> selection;
  uint64_t incarnation;
  int64_t config_revision;
  {
    MutexLock lock(&set_->mutex);
    absl::StatusOr<std::shared_ptr<const TensorSelection>> selected = SelectTensors(*set_, header);
    if (!selected.ok()) return AsDamage(absl::StrCat("step ", record.result.step()), selected.status());
    selection = *std::move(selected);
    incarnation = set_->lifecycle.incarnation();
    config_revision = set_->configuration->revision();
    if (record.divisor.has_value()) set_->round_number = record.result.round();
    if (const std::string digest = PreviousDigest(*set_); digest != record.previous_digest) {
      const auto shown = [](absl::string_view bytes) { return bytes.empty() ? "none" : absl::BytesToHexString(bytes); };
      return Damaged(absl::StrCat("before step ", record.result.step(), ": expected the state digest ",
                                  shown(record.previous_digest), ", got ", shown(digest)));
    }
  }
  const Resources& resources = set_->resources;
  const kernels::KernelTable& kernels = resources.backend->host_kernels();
  std::unique_ptr<RowStaging> row_staging;
  if (!header.sparse().empty()) {
    absl::StatusOr<BlockList> values =
        resources.lender->TakeZeroed(RowStaging::SizeOf(selection->schema(), header.sparse()).elements);
    if (!values.ok()) return values.status();
    row_staging = std::make_unique<RowStaging>(selection->schema(), header.sparse(), *std::move(values), kernels);
    if (!row_staging->Restore(rows.counts, rows.rows)) {
      return Damaged(absl::StrCat("step ", record.result.step(), ": its rows are none of the set's"));
    }
  }
  absl::StatusOr<BlockList> lent = resources.lender->TakeZeroed(selection->block_elements());
  if (!lent.ok()) return lent.status();
  const RowWork* const row_work = row_staging != nullptr ? row_staging->work() : nullptr;
  Staging gradient(selection, selection->Spread(*std::move(lent)), kernels.measure, std::move(row_staging));
  const BroughtElements brought = {&gradient.blocks(), selection->blocks(), row_work};
  if (absl::Status status = read(brought); !status.ok()) return status;
  for (const int64_t block : selection->blocks()) gradient.Remeasure(block);

  StepCommit::Input input;
  auto waiter = std::make_shared<OutcomeWaiter<StepListener>>();
  for (const v1::StepHeader& one : record.headers) {
    auto attempt = std::make_shared<StepAttempt>(set_, one, input.contributors.empty() ? waiter : nullptr);
    attempt->StandIn(selection, incarnation, config_revision);
    input.contributors.push_back(std::move(attempt));
  }
  input.gradient = {nullptr, std::move(gradient)};
  if (record.divisor.has_value()) {
    input.round = record.result.round();
    input.divisor = *record.divisor;
    input.contributions = record.result.contributions();
  }
  set_->turns->Enqueue([set = set_, input = std::move(input)](TurnQueue::Turn turn) mutable {
    StepCommit::Run(std::move(set), std::move(input), std::move(turn));
  });
  absl::StatusOr<StepReply> reply = waiter->Await();
  AwaitTurn(*set_);
  if (!reply.ok()) return AsDamage(absl::StrCat("step ", record.result.step()), reply.status());
  v1::StepResult result = std::move(reply->result);
  result.clear_parameters_step();
  // That of the next step's record is compared.
  result.clear_state_digest();
  v1::StepResult expected = record.result;
  expected.clear_parameters_step();
  if (result.SerializeAsString() == expected.SerializeAsString()) return absl::OkStatus();
  return Damaged(
      absl::StrCat("a step leads to ", result.ShortDebugString(), ", and has led to ", expected.ShortDebugString()));
}

absl::Status Restoration::WriteAgain(const WriteRecord& record, ReadElements read) {
  std::shared_ptr<const Schema> schema;
  {
    MutexLock lock(&set_->mutex);
    schema = set_->schema;
  }
  std::vector<bool> selected(schema->tensors().size(), true);
  if (!record.header.tensors().empty()) {
    absl::StatusOr<std::vector<bool>> named = SelectByIndex(*schema, record.header.tensors(), "header.tensors");
    if (!named.ok()) return AsDamage("a write", named.status());
    selected = *std::move(named);
  }
  const TensorSelection selection(schema, std::move(selected));
  absl::StatusOr<BlockList> lent = set_->resources.lender->TakeZeroed(selection.block_elements());
  if (!lent.ok()) return lent.status();
  const BlockList blocks = selection.Spread(*std::move(lent));
  if (absl::Status status = read({&blocks, selection.blocks()}); !status.ok()) return status;

  auto waiter = std::make_shared<OutcomeWaiter<WriteListener>>();
  v1::WriteHeader header = record.header;
  // What it demanded it had found.
  header.clear_incarnation();
  // A base that was put down after the write knows its id: it would count as applied.
  header.clear_request_id();
  auto attempt = std::make_shared<WriteAttempt>(set_, header, waiter);
  attempt->MakeAgain(record.incarnation);
  attempt->Start();
  waiter->AwaitAdmission();
  if (attempt->over()) return AsDamage("a write", waiter->Await().status());
  absl::Status status;
  const auto tensors = schema->tensors();
  for (size_t tensor = 0; tensor < tensors.size() && status.ok(); ++tensor) {
    if (!selection.has(static_cast<int>(tensor)) || tensors[tensor].size() == 0) continue;
    int64_t begin = tensors[tensor].begin;
    status = attempt->Add(v1::SLOT_PARAMETER, static_cast<int32_t>(tensor), 0, tensors[tensor].size(),
                          [&](float* to, int64_t n) {
                            CopyRuns(blocks, begin, begin + n, to);
                            begin += n;
                          });
  }
  if (status.ok()) status = attempt->Complete();
  if (status.ok()) status = waiter->Await().status();
  attempt.reset();
  AwaitTurn(*set_);
  if (status.ok()) {
    MutexLock lock(&set_->mutex);
    set_->requests.Rewrite(record.header);
  }
  return AsDamage("a write", status);
}

absl::Status Restoration::ConfigureAgain(const v1::ParameterSet& configuration) {
  absl::StatusOr<std::shared_ptr<const Configuration>> restored = Configuration::Restore(configuration);
  if (!restored.ok()) return AsDamage("a configuration", restored.status());
  MutexLock lock(&set_->mutex);
  if ((*restored)->groups().size() < set_->configuration->groups().size()) {
    return Damaged("a configuration has fewer groups than the set");
  }
  const int64_t more = ConfigurationBytes(**restored) - ConfigurationBytes(*set_->configuration);
  absl::StatusOr<Grant> reserved =
      set_->resources.state->TryReserve(std::max<int64_t>(0, set_->configuration_grant.bytes() + more));
  if (!reserved.ok()) return reserved.status();
  set_->configuration_grant = *std::move(reserved);
  set_->configuration = *std::move(restored);
  auto trainable = SelectTrainable(set_->schema, *set_->configuration);
  if (*trainable != *set_->trainable) set_->trainable = std::move(trainable);
  return absl::OkStatus();
}

absl::Status Restoration::GrowAgain(const GrowthRecord& record) {
  Notification ended;
  absl::Status status;
  v1::AddTensorsRequest request = record.request;
  request.clear_incarnation();
  request.clear_schema_fingerprint();
  Growth::BeginAgain(set_, request, record.incarnation, [&](const absl::StatusOr<v1::ParameterSet>& grown) {
    status = Unshared(grown.status());
    ended.Notify();
  });
  ended.WaitForNotification();
  AwaitTurn(*set_);
  return AsDamage("an addition of tensors", status);
}

uint64_t Restoration::RollBack() {
  uint64_t incarnation;
  {
    MutexLock lock(&set_->mutex);
    incarnation = DrawIncarnation(&set_->random);
  }
  RollBackAgain(incarnation);
  return incarnation;
}

void Restoration::RollBackAgain(uint64_t incarnation) {
  MutexLock lock(&set_->mutex);
  if (set_->lifecycle.state() == v1::PARAMETER_SET_STATE_READY) {
    set_->lifecycle.Rewrite(incarnation, set_->lifecycle.step());
    set_->snapshot = std::make_shared<const Snapshot>(incarnation, set_->lifecycle.step(),
                                                      Snapshot::Release(std::move(set_->snapshot)));
  } else {
    set_->lifecycle = Lifecycle(set_->name, set_->schema->fingerprint(), incarnation);
  }
  set_->requests.Forget();
}

absl::StatusOr<std::unique_ptr<Restoration>> Restoration::BeginDamaged(const Resources& resources,
                                                                       const v1::ParameterSetSpec& spec,
                                                                       const RestoredState& state) {
  RestoredState empty = state;
  empty.uninitialized = true;
  empty.update_counts.clear();
  absl::StatusOr<std::unique_ptr<Restoration>> begun = Begin(resources, spec, std::move(empty), nullptr);
  if (!begun.ok()) return begun;
  SetRep& set = *(*begun)->set_;
  MutexLock lock(&set.mutex);
  set.lifecycle.Rewrite(state.incarnation, state.step);
  set.lifecycle.Poison("what was kept of the set is damaged");
  if (set.snapshot != nullptr) set.unpublished = Snapshot::Release(std::move(set.snapshot));
  return begun;
}

std::string Restoration::last_digest() const {
  MutexLock lock(&set_->mutex);
  return PreviousDigest(*set_);
}

v1::ParameterSet Restoration::Describe() const {
  MutexLock lock(&set_->mutex);
  return DescribeSet(*set_);
}

absl::Status Restoration::CheckHasRoomForCheckpoints() const {
  return core::CheckHasRoomForCheckpoints(*schema(), set_->slots.size(), set_->resources, "--read_bytes");
}

std::shared_ptr<ParameterSet> Restoration::Finish(std::unique_ptr<SetJournal> journal) {
  set_->journal = std::move(journal);
  return std::make_shared<ParameterSet>(set_);
}

}  // namespace adamant::core
