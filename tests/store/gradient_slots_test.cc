// The file of gradients: what is found again, and that nothing else is taken for it.
#include "server/store/gradient_slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"
#include "tests/store/store_matchers.h"

namespace adamant::store {
namespace {

using core::IsOk;
using testing::ElementsAre;
using testing::Eq;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Optional;
using Fault = SimulatedFileSystem::Fault;

constexpr int32_t kSlots = 3;
constexpr int64_t kSlotBytes = 2 * kSectorBytes;

// Memory with bytes of which each is another one than in another place, or with another seed.
SectorMemory Pattern(size_t bytes, int seed) {
  SectorMemory memory(bytes);
  for (size_t i = 0; i < bytes; ++i) memory.span()[i] = static_cast<std::byte>(i * 7 + i / 251 + seed);
  return memory;
}

class GradientSlotsTest : public OnEveryFileSystem {
 protected:
  absl::StatusOr<std::unique_ptr<GradientSlots>> Create() {
    return GradientSlots::Create(file_system(), Path("gradients"), kSlots, kSlotBytes);
  }
  absl::StatusOr<std::unique_ptr<GradientSlots>> Open(absl::Span<const int32_t> taken = {}) {
    return GradientSlots::Open(file_system(), Path("gradients"), kSlots, kSlotBytes, taken);
  }
};

TEST_P(GradientSlotsTest, ReadsWhatItWrote) {
  SectorMemory first = Pattern(kSlotBytes, 1);
  SectorMemory second = Pattern(kSlotBytes, 2);
  std::vector<SlotContents> written;
  {
    const std::unique_ptr<GradientSlots> slots = *Create();
    written.push_back(*slots->Write(0, {first.span()}));
    written.push_back(*slots->Write(2, {second.span()}));
    ASSERT_THAT(slots->Sync(), IsOk());
  }
  const std::unique_ptr<GradientSlots> slots = *Open();
  SectorMemory read(kSlotBytes);
  ASSERT_THAT(slots->Read(written[0], {read.span()}), IsOk());
  EXPECT_EQ(read.span(), first.span());
  ASSERT_THAT(slots->Read(written[1], {read.span()}), IsOk());
  EXPECT_EQ(read.span(), second.span());
}

TEST_P(GradientSlotsTest, PiecesThatEndWithinASectorAreFilledUp) {
  const std::unique_ptr<GradientSlots> slots = *Create();
  SectorMemory a = Pattern(kSectorBytes, 1);
  SectorMemory b = Pattern(kSectorBytes, 2);
  const SlotContents written = *slots->Write(1, {a.span().first(5), b.span().first(100)});
  EXPECT_EQ(written.bytes, 2 * kSectorBytes);
  SectorMemory read_a(kSectorBytes);
  SectorMemory read_b(kSectorBytes);
  ASSERT_THAT(slots->Read(written, {read_a.span().first(5), read_b.span().first(100)}), IsOk());
  EXPECT_EQ(read_a.span(), a.span());
  EXPECT_EQ(read_b.span(), b.span());
}

TEST_P(GradientSlotsTest, HasAChecksumForEachMebibyte) {
  constexpr int64_t kBytes = 2 * kChecksummedBytes + kSectorBytes;
  const std::unique_ptr<GradientSlots> slots = *GradientSlots::Create(file_system(), Path("large"), 1, kBytes);
  SectorMemory memory = Pattern(kBytes, 1);
  // However they are cut into pieces.
  const auto piece = [&](int64_t begin, int64_t end) { return memory.span().subspan(begin, end - begin); };
  const SlotContents whole = *slots->Write(0, {memory.span()});
  const SlotContents parts =
      *slots->Write(0, {piece(0, 3 * kSectorBytes), piece(3 * kSectorBytes, kBytes - kSectorBytes),
                        piece(kBytes - kSectorBytes, kBytes)});
  EXPECT_EQ(whole.checksums.size(), 3);
  EXPECT_EQ(whole.checksums, parts.checksums);
  // The one that does not fit says where.
  SlotContents wrong = whole;
  ++wrong.checksums[1];
  const absl::Status status = slots->Read(wrong, {memory.span()});
  EXPECT_THAT(status, IsDamaged());
  EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("byte ", kChecksummedBytes)));
}

