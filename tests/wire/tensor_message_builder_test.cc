// What is sent, against what the generated protobuf classes write and read; and who holds the memory meanwhile.
#include "proto/wire/tensor_message_builder.h"

#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/wire/byte_buffers.h"
#include "tests/wire/sample_messages.h"

namespace adamant::wire {
namespace {

TEST(TensorMessageBuilderTest, WritesWhatTheGeneratedClassWrites) {
  const v1::StepRequest expected = SmallMessage();
  const std::vector<float> data = {1.5f, -0.0f, std::numeric_limits<float>::infinity()};
  const std::vector<float> values = {2.5f, std::numeric_limits<float>::denorm_min()};

  TensorMessageBuilder builder(nullptr);
  builder.SetHeader(expected.header());
  builder.SetLast();
  builder.BeginChunk(200, int64_t{1} << 40, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 3);
  builder.AddElements(data.data(), 1);
  builder.AddElements(data.data() + 1, 2);
  builder.BeginChunk(0, 0, v1::SLOT_EXP_AVG, ChunkForm::kValues, 2);
  builder.AddElements(values.data(), 2);
  builder.BeginChunk(3, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 2, v1::DTYPE_FLOAT16);
  std::memcpy(builder.AddNarrowed(1), "\x00\x3c", 2);
  std::memcpy(builder.AddNarrowed(1), "\x00\x80", 2);
  const int64_t size = builder.size();
  EXPECT_EQ(builder.chunks(), 3u);
  const grpc::ByteBuffer buffer = builder.Finish();

  EXPECT_EQ(Flat(buffer), expected.SerializeAsString());
  EXPECT_EQ(size, static_cast<int64_t>(buffer.Length()));
}

TEST(TensorMessageBuilderTest, FieldsAscendInWhateverOrderTheyAreSet) {
  v1::StepRequest expected;
  expected.mutable_header()->set_set("a");
  expected.set_last(true);
  expected.add_chunks()->set_data(AsData({1}));
  const float element = 1;

  TensorMessageBuilder builder(nullptr);
  builder.BeginChunk(0, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 1);
  builder.AddElements(&element, 1);
  builder.SetLast();
  builder.SetHeader(expected.header());

  EXPECT_EQ(Flat(builder.Finish()), expected.SerializeAsString());
}

TEST(TensorMessageBuilderTest, RowsAreWrittenAsTheGeneratedClassWritesThem) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> rows = {300, 0, int64_t{1} << 40};
  v1::StepRequest expected;
  v1::TensorChunk* const chunk = expected.add_chunks();
  chunk->set_tensor(7);
  chunk->mutable_rows()->Add(rows.begin(), rows.end());
  chunk->set_data(AsData(values));
  expected.add_chunks()->add_rows(5);

  TensorMessageBuilder builder(nullptr);
  builder.BeginRows(7, rows, ChunkForm::kData, 6);
  builder.AddElements(values.data(), 6);
  builder.BeginRows(0, {5}, ChunkForm::kData, 0);
  const int64_t size = builder.size();
  const grpc::ByteBuffer buffer = builder.Finish();

