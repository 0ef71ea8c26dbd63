#include "tests/store/golden_state.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/tensor_files/checksum.h"
#include "tests/core/set_fixture.h"

namespace adamant::store {

using tensor_files::Checksum;

std::string GoldenStepId(absl::string_view set, int step) { return absl::StrCat(set, " ", step); }

std::string GoldenStateOf(StoreServer* server) {
  std::string text;
  for (const std::string& name : kGoldenSets) {
    const std::shared_ptr<core::ParameterSet> set = server->Find(name);
    const v1::ParameterSet is = set->Describe();
    absl::StrAppend(&text, name, ": ", v1::ParameterSetState_Name(is.state()), ", step ", is.step(), ", revision ",
                    is.config_revision(), ", round ", is.round(), ", tensors ", is.tensor_count(), ", applied ",
                    is.statistics().applied(), "\n");
    if (is.has_restored_from()) {
      absl::StrAppend(&text, name, ": restored from step ", is.restored_from().step(), " of incarnation ",
                      is.restored_from().incarnation(), "\n");
    } else {
      absl::StrAppend(&text, name, ": incarnation ", is.incarnation(), "\n");
    }
    if (is.has_last_checkpoint()) {
      absl::StrAppend(&text, name, ": last checkpoint of step ", is.last_checkpoint().step(), "\n");
    }
    for (const v1::ParameterGroup& group : is.groups()) {
      absl::StrAppend(&text, name, ": group ", group.name(), " learns at ", group.learning_rate(), "\n");
    }
    const absl::StatusOr<core::Arrays> arrays = core::FetchState(set.get());
    if (!arrays.ok()) {
      absl::StrAppend(&text, name, ": ", arrays.status().ToString(), "\n");
      continue;
    }
    absl::StrAppend(&text, name, ": update counts ", absl::StrJoin(arrays->update_counts, " "), "\n");
    for (const auto& [slot, values] :
         {std::pair("parameters", &arrays->parameters), std::pair("exp_avg", &arrays->exp_avg),
          std::pair("exp_avg_sq", &arrays->exp_avg_sq), std::pair("max_exp_avg_sq", &arrays->max_exp_avg_sq),
          std::pair("momentum_buffer", &arrays->momentum_buffer)}) {
      if (values->empty()) continue;
      const uint32_t checksum = Checksum(
          absl::string_view(reinterpret_cast<const char*>(values->data()), values->size() * sizeof((*values)[0])));
      absl::StrAppend(&text, name, ": ", values->size(), " ", slot, ", checksum ", checksum, "\n");
    }
    for (int step = 1; step <= kGoldenSteps; ++step) {
      const absl::StatusOr<v1::GetStepResultResponse> known = core::StepResultOf(*set, GoldenStepId(name, step));
      if (!known.ok() || known->state() != v1::STEP_STATE_COMMITTED) continue;
      absl::StrAppend(&text, name, ": remembers `", GoldenStepId(name, step), "` as step ", known->result().step(),
                      " of incarnation ", known->result().incarnation(), ", norm ", known->result().grad_norm(), "\n");
    }
  }
  return text;
}

}  // namespace adamant::store
