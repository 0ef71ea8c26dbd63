// What a set is charged for beside its arrays.
#include <malloc.h>

#include <cstdint>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/core/spec/configuration.h"
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

#if defined(__GLIBC__)
// What the allocator has given out, in bytes. Nothing under a sanitizer, which has an allocator of its own.
int64_t AllocatedBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

TEST(StateChargeTest, ASetOfManyTensorsIsChargedForAllThatItTakes) {
  const std::string prefix = "base_model.model.model.layers.47.mlp.experts.127.down_proj.lora_B.";
  for (const size_t name_bytes : {size_t{0}, prefix.size()}) {
    v1::ParameterSetSpec spec = SmallSpec();
    spec.clear_tensors();
    for (int i = 0; i < kMaxTensors; ++i) {
      v1::TensorSpec* tensor = spec.add_tensors();
      tensor->set_name(absl::StrCat(prefix.substr(0, name_bytes), i));
      tensor->add_shape(2);
      tensor->add_shape(2);
      tensor->set_group(i % 2 == 0 ? "slow" : "fast");
    }
    TestServer server;
    const int64_t before = AllocatedBytes();
    const std::shared_ptr<ParameterSet> set = server.MakeSet(spec);
    const int64_t taken = AllocatedBytes() - before;
    // The arrays are whole blocks, which are mapped, not allocated.
    const int64_t charged = set->Describe().state_bytes() - 3 * ArrayBytes(*set);
    EXPECT_LE(taken, charged);
    std::cout << "Beside its arrays it takes " << taken << " bytes, and is charged for " << charged << std::endl;
  }
}
#endif

}  // namespace
}  // namespace adamant::core
