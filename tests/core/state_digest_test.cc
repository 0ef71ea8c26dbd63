// Digests of states, against what the header says that they are, said once more here.
#include "server/core/set/state_digest.h"

#include <openssl/sha.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/base/notification.h"
#include "tests/core/late_backend.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

std::string Sha256(const std::string& bytes) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

std::string Bytes(uint64_t number, int size) {
  std::string bytes;
  for (int i = 0; i < size; ++i) bytes += static_cast<char>(number >> 8 * i);
  return bytes;
}

// Of a set of these tensors with Adam.
std::string Expected(const Arrays& state, absl::Span<const Schema::Tensor> tensors, const std::string& previous) {
  std::string root = previous.empty() ? std::string(32, '\0') : previous;
  root += Bytes(state.step, 8);
  size_t first = 0;
  for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const auto size = static_cast<size_t>(tensors[tensor].size());
    root += Bytes(state.update_counts.empty() ? state.step : state.update_counts[tensor], 8);
    for (const Values* const values : {&state.parameters, &state.exp_avg, &state.exp_avg_sq}) {
      for (size_t begin = 0; begin < size; begin += 65536) {
        std::string leaf;
        for (size_t i = begin; i < std::min(size, begin + 65536); ++i) {
          leaf += Bytes(std::bit_cast<uint32_t>((*values)[first + i]), 4);
        }
        root += Sha256(leaf);
      }
    }
    first += size;
  }
  return Sha256(root);
}

v1::StepHeader WithDigest(v1::StepHeader header) {
  header.set_digest_state(true);
  return header;
}

// Tensors of one element, of several leaves, and of none but whole ones.
v1::ParameterSetSpec LeavesSpec(int64_t most) {
  v1::ParameterSetSpec spec;
  spec.set_name("leaves");
  spec.set_initialization(v1::INITIALIZATION_ZEROS);
  for (const int64_t size : {int64_t{1}, most, int64_t{2} * 65536, int64_t{7}}) {
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name(absl::StrCat("tensor", spec.tensors_size()));
    tensor->add_shape(size);
  }
  return spec;
}

struct Place {
  const char* name;
  v1::ParameterSetSpec spec;
  std::unique_ptr<LateBackend> backend;  // null: the processor
};

