// The decoder against the generated protobuf classes, and its rules.
#include "proto/wire/tensor_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/wire_format_lite.h>

#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "adamant/v1/service.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "tests/wire/byte_buffers.h"
#include "tests/wire/protobuf_comparison.h"
#include "tests/wire/sample_messages.h"

namespace adamant::wire {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;
using testing::ElementsAre;

// Writes fields one by one, in ways that no generated class does.
class Fields {
 public:
  Fields& Varint(int number, uint64_t value) {
    return Tag(number, WireFormatLite::WIRETYPE_VARINT).Raw([&](auto* out) { out->WriteVarint64(value); });
  }
  Fields& Fixed32(int number, float value) {
    Tag(number, WireFormatLite::WIRETYPE_FIXED32);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Fields& Bytes(int number, const std::string& value) {
    Tag(number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED).Raw([&](auto* out) { out->WriteVarint32(value.size()); });
    bytes_ += value;
    return *this;
  }
  Fields& Floats(int number, const std::vector<float>& values) {
    return Bytes(number, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  }
  Fields& Tag(int number, int type) {
    return Raw([&](auto* out) { out->WriteVarint32(number << 3 | type); });
  }
  Fields& Literal(const std::string& bytes) {
    bytes_ += bytes;
    return *this;
  }

  const std::string& bytes() const { return bytes_; }

 private:
  template <typename Write>
  Fields& Raw(Write write) {
    google::protobuf::io::StringOutputStream stream(&bytes_);
    CodedOutputStream out(&stream);
    write(&out);
    return *this;
  }

  std::string bytes_;
};

// A message that has nothing but this chunk.
std::string OneChunk(const Fields& chunk) { return Fields().Bytes(15, chunk.bytes()).bytes(); }

v1::StepRequest RandomMessage(std::mt19937* random) {
  const auto below = [&](int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(*random); };
  v1::StepRequest message;
  if (below(2)) message.mutable_header()->set_set(std::string(below(200), 's'));
  if (below(2)) message.mutable_header()->set_expected_step(below(1000));
  message.set_last(below(2));
  for (int64_t chunks = below(5); chunks > 0; --chunks) {
    v1::TensorChunk* chunk = message.add_chunks();
    chunk->set_tensor(below(3) == 0 ? -1 : below(1000));
    chunk->set_offset(below(3) == 0 ? 0 : below(int64_t{1} << 50));
    chunk->set_slot(static_cast<v1::Slot>(below(4)));
    // Any bits at all, not-a-numbers with payloads among them.
    std::string bits;
    for (int64_t count = 1 + below(below(2) ? 4 : 400); count > 0; --count) {
      const uint32_t element = (*random)();
      bits.append(reinterpret_cast<const char*>(&element), sizeof element);
    }
    if (below(3) == 0) {
      for (int64_t rows = below(40); rows > 0; --rows) chunk->add_rows(static_cast<int64_t>((*random)()) << below(33));
    }
    if (below(8) == 0) continue;  // no elements
    // As the bits of an even number of elements where they are of 16 bits; of values only those of 32 are valid.
    if (below(3) == 0) chunk->set_dtype(static_cast<v1::Dtype>(below(5)));
    if (below(3)) {
      chunk->set_data(bits.substr(0, bits.size() - (below(4) == 0 ? 2 : 0)));
    } else {
      chunk->mutable_values()->Resize(bits.size() / sizeof(float), 0);
      std::memcpy(chunk->mutable_values()->mutable_data(), bits.data(), bits.size());
    }
  }
  return message;
}

TEST(DecodeTest, ReadsWhatAGeneratedClassWrote) {
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(InOneSlice(SmallMessage().SerializeAsString()));

  ASSERT_TRUE(message.ok()) << message.status();
  v1::StepHeader header;
  ASSERT_TRUE(message->has_header());
  ASSERT_TRUE(message->ParseHeader(&header).ok());
  EXPECT_EQ(header.SerializeAsString(), SmallMessage().header().SerializeAsString());
  EXPECT_TRUE(message->last());
  ASSERT_EQ(message->chunks().size(), 3u);
  EXPECT_EQ(message->chunks()[0].tensor(), 200);
  EXPECT_EQ(message->chunks()[0].offset(), int64_t{1} << 40);
  EXPECT_EQ(message->chunks()[0].slot(), v1::SLOT_UNSPECIFIED);
  EXPECT_EQ(message->chunks()[0].form(), ChunkForm::kData);
  EXPECT_EQ(message->chunks()[0].dtype(), v1::DTYPE_FLOAT32);
  EXPECT_EQ(message->chunks()[0].count(), 3);
  EXPECT_THAT(ReadAll(message->chunks()[0]), ElementsAre(1.5f, -0.0f, std::numeric_limits<float>::infinity()));
  EXPECT_EQ(message->chunks()[1].tensor(), 0);
  EXPECT_EQ(message->chunks()[1].offset(), 0);
  EXPECT_EQ(message->chunks()[1].slot(), v1::SLOT_EXP_AVG);
  EXPECT_EQ(message->chunks()[1].form(), ChunkForm::kValues);
  EXPECT_THAT(ReadAll(message->chunks()[1]), ElementsAre(2.5f, std::numeric_limits<float>::denorm_min()));
  EXPECT_EQ(message->chunks()[2].dtype(), v1::DTYPE_FLOAT16);
  EXPECT_EQ(message->chunks()[2].count(), 2);
  EXPECT_EQ(BytesOf(&message->chunks()[2], 2), std::string("\x00\x3c\x00\x80", 4));
}

TEST(DecodeTest, AnEmptyMessageHasNothing) {
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(InOneSlice(""));

  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_FALSE(message->has_header());
  EXPECT_FALSE(message->last());
  EXPECT_TRUE(message->chunks().empty());
}

TEST(DecodeTest, AMessageMayBeCutAnywhere) {
  const std::string bytes = SmallMessage().SerializeAsString();

  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); ++second) {
      // Where two cuts meet, or stand at an end, a slice is empty.
      const std::vector<grpc::Slice> slices = {grpc::Slice(bytes.substr(0, first)),
                                               grpc::Slice(bytes.substr(first, second - first)),
                                               grpc::Slice(bytes.substr(second))};
      ASSERT_EQ(DifferenceFromProtobuf(grpc::ByteBuffer(slices.data(), slices.size())), "")
          << "cut at " << first << " and " << second;
    }
  }
  EXPECT_EQ(DifferenceFromProtobuf(InSlices(bytes, [] { return 1; })), "");
}