  EXPECT_EQ(Flat(buffer), expected.SerializeAsString());
  EXPECT_EQ(size, static_cast<int64_t>(buffer.Length()));
}

TEST(TensorMessageBuilderTest, AMessageMayBeEmpty) {
  TensorMessageBuilder builder(nullptr);

  EXPECT_EQ(builder.size(), 0);
  const grpc::ByteBuffer buffer = builder.Finish();
  EXPECT_TRUE(buffer.Valid());
  EXPECT_EQ(buffer.Length(), 0u);
}

TEST(TensorMessageBuilderTest, AnEmptyHeaderIsPresent) {
  TensorMessageBuilder builder(nullptr);
  builder.SetHeader(v1::StepHeader());

  EXPECT_TRUE(TensorMessage::Decode(builder.Finish())->has_header());
}

// In sizes about those where elements are referred to and where lengths take another byte.
TEST(TensorMessageBuilderTest, TheGeneratedClassReadsChunksOfAnySize) {
  for (const ChunkForm form : {ChunkForm::kData, ChunkForm::kValues}) {
    for (const int64_t count : {1, 31, 32, 2047, 2048, 2049, 4095, 4096, 524287, 524288, 1000000}) {
      const std::vector<float> elements = Ascending(count);
      TensorMessageBuilder builder(nullptr);
      builder.BeginChunk(1, 2, v1::SLOT_PARAMETER, form, count);
      builder.AddElements(elements.data(), count);
      const int64_t size = builder.size();
      const std::string bytes = Flat(builder.Finish());

      v1::StepRequest parsed;
      ASSERT_TRUE(parsed.ParseFromString(bytes)) << count;
      EXPECT_EQ(parsed.SerializeAsString(), bytes) << count;
      EXPECT_EQ(size, static_cast<int64_t>(bytes.size()));
      const auto& values = parsed.chunks(0).values();
      EXPECT_EQ(form == ChunkForm::kData ? parsed.chunks(0).data() : AsData({values.begin(), values.end()}),
                AsData(elements));
    }
  }
}

// In sizes about those from which on the bytes are a slice of their own, in one run and in two.
TEST(TensorMessageBuilderTest, TheGeneratedClassReadsNarrowedChunksOfAnySize) {
  for (const v1::Dtype dtype : {v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    for (const int64_t count : {2, 63, 64, 4094, 4095, 4096, 4097, 8192, 16383, 16384, 2000000}) {
      for (const int64_t first : {count, count / 2, int64_t{1}}) {
        const std::vector<float> elements = Ascending(count / 2);
        const std::string narrowed = AsData(elements) + std::string(count % 2 * 2, 'x');
        TensorMessageBuilder builder(nullptr);
        builder.BeginChunk(1, 2, v1::SLOT_PARAMETER, ChunkForm::kData, count, dtype);
        std::memcpy(builder.AddNarrowed(first), narrowed.data(), first * 2);
        if (first < count) std::memcpy(builder.AddNarrowed(count - first), &narrowed[first * 2], (count - first) * 2);
        const int64_t size = builder.size();
        const std::string bytes = Flat(builder.Finish());

        v1::StepRequest parsed;
        ASSERT_TRUE(parsed.ParseFromString(bytes)) << count;
        EXPECT_EQ(parsed.SerializeAsString(), bytes) << count;
        EXPECT_EQ(size, static_cast<int64_t>(bytes.size()));
        EXPECT_EQ(parsed.chunks(0).dtype(), dtype);
        EXPECT_EQ(parsed.chunks(0).data(), narrowed);
      }
    }
  }
}

TEST(TensorMessageBuilderTest, FloatsThatSayNothingAndFloatsThatSayWhatTheyAreAreTheSameBytes) {
  const float element = 1;
  const auto bytes = [&element](v1::Dtype dtype) {
    TensorMessageBuilder builder(nullptr);
    builder.BeginChunk(1, 2, v1::SLOT_PARAMETER, ChunkForm::kValues, 1, dtype);
    builder.AddElements(&element, 1);
    return Flat(builder.Finish());
  };

  EXPECT_EQ(bytes(v1::DTYPE_FLOAT32), bytes(v1::DTYPE_UNSPECIFIED));
}

TEST(TensorMessageBuilderTest, NarrowedElementsAreTheMessagesOwn) {
  auto elements = std::make_shared<std::vector<float>>(Ascending(5000));
  const std::weak_ptr<const void> held = elements;
  TensorMessageBuilder builder(std::move(elements));
  builder.BeginChunk(0, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 10003, v1::DTYPE_BFLOAT16);
  std::memset(builder.AddNarrowed(3), 1, 6);
  std::memset(builder.AddNarrowed(10000), 2, 20000);

  const grpc::ByteBuffer buffer = builder.Finish();

  EXPECT_TRUE(held.expired());
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(BytesOf(&message->chunks()[0], 10003), std::string(6, 1) + std::string(20000, 2));
}

TEST(TensorMessageBuilderTest, RefersToLongRunsAndHoldsThemUntilTheLastSliceIsGone) {
  auto elements = std::make_shared<std::vector<float>>(Ascending(100000));
  const float* begin = elements->data();
  const std::weak_ptr<const void> held = elements;
  std::optional<TensorMessageBuilder> builder(TensorMessageBuilder(std::move(elements)));
  builder->BeginChunk(0, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 100000);
  builder->AddElements(begin, 60000);
  builder->AddElements(begin + 60000, 40000);
  std::optional<grpc::ByteBuffer> buffer = builder->Finish();
  builder.reset();
  ASSERT_FALSE(held.expired());

  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(buffer->Dump(&slices).ok());
  grpc::Slice last = slices.back();
  EXPECT_EQ(reinterpret_cast<const float*>(last.begin()), begin + 60000);
  slices.clear();
  buffer.reset();
  EXPECT_FALSE(held.expired());
  last = grpc::Slice();
  EXPECT_TRUE(held.expired());
}

TEST(TensorMessageBuilderTest, CopiesShortRunsAndLetsGoOfThemWhenFinished) {
  auto elements = std::make_shared<std::vector<float>>(Ascending(100));
  const float* begin = elements->data();
  const std::weak_ptr<const void> held = elements;
  TensorMessageBuilder builder(std::move(elements));
  for (int tensor = 0; tensor < 10; ++tensor) {
    builder.BeginChunk(tensor, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 10);
    builder.AddElements(begin + 10 * tensor, 10);
  }
  ASSERT_FALSE(held.expired());

  const grpc::ByteBuffer buffer = builder.Finish();

  EXPECT_TRUE(held.expired());
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(buffer.Dump(&slices).ok());
  EXPECT_EQ(slices.size(), 1u);
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
  ASSERT_TRUE(message.ok()) << message.status();
  ASSERT_EQ(message->chunks().size(), 10u);
  EXPECT_EQ(ReadAll(message->chunks()[9]).back(), 100);
}

TEST(TensorMessageBuilderTest, AnUnfinishedMessageLetsGo) {
  auto elements = std::make_shared<std::vector<float>>(Ascending(5000));
  const std::weak_ptr<const void> held = elements;
  {
    TensorMessageBuilder builder(elements);
    builder.BeginChunk(0, 0, v1::SLOT_UNSPECIFIED, ChunkForm::kData, 5000);
    builder.AddElements(elements->data(), 5000);
    elements.reset();
  }

  EXPECT_TRUE(held.expired());
}

}  // namespace
}  // namespace adamant::wire
