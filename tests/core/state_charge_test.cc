// What a set is charged for beside its arrays.
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/core/set_fixture.h"

namespace adamant::core {
namespace {

TEST(StateChargeTest, ASetIsChargedForItsGroupsAndLabels) {
  TestServer server;
  const int64_t plain = server.MakeSet(SmallSpec("plain"))->Describe().state_bytes();
  v1::ParameterSetSpec spec = SmallSpec("decorated");
  int64_t text = 0;
  for (int i = spec.groups_size(); i < kMaxGroups; ++i) {
    spec.add_groups()->set_name(absl::StrCat("group-", i, std::string(48, 'x')));
    text += static_cast<int64_t>(spec.groups(i).name().size());
  }
  for (int i = 0; i < kMaxLabels; ++i) {
    (*spec.mutable_labels())[absl::StrCat("label-", i)] = std::string(255, 'x');
    text += 255;
  }
  EXPECT_GE(server.MakeSet(spec)->Describe().state_bytes(), plain + text);
}

}  // namespace
}  // namespace adamant::core
