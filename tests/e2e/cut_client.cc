// e2e_cut_client ADDRESS FILE
//
// Sends the messages of a step that are in FILE, says so on its standard output, and waits for its reply: until it is
// killed, if they are not the whole step.
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/util/delimited_message_util.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <fstream>
#include <iostream>

#include "adamant/v1/service.grpc.pb.h"
#include "proto/wire/target.h"

int main(int argc, char** argv) {
  using adamant::v1::OptimizerService;
  using adamant::v1::StepRequest;
  using adamant::v1::StepResponse;
  if (argc != 3) return 2;
  std::ifstream file(argv[2], std::ios::binary);
  google::protobuf::io::IstreamInputStream input(&file);
  const auto stub = OptimizerService::NewStub(grpc::CreateCustomChannel(argv[1], grpc::InsecureChannelCredentials(),
                                                                        adamant::wire::ArgumentsForTarget(argv[1])));
  grpc::ClientContext context;
  const auto stream = stub->Step(&context);
  StepRequest message;
  while (google::protobuf::util::ParseDelimitedFromZeroCopyStream(&message, &input, nullptr)) {
    if (!stream->Write(message)) return 1;
    message.Clear();
  }
  std::cout << "sent" << std::endl;
  for (StepResponse response; stream->Read(&response);) {
  }
  return stream->Finish().ok() ? 0 : 1;
}
