// The catalog: what is found again, what damage is told of, and that a full disk takes nothing from it.
#include "server/store/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/tensor_files/checksum.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_matchers.h"

namespace adamant::store {
namespace {

using core::IsOk;
using tensor_files::Checksum;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

StoredSet SetOfDevice(absl::string_view device) {
  StoredSet set;
  set.set_device(std::string(device));
  return set;
}

// A step with a gradient of so many bytes.
StoredRecord RecordOfStep(int64_t step, size_t gradient_bytes = 10) {
  StoredRecord record;
  record.set_step(step);
  record.mutable_committed()->mutable_gradient()->set_here(std::string(gradient_bytes, 'g'));
  return record;
}

// What a catalog has, in text: a line for each set and record, or for what is said in its place.
std::vector<std::string> Contents(Catalog* catalog) {
  std::vector<std::string> lines;
  absl::Status status = catalog->ForEachSet([&](int64_t set, absl::StatusOr<StoredSet> stored) {
    lines.push_back(absl::StrCat("set ", set, " ", stored.ok() ? stored->device() : "damaged"));
    return catalog->ForEachRecord(set, [&](int64_t number, absl::StatusOr<StoredRecord> record) {
      lines.push_back(absl::StrCat(
          set, ".", number, " ",
          record.ok() ? absl::StrCat(record->step(), " ", record->committed().gradient().here().size()) : "damaged"));
      return absl::OkStatus();
    });
  });
  if (!status.ok()) lines.push_back(absl::StrCat("damaged: ", status.message()));
  return lines;
}

absl::Status AddRecords(Catalog* catalog, int64_t set, int64_t first, int64_t end) {
  if (absl::Status status = catalog->Begin(); !status.ok()) return status;
  for (int64_t number = first; number < end; ++number) {
    if (absl::Status status = catalog->AddRecord(set, number, RecordOfStep(number)); !status.ok()) {
      catalog->Rollback();
      return status;
    }
  }
  return catalog->Commit();
}

int64_t AddSet(Catalog* catalog, absl::string_view device) {
  EXPECT_THAT(catalog->Begin(), IsOk());
  const int64_t set = *catalog->AddSet(SetOfDevice(device));
  EXPECT_THAT(catalog->Commit(), IsOk());
  return set;
}

class CatalogTest : public OnEveryFileSystem {
 protected:
  absl::StatusOr<std::unique_ptr<Catalog>> Open(bool accept_data_loss = false) {
    return Catalog::Open(file_system(), Directory(), accept_data_loss,
                         GetParam() == "Posix" ? nullptr : vfs_.name().c_str());
  }
  // As paths are made from it.
  std::string Directory() const { return GetParam() == "Posix" ? Folder() : std::string("/data"); }
  std::string InDirectory(absl::string_view name) const { return absl::StrCat(Directory(), "/", name); }
  void SetUp() override { ASSERT_THAT(file_system()->MakeDirectory(Directory()), IsOk()); }