// As a client's that sends bfloat16: half of it goes to disk.
TEST_P(GradientSlotsTest, APartWhoseLowerHalvesAreZeroIsHalved) {
  constexpr int64_t kBytes = 4 * kChecksummedBytes + kSectorBytes;
  const std::unique_ptr<GradientSlots> slots = *GradientSlots::Create(file_system(), Path("large"), 1, kBytes);
  SectorMemory memory(kBytes);
  for (size_t i = 0; i < memory.span().size(); i += 2) {
    // Every upper half that there is, NaNs and infinities too.
    const auto upper = static_cast<uint16_t>(i / 4);
    if (i % 4 == 2) std::memcpy(&memory.span()[i], &upper, 2);
  }
  // But for one: its last bit, of its last float, says that it is none.
  memory.span()[2 * kChecksummedBytes - 4] = std::byte{1};
  const auto piece = [&](int64_t begin, int64_t end) { return memory.span().subspan(begin, end - begin); };
  const std::optional<SlotPart> ahead = *slots->WritePart(0, 0, piece(0, kChecksummedBytes));
  const SlotContents written =
      *slots->Write(0,
                    {piece(0, kChecksummedBytes), piece(kChecksummedBytes, 2 * kChecksummedBytes),
                     piece(2 * kChecksummedBytes, 3 * kChecksummedBytes), piece(3 * kChecksummedBytes, kBytes)},
                    {ahead});
  EXPECT_THAT(written.halved, ElementsAre(true, false, true, true));
  EXPECT_EQ(written.bytes, kBytes);

  const std::unique_ptr<File> file = *file_system()->Open(Path("large"), FileSystem::Access::kBuffered);
  SectorMemory on_disk(kBytes);
  ASSERT_THAT(file->Read(0, on_disk.span()), IsOk());
  const auto is_untouched = [&](int64_t part) {
    const auto half = on_disk.span().subspan(part * kChecksummedBytes + kChecksummedBytes / 2, kChecksummedBytes / 2);
    return std::all_of(half.begin(), half.end(), [](std::byte byte) { return byte == std::byte{0}; });
  };
  EXPECT_TRUE(is_untouched(0));
  EXPECT_FALSE(is_untouched(1));
  EXPECT_TRUE(is_untouched(2));
  EXPECT_TRUE(is_untouched(3));

  SectorMemory read(kBytes);
  ASSERT_THAT(slots->Read(written, {read.span()}), IsOk());
  EXPECT_EQ(read.span(), memory.span());
  // A record that says otherwise does not fit.
  SlotContents wrong = written;
  wrong.halved[2] = false;
  EXPECT_THAT(slots->Read(wrong, {read.span()}), IsDamaged());
  wrong.halved = {true, true, true, true};
  EXPECT_THAT(slots->Read(wrong, {read.span()}), IsDamaged());
  wrong.halved = {true, false, true, true, true};
  EXPECT_THAT(slots->Read(wrong, {read.span()}), IsDamaged());
}

TEST_P(GradientSlotsTest, TakesEachSlotOnceUntilItIsFree) {
  const std::unique_ptr<GradientSlots> slots = *Create();
  EXPECT_THAT(slots->Take(), Optional(0));
  EXPECT_THAT(slots->Take(), Optional(1));
  EXPECT_THAT(slots->Take(), Optional(2));
  EXPECT_EQ(slots->Take(), std::nullopt);
  EXPECT_EQ(slots->free_slots(), 0);
  slots->Free(1);
  EXPECT_EQ(slots->free_slots(), 1);
  EXPECT_THAT(slots->Take(), Optional(1));
}

TEST_P(GradientSlotsTest, OpensWithTheSlotsThatRecordsHave) {
  ASSERT_THAT(Create(), IsOk());
  const std::unique_ptr<GradientSlots> slots = *Open({0, 2});
  EXPECT_EQ(slots->free_slots(), 1);
  EXPECT_THAT(slots->Take(), Optional(1));
}

TEST_P(GradientSlotsTest, AFileThatIsMissingOrOfAnotherSizeIsDamage) {
  const absl::Status missing = Open().status();
  EXPECT_THAT(missing, IsDamaged());
  EXPECT_THAT(missing.message(), HasSubstr(Path("gradients")));
  ASSERT_THAT(GradientSlots::Create(file_system(), Path("gradients"), kSlots, kSectorBytes), IsOk());
  const absl::Status shorter = Open().status();
  EXPECT_THAT(shorter, IsDamaged());
  EXPECT_THAT(shorter.message(), HasSubstr(Path("gradients")));
}

TEST_P(GradientSlotsTest, ARecordOfAnotherFileIsDamage) {
  const std::unique_ptr<GradientSlots> slots = *Create();
  SectorMemory memory = Pattern(kSlotBytes, 1);
  const SlotContents written = *slots->Write(0, {memory.span()});
  EXPECT_THAT(Open({kSlots}), IsDamaged());
  SlotContents wrong = written;
  wrong.slot = kSlots;
  EXPECT_THAT(slots->Read(wrong, {memory.span()}), IsDamaged());
  wrong.slot = -1;
  EXPECT_THAT(slots->Read(wrong, {memory.span()}), IsDamaged());
  wrong = written;
  wrong.bytes -= kSectorBytes;
  EXPECT_THAT(slots->Read(wrong, {memory.span()}), IsDamaged());
  wrong = written;
  wrong.checksums.clear();
  EXPECT_THAT(slots->Read(wrong, {memory.span()}), IsDamaged());
}

