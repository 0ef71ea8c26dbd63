// How many threads may compute at the same time, and whether threads can be had at all.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_PROCESSORS_H_
#define ADAMANT_SERVER_PROCESSORS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace adamant {

// The processors that this process may run on (its affinity), or fewer where a control group's quota allows fewer at a
// time (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), rounded up; at least 1. `root` stands before /proc and /sys: empty, but
// in tests.
int UsableProcessors(absl::string_view root = "");

// Whether `count` more threads can run at the same time: starts them, and ends them. So a start fails with
// a message where a later thread could not be made. Error: RESOURCE_EXHAUSTED, saying how many there could be.
absl::Status CheckThreads(int count);

}  // namespace adamant

#endif  // ADAMANT_SERVER_PROCESSORS_H_
