#include "server/core/spec/tensor_selection.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::core {

TensorSelection::TensorSelection(std::shared_ptr<const Schema> schema, std::vector<bool> selected)
    : schema_(std::move(schema)),
      selected_(std::move(selected)),
      all_(absl::c_all_of(selected_, [](bool is_selected) { return is_selected; })) {
  const absl::Span<const Schema::Tensor> tensors = schema_->tensors();
  if (!all_) sizes_.resize(tensors.size(), 0);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!selected_[i]) continue;
    if (!all_) sizes_[i] = tensors[i].size();
    parameter_count_ += tensors[i].size();
    ForEachRun(tensors[i].begin, tensors[i].end, [this](int64_t block, int64_t /*begin*/, int64_t /*end*/) {
      if (blocks_.empty() || blocks_.back() != block) blocks_.push_back(block);
    });
  }
  for (const int64_t block : blocks_) {
    block_elements_ += std::min(kBlockElements, schema_->flat_size() - block * kBlockElements);
  }
}

TensorSelection::TensorSelection(std::shared_ptr<const Schema> schema)
    : TensorSelection(schema, std::vector<bool>(schema->tensors().size(), true)) {}

BlockList TensorSelection::Spread(BlockList lent) const {
  const auto count = static_cast<size_t>((schema_->flat_size() + kBlockElements - 1) / kBlockElements);
  if (lent.size() == count) return lent;
  BlockList spread(count);
  for (size_t i = 0; i < blocks_.size(); ++i) spread[blocks_[i]] = std::move(lent[i]);
  return spread;
}

std::shared_ptr<const Snapshot> TensorSelection::Restrict(std::shared_ptr<const Snapshot> snapshot) const {
  if (blocks_.size() == snapshot->blocks().size()) return snapshot;
  return std::make_shared<const Snapshot>(snapshot->incarnation(), snapshot->step(), Only(snapshot->blocks()));
}

BlockList TensorSelection::Only(const BlockList& blocks) const {
  BlockList only(blocks.size());
  for (const int64_t block : blocks_) only[block] = blocks[block];
  return only;
}

std::shared_ptr<const TensorSelection> SelectTrainable(std::shared_ptr<const Schema> schema,
                                                       const Configuration& configuration) {
  std::vector<bool> trainable;
  for (const Schema::Tensor& tensor : schema->tensors()) {
    trainable.push_back(!configuration.groups()[tensor.group].frozen());
  }
  return std::make_shared<const TensorSelection>(std::move(schema), std::move(trainable));
}

absl::StatusOr<std::vector<bool>> SelectByIndex(const Schema& schema,
                                                const google::protobuf::RepeatedField<int32_t>& tensors,
                                                absl::string_view field) {
  const auto count = static_cast<int32_t>(schema.tensors().size());
  std::vector<bool> selected(count, false);
  int32_t before = -1;
  for (int i = 0; i < tensors.size(); ++i) {
    if (tensors[i] < 0 || tensors[i] >= count) {
      return InvalidField(absl::StrCat(field, "[", i, "]"),
                          absl::StrCat("one of the set's ", count, " tensors, counted from 0"),
                          absl::StrCat(tensors[i]));
    }
    if (tensors[i] <= before) {
      return InvalidField(absl::StrCat(field, "[", i, "]"), absl::StrCat("more than ", before, ", the one before"),
                          absl::StrCat(tensors[i]));
    }
    before = tensors[i];
    selected[before] = true;
  }
  return selected;
}

}  // namespace adamant::core