TEST(DecodeTest, AMessageThatEndsEarlyIsRefusedWhereProtobufRefusesIt) {
  const std::string bytes = SmallMessage().SerializeAsString();

  for (size_t size = 0; size <= bytes.size(); ++size) {
    EXPECT_EQ(DifferenceFromProtobuf(InOneSlice(bytes.substr(0, size))), "") << "ends at " << size;
  }
}

TEST(DecodeTest, AgreesWithProtobufOnRandomMessagesInRandomSlices) {
  std::mt19937 random(TestSeed());
  for (int i = 0; i < 2000; ++i) {
    const std::string bytes = RandomMessage(&random).SerializeAsString();
    std::uniform_int_distribution<size_t> size(1, i % 2 ? 8 : bytes.size() + 1);

    ASSERT_EQ(DifferenceFromProtobuf(InSlices(bytes, [&] { return size(random); })), "") << "message " << i;
  }
}

TEST(DecodeTest, AgreesWithProtobufOnDamagedMessages) {
  google::protobuf::LogSilencer silencer;  // Protobuf writes to stderr about text that is not UTF-8.
  std::mt19937 random(TestSeed());
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    v1::StepRequest message = SmallMessage();
    if (i % 2 == 0) message.mutable_chunks(1)->mutable_rows()->Add(300);
    if (i % 4 == 0) message.mutable_chunks(1)->mutable_rows()->Add(-1);
    std::string bytes = message.SerializeAsString();
    for (int damage = 1 + random() % 3; damage > 0; --damage) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, 1);
          break;
        default:
          bytes.insert(at, 1, static_cast<char>(random()));
      }
    }
    std::uniform_int_distribution<size_t> size(1, 20);
    const grpc::ByteBuffer buffer = InSlices(bytes, [&] { return size(random); });

    ASSERT_EQ(DifferenceFromProtobuf(buffer), "") << "message " << i;
    accepted += TensorMessage::Decode(buffer).ok();
  }
  // The comparison says something only where both outcomes are met.
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 20000);
}

// What a valid protocol buffer may look like although no generated class writes it so.
struct Spelling {
  const char* name;
  std::string bytes;
  std::vector<float> elements;
};

class SpellingTest : public testing::TestWithParam<Spelling> {};