std::vector<Place> Places() {
  std::vector<Place> places;
  places.push_back({"small", LeavesSpec(65537), nullptr});
  places.push_back({"large", LeavesSpec(300'000), nullptr});
  places.push_back({"on a device", LeavesSpec(65537), std::make_unique<LateBackend>(LateBackend::Slots::kApart)});
  return places;
}

TEST(StateDigestTest, IsTheHashOfAllStateAndOfTheOneBefore) {
  for (const Place& place : Places()) {
    SCOPED_TRACE(place.name);
    TestServer server({.compute_threads = 2, .backend = place.backend.get()});
    const std::shared_ptr<ParameterSet> set = server.MakeSet(place.spec);
    SequentialModel model(place.spec);
    std::string previous;
    for (int step = 0; step < 4; ++step) {
      const Values gradient = Gradient(model.parameter_count(), step);
      model.Apply(gradient);
      // The third one asks for none, and is passed over.
      v1::StepHeader header = Header(absl::StrCat("step", step), step);
      if (step != 2) header = WithDigest(header);
      const absl::StatusOr<StepReply> reply = Step(set.get(), header, gradient);
      ASSERT_THAT(reply, IsOk());
      if (step == 2) {
        EXPECT_EQ(reply->result.state_digest(), "");
        continue;
      }
      const Arrays state = *FetchState(set.get());
      ASSERT_TRUE(state == model.arrays());
      previous = Expected(state, set->schema().tensors(), previous);
      EXPECT_EQ(reply->result.state_digest(), previous) << "step " << step;
      // A retry gets what the step got.
      EXPECT_EQ(Step(set.get(), header, gradient)->result.state_digest(), previous);
    }
    // Another incarnation begins anew.
    ASSERT_THAT(Write(set.get(), FullHeader(4), model.arrays()).status(), IsOk());
    const Values gradient = Gradient(model.parameter_count(), 5);
    const absl::StatusOr<StepReply> reply = Step(set.get(), WithDigest({}), gradient);
    ASSERT_THAT(reply, IsOk());
    EXPECT_EQ(reply->result.state_digest(), Expected(*FetchState(set.get()), set->schema().tensors(), ""));
    // Its thread may still hold what it has answered with.
    if (place.backend != nullptr) place.backend->AwaitIdle();
  }
}

// A step that is not applied has none, and is no link of the chain.
TEST(StateDigestTest, OnlyStepsThatAreAppliedHaveOne) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec("set"));
  Values gradient = Gradient(set->schema().parameter_count(), 1);
  const std::string first = Step(set.get(), WithDigest({}), gradient)->result.state_digest();
  Values not_finite = gradient;
  not_finite[0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Step(set.get(), WithDigest({}), not_finite)->result.state_digest(), "");
  const std::string second = Step(set.get(), WithDigest({}), gradient)->result.state_digest();
  EXPECT_EQ(second, Expected(*FetchState(set.get()), set->schema().tensors(), first));
}

// It is paid for before the step is applied.
TEST(StateDigestTest, WithoutRoomForItTheStepIsRefused) {
  constexpr int64_t kReadBytes = int64_t{64} << 20;
  LateBackend backend(LateBackend::Slots::kApart);
  // On a device the slots have to be brought to the host.
  const int64_t slots = 2 * BlockPool::ChargedBytes(SmallSpec().tensors_size());
  for (LateBackend* const device : {static_cast<LateBackend*>(nullptr), &backend}) {
    SCOPED_TRACE(device == nullptr ? "on the host" : "on a device");
    TestServer server({.read_bytes = kReadBytes, .backend = device});
    const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec("set"));
    const Values gradient = Gradient(set->schema().parameter_count(), 1);
    {
      const absl::StatusOr<Grant> taken = server.read().TryReserve(kReadBytes - (device == nullptr ? 200 : slots));
      ASSERT_THAT(taken.status(), IsOk());
      EXPECT_EQ(Step(set.get(), WithDigest({}), gradient).status().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(set->Describe().step(), 0);
      EXPECT_THAT(Step(set.get(), {}, gradient).status(), IsOk());
    }
    EXPECT_THAT(Step(set.get(), WithDigest({}), gradient).status(), IsOk());
    EXPECT_EQ(server.used().read, 0);
    if (device != nullptr) device->AwaitIdle();
  }
}

TEST(StateDigestTest, AnyNanIsTheSame) {
  TestServer server;
  const std::shared_ptr<ParameterSet> set = server.MakeSet(SmallSpec("set"));
  const auto digest_of = [&](uint32_t bits) {
    std::string digest;
    Notification done;
    const v1::ParameterSetSpec spec = SmallSpec("set");
    const std::vector<v1::ParameterGroup> groups(spec.groups().begin(), spec.groups().end());
    DigestState(
        {.schema = *Schema::Create(spec, groups),
         .slots = {v1::SLOT_PARAMETER},
         .step = 1,
         .update_counts = std::vector<int64_t>(spec.tensors_size(), 1),
         .previous = ""},
        [bits](v1::Slot /*slot*/, int64_t begin, int64_t end, float* to) {
          std::fill(to, to + (end - begin), std::bit_cast<float>(bits));
        },
        server.resources().compute,
        [&](std::string made) {
          digest = std::move(made);
          done.Notify();
        });
    done.WaitForNotification();
    return digest;
  };
  EXPECT_EQ(digest_of(0x7fc00000), digest_of(0xffc00001));
  EXPECT_EQ(digest_of(0x7fc00000), digest_of(0x7f800001));
  EXPECT_NE(digest_of(0x7fc00000), digest_of(0x7f800000));
  EXPECT_NE(digest_of(0x00000000), digest_of(0x80000000));
}

}  // namespace
}  // namespace adamant::core
