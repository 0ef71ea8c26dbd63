#include "server/store/reserve.h"

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "server/store/errors.h"

namespace adamant::store {

Reserve::Reserve(FileSystem* file_system, std::string path, int64_t bytes, core::ComputePool* pool)
    : file_system_(file_system),
      path_(std::move(path)),
      bytes_(bytes),
      pool_(pool),
      state_(Take().ok() ? State::kKept : State::kGivenAway) {}

bool Reserve::Release() {
  {
    core::MutexLock lock(&mutex_);
    if (state_ != State::kKept) return false;
    state_ = State::kGivenAway;
  }
  if (!file_system_->Remove(path_).ok()) return false;
  // File systems give room away again once it is sure that nobody has it. If this fails the commit will tell.
  file_system_->SyncDirectory(ParentDirectory(path_)).IgnoreError();
  return true;
}

absl::Status Reserve::Check() {
  core::MutexLock lock(&mutex_);
  if (state_ == State::kKept) return absl::OkStatus();
  if (state_ == State::kGivenAway) {
    state_ = State::kBeingTaken;
    pool_->Post([this] {
      const bool taken = Take().ok();
      core::MutexLock lock(&mutex_);
      state_ = taken ? State::kKept : State::kGivenAway;
    });
  }
  return DiskExhausted(
      "the server's disk is full, and what was kept for work that has begun is in use: make room there, or delete "
      "sets");
}

absl::Status Reserve::Take() {
  absl::StatusOr<std::unique_ptr<File>> file = file_system_->Open(path_, FileSystem::Access::kBuffered);
  if (absl::IsNotFound(file.status())) file = file_system_->Create(path_, FileSystem::Access::kBuffered);
  absl::Status status = file.status();
  if (status.ok()) status = (*file)->Allocate(bytes_);
  // Others can do with a part.
  if (!status.ok()) file_system_->Remove(path_).IgnoreError();
  return status;
}

}  // namespace adamant::store
