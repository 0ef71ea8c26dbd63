// The folder of one set.
#ifndef ADAMANT_SERVER_STORE_SET_FOLDER_H_
#define ADAMANT_SERVER_STORE_SET_FOLDER_H_

#include <atomic>
#include <string>
#include <utility>

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

  // The set was deleted, or has come to nothing.
  void Delete() { deleted_ = true; }

 private:
  const StoreParts parts_;
  const std::string directory_;
  std::atomic<bool> deleted_ = false;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_SET_FOLDER_H_
