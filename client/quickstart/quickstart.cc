// Minimizes (x - 3)^2 + (y + 1)^2 with x, y and Adam on a server:  quickstart localhost:50051
#include <adamant/client.h>

#include <cstdio>
#include <iostream>
#include <vector>

namespace {

absl::Status Minimize(const char* target) {
  absl::StatusOr<adamant::Client> client = adamant::Client::Connect(target);
  if (!client.ok()) return client.status();

  // One set of one tensor, at (0, 0). If an earlier run has made it, go on from there.
  adamant::v1::ParameterSetSpec spec;
  spec.set_name("quickstart");
  spec.set_initialization(adamant::v1::INITIALIZATION_ZEROS);
  adamant::v1::TensorSpec* point = spec.add_tensors();
  point->set_name("point");
  point->add_shape(2);
  spec.add_groups()->set_learning_rate(0.1);
  absl::Status status = client->CreateParameterSet(spec, adamant::v1::IF_EXISTS_USE_IF_SAME_SPEC).status();
  if (!status.ok()) return status;

  absl::StatusOr<adamant::StepStream> stream = client->OpenStepStream("quickstart");
  if (!stream.ok()) return stream.status();

  // One span a tensor, over memory that stays ours.
  std::vector<float> p(2), g(2);
  const absl::Span<float> parameters[] = {absl::MakeSpan(p)};
  const absl::Span<const float> gradients[] = {g};
  status = stream->Refresh(parameters);
  if (!status.ok()) return status;

  for (int i = 0; i < 100; ++i) {
    const float dx = p[0] - 3, dy = p[1] + 1;
    if (i % 10 == 0) {
      std::printf("step %3lld: loss = %f at (%f, %f)\n", static_cast<long long>(stream->step()), dx * dx + dy * dy,
                  p[0], p[1]);
    }
    g = {2 * dx, 2 * dy};
    absl::StatusOr<adamant::v1::StepResult> result = stream->Step(gradients, parameters);
    if (!result.ok()) return result.status();
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: quickstart HOST:PORT\n";
    return 2;
  }
  const absl::Status status = Minimize(argv[1]);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