TEST_P(SpellingTest, MeansWhatProtobufSaysInAnySlices) {
  for (int size = 1; size <= 64; ++size) {
    const grpc::ByteBuffer buffer = InSlices(GetParam().bytes, [size] { return size; });
    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);

    ASSERT_TRUE(message.ok()) << message.status();
    ASSERT_EQ(message->chunks().size(), 1u);
    EXPECT_EQ(ReadAll(message->chunks()[0]), GetParam().elements);
    EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    OddButValid, SpellingTest,
    testing::Values(
        Spelling{"UnpackedValues", OneChunk(Fields().Fixed32(14, 1).Fixed32(14, 2).Fixed32(14, 3)), {1, 2, 3}},
        Spelling{"OneUnpackedValue", OneChunk(Fields().Fixed32(14, 1)), {1}},
        Spelling{
            "ValuesInSeveralPieces", OneChunk(Fields().Floats(14, {1, 2}).Varint(1, 7).Floats(14, {3})), {1, 2, 3}},
        Spelling{"ValuesPackedAndUnpacked",
                 OneChunk(Fields().Fixed32(14, 1).Floats(14, {2, 3}).Fixed32(14, 4)),
                 {1, 2, 3, 4}},
        Spelling{"EmptyPiecesOfValues",
                 OneChunk(Fields().Floats(14, {}).Floats(14, {1}).Floats(14, {}).Floats(14, {2})),
                 {1, 2}},
        Spelling{"TheLastDataCounts", OneChunk(Fields().Floats(15, {1, 2}).Floats(15, {3})), {3}},
        Spelling{"OnlyTheLastDataIsCounted", OneChunk(Fields().Bytes(15, "odd").Floats(15, {3})), {3}},
        Spelling{"DataTakenBackForValues", OneChunk(Fields().Floats(15, {1, 2}).Bytes(15, "").Floats(14, {3})), {3}},
        Spelling{"EmptyValuesBesidesData", OneChunk(Fields().Floats(14, {}).Floats(15, {1})), {1}},
        Spelling{"EmptyDataBesidesValues", OneChunk(Fields().Floats(14, {1}).Floats(15, {})), {1}},
        Spelling{
            "ElementsBeforeTheRest", OneChunk(Fields().Floats(15, {1}).Varint(3, 2).Varint(2, 1000).Varint(1, 5)), {1}},
        Spelling{"TheLastNumberCounts", OneChunk(Fields().Varint(1, 5).Varint(1, 6).Floats(15, {1})), {1}},
        Spelling{"NegativeNumbers", OneChunk(Fields().Varint(1, -5).Varint(2, -6).Floats(15, {1})), {1}},
        Spelling{
            "NumbersTooLargeForTheirType",
            OneChunk(Fields().Varint(1, (uint64_t{1} << 40) + 3).Varint(3, (uint64_t{1} << 33) + 2).Floats(15, {1})),
            {1}},
        Spelling{"SlotThatIsNotKnown", OneChunk(Fields().Varint(3, 99).Floats(15, {1})), {1}},
        Spelling{"NumberOfTenBytes",
                 OneChunk(Fields().Literal("\x08\x85\x80\x80\x80\x80\x80\x80\x80\x80\x7e").Floats(15, {1})),
                 {1}},
        Spelling{"TagOfFiveBytes", OneChunk(Fields().Literal("\x88\x80\x80\x80\x70\x05").Floats(15, {1})), {1}},
        Spelling{"LengthOfFiveBytes",
                 OneChunk(Fields().Literal(std::string("\x7a\x84\x80\x80\x80\x00", 6) + AsData({1}))),
                 {1}},
        Spelling{"LastOfTwo", Fields().Varint(2, 256).Bytes(15, Fields().Floats(15, {1}).bytes()).bytes(), {1}},
        Spelling{"LastTakenBack",
                 Fields().Varint(2, 1).Varint(2, 0).Bytes(15, Fields().Floats(15, {1}).bytes()).bytes(),
                 {1}},
        Spelling{"HeaderInPiecesAroundTheChunk",
                 Fields()
                     .Bytes(1, Fields().Bytes(1, "first").Varint(6, 3).bytes())
                     .Bytes(15, Fields().Floats(15, {1}).bytes())
                     .Bytes(1, Fields().Bytes(1, "second").Bytes(4, "id").bytes())
                     .bytes(),
                 {1}},
        // Whether the tensor has elements is for others to know.
        Spelling{"NoElements", OneChunk(Fields().Varint(1, 3).Varint(2, 17)), {}},
        Spelling{"NothingAtAll", OneChunk(Fields()), {}}, Spelling{"EmptyData", OneChunk(Fields().Floats(15, {})), {}},
        Spelling{"EmptyValues", OneChunk(Fields().Floats(14, {})), {}},
        Spelling{"DataTakenBack", OneChunk(Fields().Floats(15, {1}).Floats(15, {})), {}},
        Spelling{"EmptyHeader", Fields().Bytes(1, "").Bytes(15, Fields().Floats(15, {1}).bytes()).bytes(), {1}}),
    [](const auto& info) { return info.param.name; });

TEST(DecodeTest, TheTypeOfElementsMayBeSpelledInAnyWay) {
  const std::string data = "12345678";
  for (const Fields& chunk :
       {Fields().Varint(4, 2).Bytes(15, data), Fields().Bytes(15, data).Varint(4, 2),
        Fields().Varint(4, 1).Varint(4, 2).Bytes(15, data), Fields().Varint(4, (uint64_t{1} << 32) + 2).Bytes(15, data),
        Fields().Varint(4, 2).Floats(14, {}).Bytes(15, data), Fields().Varint(4, 2).Bytes(15, "odd").Bytes(15, data)}) {
    for (int size = 1; size <= 20; ++size) {
      const grpc::ByteBuffer buffer = InSlices(OneChunk(chunk), [size] { return size; });
      absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);

      ASSERT_TRUE(message.ok()) << message.status();
      EXPECT_EQ(message->chunks()[0].dtype(), v1::DTYPE_BFLOAT16);
      EXPECT_EQ(message->chunks()[0].count(), 4);
      EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
    }
  }
}

