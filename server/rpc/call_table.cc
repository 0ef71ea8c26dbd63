#include "server/rpc/call_table.h"

#include <memory>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/rpc/read_call.h"
#include "server/rpc/step_call.h"
#include "server/rpc/unary_call.h"
#include "server/rpc/write_call.h"

namespace adamant::rpc {

grpc::ServerGenericBidiReactor* RegisteredMethods::Step(grpc::CallbackServerContext* context) {
  const auto call = std::make_shared<StepCall>(registry_, tensor_calls_, context, CallShape::kStream);
  call->Open();
  return call.get();
}

grpc::ServerGenericBidiReactor* CallTable::CreateReactor(grpc::GenericCallbackServerContext* context) {
  absl::string_view method = context->method();
  std::shared_ptr<Call> call;
  if (absl::ConsumePrefix(&method, "/adamant.v1.OptimizerService/")) {
    if (method == "StepOnce") call = std::make_shared<StepCall>(registry_, tensor_calls_, context, CallShape::kOnce);
    if (method == "WriteTensors") {
      call = std::make_shared<WriteCall>(registry_, tensor_calls_, context, CallShape::kStream);
    }
    if (method == "WriteTensorsOnce") {
      call = std::make_shared<WriteCall>(registry_, tensor_calls_, context, CallShape::kOnce);
    }
    if (method == "ReadTensors") call = std::make_shared<ReadCall>(registry_, tensor_calls_, context);
    if (UnaryCall::Handler handler = service_->FindHandler(method)) {
      call = std::make_shared<UnaryCall>(std::move(handler), unary_calls_, context);
    }
  }
  if (call == nullptr) return grpc::CallbackGenericService::CreateReactor(context);
  call->Open();
  return call.get();
}

}  // namespace adamant::rpc
