// What a connection may carry, by its bytes alone.
#include "server/rpc/frame_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/rpc/http2_frames.h"

namespace adamant::rpc {
namespace {

using ::adamant::http2::Acknowledgement;
using ::adamant::http2::BigEndian;
using ::adamant::http2::Frame;
using ::adamant::http2::Hello;
using ::adamant::http2::kAcknowledge;
using ::adamant::http2::kContinuation;
using ::adamant::http2::kData;
using ::adamant::http2::kEndHeaders;
using ::adamant::http2::kEndStream;
using ::adamant::http2::kHeaders;
using ::adamant::http2::kPing;
using ::adamant::http2::kSettings;
using ::adamant::http2::PartOfFrame;
using ::adamant::http2::Reset;
using ::testing::HasSubstr;

constexpr int kFrameBytes = 16384;

// What `rules` say of `bytes`: the rule that they break, or nothing.
std::string Broken(FrameRules* rules, const std::string& bytes) { return rules->Walk(bytes).value_or(""); }

// Rules of a client that has acknowledged the server's SETTINGS.
FrameRules AfterHello() {
  FrameRules rules;
  EXPECT_EQ(Broken(&rules, Hello() + Acknowledgement()), "");
  return rules;
}

std::string Message(int bytes) { return absl::StrCat(BigEndian(0, 1), BigEndian(bytes, 4), std::string(bytes, 'x')); }

std::string BeginCall(uint32_t stream, int header_bytes = 100) {
  return Frame(kHeaders, kEndHeaders, stream, std::string(header_bytes, 'h'));
}

TEST(FrameRulesTest, CountsTheSameHoweverBytesComeInPieces) {
  std::string bytes = Hello() + Acknowledgement() + Frame(kPing, 0, 0, "12345678");
  for (uint32_t stream = 1; stream < 40; stream += 2) {
    bytes += BeginCall(stream) + Frame(kData, 0, stream, Message(10)) + Frame(kData, kEndStream, stream);
  }
  bytes += Frame(kHeaders, 0, 101, std::string(50, 'h')) + PartOfFrame(60, kContinuation, 0, 101, std::string(20, 'h'));
  for (size_t piece = 1; piece < 40; ++piece) {
    FrameRules rules;
    for (size_t i = 0; i < bytes.size(); i += piece) EXPECT_EQ(Broken(&rules, bytes.substr(i, piece)), "");
    EXPECT_EQ(rules.TakeCalls(), 21) << piece;
    EXPECT_EQ(rules.TakeCalls(), 0);
    EXPECT_EQ(rules.questions(), 2);
    EXPECT_EQ(rules.open_header_bytes(), 70);
    EXPECT_EQ(rules.payload_left(), 40);
  }
}

TEST(FrameRulesTest, BytesThatAreNoHttp2BreakNoRule) {
  FrameRules rules;
  EXPECT_EQ(Broken(&rules, "GET / HTTP/1.1\r\n"), "");
  EXPECT_EQ(Broken(&rules, std::string(1 << 20, '\x01')), "");
  EXPECT_EQ(rules.TakeCalls(), 0);
}

TEST(FrameRulesTest, AHeaderBlockIsAsLongAsMetadataMayBe) {
  FrameRules rules = AfterHello();
  std::string bytes = Frame(kHeaders, 0, 1, std::string(kFrameBytes, 'h'));
  for (int i = 1; i < 8; ++i) bytes += Frame(kContinuation, i == 7 ? kEndHeaders : 0, 1, std::string(kFrameBytes, 'h'));
  EXPECT_EQ(Broken(&rules, bytes), "");
  EXPECT_EQ(rules.open_header_bytes(), 0);
  bytes[bytes.size() - kFrameBytes - 5] = 0;  // it does not end there
  bytes[8] = 3;
  EXPECT_EQ(Broken(&rules, bytes + Frame(kContinuation, kEndHeaders, 3, "h")),
            "bytes of a header block: expected at most 131072, got 131073");
}

TEST(FrameRulesTest, TheLengthOfABlockIsKnownFromItsFrames) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, PartOfFrame(0xffffff, kHeaders, kEndHeaders, 1, "")),
            "bytes of a header block: expected at most 131072, got 16777215");
}