// Rows in whatever spelling, between the elements and in several pieces.
TEST(DecodeTest, RowsMayBeSpelledInAnyWay) {
  const std::vector<int64_t> rows = {3, 300, -1, 0};
  const std::string first = "\x03\xac\x02";
  const std::string rest("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", 11);
  for (const Fields& chunk :
       {Fields().Bytes(5, first + rest).Floats(15, {1, 2}), Fields().Floats(15, {1, 2}).Bytes(5, first + rest),
        Fields().Bytes(5, first).Floats(15, {1, 2}).Bytes(5, "").Bytes(5, rest),
        Fields().Varint(5, 3).Varint(5, 300).Floats(14, {1}).Bytes(5, rest).Floats(14, {2}),
        Fields().Varint(5, 3).Varint(5, 300).Varint(5, -1).Floats(15, {1, 2}).Varint(5, 0)}) {
    for (int size = 1; size <= 30; ++size) {
      const grpc::ByteBuffer buffer = InSlices(OneChunk(chunk), [size] { return size; });
      absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);

      ASSERT_TRUE(message.ok()) << message.status();
      TensorMessage::Chunk& decoded = message->chunks()[0];
      std::vector<int64_t> read(decoded.row_count());
      decoded.ReadRows(read.data(), decoded.row_count());
      EXPECT_EQ(read, rows);
      EXPECT_THAT(ReadAll(decoded), ElementsAre(1, 2));
      EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
    }
  }
}

TEST(DecodeTest, RowsThatAreNoNumbersAreRefused) {
  for (const std::string& rows : {std::string("\x80"), std::string("\x01\x80"), std::string(11, '\xff')}) {
    const grpc::ByteBuffer buffer = InOneSlice(OneChunk(Fields().Bytes(5, rows).Floats(15, {1})));
    EXPECT_EQ(GetErrorDetail(TensorMessage::Decode(buffer).status()).reason(), v1::ERROR_REASON_MALFORMED_MESSAGE);
    EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
  }
}

TEST(DecodeTest, FloatsMaySayThatTheyAreFloats) {
  for (const Fields& chunk : {Fields().Varint(4, 1).Floats(15, {1, 2}), Fields().Varint(4, 1).Floats(14, {1, 2})}) {
    const grpc::ByteBuffer buffer = InOneSlice(OneChunk(chunk));
    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);

    ASSERT_TRUE(message.ok()) << message.status();
    EXPECT_EQ(message->chunks()[0].dtype(), v1::DTYPE_FLOAT32);
    EXPECT_THAT(ReadAll(message->chunks()[0]), ElementsAre(1, 2));
    EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
  }
}

// Where the runs lie that a chunk shows: 0 for the first slice and so on, -1 for a copy; and their elements.
std::vector<std::pair<int, int64_t>> Runs(const std::vector<grpc::Slice>& slices, TensorMessage::Chunk chunk,
                                          int64_t n) {
  std::vector<std::pair<int, int64_t>> runs;
  chunk.Visit(n, [&](const uint8_t* bytes, int64_t count) {
    int slice = static_cast<int>(slices.size()) - 1;
    while (slice >= 0 && (bytes < slices[slice].begin() || bytes >= slices[slice].end())) --slice;
    runs.emplace_back(slice, count);
  });
  return runs;
}

TEST(DecodeTest, ElementsAreShownWhereTheyLieAndOneThatSlicesShareAlone) {
  // Tag and length of the chunk, tag and value of its type, tag and length of its data: 6 bytes. Then 8 elements.
  const std::string bytes = OneChunk(Fields().Varint(4, 3).Bytes(15, "aAbBcCdDeEfFgGhH"));
  const auto runs = [&](const std::vector<size_t>& ends, int64_t n) {
    std::vector<grpc::Slice> slices;
    size_t begin = 0;
    for (const size_t end : ends) {
      // Not so short that it is copied with the slice.
      slices.emplace_back(
          const_cast<char*>(bytes.data()) + begin, end - begin, [](void*) {}, nullptr);
      begin = end;
    }
    const grpc::ByteBuffer buffer(slices.data(), slices.size());
    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
    return Runs(slices, message->chunks()[0], n);
  };
  using Pair = std::pair<int, int64_t>;

  EXPECT_THAT(runs({22}, 8), ElementsAre(Pair(0, 8)));
  EXPECT_THAT(runs({6, 22}, 8), ElementsAre(Pair(1, 8)));
  EXPECT_THAT(runs({10, 22}, 8), ElementsAre(Pair(0, 2), Pair(1, 6)));
  EXPECT_THAT(runs({11, 22}, 8), ElementsAre(Pair(0, 2), Pair(-1, 1), Pair(1, 5)));
  EXPECT_THAT(runs({7, 22}, 8), ElementsAre(Pair(-1, 1), Pair(1, 7)));
  EXPECT_THAT(runs({9, 13, 22}, 8), ElementsAre(Pair(0, 1), Pair(-1, 1), Pair(1, 1), Pair(-1, 1), Pair(2, 4)));
  EXPECT_THAT(runs({9, 10, 22}, 8), ElementsAre(Pair(0, 1), Pair(-1, 1), Pair(2, 6)));
  EXPECT_THAT(runs({10, 22}, 3), ElementsAre(Pair(0, 2), Pair(1, 1)));
  EXPECT_THAT(runs({10, 22}, 0), ElementsAre());
}

TEST(DecodeTest, AFloatThatSlicesShareIsShownWhole) {
  const std::vector<float> elements = Ascending(5);
  absl::StatusOr<TensorMessage> message =
      TensorMessage::Decode(InSlices(OneChunk(Fields().Floats(15, elements)), [] { return 1; }));
  ASSERT_TRUE(message.ok()) << message.status();

  EXPECT_EQ(BytesOf(&message->chunks()[0], 5), AsData(elements));
}

