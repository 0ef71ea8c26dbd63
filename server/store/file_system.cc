// What can be said of small files on any file system.
#include "server/store/file_system.h"

#include "absl/strings/str_cat.h"

namespace adamant::store {

std::string ParentDirectory(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::StatusOr<std::string> ReadFile(FileSystem* file_system, const std::string& path, int64_t most_bytes) {
  absl::StatusOr<std::unique_ptr<File>> file = file_system->Open(path, FileSystem::Access::kBuffered);
  if (!file.ok()) return file.status();
  const absl::StatusOr<int64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size > most_bytes) {
    return absl::OutOfRangeError(
        absl::StrCat(path, " has ", *size, " bytes, and at most ", most_bytes, " were expected"));
  }
  std::string contents(static_cast<size_t>(*size), '\0');
  absl::Status status =
      (*file)->Read(0, absl::MakeSpan(reinterpret_cast<std::byte*>(contents.data()), contents.size()));
  if (!status.ok()) return status;
  return contents;
}

absl::Status ReplaceFile(FileSystem* file_system, const std::string& path, absl::string_view contents) {
  const std::string beside = path + ".new";
  {
    absl::StatusOr<std::unique_ptr<File>> file = file_system->Create(beside, FileSystem::Access::kBuffered);
    if (!file.ok()) return file.status();
    absl::Status status =
        (*file)->Write(0, absl::MakeConstSpan(reinterpret_cast<const std::byte*>(contents.data()), contents.size()));
    if (status.ok()) status = (*file)->Sync();
    if (!status.ok()) return status;
  }
  if (absl::Status status = file_system->Rename(beside, path); !status.ok()) return status;
  return file_system->SyncDirectory(ParentDirectory(path));
}

}  // namespace adamant::store
