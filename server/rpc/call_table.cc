#include "server/rpc/call_table.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "adamant/v1/service.grpc.pb.h"
#include "server/rpc/health.h"
#include "server/rpc/live_calls.h"
#include "server/rpc/read_call.h"
#include "server/rpc/reflection.h"
#include "server/rpc/step_call.h"
#include "server/rpc/unary_call.h"
#include "server/rpc/watch_call.h"
#include "server/rpc/write_call.h"

namespace adamant::rpc {

namespace {

// Ends a call of a method that there is not.
class UnknownMethod final : public grpc::ServerGenericBidiReactor {
 public:
  explicit UnknownMethod(absl::string_view method) {
    Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED,
                        absl::StrCat("no method `", absl::CHexEscape(method.substr(0, kMostNameBytes)), "`; `",
                                     v1::OptimizerService::service_full_name(), "` has the optimizer's")));
  }

 private:
  static constexpr size_t kMostNameBytes = 64;

  void OnDone() override { delete this; }

  const LiveCall live_;
};

}  // namespace

grpc::ServerGenericBidiReactor* CallTable::CreateReactor(grpc::GenericCallbackServerContext* context) {
  const std::shared_ptr<Call> call = MakeCall(context);
  if (call == nullptr) return new UnknownMethod(context->method());
  call->Open();
  return call.get();
}

std::shared_ptr<Call> CallTable::MakeCall(grpc::GenericCallbackServerContext* context) {
  absl::string_view method = context->method();
  if (absl::ConsumePrefix(&method, "/adamant.v1.OptimizerService/")) return MakeOptimizerCall(method, context);
  if (absl::ConsumePrefix(&method, "/grpc.health.v1.Health/")) return MakeHealthCall(method, context);
  if (method == "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" ||
      method == "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") {
    return std::make_shared<ReflectionCall>(kinds_.reflections, context);
  }
  return nullptr;
}

std::shared_ptr<Call> CallTable::MakeOptimizerCall(absl::string_view method,
                                                   grpc::GenericCallbackServerContext* context) {
  if (method == "Step") return std::make_shared<StepCall>(registry_, kinds_.tensors, context, CallShape::kStream);
  if (method == "StepOnce") return std::make_shared<StepCall>(registry_, kinds_.tensors, context, CallShape::kOnce);
  if (method == "WriteTensors") {
    return std::make_shared<WriteCall>(registry_, kinds_.tensors, context, CallShape::kStream);
  }
  if (method == "WriteTensorsOnce") {
    return std::make_shared<WriteCall>(registry_, kinds_.tensors, context, CallShape::kOnce);
  }
  if (method == "WatchParameterSet") return std::make_shared<WatchCall>(registry_, kinds_.set_watches, context);
  if (method == "ReadTensors") return std::make_shared<ReadCall>(registry_, kinds_.tensors, context);
  UnaryCall::Handler handler = service_->FindHandler(method);
  return handler != nullptr ? std::make_shared<UnaryCall>(std::move(handler), KindOf(method), context) : nullptr;
}

OpenCalls* CallTable::KindOf(absl::string_view method) const {
  if (method == "CreateParameterSet" || method == "AddTensors" || method == "RestoreCheckpoint" || method == "Fork") {
    return kinds_.creations;
  }
  const bool is_page = method == "GetParameterSet" || method == "ListParameterSets" || method == "ListTensors" ||
                       method == "UpdateParameterGroup" || method == "UpdateParameterSet";
  return is_page ? kinds_.pages : kinds_.small;
}

std::shared_ptr<Call> CallTable::MakeHealthCall(absl::string_view method, grpc::GenericCallbackServerContext* context) {
  if (method == "Watch") {
    return std::make_shared<HealthWatchCall>(registry_, kinds_.health_watches, context);
  }
  if (method != "Check") return nullptr;
  const auto check = [registry = registry_](const grpc::ByteBuffer& request, UnaryCall::Done done) {
    done(CheckHealth(request, registry->CheckJournal().ok()));
  };
  return std::make_shared<UnaryCall>(check, kinds_.health_checks, context);
}

}  // namespace adamant::rpc