// What is refused, and what the error says.
struct Refusal {
  const char* name;
  std::string bytes;
  v1::ErrorReason reason;
  std::string field;
  std::optional<int32_t> tensor;
  std::optional<int64_t> offset;
};

class RefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesWhatIsWrongInAnySlices) {
  google::protobuf::LogSilencer silencer;  // Protobuf writes to stderr about text that is not UTF-8.
  for (int size = 1; size <= 64; ++size) {
    const grpc::ByteBuffer buffer = InSlices(GetParam().bytes, [size] { return size; });
    absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
    v1::StepHeader header;
    const absl::Status status = message.ok() ? message->ParseHeader(&header) : message.status();

    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const v1::ErrorDetail detail = GetErrorDetail(status);
    EXPECT_EQ(detail.reason(), GetParam().reason) << status;
    EXPECT_EQ(detail.field(), GetParam().field);
    EXPECT_EQ(detail.has_tensor() ? std::make_optional(detail.tensor()) : std::nullopt, GetParam().tensor);
    EXPECT_EQ(detail.has_offset() ? std::make_optional(detail.offset()) : std::nullopt, GetParam().offset);
    EXPECT_EQ(DifferenceFromProtobuf(buffer), "");
  }
}

Refusal Malformed(const char* name, const std::string& bytes, const std::string& field = "") {
  return {name, bytes, v1::ERROR_REASON_MALFORMED_MESSAGE, field, std::nullopt, std::nullopt};
}

Refusal MalformedChunk(const char* name, const Fields& chunk, int32_t tensor, int64_t offset) {
  return {name, OneChunk(chunk), v1::ERROR_REASON_MALFORMED_CHUNK, "chunks[0]", tensor, offset};
}

Refusal InvalidDtype(const char* name, const Fields& chunk, int32_t tensor, int64_t offset) {
  return {name, OneChunk(chunk), v1::ERROR_REASON_INVALID_FIELD, "chunks[0].dtype", tensor, offset};
}

Refusal Unknown(const char* name, const std::string& bytes, const std::string& field) {
  return {name, bytes, v1::ERROR_REASON_UNKNOWN_FIELD, field, std::nullopt, std::nullopt};
}

