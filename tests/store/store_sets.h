// Sets of tests that restart a store.
#ifndef ADAMANT_TESTS_STORE_STORE_SETS_H_
#define ADAMANT_TESTS_STORE_STORE_SETS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/store/store.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/temporary_folder.h"

namespace adamant::store {

inline StoreOptions In(const TemporaryFolder& folder) {
  StoreOptions options;
  options.directory = folder.path();
  options.reserve_bytes = 64 << 10;
  return options;
}

// On a simulated disk.
inline StoreOptions On(const SqliteVfs& vfs) {
  StoreOptions options;
  options.directory = "/data";
  options.reserve_bytes = 64 << 10;
  options.sqlite_vfs = vfs.name().c_str();
  return options;
}

inline v1::ParameterSetSpec WithEveryStep(v1::ParameterSetSpec spec, int journal_steps) {
  spec.mutable_durability()->mutable_every_step()->set_journal_steps(journal_steps);
  return spec;
}

// 3,082 parameters: its gradients go to slots.
inline v1::ParameterSetSpec MediumSpec(const std::string& name) {
  v1::ParameterSetSpec spec = core::SmallSpec(name);
  v1::TensorSpec* const tensor = spec.add_tensors();
  tensor->set_name("table");
  tensor->add_shape(431);
  tensor->add_shape(7);
  tensor->set_group("fast");
  return spec;
}

inline absl::Status StepOnce(core::ParameterSet* set, core::SequentialModel* model, uint64_t seed,
                             const v1::StepHeader& header = {}) {
  const core::Values gradient = core::Gradient(model->parameter_count(), seed);
  model->Apply(gradient);
  return core::Step(set, header, gradient).status();
}

inline v1::ParameterSetSpec WithCheckpoints(v1::ParameterSetSpec spec, int64_t steps) {
  spec.mutable_durability()->mutable_checkpoints()->set_steps(steps);
  return spec;
}

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_STORE_SETS_H_
