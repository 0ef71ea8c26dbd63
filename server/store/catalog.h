// What the server has promised to keep, but for the bulk of it: sets, and the records of their changes, in SQLite.
//
// One connection, which keeps others out; a write-ahead log, synced at each commit. SQLite opens a log of which
// something in the middle was damaged, without a word, and leaves out what came behind that. So each row has a
// checksum, records are numbered without gaps, and a file beside the catalog, the fence, has the number of the last
// commit, which the catalog must have, too.
#ifndef ADAMANT_SERVER_STORE_CATALOG_H_
#define ADAMANT_SERVER_STORE_CATALOG_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/catalog.pb.h"
#include "server/store/file_system.h"

namespace adamant::store {

// Thread-compatible: of the thread that commits, once the server runs.
//
// Changes are made between Begin and Commit. After an error of a change the transaction is to be rolled back, and the
// catalog goes on; after an error of Commit, see there. Errors: RESOURCE_EXHAUSTED (DISK_EXHAUSTED) where there is no
// room, otherwise INTERNAL, with what SQLite says.
class Catalog {
 public:
  // Opens the catalog in `directory`, which is there, or makes one if there is neither it nor its fence. With
  // `accept_data_loss` it also opens one that has fewer commits than its fence says, or whose fence is missing or
  // damaged, and makes an empty one where only the fence is there. `sqlite_vfs` is the name of what SQLite reaches its
  // files by; null: by the system. Errors: DATA_LOSS, naming the file and what is missing or damaged;
  // FAILED_PRECONDITION if it is of a later format.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(FileSystem* file_system, const std::string& directory,
                                                       bool accept_data_loss, const char* sqlite_vfs = nullptr);
  // Whether a catalog in `directory` has promised anything to anybody; true where that cannot be told. One that has not
  // is begun anew when it is opened.
  static absl::StatusOr<bool> HasPromised(FileSystem* file_system, const std::string& directory);
  // Rolls back what was not committed.
  ~Catalog();
  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  // Whether Open may have found less than there was, and was told to accept that. The next Commit ends that, for later
  // openings: it is to have all that follows from the loss.
  bool lost_data() const;

  absl::Status Begin();
  // On OK all changes since Begin survive a power cut. After RESOURCE_EXHAUSTED none has been made, and the catalog
  // goes on. After any other error it is not known whether they have: nothing more is to be done with the catalog, and
  // whatever depends on it awaits a restart.
  absl::Status Commit();
  void Rollback();

  // What follows makes a change, or none: FAILED_PRECONDITION (TOO_LARGE) where it would take more than a row can have;
  // other errors are as of Commit.

  // Adds a set, and returns its number, which no other set has or had.
  absl::StatusOr<int64_t> AddSet(const StoredSet& set);
  // Removes a set, with its records. Nothing happens if it is not there.
  absl::Status RemoveSet(int64_t set);
  // The number of the set's next record: one more than its last one's, or 1.
  absl::StatusOr<int64_t> NextNumber(int64_t set);
  // Adds the set's record of this number, which is the one after its last; its first is number 1.
  absl::Status AddRecord(int64_t set, int64_t number, const StoredRecord& record);
  // Puts another record in place of the set's record of this number, which is there.
  absl::Status ReplaceRecord(int64_t set, int64_t number, const StoredRecord& record);
  // Removes the set's records below `number`, but for the last that there is: it says what number comes next.
  absl::Status RemoveRecordsBefore(int64_t set, int64_t number);
  // Takes the gradients out of those of the set's records [first, end) that are of steps: they are remembered, and no
  // more.
  absl::Status DropGradients(int64_t set, int64_t first, int64_t end);

  // Visit what there is, in order of number. A row that is damaged, or records with a gap, are given as DATA_LOSS that
  // says so, in place of what they should be: the set's other records are of no use then. The visit ends, with that
  // error, where `visit` returns one.
  absl::Status ForEachSet(absl::FunctionRef<absl::Status(int64_t set, absl::StatusOr<StoredSet> stored)> visit);
  absl::Status ForEachRecord(
      int64_t set, absl::FunctionRef<absl::Status(int64_t number, absl::StatusOr<StoredRecord> record)> visit);

 private:
  struct Rep;
  explicit Catalog(std::unique_ptr<Rep> rep);

  const std::unique_ptr<Rep> rep_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_CATALOG_H_
