// Some of a set's tensors: those that a step or a write brings.
#ifndef ADAMANT_SERVER_CORE_SPEC_TENSOR_SELECTION_H_
#define ADAMANT_SERVER_CORE_SPEC_TENSOR_SELECTION_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "google/protobuf/repeated_field.h"
#include "server/core/memory/block.h"
#include "server/core/memory/snapshot.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// Immutable and thread-safe.
class TensorSelection {
 public:
  // Those that `selected` says, which has one entry a tensor.
  TensorSelection(std::shared_ptr<const Schema> schema, std::vector<bool> selected);
  // All of them.
  explicit TensorSelection(std::shared_ptr<const Schema> schema);

  const Schema& schema() const { return *schema_; }
  bool all() const { return all_; }
  bool has(int tensor) const { return selected_[tensor]; }
  // Elements of each tensor; 0 of one that is not selected.
  absl::Span<const int64_t> sizes() const { return all_ ? schema_->sizes() : absl::MakeConstSpan(sizes_); }
  // Elements of all selected tensors.
  int64_t parameter_count() const { return parameter_count_; }

  // The blocks that hold elements of selected tensors, ascending.
  absl::Span<const int64_t> blocks() const { return blocks_; }
  // Elements of these blocks.
  int64_t block_elements() const { return block_elements_; }
  // A list of the set's blocks in which these are those of `lent`, which are for block_elements() elements, and the
  // others null.
  BlockList Spread(BlockList lent) const;
  // `blocks`, a list of the set's, without those that hold no element of selected tensors.
  BlockList Only(const BlockList& blocks) const;
  // `snapshot`, one of the whole set, without the blocks that hold no element of selected tensors.
  std::shared_ptr<const Snapshot> Restrict(std::shared_ptr<const Snapshot> snapshot) const;

  bool operator==(const TensorSelection& other) const { return selected_ == other.selected_; }
  // Whether it is that of these, which has one entry a tensor.
  bool IsOf(const std::vector<bool>& selected) const { return selected_ == selected; }
  const std::vector<bool>& selected() const { return selected_; }

 private:
  const std::shared_ptr<const Schema> schema_;
  const std::vector<bool> selected_;
  bool all_;
  std::vector<int64_t> sizes_;  // empty if all are selected
  int64_t parameter_count_ = 0;
  std::vector<int64_t> blocks_;
  int64_t block_elements_ = 0;
};

// The tensors whose groups `configuration`, which is of a set of this schema, has not frozen.
std::shared_ptr<const TensorSelection> SelectTrainable(std::shared_ptr<const Schema> schema,
                                                       const Configuration& configuration);

// The tensors that are named by their indices. Error: INVALID_ARGUMENT (INVALID_FIELD) naming an entry of `field`,
// where they are not ascending, or not of the schema.
absl::StatusOr<std::vector<bool>> SelectByIndex(const Schema& schema,
                                                const google::protobuf::RepeatedField<int32_t>& tensors,
                                                absl::string_view field);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_TENSOR_SELECTION_H_
