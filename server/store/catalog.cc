#include "server/store/catalog.h"

#include <sqlite3.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/tensor_files/checksum.h"
#include "google/protobuf/message_lite.h"
#include "proto/error/error.h"
#include "server/store/errors.h"

namespace adamant::store {
namespace {

using tensor_files::Checksum;

// What this version writes. It reads this, and what is older.
constexpr int64_t kFormat = 1;
// As many pages of the log as there are before they are copied into the catalog and the log begins anew: 4 MiB.
constexpr int kLogPages = 1000;
constexpr absl::string_view kCatalogName = "catalog";
constexpr absl::string_view kLogSuffix = "-wal";  // behind the catalog's name
constexpr absl::string_view kFenceName = "fence";
constexpr int64_t kCopiedBytes = int64_t{1} << 20;  // of the log, at a time

constexpr char kSchema[] = R"(
  CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    format INTEGER NOT NULL, last_commit INTEGER NOT NULL, next_set INTEGER NOT NULL, checksum INTEGER NOT NULL) STRICT;
  CREATE TABLE sets (
    number INTEGER PRIMARY KEY, body BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT;
  CREATE TABLE records (
    set_number INTEGER NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (set_number, number)) STRICT, WITHOUT ROWID;
)";

// Integers as they are checksummed and as the fence has them: 8 bytes each, the lowest first.
template <size_t kCount>
std::string Encoded(const std::array<int64_t, kCount>& values) {
  std::string bytes;
  for (const int64_t value : values) {
    for (int shift = 0; shift < 64; shift += 8)
      bytes.push_back(static_cast<char>(static_cast<uint64_t>(value) >> shift));
  }
  return bytes;
}

uint32_t RowChecksum(int64_t set, int64_t number, absl::string_view body) {
  return Checksum(body, Checksum(Encoded<2>({set, number})));
}

// Sets are checksummed as records of which there is none.
constexpr int64_t kNoRecord = 0;

// The number of a commit, and a checksum of it.
constexpr int64_t kFenceBytes = 12;

std::string FenceContents(int64_t last_commit) {
  std::string contents = Encoded<1>({last_commit});
  const uint32_t checksum = Checksum(contents);
  for (int shift = 0; shift < 32; shift += 8) contents.push_back(static_cast<char>(checksum >> shift));
  return contents;
}

// The number in a fence; an error if it is none.
absl::StatusOr<int64_t> FenceNumber(absl::string_view contents, absl::string_view path) {
  uint64_t number = 0;
  if (contents.size() == kFenceBytes) {
    for (int i = 7; i >= 0; --i) number = number << 8 | static_cast<unsigned char>(contents[i]);
  }
  if (contents != FenceContents(static_cast<int64_t>(number))) {
    return Damaged(absl::StrCat(path, " is damaged: it does not say how many commits there were"));
  }
  return static_cast<int64_t>(number);
}

// As pwrite, but for what says that there is no room: of that SQLite knows ENOSPC alone.
ssize_t WriteAt(int file, const void* bytes, size_t count, off_t offset) {
  const ssize_t written = pwrite(file, bytes, count, offset);
  if (written < 0 && (errno == EDQUOT || errno == EFBIG)) errno = ENOSPC;
  return written;
}

// Has SQLite write so, in all of the process.
void SetSystemCalls() {
  sqlite3_vfs* const vfs = sqlite3_vfs_find(nullptr);
  // Whichever of them it was built with.
  for (const char* const name : {"pwrite", "pwrite64"}) {
    vfs->xSetSystemCall(vfs, name, reinterpret_cast<sqlite3_syscall_ptr>(&WriteAt));
  }
}

// What SQLite takes in one row is 1e9 bytes, unless it was built with another SQLITE_MAX_LENGTH; this leaves room for
// the row's other columns. Protobuf makes an empty string of what is longer than 2 GiB.
constexpr size_t kMostBodyBytes = 999'000'000;

// A row's body. Error: FAILED_PRECONDITION (TOO_LARGE).
absl::StatusOr<std::string> BodyOf(const google::protobuf::MessageLite& message) {
  const size_t bytes = message.ByteSizeLong();
  if (bytes > kMostBodyBytes) {
    return Error(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE,
                 ExpectedGot(absl::StrCat("a change that takes at most ", kMostBodyBytes, " bytes of the catalog"),
                             absl::StrCat(bytes)));
  }
  return message.SerializeAsString();
}

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close(database); }
};

