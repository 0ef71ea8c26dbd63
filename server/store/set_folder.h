// The folder of one set.
#ifndef ADAMANT_SERVER_STORE_SET_FOLDER_H_
#define ADAMANT_SERVER_STORE_SET_FOLDER_H_

#include <atomic>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/catalog.h"
#include "server/store/store.h"

namespace adamant::store {

std::string SetDirectory(const StoreParts& parts, const StoredSet& stored);

// Held by all who use files in it. Once nobody does, it is removed if the set was deleted: the catalog does not know of
// it any more. Thread-safe.
class SetFolder {
 public:
  SetFolder(StoreParts parts, std::string directory) : parts_(std::move(parts)), directory_(std::move(directory)) {}
  ~SetFolder();
  SetFolder(const SetFolder&) = delete;
  SetFolder& operator=(const SetFolder&) = delete;

  const std::string& directory() const { return directory_; }

  // While the catalog does not have the set yet, or is about to have it no more, a file in the folder says so: without
  // one, a start that finds a folder that the catalog does not know takes it for one that the catalog has lost. Marked
  // before the commit, synced with the folder, and unmarked when the set is in the catalog after all.
  absl::Status MarkUnlisted();
  void UnmarkUnlisted();
  static absl::StatusOr<bool> IsUnlisted(FileSystem* file_system, const std::string& directory);

  // The set was deleted, or has come to nothing.
  void Delete() { deleted_ = true; }

 private:
  absl::Status RemoveFiles() const;

  const StoreParts parts_;
  const std::string directory_;
  std::atomic<bool> deleted_ = false;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_FOLDER_H_