 private:
  SqliteVfs vfs_{simulated()};
};

TEST_P(CatalogTest, FindsAgainWhatWasCommitted) {
  {
    const std::unique_ptr<Catalog> catalog = *Open();
    ASSERT_THAT(catalog->Begin(), IsOk());
    const int64_t a = *catalog->AddSet(SetOfDevice("a"));
    const int64_t b = *catalog->AddSet(SetOfDevice("b"));
    ASSERT_THAT(catalog->AddRecord(a, 1, RecordOfStep(10, 5000)), IsOk());
    ASSERT_THAT(catalog->AddRecord(b, 1, RecordOfStep(20)), IsOk());
    ASSERT_THAT(catalog->AddRecord(a, 2, RecordOfStep(11)), IsOk());
    ASSERT_THAT(catalog->Commit(), IsOk());
  }
  const std::unique_ptr<Catalog> catalog = *Open();
  EXPECT_THAT(Contents(catalog.get()), ElementsAre("set 1 a", "1.1 10 5000", "1.2 11 10", "set 2 b", "2.1 20 10"));
  EXPECT_FALSE(catalog->lost_data());
}

TEST_P(CatalogTest, WhatIsRolledBackWasNeverThere) {
  {
    const std::unique_ptr<Catalog> catalog = *Open();
    AddSet(catalog.get(), "a");
    ASSERT_THAT(catalog->Begin(), IsOk());
    EXPECT_EQ(*catalog->AddSet(SetOfDevice("b")), 2);
    catalog->Rollback();
    ASSERT_THAT(catalog->Begin(), IsOk());
    EXPECT_EQ(*catalog->AddSet(SetOfDevice("c")), 2);
  }
  const std::unique_ptr<Catalog> catalog = *Open();
  EXPECT_THAT(Contents(catalog.get()), ElementsAre("set 1 a")) << "nothing has committed the other one";
}

TEST_P(CatalogTest, ASetsNumberIsNotUsedAgain) {
  {
    const std::unique_ptr<Catalog> catalog = *Open();
    const int64_t set = AddSet(catalog.get(), "a");
    ASSERT_THAT(AddRecords(catalog.get(), set, 1, 4), IsOk());
    ASSERT_THAT(catalog->Begin(), IsOk());
    ASSERT_THAT(catalog->RemoveSet(set), IsOk());
    ASSERT_THAT(catalog->RemoveSet(77), IsOk());
    ASSERT_THAT(catalog->Commit(), IsOk());
  }
  const std::unique_ptr<Catalog> catalog = *Open();
  EXPECT_THAT(Contents(catalog.get()), IsEmpty());
  EXPECT_EQ(AddSet(catalog.get(), "b"), 2);
}

TEST_P(CatalogTest, RecordsFollowEachOther) {
  const std::unique_ptr<Catalog> catalog = *Open();
  const int64_t set = AddSet(catalog.get(), "a");
  EXPECT_EQ(AddRecords(catalog.get(), set, 2, 3).code(), absl::StatusCode::kInternal);
  EXPECT_THAT(AddRecords(catalog.get(), set, 1, 3), IsOk());
  EXPECT_EQ(AddRecords(catalog.get(), set, 2, 3).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(AddRecords(catalog.get(), set, 4, 5).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(*catalog->NextNumber(set), 3);
  EXPECT_THAT(AddRecords(catalog.get(), set, 3, 4), IsOk());
}

TEST_P(CatalogTest, RemovesRecordsAndTheirGradients) {
  const std::unique_ptr<Catalog> catalog = *Open();
  const int64_t set = AddSet(catalog.get(), "a");
  ASSERT_THAT(AddRecords(catalog.get(), set, 1, 7), IsOk());
  ASSERT_THAT(catalog->Begin(), IsOk());
  ASSERT_THAT(catalog->RemoveRecordsBefore(set, 3), IsOk());
  ASSERT_THAT(catalog->DropGradients(set, 1, 5), IsOk());
  ASSERT_THAT(catalog->Commit(), IsOk());
  EXPECT_THAT(Contents(catalog.get()), ElementsAre("set 1 a", "1.3 3 0", "1.4 4 0", "1.5 5 10", "1.6 6 10"));
}

TEST_P(CatalogTest, TheLastRecordStaysAndTheNextFollowsIt) {
  const std::unique_ptr<Catalog> catalog = *Open();
  const int64_t set = AddSet(catalog.get(), "a");
  ASSERT_THAT(AddRecords(catalog.get(), set, 1, 4), IsOk());
  ASSERT_THAT(catalog->Begin(), IsOk());
  ASSERT_THAT(catalog->RemoveRecordsBefore(set, 100), IsOk());
  ASSERT_THAT(catalog->Commit(), IsOk());
  EXPECT_THAT(Contents(catalog.get()), ElementsAre("set 1 a", "1.3 3 10"));
  EXPECT_THAT(AddRecords(catalog.get(), set, 4, 5), IsOk());
}

TEST_P(CatalogTest, AVisitEndsWithItsError) {
  const std::unique_ptr<Catalog> catalog = *Open();
  const int64_t set = AddSet(catalog.get(), "a");
  ASSERT_THAT(AddRecords(catalog.get(), set, 1, 3), IsOk());
  int visited = 0;
  const absl::Status status = catalog->ForEachRecord(set, [&](int64_t, const absl::StatusOr<StoredRecord>&) {
    ++visited;
    return absl::CancelledError("enough");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(visited, 1);
}

// Long enough for the log to begin anew many times.
TEST_P(CatalogTest, ALongLifeIsFoundAgain) {
  constexpr int64_t kCommits = 1500;
  {
    const std::unique_ptr<Catalog> catalog = *Open();
    const int64_t set = AddSet(catalog.get(), "a");
    for (int64_t i = 1; i <= kCommits; ++i) {
      ASSERT_THAT(catalog->Begin(), IsOk());
      ASSERT_THAT(catalog->AddRecord(set, i, RecordOfStep(i, 2000)), IsOk());
      ASSERT_THAT(catalog->RemoveRecordsBefore(set, i - 3), IsOk());
      ASSERT_THAT(catalog->Commit(), IsOk());
    }
  }
  const std::unique_ptr<Catalog> catalog = *Open();
  EXPECT_THAT(Contents(catalog.get()),
              ElementsAre("set 1 a", "1.1497 1497 2000", "1.1498 1498 2000", "1.1499 1499 2000", "1.1500 1500 2000"));
}

TEST_P(CatalogTest, AMissingCatalogIsToldOfByItsFence) {
  AddSet(Open()->get(), "a");
  ASSERT_THAT(file_system()->Remove(InDirectory("catalog")), IsOk());
  const absl::Status status = Open().status();
  EXPECT_THAT(status, IsDamaged());
  EXPECT_THAT(status.message(), HasSubstr(InDirectory("catalog")));
  {
    const std::unique_ptr<Catalog> accepted = *Open(/*accept_data_loss=*/true);
    EXPECT_TRUE(accepted->lost_data());
    EXPECT_THAT(Contents(accepted.get()), IsEmpty());
  }
  EXPECT_THAT(Open().status(), IsDamaged()) << "nothing was committed since";
  AddSet(Open(/*accept_data_loss=*/true)->get(), "b");
  const std::unique_ptr<Catalog> after = *Open();
  EXPECT_FALSE(after->lost_data());
  EXPECT_THAT(Contents(after.get()), ElementsAre("set 1 b"));
}

TEST_P(CatalogTest, AMissingOrDamagedFenceIsDamage) {
  AddSet(Open()->get(), "a");
  for (const bool missing : {true, false}) {
    if (missing) {
      ASSERT_THAT(file_system()->Remove(InDirectory("fence")), IsOk());
    } else {
      ASSERT_THAT(ReplaceFile(file_system(), InDirectory("fence"), "what?"), IsOk());
    }
    const absl::Status status = Open().status();
    EXPECT_THAT(status, IsDamaged());
    EXPECT_THAT(status.message(), HasSubstr(InDirectory("fence")));
    EXPECT_TRUE((*Open(/*accept_data_loss=*/true))->lost_data());
    EXPECT_THAT(Open().status(), IsDamaged()) << "nothing was committed since";
    {
      const std::unique_ptr<Catalog> accepted = *Open(/*accept_data_loss=*/true);
      EXPECT_EQ(Contents(accepted.get())[0], "set 1 a");
      AddSet(accepted.get(), "b");
    }
    EXPECT_FALSE((*Open())->lost_data());
  }
}

TEST_P(CatalogTest, AnEarlierCatalogIsToldOfByItsFence) {
  const int64_t set = AddSet(Open()->get(), "a");
  const std::string earlier = *ReadFile(file_system(), InDirectory("catalog"), 1 << 20);
  ASSERT_THAT(AddRecords(Open()->get(), set, 1, 2), IsOk());
  ASSERT_THAT(ReplaceFile(file_system(), InDirectory("catalog"), earlier), IsOk());
  const absl::Status status = Open().status();
  EXPECT_THAT(status, IsDamaged());
  EXPECT_THAT(status.message(), HasSubstr("last commit is number 2"));
  {
    const std::unique_ptr<Catalog> accepted = *Open(/*accept_data_loss=*/true);
    EXPECT_TRUE(accepted->lost_data());
    EXPECT_THAT(Contents(accepted.get()), ElementsAre("set 1 a"));
    AddSet(accepted.get(), "b");
  }
  EXPECT_FALSE((*Open())->lost_data());
}

ADAMANT_ON_EVERY_FILE_SYSTEM(CatalogTest);

// As the row of the catalog's state has it.
int64_t StateChecksum(int64_t format, int64_t last_commit, int64_t next_set) {
  std::string bytes;
  for (const int64_t value : {format, last_commit, next_set}) {
    for (int shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<char>(value >> shift));
  }
  return Checksum(bytes);
}

// Changes the catalog in a folder of the system's behind its back.
void ChangeBehindItsBack(const std::string& folder, const std::string& sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open((folder + "/catalog").c_str(), &database), SQLITE_OK);
  char* error = nullptr;
  EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
  sqlite3_close(database);
}

class DamagedCatalogTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Catalog>> Open() { return Catalog::Open(PosixFileSystem(), folder_.path(), false); }

  // Two sets with three records each.
  void Make() {
    const std::unique_ptr<Catalog> catalog = *Open();
    for (const absl::string_view device : {"a", "b"}) {
      const int64_t set = AddSet(catalog.get(), device);
      ASSERT_THAT(AddRecords(catalog.get(), set, 1, 4), IsOk());
    }
  }

  TemporaryFolder folder_;
};

TEST_F(DamagedCatalogTest, ADamagedRowIsToldInItsPlace) {
  Make();
  ChangeBehindItsBack(
      folder_.path(),
      "UPDATE records SET body = CAST(x'0001' || substr(body, 3) AS BLOB) WHERE set_number = 1 AND number = 2;"
      "UPDATE sets SET checksum = checksum + 1 WHERE number = 2");
  EXPECT_THAT(Contents(Open()->get()), ElementsAre("set 1 a", "1.1 1 10", "1.2 damaged", "1.3 3 10", "set 2 damaged",
                                                   "2.1 1 10", "2.2 2 10", "2.3 3 10"));
}

TEST_F(DamagedCatalogTest, ARowUnderAnotherNumberIsDamaged) {
  Make();
  ChangeBehindItsBack(folder_.path(),
                      "UPDATE records SET number = 4 WHERE set_number = 1 AND number = 3;"
                      "UPDATE records SET set_number = 3 WHERE set_number = 2;"
                      "UPDATE sets SET number = 3 WHERE number = 2");
  EXPECT_THAT(Contents(Open()->get()), ElementsAre("set 1 a", "1.1 1 10", "1.2 2 10", "1.3 damaged", "1.4 damaged",
                                                   "set 3 damaged", "3.1 damaged", "3.2 damaged", "3.3 damaged"));
}

TEST_F(DamagedCatalogTest, AGapIsToldInItsPlace) {
  Make();
  ChangeBehindItsBack(folder_.path(), "DELETE FROM records WHERE set_number = 1 AND number = 2");
  EXPECT_THAT(Contents(Open()->get()), ElementsAre("set 1 a", "1.1 1 10", "1.2 damaged", "1.3 3 10", "set 2 b",
                                                   "2.1 1 10", "2.2 2 10", "2.3 3 10"));
}

TEST_F(DamagedCatalogTest, WithoutAGoodStateItIsRefused) {
  for (const char* sql : {"UPDATE state SET last_commit = last_commit + 1", "DELETE FROM state", "DROP TABLE records",
                          "DROP TABLE state"}) {
    Make();
    ChangeBehindItsBack(folder_.path(), sql);
    const absl::Status status = Open().status();
    EXPECT_THAT(status, IsDamaged()) << sql;
    EXPECT_THAT(status.message(), HasSubstr(folder_.path() + "/catalog")) << sql;
    ASSERT_THAT(PosixFileSystem()->Remove(folder_.path() + "/catalog"), IsOk());
    ASSERT_THAT(PosixFileSystem()->Remove(folder_.path() + "/fence"), IsOk());
  }
}

TEST_F(DamagedCatalogTest, ALaterFormatIsRefused) {
  Make();
  // As the one that writes it would: format 2, commit 5, 3 sets next.
  ChangeBehindItsBack(folder_.path(), absl::StrCat("UPDATE state SET format = 2, checksum = ", StateChecksum(2, 5, 3)));
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("format 2"));
}

TEST_F(DamagedCatalogTest, AnotherOneHasItOpen) {
  const std::unique_ptr<Catalog> catalog = *Open();
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kInternal);
}

// A catalog as kill -9 leaves it, with its log, of which a bit flips, or a file is cut short or gone: what is found is
// what was there, or the damage is told.
class FlippedCatalogTest : public testing::Test {
 protected:
  FlippedCatalogTest() {
    SimulatedFileSystem disk;
    const SqliteVfs vfs(&disk);
    {
      const std::unique_ptr<Catalog> catalog = *Catalog::Open(&disk, "/", false, vfs.name().c_str());
      AddSet(catalog.get(), std::string(2000, 'a'));
      AddSet(catalog.get(), "b");
      EXPECT_THAT(AddRecords(catalog.get(), 1, 1, 4), IsOk());
    }
    const std::unique_ptr<Catalog> catalog = *Catalog::Open(&disk, "/", false, vfs.name().c_str());
    EXPECT_THAT(AddRecords(catalog.get(), 1, 4, 8), IsOk());
    EXPECT_THAT(AddRecords(catalog.get(), 2, 1, 8), IsOk());
    contents_ = Contents(catalog.get());
    for (const std::string& name : kNames) files_[name] = *ReadFile(&disk, name, 1 << 20);
  }

