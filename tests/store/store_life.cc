#include "tests/store/store_life.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/dispatch.h"
#include "proto/error/error.h"
#include "server/core/spec/slots.h"
#include "tests/core/every_optimizer.h"
#include "tests/core/gate.h"
#include "tests/core/set_changes.h"
#include "tests/core/sparse_steps.h"

namespace adamant::store {
namespace {

using core::Arrays;
using core::ParameterSet;
using core::Values;

constexpr const char* kInline = "inline";
constexpr const char* kSlots = "slots";
constexpr const char* kPoints = "points";
constexpr const char* kLarge = "large";

bool IsRollingBack(const std::string& name) { return name == kPoints; }

// Calls `begin` with whom to tell, and waits for what it tells.
template <typename Begin>
absl::Status Await(Begin begin) {
  struct Outcome {
    core::Gate gate;
    absl::Status status;
  };
  auto outcome = std::make_shared<Outcome>();
  begin([outcome](const absl::Status& status) {
    outcome->status = Unshared(status);
    outcome->gate.Open();
  });
  outcome->gate.Pass();
  return outcome->status;
}

absl::StatusOr<core::StepReply> Ask(ParameterSet* set, const AskedStep& asked) {
  if (asked.rows.empty()) return core::Step(set, asked.header, asked.gradient);
  return core::StepRows(set, asked.header, asked.whole, asked.gradient, asked.rows);
}

}  // namespace

v1::ParameterSetSpec TablesSpec(const std::string& name) {
  v1::ParameterSetSpec spec = core::TablesSpec();
  spec.set_name(name);
  const auto reshape = [&spec](int tensor, const std::vector<int64_t>& shape) {
    spec.mutable_tensors(tensor)->mutable_shape()->Assign(shape.begin(), shape.end());
  };
  reshape(core::kTable, {40, 3, 16});
  reshape(core::kWide, {3, 701});
  reshape(core::kNarrow, {40, 7});
  return spec;
}

absl::Status AwaitCheckpoint(ParameterSet* set) {
  return Await([set](core::Then<absl::Status> done) { set->Checkpoint(std::nullopt, std::move(done)); });
}

StoreServer::StoreServer(FileSystem* file_system, StoreOptions options, const char* kernels, core::Backend* device)
    : backend_(kernels == nullptr ? kernels::BestKernels() : *kernels::FindKernels(kernels)),
      server_({.backend = device != nullptr ? device : &backend_, .idle_arrays = 0}) {
  options.warn = [this](absl::string_view line) {
    core::MutexLock lock(&mutex_);
    absl::StrAppend(&warnings_, line, "\n");
  };
  absl::StatusOr<std::unique_ptr<Store>> opened = Store::Open(file_system, std::move(options));
  status_ = opened.status();
  if (!status_.ok()) return;
  store_ = *std::move(opened);
  core::Resources resources = server_.resources();
  resources.journal = store_.get();
  registry_ = std::make_unique<core::Registry>(std::vector<core::Resources>{resources});
  status_ = store_->Restore(registry_.get());
  if (status_.ok()) status_ = store_->BeginChanges();
}

StoreServer::~StoreServer() {
  registry_.reset();
  server_.AwaitUnused();
  store_.reset();
}

absl::Status StoreServer::Create(const v1::ParameterSetSpec& spec) {
  v1::CreateParameterSetRequest request;
  *request.mutable_spec() = spec;
  return registry_->Create(request).status();
}

absl::Status StoreServer::Delete(const std::string& name) {
  v1::DeleteParameterSetRequest request;
  request.set_name(name);
  return Await([&](core::Then<absl::Status> done) { registry_->Delete(request, std::move(done)); });
}

std::string StoreServer::warnings() const {
  core::MutexLock lock(&mutex_);
  return warnings_;
}

std::string ExpectedSet::Differs(ParameterSet* set) const {
  const v1::ParameterSet is = set->Describe();
  const auto state = is_initialized ? v1::PARAMETER_SET_STATE_READY : v1::PARAMETER_SET_STATE_UNINITIALIZED;
  if (is.state() != state) return absl::StrCat("it is ", v1::ParameterSetState_Name(is.state()));
  if (incarnation != 0 && is.incarnation() != incarnation) return "it is of another incarnation";
  if (is.config_revision() != config_revision) return absl::StrCat("it is at revision ", is.config_revision());
  if (is.tensor_count() != model.tensors()) return absl::StrCat("it has ", is.tensor_count(), " tensors");
  for (int i = 0; i < model.spec().groups_size(); ++i) {
    if (model.spec().groups(i).has_learning_rate() &&
        is.groups(i).learning_rate() != model.spec().groups(i).learning_rate()) {
      return absl::StrCat("group ", i, " has another learning rate");
    }
  }
  if (!is_initialized) return "";
  if (is.step() != model.arrays().step) return absl::StrCat("it is at step ", is.step(), ", not ", model.arrays().step);
  const absl::StatusOr<Arrays> arrays = core::FetchState(set);
  if (!arrays.ok()) return arrays.status().ToString();
  return *arrays == model.arrays() ? "" : absl::StrCat("other bits at step ", is.step());
}

StoreLife::StoreLife(FileSystem* file_system, StoreOptions options, uint64_t seed, bool has_large,
                     core::Backend* device)
    : file_system_(file_system), options_(std::move(options)), device_(device), random_(seed) {
  for (const char* name : {kInline, kSlots, kPoints}) told_[name];
  if (has_large) told_[kLarge];
}

StoreLife::StoreLife(StoreLife&&) noexcept = default;
StoreLife::~StoreLife() = default;

StoreLife StoreLife::AsTold() const {
  StoreLife life(file_system_, options_, /*seed=*/1, /*has_large=*/false, device_);
  life.told_ = told_;
  life.requests_ = requests_;
  return life;
}

std::string StoreLife::Live(int actions, bool may_fail) {
  may_fail_ = may_fail;
  for (int i = 0; i < actions && !has_failed_; ++i) {
    if (server_ == nullptr || is_to_restart_ || Choose(12) == 0) {
      std::string wrong = Restart(file_system_, options_.sqlite_vfs);
      // A call that failed may have hit the restart; the next one does not.
      if (!wrong.empty() && may_fail_) wrong = Restart(file_system_, options_.sqlite_vfs);
      if (!wrong.empty() && may_fail_) return "";
      if (!wrong.empty()) return absl::StrCat("action ", i, ", a restart: ", wrong);
    }
    const char* const names[] = {kInline, kSlots, kSlots, kPoints, kLarge};
    const std::string name = names[Choose(told_.contains(kLarge) ? 5 : 4)];
    std::string wrong = Act(name);
    if (wrong.empty() && !has_failed_ && !is_to_restart_) wrong = CheckOne(name, server_->registry(), nullptr);
    if (!wrong.empty()) return absl::StrCat("action ", i, " of ", name, ": ", wrong);
  }
  return "";
}

std::string StoreLife::Restart(FileSystem* file_system, const char* sqlite_vfs) {
  server_.reset();
  file_system_ = file_system;
  options_.sqlite_vfs = sqlite_vfs;
  server_ = std::make_unique<StoreServer>(file_system_, options_, /*kernels=*/nullptr, device_);
  if (!server_->status().ok()) {
    const std::string wrong = server_->status().ToString();
    server_.reset();
    return wrong;
  }
  has_failed_ = is_to_restart_ = false;
  const std::string wrong = Check(server_->registry());
  return wrong.empty() ? "" : absl::StrCat(wrong, "; ", server_->warnings());
}

std::string StoreLife::Check(core::Registry* registry, int* poisoned) {
  for (const auto& [name, told] : told_) {
    const std::string wrong = CheckOne(name, registry, poisoned);
    if (!wrong.empty()) return absl::StrCat(name, ": ", wrong);
  }
  return "";
}

std::string StoreLife::CheckOne(const std::string& name, core::Registry* registry, int* poisoned) {
  Told& told = told_[name];
  const absl::StatusOr<std::shared_ptr<ParameterSet>> set = registry->Find(name);
  std::vector<Expected> may_be = {told.now};
  if (told.or_this.has_value()) may_be.push_back(*told.or_this);
  may_be.insert(may_be.end(), told.before.rbegin(), told.before.rend());
  if (poisoned != nullptr && set.ok() && (*set)->Describe().state() == v1::PARAMETER_SET_STATE_POISONED) {
    ++*poisoned;
    return "";
  }
  std::string wrong;
  for (const Expected& expected : may_be) {
    std::string differs;
    if (expected == nullptr || !set.ok()) {
      if (expected != nullptr) differs = "it is not there";
      if (set.ok()) differs = "it is there";
    } else if (IsRollingBack(name)) {
      ExpectedSet rolled_back = *expected;
      const uint64_t is_of = (*set)->Describe().incarnation();
      if (told.now != nullptr && expected != told.now && expected->incarnation == told.now->incarnation &&
          is_of == expected->incarnation) {
        differs = "it was taken back, and is of the same incarnation";
      }
      rolled_back.incarnation = is_of;
      if (differs.empty()) differs = rolled_back.Differs(set->get());
    } else {
      differs = expected->Differs(set->get());
    }
    if (differs.empty()) {
      if (poisoned != nullptr) return "";
      told.or_this.reset();
      told.now = expected;
      if (expected == nullptr) {
        told.before.clear();
        return "";
      }
      auto known = std::make_shared<ExpectedSet>(*expected);
      const uint64_t incarnation = (*set)->Describe().incarnation();
      if (known->incarnation != incarnation) {
        known->incarnation = incarnation;
        if (IsRollingBack(name)) known->last.reset();
      }
      told.now = std::move(known);
      return "";
    }
    if (wrong.empty()) wrong = differs;
  }
  return wrong;
}

std::string StoreLife::Settle(const std::string& name, const absl::Status& status, Expected after) {
  Told& told = told_[name];
  if (status.ok()) {
    if (IsRollingBack(name) && told.now != nullptr && after != nullptr) {
      told.before.push_back(told.now);
    } else {
      told.before.clear();
    }
    told.now = std::move(after);
    return "";
  }
  const v1::ErrorReason reason = GetErrorDetail(status).reason();
  if (may_fail_ && absl::IsResourceExhausted(status) && reason == v1::ERROR_REASON_DISK_EXHAUSTED) return "";
  if (may_fail_ && absl::IsUnavailable(status) && reason == v1::ERROR_REASON_STORE_FAILED) {
    has_failed_ = true;
    told.or_this = std::move(after);
    return "";
  }
  return status.ToString();
}

AskedStep StoreLife::AnyStep(const ExpectedSet& now, const core::Schema& schema) {
  AskedStep asked;
  asked.header = core::Header(absl::StrCat("r", ++requests_), now.model.arrays().step);
  asked.gradient = core::Gradient(now.model.parameter_count(), random_());
  if (Choose(4) == 0) asked.header.set_grad_scale(8);
  if (Choose(2) == 0) asked.header.set_digest_state(true);
  if (Choose(4) == 0) {
    v1::GroupOverride* const override = asked.header.add_overrides();
    override->set_group("fast");
    override->set_learning_rate(0.125);
  }
  const uint32_t kind = Choose(3);
  if (kind == 0) return asked;
  for (int i = 0; i < now.model.tensors(); ++i) {
    if (Choose(2) == 0) continue;
    if (kind == 1 || !now.model.HasRows(i) || now.model.RowsOf(i) < 2) {
      asked.whole.push_back(i);
    } else {
      // Many of them are, with blocks beside them, more than all of the set.
      const int rows = static_cast<int>(Choose(4) == 0 ? now.model.RowsOf(i) : 1 + Choose(9));
      asked.rows.push_back(core::RandomRows(schema, i, rows, random_()));
    }
  }
  if (asked.whole.empty() && asked.rows.empty()) asked.whole.push_back(0);
  asked.header = core::WithRows(asked.header, asked.whole, asked.rows);
  return asked;
}

std::string StoreLife::Step(const std::string& name, ParameterSet* set, const AskedStep& asked, bool again) {
  const Expected now = told_[name].now;
  const absl::StatusOr<core::StepReply> reply = Ask(set, asked);
  if (again) {
    if (!reply.ok()) return Settle(name, reply.status(), now);
    return reply->result.replayed() ? "" : "a step that was applied is applied again";
  }
  auto after = std::make_shared<ExpectedSet>(*now);
  after->model.Apply(asked.gradient, asked.header, asked.rows);
  after->last = asked;
  if (reply.ok() && reply->result.outcome() != v1::STEP_OUTCOME_APPLIED) return reply->result.ShortDebugString();
  return Settle(name, reply.status(), std::move(after));
}

std::string StoreLife::Create(const std::string& name) {
  v1::CreateParameterSetRequest request;
  v1::ParameterSetSpec& spec = *request.mutable_spec();
  spec = core::WithGroups(name == kInline  ? core::SmallSpec(name)
                          : name == kLarge ? core::LargeSpec(name)
                                           : TablesSpec(name),
                          core::kEveryOptimizer[Choose(std::size(core::kEveryOptimizer))]);
  const bool is_initialized = Choose(3) > 0;
  spec.set_initialization(is_initialized ? v1::INITIALIZATION_ZEROS : v1::INITIALIZATION_WRITTEN);
  if (IsRollingBack(name)) {
    spec.mutable_durability()->mutable_checkpoints()->set_steps(3);
  } else {
    spec.mutable_durability()->mutable_every_step()->set_journal_steps(2 + static_cast<int>(Choose(3)));
  }
  const absl::StatusOr<v1::CreateParameterSetResponse> created = server_->registry()->Create(request);
  const uint64_t incarnation = created.ok() ? created->parameter_set().incarnation() : 0;
  return Settle(name, created.status(),
                std::make_shared<const ExpectedSet>(
                    ExpectedSet{core::SequentialModel(spec), is_initialized, incarnation, 1, std::nullopt}));
}

std::string StoreLife::Write(const std::string& name, ParameterSet* set) {
  const Expected now = told_[name].now;
  auto after = std::make_shared<ExpectedSet>(*now);
  Arrays& arrays = *after->model.mutable_arrays();
  const std::string id = absl::StrCat("w", ++requests_);
  v1::WriteHeader header = core::ParametersHeader(id);
  const Values parameters = core::Gradient(now->model.parameter_count(), random_());
  const bool is_full = Choose(2) == 0;
  if (is_full) {
    header = core::FullHeader(Choose(50), id);
    arrays.step = header.step();
    arrays.update_counts.clear();
    arrays.parameters = parameters;
    for (Values* slot : {&arrays.exp_avg, &arrays.exp_avg_sq, &arrays.max_exp_avg_sq, &arrays.momentum_buffer}) {
      if (slot->empty()) continue;
      *slot = core::Gradient(now->model.parameter_count(), random_());
      for (float& value : *slot) value = std::abs(value);
    }
  } else if (now->is_initialized && Choose(2) == 0) {
    header.add_tensors(static_cast<int32_t>(Choose(now->model.tensors())));
  }
  Arrays sent = arrays;
  sent.parameters = parameters;
  if (!is_full) {
    for (const core::Piece& piece : core::Cut(set->schema(), core::kBlockElements, header.tensors())) {
      std::copy_n(parameters.begin() + piece.begin, piece.count, arrays.parameters.begin() + piece.begin);
    }
  }
  const absl::StatusOr<v1::WriteTensorsResponse> written = core::Write(set, header, sent);
  after->is_initialized = true;
  after->incarnation = written.ok() ? written->incarnation() : 0;
  after->last.reset();
  // Its moments came in their place.
  if (!written.ok() && is_full) is_to_restart_ = true;
  return Settle(name, written.status(), std::move(after));
}

std::string StoreLife::Change(const std::string& name, ParameterSet* set) {
  const Expected now = told_[name].now;
  auto after = std::make_shared<ExpectedSet>(*now);
  if (Choose(2) == 0) {
    v1::UpdateParameterGroupRequest request;
    request.mutable_group()->set_name(Choose(2) == 0 ? "slow" : "fast");
    request.mutable_group()->set_learning_rate(1e-4 * (1 + Choose(100)));
    request.mutable_update_mask()->add_paths("learning_rate");
    for (v1::ParameterGroup& group : *after->model.mutable_spec()->mutable_groups()) {
      if (group.name() == request.group().name()) group.set_learning_rate(request.group().learning_rate());
    }
    ++after->config_revision;
    return Settle(name, core::Update(set, request).status(), std::move(after));
  }
  v1::AddTensorsRequest request = core::Tensors({1 + Choose(600), 3}, Choose(2) == 0 ? "slow" : "fast");
  for (v1::TensorSpec& tensor : *request.mutable_tensors()) {
    tensor.set_name(absl::StrCat("added", ++requests_));
  }
  if (Choose(3) == 0) {
    v1::ParameterGroup* const group = request.add_groups();
    *group = after->model.spec().groups(0);
    group->set_name(absl::StrCat("late", ++requests_));
    request.mutable_tensors(0)->set_group(group->name());
    ++after->config_revision;
  }
  const absl::StatusOr<v1::ParameterSet> grown = core::AddTensors(set, request);
  after->model.Grow(request);
  after->incarnation = grown.ok() ? grown->incarnation() : 0;
  after->last.reset();
  return Settle(name, grown.status(), std::move(after));
}

std::string StoreLife::Act(const std::string& name) {
  const Expected now = told_[name].now;
  if (now == nullptr) return Create(name);
  const absl::StatusOr<std::shared_ptr<ParameterSet>> found = server_->registry()->Find(name);
  if (!found.ok()) return found.status().ToString();
  ParameterSet* const set = found->get();
  const uint32_t action = Choose(16);
  if (action == 0) return Settle(name, server_->Delete(name), nullptr);
  if (!now->is_initialized || action == 1) return Write(name, set);
  if (action <= 3 && !IsRollingBack(name)) return Change(name, set);
  if (action == 4) {
    const absl::Status status = AwaitCheckpoint(set);
    if (status.ok()) told_[name].before.clear();
    return Settle(name, status, now).empty() || may_fail_ ? "" : status.ToString();
  }
  AskedStep asked = AnyStep(*now, set->schema());
  if (action == 5 && asked.rows.empty() && asked.whole.empty()) {
    asked.gradient.back() = std::numeric_limits<float>::infinity();
    const absl::StatusOr<core::StepReply> reply = Ask(set, asked);
    if (!reply.ok()) return Settle(name, reply.status(), now);
    return reply->result.outcome() == v1::STEP_OUTCOME_SKIPPED_NON_FINITE ? "" : reply->result.ShortDebugString();
  }
  if (action == 6) {
    // Breaks off when half of it has come.
    core::StepDelivery delivery =
        core::BeginStep(set, core::Header(asked.header.request_id(), now->model.arrays().step));
    delivery.Await();
    if (delivery.done()) return Settle(name, delivery.Take().status(), now);
    const std::vector<core::Piece> pieces = core::Cut(set->schema(), core::kBlockElements);
    if (absl::Status status = delivery.Send(pieces.front(), asked.gradient); !status.ok()) return status.ToString();
    return "";
  }
  if (action == 7 && now->last.has_value()) return Step(name, set, *now->last, /*again=*/true);
  return Step(name, set, asked, /*again=*/false);
}

std::string StoreLife::GoOn() {
  may_fail_ = false;
  for (auto& [name, told] : told_) {
    const Expected now = told.now;
    if (now == nullptr || !now->is_initialized) continue;
    const absl::StatusOr<std::shared_ptr<ParameterSet>> set = server_->registry()->Find(name);
    if (!set.ok()) return set.status().ToString();
    std::string wrong;
    if (now->last.has_value()) wrong = Step(name, set->get(), *now->last, /*again=*/true);
    if (wrong.empty()) wrong = CheckOne(name, server_->registry(), nullptr);
    if (wrong.empty()) wrong = Step(name, set->get(), AnyStep(*now, (*set)->schema()), /*again=*/false);
    if (wrong.empty()) wrong = CheckOne(name, server_->registry(), nullptr);
    if (!wrong.empty()) return absl::StrCat(name, " goes on: ", wrong);
  }
  return "";
}

}  // namespace adamant::store
