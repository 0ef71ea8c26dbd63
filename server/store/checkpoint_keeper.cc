#include "server/store/checkpoint_keeper.h"

#include <tuple>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/store/checkpoint.h"

namespace adamant::store {
namespace {

// What WriteCheckpoint gives to what is not whole yet.
constexpr absl::string_view kUnfinished = ".new";

// Whether it is one of those that NewName makes.
bool IsName(absl::string_view name) {
  const std::vector<absl::string_view> numbers = absl::StrSplit(name, '-');
  return (numbers.size() == 2 || numbers.size() == 3) && absl::c_all_of(numbers, [](absl::string_view number) {
           return !number.empty() && absl::c_all_of(number, absl::ascii_isdigit);
         });
}

absl::StatusOr<KeptCheckpoint> Look(FileSystem* file_system, const std::string& path, const std::string& name) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(file_system, path);
  if (!checkpoint.ok()) return checkpoint.status();
  return KeptCheckpoint{.name = name,
                        .incarnation = checkpoint->info().incarnation,
                        .step = checkpoint->info().step,
                        .create_time = checkpoint->info().create_time,
                        .bytes = checkpoint->bytes()};
}

}  // namespace

CheckpointKeeper::CheckpointKeeper(FileSystem* file_system, std::string directory)
    : file_system_(file_system), directory_(std::move(directory)) {}

absl::StatusOr<std::unique_ptr<CheckpointKeeper>> CheckpointKeeper::Open(FileSystem* file_system,
                                                                         const std::string& directory) {
  std::unique_ptr<CheckpointKeeper> keeper(new CheckpointKeeper(file_system, directory));
  absl::StatusOr<std::vector<std::string>> names = file_system->List(directory);
  if (absl::IsNotFound(names.status())) {
    names = std::vector<std::string>();
    if (absl::Status status = file_system->MakeDirectory(directory); !status.ok()) return status;
    if (absl::Status status = file_system->SyncDirectory(ParentDirectory(directory)); !status.ok()) return status;
  }
  if (!names.ok()) return names.status();
  core::MutexLock lock(&keeper->mutex_);
  for (const std::string& name : *names) {
    const std::string path = keeper->PathOf(name);
    if (absl::EndsWith(name, kUnfinished) &&
        IsName(absl::string_view(name).substr(0, name.size() - kUnfinished.size()))) {
      if (absl::Status status = file_system->RemoveAll(path); !status.ok()) return status;
    }
    if (!IsName(name)) continue;
    keeper->names_.insert(name);
    absl::StatusOr<KeptCheckpoint> checkpoint = Look(file_system, path, name);
    if (checkpoint.ok()) {
      keeper->checkpoints_.push_back(std::make_shared<const KeptCheckpoint>(*std::move(checkpoint)));
    } else if (absl::IsDataLoss(checkpoint.status()) || absl::IsFailedPrecondition(checkpoint.status())) {
      keeper->unusable_.emplace_back(name, checkpoint.status());
    } else {
      return checkpoint.status();
    }
  }
  absl::c_sort(keeper->checkpoints_, [](const auto& a, const auto& b) {
    return std::tie(a->create_time, a->step, a->name) > std::tie(b->create_time, b->step, b->name);
  });
  return keeper;
}

std::vector<KeptCheckpoint> CheckpointKeeper::List() const {
  std::vector<KeptCheckpoint> listed;
  core::MutexLock lock(&mutex_);
  for (const auto& checkpoint : checkpoints_) listed.push_back(*checkpoint);
  return listed;
}

std::shared_ptr<const KeptCheckpoint> CheckpointKeeper::Hold(uint64_t incarnation, int64_t step) const {
  core::MutexLock lock(&mutex_);
  const auto found = absl::c_find_if(checkpoints_, [&](const auto& checkpoint) {
    return checkpoint->incarnation == incarnation && checkpoint->step == step;
  });
  return found == checkpoints_.end() ? nullptr : *found;
}

std::string CheckpointKeeper::PathOf(absl::string_view name) const { return absl::StrCat(directory_, "/", name); }

std::string CheckpointKeeper::NewName(int64_t step, uint64_t incarnation) {
  core::MutexLock lock(&mutex_);
  const std::string state = absl::StrCat(step, "-", incarnation);
  std::string name = state;
  for (int number = 2; !names_.insert(name).second; ++number) name = absl::StrCat(state, "-", number);
  return name;
}

void CheckpointKeeper::Add(KeptCheckpoint checkpoint) {
  core::MutexLock lock(&mutex_);
  names_.insert(checkpoint.name);
  checkpoints_.insert(checkpoints_.begin(), std::make_shared<const KeptCheckpoint>(std::move(checkpoint)));
}

absl::Status CheckpointKeeper::RemoveOld(absl::string_view base) {
  std::vector<std::shared_ptr<const KeptCheckpoint>> old;
  {
    // From here on nobody can take hold of them.
    core::MutexLock lock(&mutex_);
    for (size_t i = kKeptCheckpoints; i < checkpoints_.size();) {
      if (checkpoints_[i]->name == base || checkpoints_[i].use_count() > 1) {
        ++i;
        continue;
      }
      old.push_back(std::move(checkpoints_[i]));
      checkpoints_.erase(checkpoints_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  while (!old.empty()) {
    const std::string path = PathOf(old.front()->name);
    const std::string unfinished = absl::StrCat(path, kUnfinished);
    // It has lost its name for good before anything in it goes.
    absl::Status status = file_system_->Rename(path, unfinished);
    if (status.ok()) {
      {
        core::MutexLock lock(&mutex_);
        names_.erase(old.front()->name);
      }
      old.erase(old.begin());
      status = file_system_->SyncDirectory(directory_);
      if (status.ok()) status = file_system_->RemoveAll(unfinished);
    }
    if (!status.ok()) {
      core::MutexLock lock(&mutex_);
      checkpoints_.insert(checkpoints_.end(), old.begin(), old.end());
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace adamant::store
