// Limits of the control group that this process is in, and of those around it.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_CGROUP_H_
#define ADAMANT_SERVER_CGROUP_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace adamant {

// The folders that hold the limits of `controller` (such as `memory` or `cpu`) for this process, innermost first: those
// of version 2, then those of version 1. In a container a group's path may be the host's, of which only the end, or
// nothing, is mounted here, so some of the folders may not exist. `root` is a prefix of /proc and /sys that
// only tests set.
struct CgroupFolders {
  std::vector<std::string> v2;
  std::vector<std::string> v1;
};
CgroupFolders FindCgroupFolders(absl::string_view controller, absl::string_view root);

}  // namespace adamant

#endif  // ADAMANT_SERVER_CGROUP_H_
