// A set's state in files: what `adamant export` has written, or a checkpoint of a server's data directory.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_SAVED_STATE_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_SAVED_STATE_H_

#include <adamant/client.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/tensor_files/tensor_file.h"

namespace adamant::programs::cli {

// What an exported file says of itself, beside the tensors.
inline constexpr char kStepKey[] = "adamant.step";
inline constexpr char kIncarnationKey[] = "adamant.incarnation";
inline constexpr char kUpdateCountsKey[] = "adamant.update_counts";
inline constexpr char kSpecKey[] = "adamant.spec";

// What a set would have to be created with to be like this one, but for what outlives the server.
v1::ParameterSetSpec SpecOf(const v1::ParameterSet& set, const std::vector<v1::Tensor>& tensors);

struct SavedState {
  // Opens the file, or the checkpoint's folder, of this path; of a checkpoint every byte is checked by its checksum.
  // Errors, which begin with the path of the file that they are about: INVALID_ARGUMENT for other files; DATA_LOSS
  // where a checkpoint is damaged; FAILED_PRECONDITION where it is of a later format; NOT_FOUND.
  static absl::StatusOr<SavedState> Open(const std::string& path);

  // The file that has the tensors of a slot, if any has.
  const tensor_files::TensorFile& FileOf(v1::Slot slot) const {
    return slot == v1::SLOT_PARAMETER ? files.front() : files.back();
  }

  std::string path;
  // One, or that of the parameters and that of the optimizer's state.
  std::vector<tensor_files::TensorFile> files;
  // Of the tensors of parameters, in the order of the file.
  std::vector<std::string> names;
  // Whether there is all that a state has, where a set has no moments; otherwise that shows by the moments.
  bool is_whole = false;
  // What the files say of the state, or INVALID_ARGUMENT.
  absl::StatusOr<v1::ParameterSetSpec> spec;
  absl::StatusOr<int64_t> step;
  absl::StatusOr<std::vector<int64_t>> update_counts;  // by position in `names`; empty: all have had `step`
};

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_SAVED_STATE_H_
