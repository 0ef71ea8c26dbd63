// The documents' C++ block, as it stands there, in readme_block.inc.
#include <adamant/client.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/core/sequential_model.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

constexpr int kSteps = 10;

// The gradient of the sum of (p - 3)^2.
Values GradientAt(const Values& parameters) {
  Values gradient;
  for (const float p : parameters) gradient.push_back(2 * (p - 3));
  return gradient;
}

class ReadmeTest : public ServerTest {
 protected:
  // What surrounds the block in the reader's program: trains `values`, the one tensor of the set.
  absl::Status Train(Values* values) {
    Values gradient(values->size());
    const absl::Span<float> parameters[] = {absl::MakeSpan(*values)};
    const absl::Span<const float> gradients[] = {gradient};
    int step = 0;
    bool training = true;
    const auto ComputeGradients = [&](MutableTensors, ConstTensors) {
      const Values computed = GradientAt(*values);
      std::copy(computed.begin(), computed.end(), gradient.begin());
      training = ++step < kSteps;
    };
#include "readme_block.inc"
    return status;
  }
};

TEST_F(ReadmeTest, CppBlockTrainsInStepWithAdam) {
  v1::ParameterSetSpec spec;
  spec.set_name("demo");
  spec.set_initialization(v1::INITIALIZATION_ZEROS);
  v1::TensorSpec* tensor = spec.add_tensors();
  tensor->set_name("w");
  tensor->add_shape(1000);
  MakeSet(spec);
  core::SequentialModel model(spec);
  for (int i = 0; i < kSteps; ++i) model.Apply(GradientAt(model.arrays().parameters));

  Values values(1000, 7);
  const absl::Status status = Train(&values);

  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(core::SameBits(values, model.arrays().parameters));
}

}  // namespace
}  // namespace adamant::e2e
