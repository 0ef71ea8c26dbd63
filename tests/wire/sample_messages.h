// Messages and elements for tests of the codec.
#ifndef ADAMANT_TESTS_WIRE_SAMPLE_MESSAGES_H_
#define ADAMANT_TESTS_WIRE_SAMPLE_MESSAGES_H_

#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "adamant/v1/step.pb.h"
#include "proto/wire/tensor_message.h"

namespace adamant::wire {

inline std::vector<float> ReadAll(TensorMessage::Chunk chunk) {
  std::vector<float> elements(chunk.count());
  chunk.Read(elements.data(), chunk.count());
  return elements;
}

// The next `n` elements as they are visited.
inline std::string BytesOf(TensorMessage::Chunk* chunk, int64_t n) {
  std::string elements;
  chunk->Visit(n, [&](const uint8_t* bytes, int64_t count) {
    elements.append(reinterpret_cast<const char*>(bytes), count * ElementBytes(chunk->dtype()));
  });
  return elements;
}

inline std::string AsData(const std::vector<float>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(float));
}

inline std::vector<float> Ascending(int64_t count) {
  std::vector<float> elements(count);
  std::iota(elements.begin(), elements.end(), 1.0f);
  return elements;
}

inline v1::StepRequest SmallMessage() {
  v1::StepRequest message;
  message.mutable_header()->set_set("run/a");
  message.mutable_header()->set_incarnation(0x0123456789abcdef);
  message.mutable_header()->set_request_id("r1");
  message.mutable_header()->set_expected_step(300);
  message.set_last(true);
  v1::TensorChunk* data = message.add_chunks();
  data->set_tensor(200);
  data->set_offset(int64_t{1} << 40);
  data->set_data(AsData({1.5f, -0.0f, std::numeric_limits<float>::infinity()}));
  v1::TensorChunk* values = message.add_chunks();
  values->set_slot(v1::SLOT_EXP_AVG);
  values->add_values(2.5f);
  values->add_values(std::numeric_limits<float>::denorm_min());
  v1::TensorChunk* narrow = message.add_chunks();
  narrow->set_tensor(3);
  narrow->set_dtype(v1::DTYPE_FLOAT16);
  narrow->set_data(std::string("\x00\x3c\x00\x80", 4));  // 1 and -0
  return message;
}

}  // namespace adamant::wire

#endif  // ADAMANT_TESTS_WIRE_SAMPLE_MESSAGES_H_
