// A whole state of a set in a folder of its own, which others can read, too:
//
//   parameters.safetensors   the parameters, by the set's names
//   optimizer.safetensors    `exp_avg/NAME` and so on; not there where the optimizers have no state
//   MANIFEST.json            what the arrays are of, and the checksums of the other files: written last
//
// A folder is whole if its manifest is there and its checksums fit; it has its name only then. Files are as
// https://github.com/huggingface/safetensors has them: fp32, the elements behind a header that is a multiple of
// kSectorBytes, without padding between tensors. The format keeps the name `__metadata__` for itself: a tensor of this
// name, or of it with more underscores behind, has one more of them in parameters.safetensors.
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
#include "absl/time/time.h"
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
  // When it was written, by the server's clock. Kept to the nanosecond.
  absl::Time create_time;
};

// Calls `visit` for each run of memory that has elements [begin, end) of a slot's flat space, in order. Asked once for
// each element of a tensor, a few MiB at most at a time: slots in their order, and each slot's elements ascending. So
// those who answer may let go of what they have given. Padding is not asked for.
using ElementSource = absl::FunctionRef<void(v1::Slot slot, int64_t begin, int64_t end,
                                             absl::FunctionRef<void(const float* elements, int64_t count)> visit)>;

// Writes a checkpoint of the tensors of `schema`, in `slots`, of which SLOT_PARAMETER is the first, as the folder
// `directory`, whose parent is there and which is not, and returns the bytes of all its files: it survives a power cut
// then. After an error there is nothing
// of that name. What there was of it, as `directory`.new, is removed as far as that can be done, but for one that is
// whole: where only the sync of the parent has failed, a power cut may give it its name. `pace` is called before each
// few MiB are written, with how many bytes: it may wait, and an error of it ends the write. Takes a few MiB of memory,
// and what the names of tensors take. Errors: as File and FileSystem have them; INVALID_ARGUMENT where a header would
// be longer than the format allows, as it can be with tens of thousands of long names.
absl::StatusOr<int64_t> WriteCheckpoint(FileSystem* file_system, const std::string& directory,
                                        const CheckpointInfo& info, const core::Schema& schema,
                                        absl::Span<const v1::Slot> slots, ElementSource elements,
                                        const std::function<absl::Status(int64_t bytes)>& pace);

// The slots that a checkpoint of the set has.
std::vector<v1::Slot> CheckpointSlots(const v1::ParameterSet& set);

// OK, or FAILED_PRECONDITION (TOO_LARGE), about `field`, where a checkpoint of a set of these tensors and slots would
// have a header that is longer than the format allows.
absl::Status CheckCanHaveCheckpoints(const core::Schema& schema, absl::Span<const v1::Slot> slots,
                                     absl::string_view field);

// A checkpoint that is read: as it was when it was opened, even if it is removed meanwhile. Thread-compatible.
class Checkpoint {
 public:
  // Understands what is in the folder. Errors, which name the file: NOT_FOUND if there is no such folder; DATA_LOSS if
  // something in it is missing, or not as the manifest says; FAILED_PRECONDITION if it is of a later format. Contents
  // of tensors are not looked at yet. Takes memory in proportion to manifest and headers, whatever those say.
  static absl::StatusOr<Checkpoint> Open(FileSystem* file_system, const std::string& directory);

  Checkpoint(Checkpoint&&);
  Checkpoint& operator=(Checkpoint&&);
  ~Checkpoint();

  const CheckpointInfo& info() const;
  // The bytes of all its files.
  int64_t bytes() const;

  // Calls `take` for the elements of each tensor of the slot, a few MiB at a time, ascending, tensors by index of
  // `schema`, where they are looked up by name; fastest in the order in which they were written. A tensor without
  // elements is only looked up. Errors: DATA_LOSS, naming file and tensor, where a tensor is missing or of another
  // shape, or a checksum does not fit: what `take` has had until then was right, but nothing of it is to be used alone.
  // What `take` returns, where that is an error.
  absl::Status Read(v1::Slot slot, const core::Schema& schema,
                    absl::FunctionRef<absl::Status(int tensor, int64_t offset, absl::Span<const float> elements)> take);

 private:
  struct Rep;
  explicit Checkpoint(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_CHECKPOINT_H_