TEST(FrameRulesTest, AHeaderBlockHasFewFrames) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, Frame(kHeaders, 0, 1)), "");
  for (int i = 0; i < 23; ++i) EXPECT_EQ(Broken(&rules, Frame(kContinuation, 0, 1)), "");
  EXPECT_EQ(Broken(&rules, Frame(kContinuation, 0, 1)), "frames of a header block: expected at most 24, got 25");
}

TEST(FrameRulesTest, ABlockIsUnderWayUntilItsLastByte) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, PartOfFrame(100, kHeaders, kEndHeaders, 1, std::string(60, 'h'))), "");
  EXPECT_EQ(rules.open_header_bytes(), 60);
  EXPECT_EQ(Broken(&rules, std::string(40, 'h')), "");
  EXPECT_EQ(rules.open_header_bytes(), 0);
  EXPECT_EQ(Broken(&rules, Frame(kHeaders, 0, 3, std::string(100, 'h'))), "");
  EXPECT_EQ(rules.open_header_bytes(), 100);
}

TEST(FrameRulesTest, FewCallsMayBeBegunBeforeSettingsAreAcknowledged) {
  FrameRules rules;
  std::string bytes = Hello();
  for (uint32_t i = 0; i < 100; ++i) bytes += BeginCall(2 * i + 1) + Reset(2 * i + 1);
  EXPECT_EQ(Broken(&rules, bytes), "");
  EXPECT_EQ(Broken(&rules, BeginCall(201)),
            "calls before the server's SETTINGS are acknowledged: expected at most 100, got 101");
}

TEST(FrameRulesTest, AnyNumberOfCallsMayBeBegunAfterwards) {
  FrameRules rules = AfterHello();
  for (uint32_t i = 0; i < 100000; ++i) ASSERT_EQ(Broken(&rules, BeginCall(2 * i + 1, 1000) + Reset(2 * i + 1)), "");
}

TEST(FrameRulesTest, LittleMetadataMayComeBeforeSettingsAreAcknowledged) {
  FrameRules rules;
  EXPECT_EQ(Broken(&rules, Hello() + Frame(kHeaders, 0, 1, std::string(kFrameBytes, 'h')) +
                               Frame(kContinuation, kEndHeaders, 1, std::string(kFrameBytes, 'h')) +
                               BeginCall(3, kFrameBytes)),
            "");
  for (uint32_t stream = 5; stream < 15; stream += 2) {
    EXPECT_EQ(Broken(&rules, BeginCall(stream, kFrameBytes)), "") << stream;
  }
  EXPECT_EQ(
      Broken(&rules, BeginCall(15, 1)),
      "bytes of header blocks before the server's SETTINGS are acknowledged: expected at most 131072, got 131073");
}

TEST(FrameRulesTest, TrailersAreAtMostEmpty) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, BeginCall(1) + Frame(kHeaders, kEndHeaders | kEndStream, 1)), "");
  EXPECT_EQ(Broken(&rules, BeginCall(3) + BeginCall(3)), "bytes of trailers: expected at most 64, got 100");
}

TEST(FrameRulesTest, CountsWhatTheServerAnswers) {
  FrameRules rules = AfterHello();
  rules.TakeQuestions();
  EXPECT_EQ(Broken(&rules, Frame(kSettings, 0, 0) + Frame(kPing, 0, 0, "12345678") +
                               Frame(kPing, kAcknowledge, 0, "12345678") + Acknowledgement()),
            "");
  EXPECT_EQ(rules.questions(), 2);
}

TEST(FrameRulesTest, AMessageIsNotCutIntoTinyFrames) {
  FrameRules rules = AfterHello();
  std::string bytes = BeginCall(1) + Frame(kData, 0, 1, Message(100).substr(0, 5));
  EXPECT_EQ(Broken(&rules, bytes), "");
  int frames = 0;
  std::string broken;
  for (; broken.empty() && frames < 1000; ++frames) broken = Broken(&rules, Frame(kData, 0, 1, "x").substr(0, 9) + "x");
  EXPECT_THAT(broken, HasSubstr("DATA frames of a message smaller than 512 bytes: expected at most 256, got 257"));
  EXPECT_LT(frames, 300);
}

TEST(FrameRulesTest, TinyFramesAreNotHiddenBehindOtherCalls) {
  FrameRules rules = AfterHello();
  std::string broken = Broken(&rules, BeginCall(1) + Frame(kData, 0, 1, Message(1 << 20).substr(0, 5)));
  uint32_t stream = 3;
  for (; broken.empty() && stream < 10000; stream += 2) {
    broken = Broken(&rules, BeginCall(stream) + Frame(kData, 0, 1, "x"));
  }
  EXPECT_THAT(broken, HasSubstr("DATA frames"));
}