// What a call of SQLite on this file came to.
absl::Status SqliteStatus(int result, sqlite3* database, absl::string_view path) {
  const std::string message = absl::StrCat(path, ": ", sqlite3_errmsg(database), " (", sqlite3_errstr(result), ")");
  switch (result & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
      return absl::OkStatus();
    case SQLITE_FULL:
      return DiskExhausted(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    // Our own statements are right: it is what they are about that is not.
    case SQLITE_ERROR:
      return Damaged(message);
    default:
      return absl::InternalError(message);
  }
}

// A statement that is prepared once. Bound and reset by each use.
class Statement {
 public:
  Statement() = default;
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  int Prepare(sqlite3* database, absl::string_view sql) {
    return sqlite3_prepare_v3(database, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                              &statement_, nullptr);
  }

  // Text and blobs are bound without a copy: they outlive the use.
  template <typename... Values>
  int Bind(const Values&... values) {
    int column = 0;
    int result = SQLITE_OK;
    ((result = result == SQLITE_OK ? BindOne(++column, values) : result), ...);
    return result;
  }

  int Step() { return sqlite3_step(statement_); }
  void Reset() { sqlite3_reset(statement_); }

  int64_t Integer(int column) { return sqlite3_column_int64(statement_, column); }
  absl::string_view Blob(int column) {
    const void* data = sqlite3_column_blob(statement_, column);
    return {static_cast<const char*>(data), static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
  }
  bool IsNull(int column) { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

 private:
  int BindOne(int column, int64_t value) { return sqlite3_bind_int64(statement_, column, value); }
  int BindOne(int column, const std::string& value) {
    return sqlite3_bind_blob64(statement_, column, value.data(), value.size(), SQLITE_STATIC);
  }

  sqlite3_stmt* statement_ = nullptr;
};

}  // namespace

struct Catalog::Rep {
  // What the row of `state` says.
  struct State {
    int64_t last_commit = 0;
    int64_t next_set = 1;
  };

  Rep(FileSystem* file_system, const std::string& directory)
      : file_system(file_system),
        directory(directory),
        path(absl::StrCat(directory, "/", kCatalogName)),
        fence_path(absl::StrCat(directory, "/", kFenceName)) {}

  ~Rep() {
    if (database == nullptr) return;
    if (!sqlite3_get_autocommit(database.get())) sqlite3_exec(database.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    // A sync that failed is not to be tried again, and what it left is for the next opening to look at.
    if (!failed.ok()) sqlite3_db_config(database.get(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
  }

  absl::Status Status(int result) const { return SqliteStatus(result, database.get(), path); }

  // Steps a statement that returns nothing, and makes it ready for the next time.
  template <typename... Values>
  absl::Status Run(Statement* statement, const Values&... values) {
    int result = statement->Bind(values...);
    if (result == SQLITE_OK) result = statement->Step();
    absl::Status status = Status(result);
    statement->Reset();
    return status;
  }

  absl::Status Execute(const char* sql) { return Status(sqlite3_exec(database.get(), sql, nullptr, nullptr, nullptr)); }

  // Has the log on disk as it is read. After a sync of it that failed, the system may go on to show what was written,
  // and think that this is on disk; a start would believe it, and tell of it.
  absl::Status WriteLogAnew();
  absl::Status OpenDatabase(const char* vfs);
  absl::Status PrepareStatements();
  absl::Status QuickCheck();
  // Makes the tables, with a first commit, which is number 1.
  absl::Status MakeTables();
  absl::Status LoadState();
  absl::Status SaveState();
  // Removes what there is of the catalog.
  absl::Status RemoveFiles();
  absl::Status OpenFence();
  // Puts a fence with this number in place of what is there, and syncs it.
  absl::Status MakeFence(int64_t number);
  // Writes the number into the fence that is open: in one sector, which is written whole or not at all, and takes no
  // room.
  absl::Status MoveFence(int64_t number);
  // Has the fence say what the last commit is, synced, whatever it says now.
  absl::Status SettleFence();

  FileSystem* const file_system;
  const std::string directory;
  const std::string path;
  const std::string fence_path;

  // Null while there is none that can be relied on.
  std::unique_ptr<File> fence;
  // Statements go before the database does.
  std::unique_ptr<sqlite3, CloseDatabase> database;
  Statement begin, commit, rollback;
  Statement read_state, write_state;
  Statement add_set, remove_set, remove_records;
  Statement last_record, add_record, remove_records_before, replace_record;
  Statement read_sets, read_records, read_range;

  int log_pages = 0;  // of the log after the last commit
  State committed;
  State state;  // with what the open transaction makes of it
  bool lost_data = false;
  bool fence_is_behind = false;  // it tells of a loss, until the next commit
  int64_t fence_number = 0;
  absl::Status failed;  // OK, or why nothing more is to be done
};

absl::Status Catalog::Rep::WriteLogAnew() {
  absl::StatusOr<std::unique_ptr<File>> log =
      file_system->Open(absl::StrCat(path, kLogSuffix), FileSystem::Access::kBuffered);
  if (absl::IsNotFound(log.status())) return absl::OkStatus();
  if (!log.ok()) return log.status();
  const absl::StatusOr<int64_t> size = (*log)->Size();
  if (!size.ok()) return size.status();
  std::vector<std::byte> bytes(std::min(*size, kCopiedBytes));
  for (int64_t begin = 0; begin < *size; begin += kCopiedBytes) {
    const absl::Span<std::byte> piece = absl::MakeSpan(bytes).first(std::min(kCopiedBytes, *size - begin));
    absl::Status status = (*log)->Read(begin, piece);
    if (status.ok()) status = (*log)->Write(begin, piece);
    if (!status.ok()) return status;
  }
  absl::Status status = (*log)->Sync();
  return status.ok() ? file_system->SyncDirectory(directory) : status;
}

absl::Status Catalog::Rep::OpenDatabase(const char* vfs) {
  static std::once_flag calls_are_set;
  std::call_once(calls_are_set, &SetSystemCalls);
  sqlite3* opened = nullptr;
  int result = sqlite3_open_v2(path.c_str(), &opened,
                               SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                                   SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_PRIVATECACHE,
                               vfs);
  database.reset(opened);
  if (result != SQLITE_OK) return Status(result);
  sqlite3_db_config(opened, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(opened, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  // EXCLUSIVE before the log is used: then there is no file of shared memory. Commit copies the log, and looks at what
  // comes of it; SQLite itself would not tell.
  absl::Status status = Execute(
      "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;"
      "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0");
  if (!status.ok()) return status;
  std::string mode;
  result = sqlite3_exec(
      opened, "PRAGMA journal_mode = WAL",
      [](void* mode, int, char** values, char**) {
        *static_cast<std::string*>(mode) = values[0];
        return 0;
      },
      &mode, nullptr);
  if (result != SQLITE_OK) return Status(result);
  if (mode != "wal") return absl::InternalError(absl::StrCat(path, ": SQLite keeps its journal as `", mode, "`"));
  sqlite3_wal_hook(
      opened,
      [](void* rep, sqlite3*, const char*, int pages) {
        static_cast<Rep*>(rep)->log_pages = pages;
        return SQLITE_OK;
      },
      this);
  return absl::OkStatus();
}

absl::Status Catalog::Rep::QuickCheck() {
  std::string found;
  const int result = sqlite3_exec(
      database.get(), "PRAGMA quick_check(1)",
      [](void* found, int, char** values, char**) {
        *static_cast<std::string*>(found) = values[0];
        return 0;
      },
      &found, nullptr);
  if (result != SQLITE_OK) return Status(result);
  return found == "ok" ? absl::OkStatus() : Damaged(absl::StrCat(path, " is damaged: ", found));
}

absl::Status Catalog::Rep::PrepareStatements() {
  const std::pair<Statement*, absl::string_view> statements[] = {
      {&begin, "BEGIN IMMEDIATE"},
      {&commit, "COMMIT"},
      {&rollback, "ROLLBACK"},
      {&read_state, "SELECT format, last_commit, next_set, checksum FROM state"},
      {&write_state, "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?)"},
      {&add_set, "INSERT INTO sets VALUES (?, ?, ?)"},
      {&remove_set, "DELETE FROM sets WHERE number = ?"},
      {&remove_records, "DELETE FROM records WHERE set_number = ?"},
      {&last_record, "SELECT max(number) FROM records WHERE set_number = ?"},
      {&add_record, "INSERT INTO records VALUES (?, ?, ?, ?)"},
      {&remove_records_before, "DELETE FROM records WHERE set_number = ? AND number < ?"},
      {&replace_record, "UPDATE records SET body = ?, checksum = ? WHERE set_number = ? AND number = ?"},
      {&read_sets, "SELECT number, body, checksum FROM sets ORDER BY number"},
      {&read_records, "SELECT number, body, checksum FROM records WHERE set_number = ? ORDER BY number"},
      {&read_range,
       "SELECT number, body, checksum FROM records WHERE set_number = ? AND number >= ? AND number < ? ORDER BY "
       "number"},
  };
  for (const auto& [statement, sql] : statements) {
    const int result = statement->Prepare(database.get(), sql);
    if (result != SQLITE_OK) return Status(result);
  }
  return absl::OkStatus();
}

absl::Status Catalog::Rep::MakeTables() {
  if (absl::Status status = Execute("BEGIN IMMEDIATE"); !status.ok()) return status;
  if (absl::Status status = Execute(kSchema); !status.ok()) return status;
  if (absl::Status status = PrepareStatements(); !status.ok()) return status;
  state.last_commit = 1;
  if (absl::Status status = SaveState(); !status.ok()) return status;
  if (absl::Status status = Execute("COMMIT"); !status.ok()) return status;
  committed = state;
  // The log's name was synced by SQLite, the catalog's own was not.
  return file_system->SyncDirectory(directory);
}

absl::Status Catalog::Rep::LoadState() {
  const absl::Cleanup reset = [this] { read_state.Reset(); };
  const int result = read_state.Step();
  if (result != SQLITE_ROW && result != SQLITE_DONE) return Status(result);
  const int64_t format = read_state.Integer(0);
  if (result == SQLITE_DONE ||
      Checksum(Encoded<3>({format, read_state.Integer(1), read_state.Integer(2)})) != read_state.Integer(3)) {
    return Damaged(absl::StrCat(path, " is damaged: it does not say what its last commit was"));
  }
  if (format > kFormat) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of format ", format,
                                                      ", and this version knows formats up to ", kFormat,
                                                      ": it was written by a later one"));
  }
  committed = state = {.last_commit = read_state.Integer(1), .next_set = read_state.Integer(2)};
  return absl::OkStatus();
}

absl::Status Catalog::Rep::SaveState() {
  return Run(&write_state, kFormat, state.last_commit, state.next_set,
             int64_t{Checksum(Encoded<3>({kFormat, state.last_commit, state.next_set}))});
}

absl::Status Catalog::Rep::RemoveFiles() {
  for (const absl::string_view suffix : {kLogSuffix, absl::string_view("-journal"), absl::string_view()}) {
    if (absl::Status status = file_system->Remove(absl::StrCat(path, suffix)); !status.ok()) return status;
  }
  return file_system->SyncDirectory(directory);
}

absl::Status Catalog::Rep::OpenFence() {
  absl::StatusOr<std::unique_ptr<File>> file = file_system->Open(fence_path, FileSystem::Access::kBuffered);
  if (!file.ok()) return file.status();
  fence = *std::move(file);
  return absl::OkStatus();
}

absl::Status Catalog::Rep::MakeFence(int64_t number) {
  const std::string contents = FenceContents(number);
  if (absl::Status status = ReplaceFile(file_system, fence_path, contents); !status.ok()) return status;
  fence_number = number;
  return OpenFence();
}

absl::Status Catalog::Rep::MoveFence(int64_t number) {
  const std::string contents = FenceContents(number);
  absl::Status status =
      fence->Write(0, absl::MakeConstSpan(reinterpret_cast<const std::byte*>(contents.data()), contents.size()));
  if (status.ok()) fence_number = number;
  return status;
}

absl::Status Catalog::Rep::SettleFence() {
  if (fence == nullptr) return MakeFence(committed.last_commit);
  absl::Status status = MoveFence(committed.last_commit);
  return status.ok() ? fence->Sync() : status;
}

Catalog::Catalog(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
Catalog::~Catalog() = default;

// A catalog is made in this order, each step synced: a fence that says 0, the catalog with its first commit, which is
// number 1, and a fence that says 1. So where the fence says 0 nobody was promised anything yet, and it is begun anew;
// from then on, neither is ever there without the other.
absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(FileSystem* file_system, const std::string& directory,
                                                       bool accept_data_loss, const char* sqlite_vfs) {
  auto rep = std::make_unique<Rep>(file_system, directory);
  const absl::StatusOr<std::vector<std::string>> names = file_system->List(directory);
  if (!names.ok()) return names.status();
  const auto is_there = [&](absl::string_view name) {
    return std::find(names->begin(), names->end(), name) != names->end();
  };
  const bool has_catalog = is_there(kCatalogName);

  // What the fence says; 0 if nothing was promised yet.
  int64_t promised = 0;
  bool fence_is_good = false;
  if (is_there(kFenceName)) {
    const absl::StatusOr<std::string> contents = ReadFile(file_system, rep->fence_path, 4096);
    if (!contents.ok() && !absl::IsOutOfRange(contents.status())) return contents.status();
    const absl::StatusOr<int64_t> number = FenceNumber(contents.ok() ? *contents : "", rep->fence_path);
    if (!number.ok() && !accept_data_loss) return number.status();
    fence_is_good = number.ok();
    if (fence_is_good) promised = *number;
  } else if (has_catalog && !accept_data_loss) {
    return Damaged(absl::StrCat(rep->fence_path, " is missing: ", rep->path,
                                " is there, and nothing says how many commits it is to have"));
  }
  if (promised > 0 && !has_catalog && !accept_data_loss) {
    return Damaged(
        absl::StrCat(rep->path, " is missing: ", rep->fence_path, " says that there were ", promised, " commits"));
  }

  const bool is_new = !has_catalog || (fence_is_good && promised == 0);
  rep->lost_data = is_new ? promised > 0 || (is_there(kFenceName) && !fence_is_good) : !fence_is_good;
  if (is_new) {
    if (absl::Status status = rep->RemoveFiles(); !status.ok()) return status;
  }
  // What told of a loss stays as it is until the next commit.
  if (fence_is_good) {
    if (absl::Status status = rep->OpenFence(); !status.ok()) return status;
    rep->fence_number = promised;
  } else if (is_new) {
    if (absl::Status status = rep->MakeFence(0); !status.ok()) return status;
  }

  if (absl::Status status = rep->WriteLogAnew(); !status.ok()) return status;
  if (absl::Status status = rep->OpenDatabase(sqlite_vfs); !status.ok()) return status;
  if (is_new) {
    if (absl::Status status = rep->MakeTables(); !status.ok()) return status;
  } else {
    if (absl::Status status = rep->QuickCheck(); !status.ok()) return status;
    if (absl::Status status = rep->PrepareStatements(); !status.ok()) {
      return Damaged(absl::StrCat(rep->path, " is no catalog, or has lost what it was made with: ", status.message()));
    }
    if (absl::Status status = rep->LoadState(); !status.ok()) return status;
    if (rep->committed.last_commit < promised) {
      if (!accept_data_loss) {
        return Damaged(absl::StrCat(rep->path, " has lost something: its last commit is number ",
                                    rep->committed.last_commit, ", and ", rep->fence_path, " says that there were ",
                                    promised));
      }
      rep->lost_data = true;
    }
  }
  // Even where it says what it should: that may be in memory alone, of a start that did not come to sync it, and a
  // power cut leave one that says 0.
  if (!rep->lost_data) {
    if (absl::Status status = rep->SettleFence(); !status.ok()) return status;
  }
  rep->fence_is_behind = rep->lost_data;
  return std::unique_ptr<Catalog>(new Catalog(std::move(rep)));
}

absl::StatusOr<bool> Catalog::HasPromised(FileSystem* file_system, const std::string& directory) {
  const absl::StatusOr<std::vector<std::string>> names = file_system->List(directory);
  if (!names.ok()) return names.status();
  if (!absl::c_linear_search(*names, kFenceName)) return absl::c_linear_search(*names, kCatalogName);
  const std::string path = absl::StrCat(directory, "/", kFenceName);
  const absl::StatusOr<std::string> contents = ReadFile(file_system, path, 4096);
  if (!contents.ok() && !absl::IsOutOfRange(contents.status())) return contents.status();
  const absl::StatusOr<int64_t> number = FenceNumber(contents.ok() ? *contents : "", path);
  return !number.ok() || *number > 0;
}

bool Catalog::lost_data() const { return rep_->lost_data; }

absl::Status Catalog::Begin() {
  if (!rep_->failed.ok()) return rep_->failed;
  rep_->state = rep_->committed;
  return rep_->Run(&rep_->begin);
}

absl::Status Catalog::Commit() {
  Rep& rep = *rep_;
  // Above what the fence says, too, where that is more: then the catalog has what it had, and nothing is missing again.
  rep.state.last_commit = std::max(rep.committed.last_commit, rep.fence_number) + 1;
  absl::Status status = rep.SaveState();
  if (status.ok()) status = rep.Run(&rep.commit);
  if (!status.ok()) {
    if (absl::IsResourceExhausted(status)) {
      Rollback();
    } else {
      rep.failed = status;
    }
    return status;
  }
  rep.committed = rep.state;

  // It is committed, but what is lost later would not be noticed: as good as a sync that failed.
  status = rep.fence_is_behind ? rep.SettleFence() : rep.MoveFence(rep.committed.last_commit);
  if (!status.ok()) return rep.failed = absl::InternalError(status.message());
  rep.fence_is_behind = false;
  if (rep.log_pages < kLogPages) return absl::OkStatus();

  // What is committed stays so, whatever comes of this. Where there is no room the log grows on.
  const int result =
      sqlite3_wal_checkpoint_v2(rep.database.get(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  if (result != SQLITE_OK && (result & 0xff) != SQLITE_FULL) rep.failed = rep.Status(result);
  return absl::OkStatus();
}

void Catalog::Rollback() {
  // An error may have rolled back already.
  if (!sqlite3_get_autocommit(rep_->database.get())) rep_->Run(&rep_->rollback).IgnoreError();
  rep_->state = rep_->committed;
}

absl::StatusOr<int64_t> Catalog::AddSet(const StoredSet& set) {
  const int64_t number = rep_->state.next_set;
  const absl::StatusOr<std::string> body = BodyOf(set);
  if (!body.ok()) return body.status();
  absl::Status status = rep_->Run(&rep_->add_set, number, *body, int64_t{RowChecksum(number, kNoRecord, *body)});
  if (!status.ok()) return status;
  ++rep_->state.next_set;
  return number;
}

absl::Status Catalog::RemoveSet(int64_t set) {
  if (absl::Status status = rep_->Run(&rep_->remove_set, set); !status.ok()) return status;
  return rep_->Run(&rep_->remove_records, set);
}

absl::Status Catalog::AddRecord(int64_t set, int64_t number, const StoredRecord& record) {
  const absl::StatusOr<int64_t> next = NextNumber(set);
  if (!next.ok()) return next.status();
  if (number != *next) {
    return absl::InternalError(
        absl::StrCat(rep_->path, ": record ", number, " of set ", set, " was added where ", *next, " is the next"));
  }
  const absl::StatusOr<std::string> body = BodyOf(record);
  if (!body.ok()) return body.status();
  return rep_->Run(&rep_->add_record, set, number, *body, int64_t{RowChecksum(set, number, *body)});
}

absl::Status Catalog::ReplaceRecord(int64_t set, int64_t number, const StoredRecord& record) {
  const absl::StatusOr<std::string> body = BodyOf(record);
  if (!body.ok()) return body.status();
  return rep_->Run(&rep_->replace_record, *body, int64_t{RowChecksum(set, number, *body)}, set, number);
}

absl::StatusOr<int64_t> Catalog::NextNumber(int64_t set) {
  const absl::Cleanup reset = [this] { rep_->last_record.Reset(); };
  int result = rep_->last_record.Bind(set);
  if (result == SQLITE_OK) result = rep_->last_record.Step();
  if (result != SQLITE_ROW) return rep_->Status(result);
  return rep_->last_record.Integer(0) + 1;  // 0 where there is none
}

absl::Status Catalog::RemoveRecordsBefore(int64_t set, int64_t number) {
  const absl::StatusOr<int64_t> next = NextNumber(set);
  if (!next.ok()) return next.status();
  return rep_->Run(&rep_->remove_records_before, set, std::min(number, *next - 1));
}

absl::Status Catalog::DropGradients(int64_t set, int64_t first, int64_t end) {
  // Read first: a table is not to be changed while it is read.
  std::vector<std::pair<int64_t, std::string>> changed;
  {
    const absl::Cleanup reset = [this] { rep_->read_range.Reset(); };
    int result = rep_->read_range.Bind(set, first, end);
    while (result == SQLITE_OK || result == SQLITE_ROW) {
      result = rep_->read_range.Step();
      if (result != SQLITE_ROW) break;
      const int64_t number = rep_->read_range.Integer(0);
      const absl::string_view body = rep_->read_range.Blob(1);
      StoredRecord record;
      // A damaged one stays as it is, for whoever reads it to see.
      if (RowChecksum(set, number, body) != rep_->read_range.Integer(2) ||
          !record.ParseFromArray(body.data(), static_cast<int>(body.size())) || !record.has_committed() ||
          !record.committed().has_gradient()) {
        continue;
      }
      record.mutable_committed()->clear_gradient();
      changed.emplace_back(number, record.SerializeAsString());
    }
    if (absl::Status status = rep_->Status(result); !status.ok()) return status;
  }
  for (const auto& [number, body] : changed) {
    absl::Status status = rep_->Run(&rep_->replace_record, body, int64_t{RowChecksum(set, number, body)}, set, number);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Catalog::ForEachSet(absl::FunctionRef<absl::Status(int64_t set, absl::StatusOr<StoredSet> stored)> visit) {
  const absl::Cleanup reset = [this] { rep_->read_sets.Reset(); };
  int result;
  while ((result = rep_->read_sets.Step()) == SQLITE_ROW) {
    const int64_t number = rep_->read_sets.Integer(0);
    const absl::string_view body = rep_->read_sets.Blob(1);
    StoredSet set;
    const bool is_good = RowChecksum(number, kNoRecord, body) == rep_->read_sets.Integer(2) &&
                         set.ParseFromArray(body.data(), static_cast<int>(body.size()));
    absl::Status status =
        is_good ? visit(number, std::move(set))
                : visit(number, Damaged(absl::StrCat(rep_->path, ": the row of set ", number, " is damaged")));
    if (!status.ok()) return status;
  }
  return rep_->Status(result);
}

absl::Status Catalog::ForEachRecord(
    int64_t set, absl::FunctionRef<absl::Status(int64_t number, absl::StatusOr<StoredRecord> record)> visit) {
  const absl::Cleanup reset = [this] { rep_->read_records.Reset(); };
  int result = rep_->read_records.Bind(set);
  int64_t expected = 0;  // 0: the first may be any
  while (result == SQLITE_OK || result == SQLITE_ROW) {
    result = rep_->read_records.Step();
    if (result != SQLITE_ROW) break;
    const int64_t number = rep_->read_records.Integer(0);
    const absl::string_view body = rep_->read_records.Blob(1);
    if (expected != 0 && number != expected) {
      absl::Status status = visit(expected, Damaged(absl::StrCat(rep_->path, ": of set ", set, ", records [", expected,
                                                                 ", ", number, ") are missing")));
      if (!status.ok()) return status;
    }
    StoredRecord record;
    const bool is_good = RowChecksum(set, number, body) == rep_->read_records.Integer(2) &&
                         record.ParseFromArray(body.data(), static_cast<int>(body.size()));
    absl::Status status =
        is_good ? visit(number, std::move(record))
                : visit(number, Damaged(absl::StrCat(rep_->path, ": record ", number, " of set ", set, " is damaged")));
    if (!status.ok()) return status;
    expected = number + 1;
  }
  return rep_->Status(result);
}

}  // namespace adamant::store
