#include "tests/store/sqlite_vfs.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

namespace adamant::store {
namespace {

SimulatedFileSystem* DiskOf(sqlite3_vfs* vfs) { return static_cast<SimulatedFileSystem*>(vfs->pAppData); }

// A file as SQLite has it: it gives the memory, and finds the methods at its beginning.
struct OpenFile {
  sqlite3_file base;
  File* file;
  SimulatedFileSystem* disk;
  // The folder, until it was synced after it got this file's name.
  std::string* unsynced_folder;
};

OpenFile* Of(sqlite3_file* file) { return reinterpret_cast<OpenFile*>(file); }

int WriteResult(const absl::Status& status, int error) {
  if (status.ok()) return SQLITE_OK;
  return absl::IsResourceExhausted(status) ? SQLITE_FULL : error;
}

int Close(sqlite3_file* file) {
  delete Of(file)->file;
  delete Of(file)->unsynced_folder;
  return SQLITE_OK;
}

int Read(sqlite3_file* file, void* data, int size, sqlite3_int64 offset) {
  const auto bytes = absl::MakeSpan(static_cast<std::byte*>(data), size);
  absl::Status status = Of(file)->file->Read(offset, bytes);
  if (!absl::IsOutOfRange(status)) return status.ok() ? SQLITE_OK : SQLITE_IOERR_READ;
  const absl::StatusOr<int64_t> end = Of(file)->file->Size();
  if (!end.ok()) return SQLITE_IOERR_READ;
  std::memset(data, 0, size);
  if (*end > offset && !Of(file)->file->Read(offset, bytes.first(*end - offset)).ok()) return SQLITE_IOERR_READ;
  return SQLITE_IOERR_SHORT_READ;
}

int Write(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
  return WriteResult(Of(file)->file->Write(offset, absl::MakeConstSpan(static_cast<const std::byte*>(data), size)),
                     SQLITE_IOERR_WRITE);
}

int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  return WriteResult(SimulatedFileSystem::Resize(Of(file)->file, size), SQLITE_IOERR_TRUNCATE);
}

int Sync(sqlite3_file* file, int /*flags*/) {
  OpenFile* const open = Of(file);
  if (!open->file->Sync().ok()) return SQLITE_IOERR_FSYNC;
  if (open->unsynced_folder == nullptr) return SQLITE_OK;
  if (!open->disk->SyncDirectory(*open->unsynced_folder).ok()) return SQLITE_IOERR_DIR_FSYNC;
  delete open->unsynced_folder;
  open->unsynced_folder = nullptr;
  return SQLITE_OK;
}

int FileSize(sqlite3_file* file, sqlite3_int64* size) {
  const absl::StatusOr<int64_t> found = Of(file)->file->Size();
  if (!found.ok()) return SQLITE_IOERR_FSTAT;
  *size = *found;
  return SQLITE_OK;
}

// Nobody else has the disk.
int Lock(sqlite3_file* /*file*/, int /*level*/) { return SQLITE_OK; }
int CheckReservedLock(sqlite3_file* /*file*/, int* locked) {
  *locked = 0;
  return SQLITE_OK;
}
int FileControl(sqlite3_file* /*file*/, int /*operation*/, void* /*argument*/) { return SQLITE_NOTFOUND; }
int SectorSize(sqlite3_file* /*file*/) { return static_cast<int>(kSectorBytes); }
int DeviceCharacteristics(sqlite3_file* /*file*/) { return SQLITE_IOCAP_POWERSAFE_OVERWRITE; }

constexpr sqlite3_io_methods kMethods = {
    .iVersion = 1,  // without shared memory
    .xClose = Close,
    .xRead = Read,
    .xWrite = Write,
    .xTruncate = Truncate,
    .xSync = Sync,
    .xFileSize = FileSize,
    .xLock = Lock,
    .xUnlock = Lock,
    .xCheckReservedLock = CheckReservedLock,
    .xFileControl = FileControl,
    .xSectorSize = SectorSize,
    .xDeviceCharacteristics = DeviceCharacteristics,
    .xShmMap = nullptr,
    .xShmLock = nullptr,
    .xShmBarrier = nullptr,
    .xShmUnmap = nullptr,
    .xFetch = nullptr,
    .xUnfetch = nullptr,
};

int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* flags_out) {
  OpenFile* const open = Of(file);
  open->base.pMethods = nullptr;  // there is nothing to close yet
  if (name == nullptr) return SQLITE_CANTOPEN;
  SimulatedFileSystem* const disk = DiskOf(vfs);
  absl::StatusOr<std::unique_ptr<File>> opened = disk->Open(name, FileSystem::Access::kBuffered);
  const bool is_new = absl::IsNotFound(opened.status()) && (flags & SQLITE_OPEN_CREATE) != 0;
  if (is_new) opened = disk->Create(name, FileSystem::Access::kBuffered);
  if (!opened.ok()) return SQLITE_CANTOPEN;
  const bool is_journal = (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL)) != 0;
  open->base.pMethods = &kMethods;
  open->file = opened->release();
  open->disk = disk;
  open->unsynced_folder = is_new && is_journal ? new std::string(ParentDirectory(name)) : nullptr;
  if (flags_out != nullptr) *flags_out = flags;
  return SQLITE_OK;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync_folder) {
  SimulatedFileSystem* const disk = DiskOf(vfs);
  if (disk->SizeOf(name) < 0) return SQLITE_IOERR_DELETE_NOENT;
  if (!disk->Remove(name).ok()) return SQLITE_IOERR_DELETE;
  if (sync_folder != 0 && !disk->SyncDirectory(ParentDirectory(name)).ok()) return SQLITE_IOERR_DIR_FSYNC;
  return SQLITE_OK;
}

int Access(sqlite3_vfs* vfs, const char* name, int /*flags*/, int* result) {
  // SQLite's own takes an empty file for none, too.
  *result = DiskOf(vfs)->SizeOf(name) > 0 ? 1 : 0;
  return SQLITE_OK;
}

int FullPathname(sqlite3_vfs* /*vfs*/, const char* name, int size, char* result) {
  sqlite3_snprintf(size, result, "%s", name);
  return SQLITE_OK;
}

std::string NextName() {
  static std::atomic<int> count = 0;
  return absl::StrCat("simulated-", ++count);
}

}  // namespace

SqliteVfs::SqliteVfs(SimulatedFileSystem* disk) : name_(NextName()), vfs_(*sqlite3_vfs_find(nullptr)) {
  // Time, sleep and chance stay the system's, whose calls do not look at the object.
  vfs_.iVersion = 2;
  vfs_.szOsFile = sizeof(OpenFile);
  vfs_.pNext = nullptr;
  vfs_.zName = name_.c_str();
  vfs_.pAppData = disk;
  vfs_.xOpen = Open;
  vfs_.xDelete = Delete;
  vfs_.xAccess = Access;
  vfs_.xFullPathname = FullPathname;
  sqlite3_vfs_register(&vfs_, /*makeDflt=*/0);
}

SqliteVfs::~SqliteVfs() { sqlite3_vfs_unregister(&vfs_); }

}  // namespace adamant::store