INSTANTIATE_TEST_SUITE_P(
    Message, RefusalTest,
    testing::Values(
        Malformed("TagWithoutAnEnd", "\x80"),
        Malformed("TagOfSixBytes", std::string("\x90\x80\x80\x80\x80\x00\x01", 7)),
        Malformed("FieldZero", Fields().Varint(0, 1).bytes()), Malformed("ZeroByte", std::string(1, '\0')),
        Malformed("EndOfAGroup", Fields().Tag(2, 4).bytes()), Malformed("WireType6", Fields().Tag(2, 6).bytes()),
        Malformed("WireType7", Fields().Tag(99, 7).bytes()), Malformed("NumberWithoutAnEnd", "\x10\x80"),
        Malformed("NumberOfElevenBytes", "\x10\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
        Malformed("HeaderBeyondTheEnd",
                  "\x0a\x05"
                  "abc"),
        Malformed("ChunkBeyondTheEnd",
                  "\x7a\x05"
                  "abc"),
        Malformed("LengthOf4GiB", "\x7a\xff\xff\xff\xff\x0f"), Malformed("LengthOf32GiB", "\x7a\xff\xff\xff\xff\x7f"),
        Malformed("LengthOfSixBytes", OneChunk(Fields().Literal(std::string("\x7a\x84\x80\x80\x80\x80\x00"
                                                                            "abcd",
                                                                            11)))),
        Malformed("LengthWithoutAnEnd", "\x7a\xff"),
        Malformed("DataBeyondTheChunk", OneChunk(Fields().Literal("\x7a\x04"
                                                                  "ab")) +
                                            "cd"),
        Malformed("ValuesBeyondTheChunk", OneChunk(Fields().Literal("\x72\x04"
                                                                    "ab")) +
                                              "cd"),
        Malformed("OneValueBeyondTheChunk", OneChunk(Fields().Literal("\x75"
                                                                      "ab")) +
                                                "cd"),
        Malformed("NumberBeyondTheChunk", OneChunk(Fields().Literal("\x08\x80")) + "\x01"),
        Malformed("TagBeyondTheChunk", OneChunk(Fields().Literal("\x88")) + "\x01\x01"),
        Malformed("FieldZeroInAChunk", OneChunk(Fields().Varint(0, 1))),
        Malformed("HeaderThatIsNone", Fields().Bytes(1, "\xff").bytes(), "header"),
        Malformed("HeaderThatIsOneOnlyWhenGlued", Fields().Bytes(1, "\x30").Bytes(1, "\x01").bytes(), "header"),
        Malformed("NameThatIsNotUtf8", Fields().Bytes(1, Fields().Bytes(1, "\xff").bytes()).bytes(), "header")),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Chunk, RefusalTest,
    testing::Values(MalformedChunk("WithBothForms", Fields().Varint(1, 3).Floats(14, {1}).Floats(15, {1}), 3, 0),
                    MalformedChunk("WithHalfAnElementOfData", Fields().Bytes(15, "123456").Varint(2, 17), 0, 17),
                    MalformedChunk("WithHalfAnElementOfValues", Fields().Bytes(14, "123456").Varint(2, 17), 0, 17),
                    MalformedChunk("WithHalvesThatMakeAnElement", Fields().Bytes(14, "12").Bytes(14, "34"), 0, 0),
                    MalformedChunk("WithHalfAnElementOf16Bits", Fields().Varint(4, 3).Bytes(15, "123"), 0, 0),
                    MalformedChunk("OfFloatsThatAre16Bits", Fields().Varint(4, 1).Bytes(15, "12"), 0, 0),
                    MalformedChunk("Of16BitsWithBothForms", Fields().Varint(4, 2).Floats(14, {1}).Bytes(15, "12"), 0,
                                   0),
                    InvalidDtype("OfATypeThatIsNotKnown", Fields().Varint(1, 3).Varint(4, 4).Floats(15, {1}), 3, 0),
                    InvalidDtype("OfANegativeType", Fields().Floats(15, {1}).Varint(2, 17).Varint(4, -1), 0, 17),
                    InvalidDtype("OfATypeThatIsNotKnownWithoutElements", Fields().Varint(4, 99), 0, 0),
                    InvalidDtype("OfValuesOf16Bits", Fields().Varint(4, 2).Floats(14, {1}), 0, 0)),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    UnknownField, RefusalTest,
    testing::Values(
        Unknown("InTheMessage", Fields().Varint(9, 1).bytes(), "9"),
        Unknown("OfTheLargestNumber", Fields().Varint(536870911, 1).bytes(), "536870911"),
        Unknown("ThatIsAGroup", Fields().Tag(9, 3).Tag(9, 4).bytes(), "9"),
        Unknown("InTheSecondChunk",
                OneChunk(Fields().Floats(15, {1})) + OneChunk(Fields().Floats(15, {1}).Varint(6, 2)), "chunks[1].6"),
        Unknown("InTheHeader", Fields().Bytes(1, Fields().Varint(99, 1).bytes()).bytes(), "header.99"),
        Unknown("HeaderAsANumber", Fields().Varint(1, 1).bytes(), "1"),
        Unknown("LastAsBytes", Fields().Bytes(2, "1").bytes(), "2"),
        Unknown("ChunkAsANumber", Fields().Varint(15, 1).bytes(), "15"),
        Unknown("TensorAsFixed32", OneChunk(Fields().Fixed32(1, 1)), "chunks[0].1"),
        Unknown("DtypeAsBytes", OneChunk(Fields().Bytes(4, "2")), "chunks[0].4"),
        Unknown("ValuesAsNumbers", OneChunk(Fields().Varint(14, 1)), "chunks[0].14"),
        Unknown("DataAsFixed32", OneChunk(Fields().Fixed32(15, 1)), "chunks[0].15"),
        Unknown("SetAsANumberInTheHeader", Fields().Bytes(1, Fields().Varint(1, 1).bytes()).bytes(), "header.1")),
    [](const auto& info) { return info.param.name; });

TEST(DecodeTest, AMessageHasUpTo32768Chunks) {
  const std::string chunk = OneChunk(Fields().Floats(15, {1}));
  std::string bytes;
  for (int i = 0; i < 32768; ++i) bytes += chunk;
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(InOneSlice(bytes));
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->chunks().size(), 32768u);

  message = TensorMessage::Decode(InOneSlice(bytes + chunk));
  EXPECT_EQ(message.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorDetail(message.status()).reason(), v1::ERROR_REASON_MALFORMED_MESSAGE);
}

TEST(DecodeTest, RefusesABufferThatHoldsNoMessage) {
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(grpc::ByteBuffer());

  EXPECT_EQ(GetErrorDetail(message.status()).reason(), v1::ERROR_REASON_MALFORMED_MESSAGE);
}

TEST(DecodeTest, SaysWhichTypeTheMessageOughtToBe) {
  EXPECT_EQ(TensorMessage::Decode(InOneSlice("\x80"), "adamant.v1.StepRequest").status().message(),
            "expected a valid adamant.v1.StepRequest, got bytes that are not one");
  v1::StepHeader header;
  EXPECT_EQ(TensorMessage::Decode(InOneSlice(Fields().Bytes(1, "\xff").bytes()))->ParseHeader(&header).message(),
            "`header`: expected a valid adamant.v1.StepHeader, got bytes that are not one");
}

// A client of floats of another width is told so.
TEST(DecodeTest, AsksOfWhatTypeBytesAreThatAreNotWholeElements) {
  const auto message_for = [](int dtype, size_t bytes) {
    const std::string message = OneChunk(Fields().Varint(4, dtype).Bytes(15, std::string(bytes, 'x')));
    return std::string(TensorMessage::Decode(InOneSlice(message)).status().message());
  };
  EXPECT_EQ(message_for(0, 6),
            "`chunks[0]`: expected `data` of 4 bytes an element, DTYPE_FLOAT32, got 6 bytes; is this float16, bfloat16 "
            "or int8? The first two go with their `dtype`");
  EXPECT_THAT(message_for(0, 7), testing::EndsWith("got 7 bytes; is this int8?"));
  EXPECT_THAT(message_for(3, 7), testing::EndsWith("2 bytes an element, DTYPE_FLOAT16, got 7 bytes; is this int8?"));
}

