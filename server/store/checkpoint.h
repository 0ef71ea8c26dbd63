// A whole state of a set in a folder of its own, which others can read, too:
//
//   parameters.safetensors   the parameters, by the set's names
//   optimizer.safetensors    `exp_avg/NAME` and so on; not there where the optimizers have no state
//   MANIFEST.json            what the arrays are of, and the checksums of the other files: written last
//
// A folder is whole if its manifest is there and its checksums fit; it has its name only then. Files are as
// https://github.com/huggingface/safetensors has them, with the elements aligned to kSectorBytes.
#ifndef ADAMANT_SERVER_STORE_CHECKPOINT_H_
#define ADAMANT_SERVER_STORE_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/spec/schema.h"
#include "server/store/file_system.h"

namespace adamant::store {

// What a manifest says beside what its files are.
struct CheckpointInfo {
  std::string set;  // its name
  uint64_t incarnation = 0;
  int64_t step = 0;
  // Updates that each tensor has had; empty: all have had `step`.
  std::vector<int64_t> update_counts;
  // As GetParameterSet showed it.
  v1::ParameterSet description;
};

// Calls `visit` for each run of memory that has elements [begin, end) of a slot's flat space, in order. May be called
// once for each element: those who answer may let go of what they have given.
using ElementSource = absl::FunctionRef<void(v1::Slot slot, int64_t begin, int64_t end,
                                             absl::FunctionRef<void(const float* elements, int64_t count)> visit)>;

// Writes a checkpoint of the tensors of `schema`, in `slots`, of which SLOT_PARAMETER is the first, as the folder
// `directory`, whose parent is there. On OK it survives a power cut. After an error there may be something of it beside
// it, as `directory`.new, and nothing of that name. `pace` is called before each few MiB are written, with how many
// bytes: it may wait, and an error of it ends the write. Errors: as File and FileSystem have them.
absl::Status WriteCheckpoint(FileSystem* file_system, const std::string& directory, const CheckpointInfo& info,
                             const core::Schema& schema, absl::Span<const v1::Slot> slots, ElementSource elements,
                             const std::function<absl::Status(int64_t bytes)>& pace);

// A checkpoint that is read. Thread-compatible.
class Checkpoint {
 public:
  // Understands what is in the folder. Errors, which name the file: NOT_FOUND if there is no such folder; DATA_LOSS if
  // something in it is missing, or not as the manifest says. Contents of tensors are not looked at yet.
  static absl::StatusOr<Checkpoint> Open(FileSystem* file_system, const std::string& directory);

  Checkpoint(Checkpoint&&);
  Checkpoint& operator=(Checkpoint&&);
  ~Checkpoint();

  const CheckpointInfo& info() const;
  // The bytes of all its files.
  int64_t bytes() const;

  // Calls `take` for the elements of each tensor of the slot, a few MiB at a time, ascending, tensors by index of
  // `schema`, where they are looked up by name. Errors: DATA_LOSS, naming file and tensor, where a tensor is missing or
  // of another shape, or a checksum does not fit, which is known only after `take` has had the elements: nothing of
  // what it has taken is to be used then. What `take` returns, where that is an error.
  absl::Status Read(v1::Slot slot, const core::Schema& schema,
                    absl::FunctionRef<absl::Status(int tensor, int64_t offset, absl::Span<const float> elements)> take);

 private:
  struct Rep;
  explicit Checkpoint(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_CHECKPOINT_H_
