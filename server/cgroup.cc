#include "server/cgroup.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace adamant {

CgroupFolders FindCgroupFolders(absl::string_view controller, absl::string_view root) {
  CgroupFolders folders;
  std::ifstream file(absl::StrCat(root, "/proc/self/cgroup"));
  std::string line;
  while (std::getline(file, line)) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const bool v2 = fields[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (!v2 && std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) continue;
    const std::string mount = absl::StrCat(root, "/sys/fs/cgroup", v2 ? "" : absl::StrCat("/", controller));
    std::string group = fields[2];
    for (;;) {
      (v2 ? folders.v2 : folders.v1).push_back(absl::StrCat(mount, group));
      const size_t slash = group.rfind('/');
      if (slash == std::string::npos) break;
      group.resize(slash);
    }
  }
  return folders;
}

}  // namespace adamant
