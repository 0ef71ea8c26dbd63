#include "server/store/set_records.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/core/spec/configuration.h"
#include "tests/core/set_fixture.h"

namespace adamant::store {
namespace {

// A set with checkpoints, whose record 1 is what it was created as.
class SetRecordsTest : public ::testing::Test {
 protected:
  static v1::ParameterSetSpec Spec() {
    v1::ParameterSetSpec spec = core::SmallSpec("set");
    spec.mutable_durability()->mutable_checkpoints()->set_steps(1);
    return spec;
  }
  static StoredRecord Base() {
    StoredRecord base;
    base.set_incarnation(1);
    base.mutable_base()->set_covers(1);
    *base.mutable_base()->mutable_configuration()->mutable_set()->mutable_groups() = Spec().groups();
    return base;
  }
  static std::shared_ptr<const core::Schema> MakeSchema() {
    const v1::ParameterSetSpec spec = Spec();
    return *core::Schema::Create(spec, (*core::Configuration::Create(spec))->groups());
  }
  NewBase Checkpoint(int64_t step) const {
    NewBase base;
    base.info.incarnation = 1;
    base.info.step = step;
    base.schema = schema_;
    return base;
  }
  static KeptRecord Configuration(int64_t number, int64_t revision) {
    v1::ParameterSet set;
    set.set_config_revision(revision);
    return {.number = number,
            .incarnation = 1,
            .kind = StoredRecord::kConfiguration,
            .configuration = std::make_shared<const v1::ParameterSet>(set)};
  }

  const std::shared_ptr<const core::Schema> schema_ = MakeSchema();
  SetRecords records_{Base(), 1, {}, schema_, {}, Spec()};
};

TEST_F(SetRecordsTest, ABaseTakesThePlaceOfConfigurationsAndBasesBeforeIt) {
  records_.Add(Configuration(2, 2));
  int64_t first = 0;
  StoredRecord base = records_.MakeBase(Checkpoint(1), "1-1", 0, &first);
  EXPECT_EQ(first, 3);
  EXPECT_EQ(base.base().configuration().set().config_revision(), 2);
  records_.Rebase(Checkpoint(1), 3, base, first);
  base = records_.MakeBase(Checkpoint(2), "2-1", 0, &first);
  EXPECT_EQ(first, 4);
  EXPECT_EQ(base.base().configuration().set().config_revision(), 2);
}

// It may be in the catalog already, in the place of the one that is known.
TEST_F(SetRecordsTest, ABaseTakesNoPlaceOfAConfigurationThatIsUnderWay) {
  records_.Add(Configuration(2, 2));
  records_.BeginChange();
  int64_t first = 0;
  StoredRecord base = records_.MakeBase(Checkpoint(1), "1-1", 0, &first);
  EXPECT_EQ(first, 2) << "the record is read again";
  records_.Rebase(Checkpoint(1), 3, base, first);
  records_.Add(Configuration(2, 3));
  records_.EndChange();
  base = records_.MakeBase(Checkpoint(2), "2-1", 0, &first);
  EXPECT_EQ(first, 4);
  EXPECT_EQ(base.base().configuration().set().config_revision(), 3);
}

// It gets a number before the last base's, and is told of behind it.
TEST_F(SetRecordsTest, ABaseTakesNoPlaceOfARecordBeforeTheLastBaseThatIsUnderWay) {
  records_.BeginChange();
  int64_t first = 0;
  StoredRecord base = records_.MakeBase(Checkpoint(1), "1-1", 0, &first);
  records_.Rebase(Checkpoint(1), 3, base, first);
  base = records_.MakeBase(Checkpoint(2), "2-1", 0, &first);
  EXPECT_EQ(first, 2);
  records_.Add(Configuration(2, 2));
  records_.EndChange();
  base = records_.MakeBase(Checkpoint(3), "3-1", 0, &first);
  EXPECT_EQ(first, 4);
  EXPECT_EQ(base.base().configuration().set().config_revision(), 2);
}

}  // namespace
}  // namespace adamant::store
