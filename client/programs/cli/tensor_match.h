// Which tensor of a set a tensor of a file is for.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_TENSOR_MATCH_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_TENSOR_MATCH_H_

#include <adamant/client.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/tensor_files/tensor_file.h"

namespace adamant::programs::cli {

// The slots' names in files and on the command line: `parameter`, `exp_avg` and so on.
std::string SlotName(v1::Slot slot);
// INVALID_ARGUMENT for a name of none.
absl::StatusOr<v1::Slot> ParseSlot(absl::string_view name);
// What a tensor of a slot is called in a file that has more than parameters, such as `exp_avg/layer.weight`.
std::string NameInFile(v1::Slot slot, absl::string_view tensor);
// The names of a file's tensors but for those that are moments of another one.
std::vector<std::string> ParameterNames(const tensor_files::TensorFile& file);

// What the help of a command says of such arguments.
inline constexpr char kFilesHelp[] =
    "Files. TENSOR=FILE says of which tensor a file without names is; a .raw file may have all. Where the set has the "
    "tensor w, w=x.npy is x.npy for it, and a file of that name is ./w=x.npy.";

// Files, and the elements that they have for a set's tensors. Thread-compatible.
class TensorMatch {
 public:
  // One span a tensor, by index, of its size and without memory: what is there is read when it is sent. Empty for those
  // that the files do not have.
  absl::Span<const absl::Span<const float>> spans() const { return spans_; }
  // Reads elements of a tensor that they have, from `begin` on, until `to` is full. Errors name the file and the
  // tensor.
  absl::Status Read(int32_t tensor, int64_t begin, absl::Span<float> to) const;
  // Read for a call that has these spans, of one slot; this outlives it.
  ElementReader Reader() const;
  // Those that they have, ascending; a tensor without elements is always there.
  const std::vector<int32_t>& present() const { return present_; }
  bool complete() const { return present_.size() == spans_.size(); }

  // Finds in `arguments`, each `FILE` or `TENSOR=FILE`, the set's tensors. An argument is the latter where what stands
  // before one of its `=` is a tensor of the set, the longest there is, whatever files there are. A file without names
  // (.npy, .raw) is for the tensor that is named, or for the only one that there is; a .raw file without a name may
  // also have all tensors, one behind the other. Tensors of a .safetensors file that are a slot of the set's other than
  // its parameters are left alone. INVALID_ARGUMENT, naming the file and the tensor, for what the set does not have,
  // for another shape, and for elements that are no floats; what the files do not have is an error unless `partial`.
  static absl::StatusOr<TensorMatch> Find(const std::vector<std::string>& arguments,
                                          const std::vector<v1::Tensor>& tensors, bool partial);
  // The same for tensors of one slot in a file that is open: `names` has, by index of the file's tensors, for which
  // tensor of the set each is, or nothing; `file` outlives this. What the set does not have is passed over.
  static absl::StatusOr<TensorMatch> FindSlot(const tensor_files::TensorFile& file, absl::Span<const std::string> names,
                                              const std::vector<v1::Tensor>& tensors);

 private:
  explicit TensorMatch(const std::vector<v1::Tensor>& tensors) : spans_(tensors.size()), places_(tensors.size()) {}

  // Where a tensor's elements are: from `begin` on of one of a file's; none if they are in no file.
  struct Place {
    const tensor_files::TensorFile* file = nullptr;
    size_t index = 0;
    int64_t begin = 0;
    std::string tensor = {};
  };

  absl::Status Take(const tensor_files::TensorFile& file, size_t index, const v1::Tensor& tensor);
  absl::Status TakeAll(const tensor_files::TensorFile& file, const std::vector<v1::Tensor>& tensors);
  // Takes a tensor's elements to be there. INVALID_ARGUMENT if they are elsewhere, too.
  absl::Status Put(const v1::Tensor& tensor, const Place& place);
  void Finish(const std::vector<v1::Tensor>& tensors);

  std::vector<std::unique_ptr<tensor_files::TensorFile>> files_;
  std::vector<absl::Span<const float>> spans_;
  std::vector<Place> places_;  // by tensor
  std::vector<int32_t> present_;
};

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_TENSOR_MATCH_H_