TEST_P(GradientSlotsTest, EveryFlippedBitIsFound) {
  const std::unique_ptr<GradientSlots> slots = *Create();
  SectorMemory memory = Pattern(kSectorBytes, 1);
  const SlotContents written = *slots->Write(1, {memory.span()});
  const std::unique_ptr<File> file = *file_system()->Open(Path("gradients"), FileSystem::Access::kDirect);
  SectorMemory read(kSectorBytes);
  for (int64_t bit = 0; bit < 8 * kSectorBytes; ++bit) {
    memory.span()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    ASSERT_THAT(file->Write(kSlotBytes, memory.span()), IsOk());
    memory.span()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    ASSERT_THAT(slots->Read(written, {read.span()}), IsDamaged()) << "bit " << bit;
  }
  ASSERT_THAT(file->Write(kSlotBytes, memory.span()), IsOk());
  EXPECT_THAT(slots->Read(written, {read.span()}), IsOk());
}

ADAMANT_ON_EVERY_FILE_SYSTEM(GradientSlotsTest);

class FaultySlotsTest : public testing::Test {
 protected:
  SimulatedFileSystem disk_;
};

TEST_F(FaultySlotsTest, WhatCreateMadeIsThereAndWrittenAfterAPowerCut) {
  ASSERT_THAT(GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes), IsOk());
  for (int seed = 0; seed < 20; ++seed) {
    const std::unique_ptr<SimulatedFileSystem> cut = disk_.PowerCut(seed);
    EXPECT_THAT(GradientSlots::Open(cut.get(), "/gradients", kSlots, kSlotBytes, {}), IsOk()) << "seed " << seed;
  }
}

TEST_F(FaultySlotsTest, WithoutRoomNoFileIsLeft) {
  disk_.SetCapacity(kSlots * kSlotBytes - 1);
  EXPECT_THAT(GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes), IsDiskExhausted());
  EXPECT_THAT(*disk_.List("/"), IsEmpty());
  disk_.SetCapacity(kSlots * kSlotBytes);
  EXPECT_THAT(GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes), IsOk());
}

// Each call of Create fails once, in either way.
TEST_F(FaultySlotsTest, AnyErrorOfCreateIsToldAndLeavesNoFile) {
  ASSERT_THAT(GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes), IsOk());
  const int64_t calls = disk_.calls();
  for (int64_t call = 1; call <= calls; ++call) {
    SimulatedFileSystem disk;
    disk.FailCall(call, Fault::kIoError);
    EXPECT_THAT(GradientSlots::Create(&disk, "/gradients", kSlots, kSlotBytes).status().code(),
                Eq(absl::StatusCode::kInternal))
        << "call " << call;
    EXPECT_THAT(*disk.List("/"), IsEmpty()) << "call " << call;
  }
}

TEST_F(FaultySlotsTest, AWriteThatBreaksOffIsNotTakenForWhole) {
  const std::unique_ptr<GradientSlots> slots = *GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes);
  SectorMemory memory = Pattern(kSlotBytes, 1);
  const SlotContents whole = *slots->Write(0, {memory.span()});
  for (const Fault fault : {Fault::kIoError, Fault::kNoSpace}) {
    disk_.FailCall(disk_.calls() + 1, fault);
    EXPECT_FALSE(slots->Write(1, {memory.span()}).ok());
    SlotContents torn = whole;
    torn.slot = 1;
    SectorMemory read(kSlotBytes);
    EXPECT_THAT(slots->Read(torn, {read.span()}), IsDamaged());
  }
}

TEST_F(FaultySlotsTest, AfterAPowerCutASyncedSlotIsWholeAndAnUnsyncedOneWholeOrDamaged) {
  const std::unique_ptr<GradientSlots> slots = *GradientSlots::Create(&disk_, "/gradients", kSlots, kSlotBytes);
  SectorMemory memory = Pattern(kSlotBytes, 1);
  const SlotContents synced = *slots->Write(0, {memory.span()});
  ASSERT_THAT(slots->Sync(), IsOk());
  const SlotContents unsynced = *slots->Write(1, {memory.span()});
  int damaged = 0;
  for (int seed = 0; seed < 100; ++seed) {
    const std::unique_ptr<SimulatedFileSystem> cut = disk_.PowerCut(seed);
    const std::unique_ptr<GradientSlots> after = *GradientSlots::Open(cut.get(), "/gradients", kSlots, kSlotBytes, {});
    SectorMemory read(kSlotBytes);
    ASSERT_THAT(after->Read(synced, {read.span()}), IsOk()) << "seed " << seed;
    EXPECT_EQ(read.span(), memory.span()) << "seed " << seed;
    const absl::Status status = after->Read(unsynced, {read.span()});
    if (!status.ok()) {
      EXPECT_THAT(status, IsDamaged()) << "seed " << seed;
      ++damaged;
    } else {
      EXPECT_EQ(read.span(), memory.span()) << "seed " << seed;
    }
  }
  EXPECT_GT(damaged, 0);
}

}  // namespace
}  // namespace adamant::store
