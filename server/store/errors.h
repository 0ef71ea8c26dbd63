// How the store says what went wrong with the data directory, with what the protocol promises of it. Thread-safe.
#ifndef ADAMANT_SERVER_STORE_ERRORS_H_
#define ADAMANT_SERVER_STORE_ERRORS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace adamant::store {

// RESOURCE_EXHAUSTED (DISK_EXHAUSTED), with RetryInfo: there is no room, and nothing has changed.
absl::Status DiskExhausted(absl::string_view message);
// RESOURCE_EXHAUSTED (BUDGET_EXHAUSTED), with RetryInfo: the process may open no more files, and nothing has changed.
absl::Status FilesExhausted(absl::string_view message);
// DATA_LOSS (DAMAGED): something that was there is not, or not as it was.
absl::Status Damaged(absl::string_view message);
// UNAVAILABLE (STORE_FAILED): it is not known what of a change is on disk.
absl::Status StoreFailed(absl::string_view message);

// Whether an error says that nothing of the change is on disk. After any other it is not known what is, and a record
// may refer to the slot that the change had.
bool IsUndone(const absl::Status& status);

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_ERRORS_H_
