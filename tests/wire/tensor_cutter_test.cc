// Every element once and in order, in messages that keep to their limit and use it.
#include "proto/wire/tensor_cutter.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/wire/byte_buffers.h"
#include "tests/wire/sample_messages.h"

namespace adamant::wire {
namespace {

// What chunks are: all of them, of one cutter.
struct Form {
  v1::Slot slot = v1::SLOT_PARAMETER;
  ChunkForm form = ChunkForm::kData;
  v1::Dtype dtype = v1::DTYPE_FLOAT32;
};

// Sends tensors of any bytes through a cutter, decodes the messages, and expects every element once, in order, in
// messages that keep to the limit and use it.
void ExpectCutsAllOf(const std::vector<int64_t>& sizes, const Form& form, int64_t limit,
                     const google::protobuf::MessageLite& header, std::mt19937* random) {
  const int64_t element_bytes = ElementBytes(form.dtype);
  std::vector<std::string> tensors;
  for (const int64_t size : sizes) {
    std::string& bytes = tensors.emplace_back(size * element_bytes, 0);
    for (char& byte : bytes) byte = static_cast<char>((*random)());
  }
  // In runs of random lengths, as blocks of a flat space would be.
  const auto source = [&](int32_t tensor, int64_t begin, int64_t end, TensorMessageBuilder* builder) {
    while (begin < end) {
      const int64_t run = std::min<int64_t>(end - begin, 1 + (*random)() % 6000);
      const char* const bytes = tensors[tensor].data() + begin * element_bytes;
      if (form.dtype == v1::DTYPE_FLOAT32) {
        builder->AddElements(reinterpret_cast<const float*>(bytes), run);
      } else {
        std::memcpy(builder->AddNarrowed(run), bytes, run * element_bytes);
      }
      begin += run;
    }
    return true;
  };

  TensorCutter cutter(sizes, form.slot, form.form, form.dtype);
  size_t tensor = 0;
  int64_t offset = 0;
  while (!cutter.done()) {
    TensorMessageBuilder builder(nullptr);
    builder.SetHeader(header);
    cutter.Fill(limit, source, &builder);
    ASSERT_LE(builder.size(), limit);
    // What is left is less than a chunk of one element can take: 31 bytes at most.
    if (!cutter.done() && builder.chunks() < kMaxChunks) {
      ASSERT_GT(builder.size(), limit - 31);
    }

    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(builder.Finish());
    ASSERT_TRUE(message.ok()) << message.status();
    ASSERT_FALSE(message->chunks().empty());
    for (TensorMessage::Chunk chunk : message->chunks()) {
      while (sizes[tensor] == 0) ++tensor;
      ASSERT_EQ(chunk.tensor(), static_cast<int32_t>(tensor));
      ASSERT_GT(chunk.count(), 0);
      ASSERT_EQ(chunk.offset(), offset);
      ASSERT_EQ(chunk.slot(), form.slot);
      ASSERT_EQ(chunk.form(), form.form);
      ASSERT_EQ(chunk.dtype(), form.dtype);
      const int64_t count = chunk.count();
      ASSERT_EQ(BytesOf(&chunk, count), tensors[tensor].substr(offset * element_bytes, count * element_bytes));
      offset += count;
      if (offset == sizes[tensor]) {
        ++tensor;
        offset = 0;
      }
    }
  }
  while (tensor < sizes.size() && sizes[tensor] == 0) ++tensor;
  EXPECT_EQ(tensor, sizes.size());
}

TEST(TensorCutterTest, GivesEveryElementOnceInOrderWithinTheLimit) {
  std::mt19937 random(TestSeed());
  v1::StepHeader header;
  header.set_set("run/a");
  constexpr Form kForms[] = {{v1::SLOT_UNSPECIFIED, ChunkForm::kData, v1::DTYPE_FLOAT32},
                             {v1::SLOT_EXP_AVG_SQ, ChunkForm::kValues, v1::DTYPE_FLOAT32},
                             {v1::SLOT_EXP_AVG_SQ, ChunkForm::kData, v1::DTYPE_BFLOAT16},
                             {v1::SLOT_UNSPECIFIED, ChunkForm::kData, v1::DTYPE_FLOAT16}};
  for (int i = 0; i < 400; ++i) {
    std::vector<int64_t> sizes(random() % 8);
    for (int64_t& size : sizes) size = random() % 4 == 0 ? 0 : 1 + random() % (random() % 2 ? 5 : 5000);
    SCOPED_TRACE(testing::Message() << "case " << i);

    ExpectCutsAllOf(sizes, kForms[i % 4], 64 + random() % 8000, header, &random);
    if (HasFatalFailure()) return;
  }
}

TEST(TensorCutterTest, KeepsToEveryLimit) {
  std::mt19937 random(TestSeed());
  for (const v1::Dtype dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16}) {
    for (int64_t limit = 32; limit < 700; ++limit) {
      ExpectCutsAllOf({3, 1, 200, 40}, {.dtype = dtype}, limit, v1::StepHeader(), &random);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(TensorCutterTest, CutsWithinATensorThatIsLargerThanAMessage) {
  std::mt19937 random(TestSeed());

  for (const v1::Dtype dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16}) {
    ExpectCutsAllOf({5, 3000000, 7}, {.dtype = dtype}, kMessageBytes, v1::StepHeader(), &random);
  }
}

TEST(TensorCutterTest, StopsWhereTheSourceHasNothing) {
  const std::vector<int64_t> sizes = {3, 3};
  int asked = 0;
  TensorCutter cutter(sizes, v1::SLOT_UNSPECIFIED, ChunkForm::kData);
  TensorMessageBuilder builder(nullptr);
  cutter.Fill(
      kMessageBytes,
      [&](int32_t, int64_t, int64_t, TensorMessageBuilder*) {
        ++asked;
        return false;
      },
      &builder);
  EXPECT_EQ(asked, 1);
  EXPECT_FALSE(cutter.done());
}

TEST(TensorCutterTest, StopsBeforeWhatIsNotAvailableAndGoesOnFromThere) {
  const std::vector<int64_t> sizes = {3, 0, 4, 2};
  std::vector<std::vector<int64_t>> asked;
  const auto source = [&](int32_t tensor, int64_t begin, int64_t end, TensorMessageBuilder* builder) {
    asked.push_back({tensor, begin, end});
    static const float kElements[4] = {};
    builder->AddElements(kElements, end - begin);
    return true;
  };
  TensorCutter cutter(sizes, v1::SLOT_UNSPECIFIED, ChunkForm::kData);
  const auto fill = [&](size_t tensor, int64_t offset) {
    asked.clear();
    cutter.SetAvailable(tensor, offset);
    TensorMessageBuilder builder(nullptr);
    cutter.Fill(kMessageBytes, source, &builder);
    builder.Finish();
    return asked;
  };
  using Ranges = std::vector<std::vector<int64_t>>;

  EXPECT_EQ(fill(0, 0), Ranges());
  EXPECT_EQ(fill(0, 2), (Ranges{{0, 0, 2}}));
  EXPECT_EQ(fill(2, 1), (Ranges{{0, 2, 3}, {2, 0, 1}}));
  EXPECT_EQ(cutter.tensor(), 2);
  EXPECT_EQ(cutter.offset(), 1);
  EXPECT_EQ(fill(2, 1), Ranges());
  EXPECT_FALSE(cutter.done());
  EXPECT_EQ(fill(4, 0), (Ranges{{2, 1, 4}, {3, 0, 2}}));
  EXPECT_TRUE(cutter.done());
}

TEST(TensorCutterTest, MakesHeadwayWhereNothingFits) {
  const std::vector<int64_t> sizes = {3};
  const std::vector<float> elements = Ascending(3);
  const auto source = [&](int32_t, int64_t begin, int64_t end, TensorMessageBuilder* builder) {
    builder->AddElements(elements.data() + begin, end - begin);
    return true;
  };
  TensorCutter cutter(sizes, v1::SLOT_UNSPECIFIED, ChunkForm::kData);

  for (int64_t offset = 0; offset < 3; ++offset) {
    ASSERT_FALSE(cutter.done());
    TensorMessageBuilder builder(nullptr);
    cutter.Fill(0, source, &builder);
    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(builder.Finish());
    ASSERT_EQ(message->chunks().size(), 1u);
    EXPECT_EQ(message->chunks()[0].offset(), offset);
    EXPECT_EQ(message->chunks()[0].count(), 1);
  }
  EXPECT_TRUE(cutter.done());
}

TEST(TensorCutterTest, NoElementsAreDoneAtOnce) {
  EXPECT_TRUE(TensorCutter({}, v1::SLOT_UNSPECIFIED, ChunkForm::kData).done());
  const std::vector<int64_t> sizes = {0, 0};
  EXPECT_TRUE(TensorCutter(sizes, v1::SLOT_UNSPECIFIED, ChunkForm::kData).done());
}

TEST(TensorCutterTest, RowsFillAMessageAndNoMore) {
  const std::vector<int64_t> rows = {1, 200, 3, 40000, 5, 6, 7, 8};
  const std::vector<float> elements = Ascending(80);
  for (const v1::Dtype dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16}) {
    for (int64_t limit = 0; limit < 450; ++limit) {
      TensorMessageBuilder builder(nullptr);
      const int64_t count = RowsThatFit(rows, 10, dtype, builder, limit);
      ASSERT_GE(count, 1);
      const ChunkForm form = ChunkForm::kData;
      builder.BeginRows(1, absl::MakeConstSpan(rows).first(count), form, count * 10, dtype);
      if (dtype == v1::DTYPE_FLOAT32) {
        builder.AddElements(elements.data(), count * 10);
      } else {
        std::memset(builder.AddNarrowed(count * 10), 0, count * 20);
      }
      EXPECT_TRUE(count == 1 || builder.size() <= limit) << builder.size();
      const int64_t row_bytes = 10 * ElementBytes(dtype) + 10;
      EXPECT_TRUE(count == 8 || builder.size() + row_bytes + 32 > limit) << builder.size();
      EXPECT_EQ(RowsThatFit(rows, 10, dtype, builder, builder.size()), 0);
      builder.Finish();
    }
  }
}

// The other side decodes no more, though 1 MiB holds 80,000 chunks of one element.
TEST(TensorCutterTest, AMessageHasNoMoreChunksThanAreDecoded) {
  std::mt19937 random(TestSeed());
  const std::vector<int64_t> sizes(3 * kMaxChunks + 1, 1);
  ExpectCutsAllOf(sizes, {.slot = v1::SLOT_EXP_AVG}, kMessageBytes, v1::StepHeader(), &random);
  ExpectCutsAllOf(sizes, {.dtype = v1::DTYPE_BFLOAT16}, kMessageBytes, v1::StepHeader(), &random);
}

TEST(TensorCutterTest, AddsNothingToAMessageThatIsFull) {
  const std::vector<int64_t> sizes(kMaxChunks, 1);
  const float element = 1;
  const auto source = [&element](int32_t, int64_t, int64_t, TensorMessageBuilder* builder) {
    builder->AddElements(&element, 1);
    return true;
  };
  TensorMessageBuilder builder(nullptr);
  TensorCutter first(sizes, v1::SLOT_EXP_AVG, ChunkForm::kData);
  first.Fill(kMaxMessageBytes, source, &builder);
  EXPECT_TRUE(first.done());
  TensorCutter second(sizes, v1::SLOT_EXP_AVG_SQ, ChunkForm::kData);
  second.Fill(kMaxMessageBytes, source, &builder);
  EXPECT_FALSE(second.done());
  EXPECT_EQ(builder.chunks(), kMaxChunks);
  EXPECT_TRUE(TensorMessage::Decode(builder.Finish()).ok());
}

}  // namespace
}  // namespace adamant::wire
