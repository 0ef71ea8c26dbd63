// What becomes of sets when a CUDA device fails: for a simulator that injects one failure into the process
// (PTXSIM_FAIL), of whichever kind and at whichever call; or, with ADAMANT_TEST_CUDA_FAULT=1, where a kernel reads
// memory that is not there, on any device. Nothing hangs, nothing is answered that did not happen, a set is healed by a
// full write unless the device is lost, and sets on the processor go on.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda_update.h"
#include "tests/core/cuda_device.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

class CudaFaultsTest : public ::testing::Test {
 protected:
  static constexpr int kSteps = 12;

  // The state that the set must be in: its steps and writes that were answered OK.
  struct Lived {
    std::shared_ptr<ParameterSet> set;
    SequentialModel model;
    bool poisoned = false;
  };

  bool lost() const { return !devices_.device()->CheckWorking().ok(); }

  void TakeStep(Lived* lived, int64_t number) {
    const Values gradient = Gradient(lived->model.parameter_count(), number);
    // Every second one brings one tensor alone, so that each has the device learn other pieces.
    v1::StepHeader header;
    if (number % 2 == 1) header.add_tensors(0);
    const absl::StatusOr<StepReply> reply = Step(lived->set.get(), header, gradient);
    if (reply.ok()) {
      EXPECT_FALSE(lived->poisoned);
      lived->model.Apply(gradient, header);
      if (header.tensors().empty()) {
        EXPECT_TRUE(SameBits(Parameters(*reply), lived->model.arrays().parameters));
      }
    } else {
      EXPECT_THAT(reply.status(), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
      lived->poisoned = true;
      ++failures_;
    }
  }

  void WriteAll(Lived* lived) {
    const Arrays& arrays = lived->model.arrays();
    v1::WriteHeader header = FullHeader(arrays.step);
    header.mutable_update_counts()->Add(arrays.update_counts.begin(), arrays.update_counts.end());
    const absl::StatusOr<v1::WriteTensorsResponse> written = Write(lived->set.get(), header, arrays);
    if (written.ok()) {
      lived->poisoned = false;
    } else if (lost()) {
      ++failures_;
    } else {
      EXPECT_THAT(written.status(), FailsWith(absl::StatusCode::kDataLoss, v1::ERROR_REASON_POISONED));
      lived->poisoned = true;
      ++failures_;
    }
  }

  void ReadAll(Lived* lived) {
    const absl::StatusOr<Arrays> arrays = FetchState(lived->set.get());
    if (arrays.ok()) {
      EXPECT_TRUE(*arrays == lived->model.arrays());
    } else {
      ++failures_;
      const v1::ErrorReason reason = GetErrorDetail(arrays.status()).reason();
      EXPECT_TRUE(reason == v1::ERROR_REASON_POISONED || reason == v1::ERROR_REASON_DEVICE_LOST ||
                  reason == v1::ERROR_REASON_DEVICE_FAILED)
          << arrays.status();
    }
    // What was published stays.
    const absl::StatusOr<std::unique_ptr<Reading>> reading = Read(lived->set.get(), ReadRequest());
    ASSERT_THAT(reading, IsOk());
    EXPECT_TRUE(SameBits(*Fetch(**reading, v1::SLOT_PARAMETER), lived->model.arrays().parameters));
  }

  // Has a kernel on the first device follow addresses where nothing is.
  static void ReadWhatIsNotThere() {
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
    const kernels::Recipe recipe = {kernels::kSgd, {}};
    const kernels::SlotSpan slots[kernels::kUpdates][kernels::kMaxSlots] = {};
    const kernels::CudaSpan span = {.arrays = {}, .origin = 0, .pieces = nullptr, .piece_count = 1};
    ASSERT_EQ(kernels::EnqueueUpdates(&recipe, 0, 1, span, slots, nullptr), cudaSuccess);
  }

  const bool faulty_ = std::getenv("ADAMANT_TEST_CUDA_FAULT") != nullptr;
  int failures_ = 0;
  CudaDevices devices_{/*threads=*/3};
};

TEST_F(CudaFaultsTest, AFailureIsOneSetsOrTheDevices) {
  if (devices_.empty()) {
    // It may have struck while the device was opened: then the server would not have started.
    if (devices_.warned()) return;
    GTEST_SKIP();
  }
  TestServer on_device({.backend = devices_.device(), .registrar = devices_.registrar()});
  TestServer on_host;
  Lived host = {on_host.MakeSet(SmallSpec("host")), SequentialModel(SmallSpec("host"))};
  std::vector<Lived> sets;
  for (const v1::ParameterSetSpec& spec : {SmallSpec(), LargeSpec()}) {
    for (int attempt = 0; attempt < 2; ++attempt) {
      absl::StatusOr<std::shared_ptr<ParameterSet>> set = ParameterSet::Create(on_device.resources(), spec);
      if (set.ok()) {
        sets.push_back({*std::move(set), SequentialModel(spec)});
        break;
      }
      ++failures_;
      const v1::ErrorReason reason = GetErrorDetail(set.status()).reason();
      EXPECT_EQ(lost(), reason == v1::ERROR_REASON_DEVICE_LOST) << set.status();
      EXPECT_TRUE(lost() || reason == v1::ERROR_REASON_DEVICE_FAILED || reason == v1::ERROR_REASON_BUDGET_EXHAUSTED)
          << set.status();
    }
  }
  EXPECT_TRUE(lost() || sets.size() == 2);
  for (int64_t step = 0; step < kSteps; ++step) {
    if (faulty_ && step == kSteps / 2) ReadWhatIsNotThere();
    for (Lived& lived : sets) {
      if (!lived.poisoned) TakeStep(&lived, step);
      if (step % 3 == 2) ReadAll(&lived);
      if (step % 5 == 4 || (lived.poisoned && !lost())) WriteAll(&lived);
    }
    TakeStep(&host, step);
  }
  for (Lived& lived : sets) ReadAll(&lived);
  EXPECT_TRUE(lost() || !faulty_);
  if (lost()) {
    EXPECT_EQ(devices_.device()->Describe().state(), v1::DEVICE_STATE_LOST);
    EXPECT_THAT(ParameterSet::Create(on_device.resources(), SmallSpec("more")).status(),
                FailsWith(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_LOST));
    for (Lived& lived : sets) {
      TakeStep(&lived, kSteps);
      EXPECT_TRUE(lived.poisoned);
    }
  }
  // Whatever failed, nothing stays.
  sets.clear();
  while (devices_.device()->budget()->used() > 0) std::this_thread::yield();
  on_device.AwaitUnused();
  // A test that injects nothing must not pass for one that does. Memory that cannot be registered harms nobody.
  const char* const fault = std::getenv("PTXSIM_FAIL");
  EXPECT_TRUE(fault == nullptr || failures_ > 0) << fault;
}

}  // namespace
}  // namespace adamant::core