TEST(DecodeTest, SaysWhichTypesOfElementsThereAre) {
  const auto message_for = [](const Fields& chunk) {
    return std::string(TensorMessage::Decode(InOneSlice(OneChunk(chunk))).status().message());
  };
  EXPECT_EQ(message_for(Fields().Varint(4, 9)),
            "`chunks[0].dtype`: expected DTYPE_FLOAT32, DTYPE_BFLOAT16 or DTYPE_FLOAT16, got 9");
  EXPECT_EQ(message_for(Fields().Varint(4, 2).Floats(14, {1})),
            "`chunks[0].dtype`: expected DTYPE_FLOAT32 with `values`, got DTYPE_BFLOAT16");
}

v1::ErrorReason ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason(); }

TEST(DecodeTest, AHeaderHasUpTo512KiBInUpTo16Pieces) {
  const auto decode = [](size_t pieces, size_t bytes) {
    std::string message;
    for (size_t i = 0; i < pieces; ++i) message += Fields().Bytes(1, std::string(bytes / pieces, 'x')).bytes();
    return TensorMessage::Decode(InOneSlice(message)).status();
  };
  EXPECT_TRUE(decode(1, 524288).ok());
  EXPECT_EQ(ReasonOf(decode(1, 524289)), v1::ERROR_REASON_MESSAGE_TOO_LARGE);
  EXPECT_TRUE(decode(16, 524288).ok());
  EXPECT_EQ(ReasonOf(decode(16, 524288 + 16)), v1::ERROR_REASON_MESSAGE_TOO_LARGE);
  EXPECT_EQ(ReasonOf(decode(17, 17)), v1::ERROR_REASON_MESSAGE_TOO_LARGE);
}

// What is not known takes 55 times its bytes once it is parsed: of a large header with such fields nothing is.
TEST(DecodeTest, OfALargeHeaderWithUnknownFieldsNothingIsParsed) {
  const auto parse = [](size_t bytes, v1::StepHeader* header) {
    std::string fields = Fields().Bytes(1, "run/ab").bytes();
    while (fields.size() + 3 <= bytes) fields += Fields().Varint(99, 1).bytes();
    return TensorMessage::Decode(InOneSlice(Fields().Bytes(1, fields).bytes()))->ParseHeader(header);
  };
  v1::StepHeader header;
  const absl::Status small = parse(65536, &header);
  EXPECT_EQ(GetErrorDetail(small).field(), "header.99");
  EXPECT_EQ(header.set(), "run/ab");

  const absl::Status large = parse(65538, &header);
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(large), v1::ERROR_REASON_UNKNOWN_FIELD);
  EXPECT_EQ(GetErrorDetail(large).field(), "header.99");
  EXPECT_EQ(header.ByteSizeLong(), 0u);
}

TEST(DecodeTest, ALargeHeaderIsParsedLikeASmallOne) {
  v1::StepHeader sent;
  sent.set_set(std::string(500000, 's'));
  sent.set_expected_step(3);
  v1::StepHeader header;

  const auto parse = [&header](const std::string& bytes) {
    return TensorMessage::Decode(InOneSlice(Fields().Bytes(1, bytes).bytes()))->ParseHeader(&header);
  };
  EXPECT_TRUE(parse(sent.SerializeAsString()).ok());
  EXPECT_EQ(header.SerializeAsString(), sent.SerializeAsString());

  const absl::Status cut = parse(sent.SerializeAsString() + "\x30");
  EXPECT_EQ(ReasonOf(cut), v1::ERROR_REASON_MALFORMED_MESSAGE);
  EXPECT_EQ(GetErrorDetail(cut).field(), "header");
  EXPECT_EQ(header.ByteSizeLong(), 0u);
}

TEST(DecodeTest, WhatCameBeforeAFaultIsThere) {
  v1::StepRequest request = SmallMessage();
  request.add_chunks()->set_data("odd");
  TensorMessage message;
  const absl::Status status = TensorMessage::Decode(InOneSlice(request.SerializeAsString()), "message", &message);

  EXPECT_EQ(GetErrorDetail(status).field(), "chunks[3]");
  v1::StepHeader header;
  ASSERT_TRUE(message.has_header());
  ASSERT_TRUE(message.ParseHeader(&header).ok());
  EXPECT_EQ(header.set(), request.header().set());
}

TEST(DecodeTest, OfAHeaderThatIsNoneNothingIsTaken) {
  google::protobuf::LogSilencer silencer;  // Protobuf writes to stderr about text that is not UTF-8.
  const std::string bytes = Fields().Bytes(1, Fields().Bytes(4, "id").Bytes(1, "\xff").bytes()).bytes();
  v1::StepHeader header;
  EXPECT_FALSE(TensorMessage::Decode(InOneSlice(bytes))->ParseHeader(&header).ok());
  EXPECT_EQ(header.ByteSizeLong(), 0u);
}