  // Opens a disk that has these files.
  void Try(const std::map<std::string, std::string>& files) {
    SimulatedFileSystem disk;
    for (const auto& [path, text] : files) {
      ASSERT_THAT((*disk.Create(path, FileSystem::Access::kBuffered))->Write(0, Bytes(text)), IsOk());
    }
    const SqliteVfs vfs(&disk);
    const absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open(&disk, "/", false, vfs.name().c_str());
    if (!catalog.ok()) {
      EXPECT_THAT(catalog.status(), IsDamaged());
      ++outcomes_["refused"];
      return;
    }
    const std::vector<std::string> found = Contents(catalog->get());
    const bool told = std::any_of(found.begin(), found.end(),
                                  [](const std::string& line) { return absl::StrContains(line, "damaged"); });
    EXPECT_TRUE(told || found == contents_) << testing::PrintToString(found);
    ++outcomes_[told ? "told" : "whole"];
  }
  void TryFlipped(const std::string& name, uint64_t bit) {
    SCOPED_TRACE(absl::StrCat("bit ", bit, " of ", name));
    std::map<std::string, std::string> flipped = files_;
    flipped[name][bit / 8] ^= static_cast<char>(1 << bit % 8);
    Try(flipped);
  }

  const std::vector<std::string> kNames = {"/catalog", "/catalog-wal", "/fence"};
  std::map<std::string, std::string> files_;
  std::vector<std::string> contents_;
  std::map<std::string, int> outcomes_;
};

TEST_F(FlippedCatalogTest, NoFlippedBitOfAHeaderIsServed) {
  const std::map<std::string, size_t> header_bytes = {{"/catalog", 100}, {"/catalog-wal", 32 + 24}, {"/fence", 12}};
  for (const auto& [name, bytes] : header_bytes) {
    for (uint64_t bit = 0; bit < 8 * bytes; ++bit) TryFlipped(name, bit);
  }
  EXPECT_EQ(outcomes_.size(), 2) << "not all that can be has been tried";
}

TEST_F(FlippedCatalogTest, NoFlippedBitOrMissingEndIsServed) {
  const auto seed = static_cast<uint64_t>(testing::UnitTest::GetInstance()->random_seed());
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 10'000; ++i) {
    const std::string& name = kNames[i % 20 == 0 ? 2 : i % 2];
    std::map<std::string, std::string> damaged = files_;
    std::string& bytes = damaged[name];
    if (i % 100 == 99) {
      SCOPED_TRACE(name + " gone");
      damaged.erase(name);
      Try(damaged);
    } else if (i % 10 == 9) {
      bytes.resize(random() % bytes.size());
      SCOPED_TRACE(absl::StrCat(name, " cut to ", bytes.size(), " bytes"));
      Try(damaged);
    } else {
      TryFlipped(name, random() % (8 * bytes.size()));
    }
  }
  EXPECT_EQ(outcomes_.size(), 3) << "not all that can be has been tried";
  std::cout << testing::PrintToString(outcomes_) << "\n";
}

}  // namespace
}  // namespace adamant::store
