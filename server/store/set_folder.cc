#include "server/store/set_folder.h"

#include <memory>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace adamant::store {
namespace {

constexpr absl::string_view kUnlistedName = "unlisted";

}  // namespace

std::string SetDirectory(const StoreParts& parts, const StoredSet& stored) {
  return absl::StrCat(parts.directory, "/sets/", stored.folder());
}

absl::Status SetFolder::MarkUnlisted() {
  const absl::StatusOr<std::unique_ptr<File>> mark =
      parts_.file_system->Create(absl::StrCat(directory_, "/", kUnlistedName), FileSystem::Access::kBuffered);
  return mark.ok() ? parts_.file_system->SyncDirectory(directory_) : mark.status();
}

void SetFolder::UnmarkUnlisted() {
  // Where it stays, the next start, which finds the set in the catalog, removes it.
  parts_.file_system->Remove(absl::StrCat(directory_, "/", kUnlistedName)).IgnoreError();
}

absl::StatusOr<bool> SetFolder::IsUnlisted(FileSystem* file_system, const std::string& directory) {
  const absl::StatusOr<std::vector<std::string>> names = file_system->List(directory);
  if (absl::IsNotFound(names.status())) return false;  // no folder
  if (!names.ok()) return names.status();
  // An empty one is of a create that was cut off before it came to that.
  return names->empty() || absl::c_linear_search(*names, kUnlistedName);
}

absl::Status SetFolder::RemoveFiles() const {
  const absl::StatusOr<std::vector<std::string>> names = parts_.file_system->List(directory_);
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  if (!names.ok()) return names.status();
  // What says that they are for nothing goes last.
  for (const std::string& name : *names) {
    if (name == kUnlistedName) continue;
    absl::Status status = parts_.file_system->RemoveAll(absl::StrCat(directory_, "/", name));
    if (!status.ok()) return status;
  }
  if (absl::Status status = parts_.file_system->SyncDirectory(directory_); !status.ok()) return status;
  return parts_.file_system->RemoveAll(directory_);
}

SetFolder::~SetFolder() {
  if (!deleted_) return;
  if (absl::Status status = RemoveFiles(); !status.ok()) {
    parts_.warn(absl::StrCat("files of a deleted set, ", directory_, ": ", status.message()));
  }
}

}  // namespace adamant::store
