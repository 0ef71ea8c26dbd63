// Byte buffers as gRPC might deliver them, and the seed that random tests cut them by.
#ifndef ADAMANT_TESTS_WIRE_BYTE_BUFFERS_H_
#define ADAMANT_TESTS_WIRE_BYTE_BUFFERS_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace adamant::wire {

// `bytes` in slices of the sizes that `next_size` returns.
template <typename NextSize>
grpc::ByteBuffer InSlices(const std::string& bytes, NextSize next_size) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t size = std::min<size_t>(next_size(), bytes.size() - begin);
    slices.emplace_back(bytes.data() + begin, size);
    begin += size;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

inline grpc::ByteBuffer InOneSlice(const std::string& bytes) {
  return InSlices(bytes, [&] { return bytes.size(); });
}

inline std::string Flat(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (buffer.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  }
  return bytes;
}

// ADAMANT_TEST_SEED where it is set, else a fresh one. Printed, so that a failure can be repeated.
inline uint32_t TestSeed() {
  const char* given = std::getenv("ADAMANT_TEST_SEED");
  const uint32_t seed = given != nullptr ? std::strtoul(given, nullptr, 0) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  return seed;
}

}  // namespace adamant::wire

#endif  // ADAMANT_TESTS_WIRE_BYTE_BUFFERS_H_