TEST(FrameRulesTest, EmptyFramesAreTiny) {
  FrameRules rules = AfterHello();
  std::string broken = Broken(&rules, BeginCall(1));
  for (int i = 0; broken.empty() && i < 1000; ++i) broken = Broken(&rules, Frame(kData, 0, 1));
  EXPECT_THAT(broken, HasSubstr("DATA frames"));
}

TEST(FrameRulesTest, AnyNumberOfSmallMessagesMayCome) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, BeginCall(1)), "");
  for (int i = 0; i < 10000; ++i) ASSERT_EQ(Broken(&rules, Frame(kData, 0, 1, Message(i % 50))), "");
  // Several in a frame, and such that end in the next one.
  const std::string twice = Message(20) + Message(20);
  for (int i = 0; i < 10000; ++i) {
    ASSERT_EQ(Broken(&rules, Frame(kData, 0, 1, twice.substr(0, 28)) + Frame(kData, 0, 1, twice.substr(28))), "");
  }
}

TEST(FrameRulesTest, PrefixesMayHaveFramesOfTheirOwn) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, BeginCall(1)), "");
  for (int i = 0; i < 10000; ++i) {
    const std::string message = Message(16 + i % 500);
    ASSERT_EQ(Broken(&rules, Frame(kData, 0, 1, message.substr(0, 5)) + Frame(kData, 0, 1, message.substr(5))), "")
        << i;
  }
}

TEST(FrameRulesTest, AMessageMayBeCutAsNetworksCutIt) {
  FrameRules rules = AfterHello();
  constexpr int kMessageBytes = 4 << 20;
  EXPECT_EQ(Broken(&rules, BeginCall(1)), "");
  for (const size_t piece : {536, 1400, kFrameBytes}) {
    const std::string message = Message(kMessageBytes);
    for (size_t i = 0; i < message.size(); i += piece) {
      ASSERT_EQ(Broken(&rules, Frame(kData, 0, 1, message.substr(i, piece))), "") << piece;
    }
  }
}

TEST(FrameRulesTest, CallsOfEvenNumbersHideNoOthers) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, Frame(kHeaders, kEndHeaders, 0x7ffffffe, "h")), "");
  std::string broken = Broken(&rules, BeginCall(1) + Frame(kData, 0, 1, Message(1 << 20).substr(0, 5)));
  for (int i = 0; broken.empty() && i < 1000; ++i) broken = Broken(&rules, Frame(kData, 0, 1, "x"));
  EXPECT_THAT(broken, HasSubstr("DATA frames"));
}

TEST(FrameRulesTest, CallsThatMadeRoomForOthersCostTogether) {
  FrameRules rules = AfterHello();
  std::string broken = Broken(&rules, BeginCall(1) + Frame(kData, 0, 1, Message(1 << 20).substr(0, 5)));
  for (uint32_t stream = 3; stream < 900; stream += 2) {
    ASSERT_EQ(Broken(&rules, BeginCall(stream) + Frame(kData, 0, stream, "x")), "");
  }
  for (int i = 0; broken.empty() && i < 1000; ++i) broken = Broken(&rules, Frame(kData, 0, 1, "x"));
  EXPECT_THAT(broken, HasSubstr("DATA frames"));
}

TEST(FrameRulesTest, CountsFramesThatMoveNoMessage) {
  FrameRules rules = AfterHello();
  rules.TakeControlFrames();
  EXPECT_EQ(Broken(&rules, BeginCall(1) + Frame(kData, 0, 1, Message(100)) + Frame(0x2, 0, 1, "prior") +
                               Frame(0x77, 0, 0, "?") + Frame(kData, 0, 1)),
            "");
  EXPECT_EQ(rules.TakeControlFrames(), 3);
  EXPECT_EQ(rules.TakeControlFrames(), 0);
}

TEST(FrameRulesTest, FramesOfCallsThatAreOverCostNothing) {
  FrameRules rules = AfterHello();
  EXPECT_EQ(Broken(&rules, BeginCall(1) + Reset(1)), "");
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(Broken(&rules, Frame(kData, 0, 1, "x")), "");
}

}  // namespace
}  // namespace adamant::rpc
