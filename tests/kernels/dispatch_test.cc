// The table of instruction sets: its order, its names and the choice.
#include "kernels/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace adamant::kernels {
namespace {

TEST(DispatchTest, ScalarComesFirstAndIsAlwaysSupported) {
  const KernelTable& first = **AllKernels().begin();

  EXPECT_STREQ(first.name, "scalar");
  EXPECT_TRUE(first.supported());
}

TEST(DispatchTest, NamesAreDistinct) {
  std::set<std::string> names;

  for (const KernelTable* table : AllKernels()) EXPECT_TRUE(names.insert(table->name).second) << table->name;
}

TEST(DispatchTest, EveryTableIsComplete) {
  for (const KernelTable* table : AllKernels()) {
    for (UpdateFunction update : table->update) EXPECT_NE(update, nullptr) << table->name;
    EXPECT_NE(table->measure, nullptr) << table->name;
    for (WidenFunction widen : table->widen) EXPECT_NE(widen, nullptr) << table->name;
    for (NarrowFunction narrow : table->narrow) EXPECT_NE(narrow, nullptr) << table->name;
    EXPECT_NE(table->fold, nullptr) << table->name;
  }
}

TEST(DispatchTest, EveryTableIsFoundByItsNameExactlyWhereItIsSupported) {
  for (const KernelTable* table : AllKernels()) {
    EXPECT_EQ(FindKernels(table->name), table->supported() ? table : nullptr) << table->name;
  }
}

TEST(DispatchTest, AnUnknownNameIsNotFound) {
  for (const char* name : {"", "sse9", "AVX2", "avx", "avx512 "}) EXPECT_EQ(FindKernels(name), nullptr) << name;
}

TEST(DispatchTest, BestIsTheLastThatIsSupportedAndStaysTheSame) {
  const KernelTable* last = nullptr;
  for (const KernelTable* table : AllKernels()) {
    if (table->supported()) last = table;
  }

  EXPECT_EQ(&BestKernels(), last);
  EXPECT_EQ(&BestKernels(), &BestKernels());
}

#if defined(__x86_64__)
TEST(DispatchTest, Avx2AndAvx512AreInTheTableOnX86) {
  std::set<std::string> names;
  for (const KernelTable* table : AllKernels()) names.insert(table->name);

  EXPECT_THAT(names, testing::UnorderedElementsAre("scalar", "avx2", "avx512"));
}
#endif

}  // namespace
}  // namespace adamant::kernels