TEST(DecodeTest, NeverAllocatesForALengthThatHasNotArrived) {
  // A header, a chunk and data that claim the largest lengths that a message can.
  for (const char* bytes :
       {"\x0a\xef\xff\xff\xff\x07", "\x7a\xef\xff\xff\xff\x07", "\x7a\x06\x7a\xef\xff\xff\xff\x07"}) {
    EXPECT_EQ(GetErrorDetail(TensorMessage::Decode(InOneSlice(bytes)).status()).reason(),
              v1::ERROR_REASON_MALFORMED_MESSAGE);
  }
}

TEST(DecodeTest, ChunksStayReadableWhenTheBufferIsGoneAndTheMessageIsMoved) {
  const std::string bytes = OneChunk(Fields().Floats(15, {1, 2, 3})) +
                            OneChunk(Fields().Fixed32(14, 4).Fixed32(14, 5)) + OneChunk(Fields().Floats(14, {6}));
  grpc::ByteBuffer buffer = InSlices(bytes, [] { return 3; });
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
  ASSERT_TRUE(message.ok()) << message.status();
  TensorMessage::Chunk first = message->chunks()[0];
  float element;
  first.Read(&element, 1);
  ASSERT_EQ(element, 1);

  buffer.Clear();
  TensorMessage moved = *std::move(message);
  TensorMessage assigned = *TensorMessage::Decode(InOneSlice(""));
  assigned = std::move(moved);

  first.Read(&element, 1);
  EXPECT_EQ(element, 2);
  EXPECT_THAT(ReadAll(assigned.chunks()[0]), ElementsAre(1, 2, 3));
  EXPECT_THAT(ReadAll(assigned.chunks()[1]), ElementsAre(4, 5));
  EXPECT_THAT(ReadAll(assigned.chunks()[2]), ElementsAre(6));
}

TEST(DecodeTest, TheHeaderReplacesWhatWasThere) {
  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(InOneSlice(SmallMessage().SerializeAsString()));
  ASSERT_TRUE(message.ok()) << message.status();
  v1::StepHeader header;
  header.set_attempt(3);

  ASSERT_TRUE(message->ParseHeader(&header).ok());

  EXPECT_FALSE(header.has_attempt());
}

TEST(DecodeTest, EveryBulkMessageHasTheSameOutline) {
  const v1::TensorChunk chunk = SmallMessage().chunks(0);
  v1::StepOnceRequest once;
  once.mutable_header()->set_set("a");
  *once.add_chunks() = chunk;
  v1::StepResponse response;
  response.mutable_result()->set_step(3);
  *response.add_chunks() = chunk;
  v1::StepOnceResponse once_response;
  once_response.mutable_result()->set_step(3);
  *once_response.add_chunks() = chunk;
  v1::WriteTensorsRequest write;
  write.mutable_header()->set_set("a");
  write.set_last(true);
  *write.add_chunks() = chunk;
  v1::WriteTensorsOnceRequest write_once;
  write_once.mutable_header()->set_set("a");
  *write_once.add_chunks() = chunk;
  v1::ReadTensorsResponse read;
  read.mutable_header()->set_step(3);
  *read.add_chunks() = chunk;

  const auto expect_outline = [&](const auto& message, auto header) {
    absl::StatusOr<TensorMessage> decoded = TensorMessage::Decode(InOneSlice(message.SerializeAsString()));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_TRUE(decoded->has_header());
    auto parsed = header;
    EXPECT_TRUE(decoded->ParseHeader(&parsed).ok());
    EXPECT_EQ(parsed.SerializeAsString(), header.SerializeAsString());
    ASSERT_EQ(decoded->chunks().size(), 1u);
    EXPECT_EQ(AsData(ReadAll(decoded->chunks()[0])), chunk.data());
  };
  expect_outline(once, once.header());
  expect_outline(response, response.result());
  expect_outline(once_response, once_response.result());
  expect_outline(write, write.header());
  expect_outline(write_once, write_once.header());
  expect_outline(read, read.header());
}

TEST(FindUnknownFieldTest, NamesThePathAndTheNumber) {
  v1::CreateParameterSetRequest request;
  request.mutable_spec()->add_tensors();
  request.mutable_spec()->add_tensors();
  request.mutable_spec()->add_groups()->mutable_adam()->set_beta1(0.5);
  (*request.mutable_spec()->mutable_labels())["k"] = "v";
  ASSERT_EQ(FindUnknownField(request), "");

  const auto with_unknown_in = [&](google::protobuf::Message* message, int number) {
    message->GetReflection()->MutableUnknownFields(message)->AddVarint(number, 1);
    std::string path = FindUnknownField(request);
    message->DiscardUnknownFields();
    return path;
  };

  EXPECT_EQ(with_unknown_in(&request, 3), "3");
  EXPECT_EQ(with_unknown_in(request.mutable_spec(), 536870911), "spec.536870911");
  EXPECT_EQ(with_unknown_in(request.mutable_spec()->mutable_tensors(1), 9), "spec.tensors[1].9");
  EXPECT_EQ(with_unknown_in(request.mutable_spec()->mutable_groups(0)->mutable_adam(), 18), "spec.groups[0].adam.18");
}

}  // namespace
}  // namespace adamant::wire
