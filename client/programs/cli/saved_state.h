// A set's state in files: what `adamant export` has written, or a checkpoint of a server's data directory.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_SAVED_STATE_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_SAVED_STATE_H_

#include <adamant/client.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/tensor_files/tensor_file.h"

namespace adamant::programs::cli {

// What an exported file says of itself, beside the tensors.
inline constexpr char kStepKey[] = "adamant.step";
inline constexpr char kIncarnationKey[] = "adamant.incarnation";
inline constexpr char kUpdateCountsKey[] = "adamant.update_counts";
inline constexpr char kSpecKey[] = "adamant.spec";

// What a set would have to be created with to be like this one, but for what outlives the server.
v1::ParameterSetSpec SpecOf(const v1::ParameterSet& set, const std::vector<v1::Tensor>& tensors);

// Where the tensors of one slot are.
struct SavedSlot {
  const tensor_files::TensorFile* file;
  // By index of the file's tensors, of which tensor of the set each is; empty for those of other slots.
  std::vector<std::string> names;
};

struct SavedState {
  // Opens the file, or the checkpoint's folder, of this path; of a checkpoint every byte is checked by its checksum.
  // Errors, which begin with the path that they are about: NOT_FOUND if there is nothing, or a folder that is no
  // checkpoint's; INVALID_ARGUMENT for other files; DATA_LOSS where a checkpoint is damaged; FAILED_PRECONDITION where
  // it is of a later format; what the system says where something cannot be read.
  static absl::StatusOr<SavedState> Open(const std::string& path);

  // This outlives what it returns.
  SavedSlot TensorsOf(v1::Slot slot) const;

  std::string path;
  bool is_checkpoint = false;
  // One, or that of the parameters and that of the optimizer's state.
  std::vector<tensor_files::TensorFile> files;
  // Of the set's tensors, in its order.
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
