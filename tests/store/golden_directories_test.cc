// Data directories of every format that there was are opened, with what was in them. See golden/README.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/store/golden_state.h"
#include "tests/store/store_life.h"
#include "tests/store/temporary_folder.h"

namespace adamant::store {
namespace {

namespace fs = std::filesystem;
using core::IsOk;

std::vector<std::string> GoldenDirectories() {
  std::vector<std::string> found;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(ADAMANT_GOLDEN_DIRECTORIES)) {
    if (entry.path().extension() == ".gz") found.push_back(entry.path().parent_path() / entry.path().stem().stem());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Without the lines of what a set was taken back to, and of its last checkpoint.
std::string WithoutCheckpoints(const std::string& state) {
  std::vector<std::string> lines = absl::StrSplit(state, '\n');
  std::erase_if(lines, [](const std::string& line) {
    return absl::StrContains(line, ": restored ") || absl::StrContains(line, ": last checkpoint ") ||
           absl::StrContains(line, ": incarnation ");
  });
  return absl::StrJoin(lines, "\n");
}

class GoldenDirectoryTest : public testing::TestWithParam<std::string> {
 protected:
  GoldenDirectoryTest() {
    const std::string unpack = absl::StrCat("tar -xzf '", GetParam(), ".tar.gz' -C '", folder_.path(), "'");
    EXPECT_EQ(std::system(unpack.c_str()), 0) << unpack;
  }

  StoreOptions Options() const {
    StoreOptions options;
    options.directory = absl::StrCat(folder_.path(), "/", fs::path(GetParam()).filename().string());
    return options;
  }
  std::string Expected() const {
    std::ifstream file(GetParam() + ".txt");
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  const TemporaryFolder folder_;
};

TEST_P(GoldenDirectoryTest, HasWhatItHadWhenItWasMade) {
  StoreServer server(PosixFileSystem(), Options());
  ASSERT_THAT(server.status(), IsOk());
  ASSERT_NE(Expected(), "");
  EXPECT_EQ(GoldenStateOf(&server), Expected());
  EXPECT_FALSE(server.registry()->Find("gone").ok());
}

TEST_P(GoldenDirectoryTest, GoesOn) {
  std::string changed;
  {
    StoreServer server(PosixFileSystem(), Options());
    ASSERT_THAT(server.status(), IsOk());
    for (const std::string& name : kGoldenSets) {
      if (name == "rounds") continue;
      const std::shared_ptr<core::ParameterSet> set = server.Find(name);
      const core::Values gradient = core::Gradient(set->schema().parameter_count(), 1);
      ASSERT_THAT(core::Step(set.get(), {}, gradient), IsOk()) << name;
    }
    server.store()->Finish(server.registry(), absl::Hours(1));
    changed = GoldenStateOf(&server);
  }
  EXPECT_NE(changed, Expected());
  StoreServer server(PosixFileSystem(), Options());
  ASSERT_THAT(server.status(), IsOk());
  // The last checkpoint of some is another one than it was when they were looked at.
  EXPECT_EQ(WithoutCheckpoints(GoldenStateOf(&server)), WithoutCheckpoints(changed));
}

INSTANTIATE_TEST_SUITE_P(, GoldenDirectoryTest, testing::ValuesIn(GoldenDirectories()), [](const auto& info) {
  const fs::path path = info.param;
  return path.parent_path().filename().string() + path.filename().string();
});

}  // namespace
}  // namespace adamant::store
