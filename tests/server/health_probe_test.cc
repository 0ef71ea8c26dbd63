// The probe's answer for servers that serve, that do not, and that are not there.
#include "server/health_probe.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

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

TEST(HealthProbeTest, FailsWhereTheServerDoesNotServe) {
  HealthServer server;
  server.SetServing(false);
  const absl::Status status = ProbeHealth(server.address());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find(server.address()), absl::string_view::npos);
}

TEST(HealthProbeTest, FailsWhereThereIsNoServer) {
  EXPECT_FALSE(ProbeHealth(absl::StrCat("unix:", testing::TempDir(), "nobody-listens-here")).ok());
}

TEST(HealthProbeTest, FailsWhereThereIsNoHealthService) {
  HealthServer server(/*has_health=*/false);
  EXPECT_EQ(ProbeHealth(server.address()).code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace adamant
