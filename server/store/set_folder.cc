#include "server/store/set_folder.h"

#include "absl/strings/str_cat.h"

namespace adamant::store {

std::string SetDirectory(const StoreParts& parts, const StoredSet& stored) {
  return absl::StrCat(parts.directory, "/sets/", stored.folder());
}

SetFolder::~SetFolder() {
  if (!deleted_) return;
  if (absl::Status status = parts_.file_system->RemoveAll(directory_); !status.ok()) {
    parts_.warn(absl::StrCat("files of a deleted set, ", directory_, ": ", status.message()));
  }
}

}  // namespace adamant::store
