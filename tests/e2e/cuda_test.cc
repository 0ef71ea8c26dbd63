// Sets on CUDA devices in the real server, beside sets on the processor. Skipped where there is no device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {
namespace {

using ::testing::HasSubstr;

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    v1::GetServerInfoRequest request;
    info_ = *client_.Call(&v1::OptimizerService::Stub::GetServerInfo, request);
    if (info_.devices_size() > 1) return;
    std::cout << "skipped: no CUDA device" << std::endl;
    GTEST_SKIP();
  }

  v1::ParameterSetSpec On(const std::string& device, v1::ParameterSetSpec spec) const {
    spec.set_name(absl::StrCat(spec.name(), "/", device));
    spec.set_device(device);
    return spec;
  }

  int cuda_devices() const { return info_.devices_size() - 1; }

  ServerProcess server_{{"--device_bytes=67108864"}};
  TestClient client_{server_.address()};
  v1::GetServerInfoResponse info_;
};

TEST_F(CudaTest, TheServerShowsItsDevicesAndTheirMemory) {
  EXPECT_EQ(info_.devices(0).name(), "cpu");
  EXPECT_EQ(info_.devices(1).name(), "cuda:0");
  EXPECT_EQ(info_.devices(1).state(), v1::DEVICE_STATE_OK);
  EXPECT_GT(info_.devices(1).memory_bytes(), 0);
  EXPECT_THAT(info_.devices(1).compute_capability(), ::testing::MatchesRegex("[0-9]+[.][0-9]"));
  EXPECT_EQ(info_.budgets(info_.budgets_size() - 1).capacity_bytes(), 67108864);
}

TEST_F(CudaTest, TheReferenceTrainingHasItsLosses) {
  ChildProgram training(
      {ADAMANT_SANITY_TRAIN, absl::StrCat("--target=", server_.address()), "--device=cuda:0", "--check"});
  EXPECT_EQ(training.Wait(), 0);
  EXPECT_THAT(training.standard_output().AwaitEnd(), HasSubstr("The losses match the reference."));
}

TEST_F(CudaTest, EverySlotHasTheBitsOfASetOnTheProcessor) {
  for (const v1::ParameterSetSpec& spec : {SmallSpec(), LargeSpec()}) {
    const v1::ParameterSetSpec host = On("cpu", spec);
    const v1::ParameterSetSpec device = On("cuda:0", spec);
    ASSERT_TRUE(client_.Create(host).ok());
    ASSERT_EQ(client_.Create(device)->parameter_set().device(), "cuda:0");
    for (int step = 0; step < 10; ++step) {
      const Values gradient = Gradient(ParameterCount(spec), step);
      const absl::StatusOr<StepReply> on_host = client_.Step(host, StepHeader(host.name()), gradient);
      const absl::StatusOr<StepReply> on_device = client_.Step(device, StepHeader(device.name()), gradient);
      ASSERT_TRUE(on_host.ok()) << on_host.status();
      ASSERT_TRUE(on_device.ok()) << on_device.status();
      EXPECT_TRUE(SameBits(on_host->parameters, on_device->parameters));
      EXPECT_EQ(on_host->result.grad_norm(), on_device->result.grad_norm());
    }
    EXPECT_TRUE(*client_.ReadArrays(host) == *client_.ReadArrays(device));
  }
}

TEST_F(CudaTest, ManyClientsOfManySetsOnAllDevices) {
  constexpr int kSets = 8;
  constexpr int kClients = 2;
  constexpr int kSteps = 10;
  const Values gradient = Gradient(ParameterCount(SmallSpec()), 1);
  std::vector<v1::ParameterSetSpec> specs;
  for (int i = 0; i < kSets; ++i) {
    specs.push_back(On(absl::StrCat("cuda:", i % cuda_devices()), SmallSpec(absl::StrCat("set", i))));
    ASSERT_TRUE(client_.Create(specs.back()).ok());
  }
  std::vector<std::thread> clients;
  for (int i = 0; i < kSets * kClients; ++i) {
    clients.emplace_back([&, spec = specs[i % kSets]] {
      TestClient client(server_.address());
      for (int step = 0; step < kSteps; ++step) {
        EXPECT_TRUE(client.Step(spec, StepHeader(spec.name()), gradient).ok());
      }
    });
  }
  for (std::thread& client : clients) client.join();
  SequentialModel model(SmallSpec());
  for (int step = 0; step < kClients * kSteps; ++step) model.Apply(gradient);
  for (const v1::ParameterSetSpec& spec : specs) EXPECT_TRUE(*client_.ReadArrays(spec) == model.arrays());
}

TEST_F(CudaTest, WhatDoesNotFitOnADeviceIsRefusedAndLeavesNothing) {
  const std::map<std::string, int64_t> before = client_.UsedBudgets();
  v1::ParameterSetSpec spec = On("cuda:0", SmallSpec("large"));
  spec.mutable_tensors(0)->set_shape(0, 5 << 20);
  const absl::Status never = client_.Create(spec).status();
  EXPECT_EQ(ReasonOf(never), v1::ERROR_REASON_TOO_LARGE) << never;
  EXPECT_TRUE(client_.ReturnsTo(before));
  // As much as fits, until no more does.
  spec.mutable_tensors(0)->set_shape(0, 1 << 20);
  absl::Status status;
  for (int i = 0; status.ok(); ++i) {
    ASSERT_LT(i, 10);
    spec.set_name(absl::StrCat("set", i));
    status = client_.Create(spec).status();
  }
  EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_BUDGET_EXHAUSTED) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cuda:0"));
}

TEST_F(CudaTest, ADefaultDeviceIsForThoseWhoNameNone) {
  ServerProcess server({"--default_device=cuda:0"});
  TestClient client(server.address());
  EXPECT_EQ(client.Create(SmallSpec())->parameter_set().device(), "cuda:0");
  ServerProcess none({"--default_device=cuda:99"});
  EXPECT_NE(none.program().Wait(), 0);
}

}  // namespace
}  // namespace adamant::e2e
