// The probe's answer for servers that serve, that do not, and that are not there.
#include "server/health_probe.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/wire/bound_socket.h"
#include "tests/wire/proxy_environment.h"

namespace adamant {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr char kForHealth[] = " for grpc.health.v1.Health/Check: ";

// A server with nothing but the standard health service, or without that.
class HealthServer {
 public:
  explicit HealthServer(bool has_health = true) {
    grpc::EnableDefaultHealthCheckService(has_health);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterCallbackGenericService(&nothing_else_);
    server_ = builder.BuildAndStart();
  }
  ~HealthServer() { server_->Shutdown(); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  void SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }

 private:
  int port_ = 0;
  grpc::CallbackGenericService nothing_else_;
  std::unique_ptr<grpc::Server> server_;
};

TEST(HealthProbeTest, IsOkWhereTheServerServes) {
  HealthServer server;
  server.SetServing(true);
  EXPECT_TRUE(ProbeHealth(server.address()).ok());
}

TEST(HealthProbeTest, FailsWhereTheServerDoesNotServeAndSaysSo) {
  HealthServer server;
  server.SetServing(false);
  EXPECT_EQ(ProbeHealth(server.address()),
            absl::UnavailableError(absl::StrCat("asked ", server.address(), kForHealth, "NOT_SERVING")));
}

TEST(HealthProbeTest, FailsWhereThereIsNoHealthService) {
  HealthServer server(/*has_health=*/false);
  EXPECT_EQ(ProbeHealth(server.address()).code(), absl::StatusCode::kUnimplemented);
}

TEST(HealthProbeTest, SaysThatNobodyListens) {
  const BoundSocket nobody;
  const absl::Status status = ProbeHealth(nobody.address());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(StartsWith(absl::StrCat("asked ", nobody.address(), kForHealth)), HasSubstr("Connection refused")));

  const std::string path = absl::StrCat("unix:", testing::TempDir(), "nobody-listens-here");
  EXPECT_THAT(std::string(ProbeHealth(path).message()),
              AllOf(StartsWith(absl::StrCat("asked ", path, kForHealth)), HasSubstr("No such file or directory")));
}

TEST(HealthProbeTest, GivesUpWhereNobodySaysAWord) {
  BoundSocket silent;
  silent.Listen();
  EXPECT_EQ(ProbeHealth(silent.address()),
            absl::DeadlineExceededError(
                absl::StrCat("asked ", silent.address(), kForHealth, "timed out: no gRPC connection within 1800 ms")));
}

TEST(HealthProbeTest, SaysThatANameIsUnknown) {
  // No characters of a name: whatever resolver there is refuses it, and asks nobody.
  const std::string unknown = absl::StrCat(std::string(64, 'x'), ".invalid:50051");
  EXPECT_THAT(std::string(ProbeHealth(unknown).message()),
              AllOf(HasSubstr(kForHealth), HasSubstr(absl::StrCat("DNS resolution failed for ", unknown))));
}

TEST(HealthProbeTest, AsksNoProxyForThisMachine) {
  HealthServer server;
  server.SetServing(true);
  const BoundSocket dead_proxy;
  const ProxyEnvironment environment(dead_proxy.address());
  EXPECT_EQ(ProbeHealth(server.address()), absl::OkStatus());
}

}  // namespace
}  // namespace adamant
