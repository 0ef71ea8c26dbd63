#include "server/rpc/tensor_service.h"

#include <memory>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/rpc/read_call.h"
#include "server/rpc/step_call.h"
#include "server/rpc/write_call.h"

namespace adamant::rpc {

grpc::ServerGenericBidiReactor* TensorService::CreateReactor(grpc::GenericCallbackServerContext* context) {
  absl::string_view method = context->method();
  std::shared_ptr<TensorCall> call;
  if (absl::ConsumePrefix(&method, "/adamant.v1.OptimizerService/")) {
    if (method == "Step") call = std::make_shared<StepCall>(registry_, open_calls_, context, CallShape::kStream);
    if (method == "StepOnce") call = std::make_shared<StepCall>(registry_, open_calls_, context, CallShape::kOnce);
    if (method == "WriteTensors") {
      call = std::make_shared<WriteCall>(registry_, open_calls_, context, CallShape::kStream);
    }
    if (method == "WriteTensorsOnce") {
      call = std::make_shared<WriteCall>(registry_, open_calls_, context, CallShape::kOnce);
    }
    if (method == "ReadTensors") call = std::make_shared<ReadCall>(registry_, open_calls_, context);
  }
  if (call == nullptr) return grpc::CallbackGenericService::CreateReactor(context);
  call->Open();
  return call.get();
}

}  // namespace adamant::rpc
