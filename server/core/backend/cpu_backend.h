// The step's arithmetic on this machine's processor.
#ifndef ADAMANT_SERVER_CORE_BACKEND_CPU_BACKEND_H_
#define ADAMANT_SERVER_CORE_BACKEND_CPU_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/dispatch.h"
#include "kernels/update.h"
#include "server/core/backend/backend.h"
#include "server/core/spec/slots.h"

namespace adamant::core {

// One block of one slot in a step. Where both are the same block, the update is in place; an output that is another
// block is held by nobody else.
struct SlotBlock {
  BlockRef in;
  BlockRef out;
};

// One block's share of a step.
struct BlockUpdate {
  int64_t index;  // the block's, within the set
  absl::Span<const WorkRange> ranges;
  absl::Span<const kernels::Recipe> recipes;  // by cohort
  BlockRef gradient;                          // becomes the new parameters
  BlockRef parameters;
  absl::Span<const SlotBlock> slots;  // in the order of the set's ArraysLayout
  const SlotIndices* slot_indices;    // of the same
};

// Some rows' share of a step.
struct RowsUpdate {
  const RowWork* work;
  RowWork::Range rows;
  // Ascending blocks of the set's: what rows have in them, or what they have in all others.
  absl::Span<const int64_t> blocks;
  bool within;
  absl::Span<const kernels::Recipe> recipes;
  const BlockList* parameters;        // of the set
  absl::Span<const BlockList> slots;  // in the order of the set's ArraysLayout
  const SlotIndices* slot_indices;    // of the same
};

// Its arrays are made of the host's blocks, and their steps run on the host's compute threads; those of small sets on
// the thread that brings them. Thread-safe.
class CpuBackend : public Backend {
 public:
  // With these kernels, which this machine supports.
  explicit CpuBackend(const kernels::KernelTable& kernels) : kernels_(kernels) {}

  absl::StatusOr<std::unique_ptr<SlotArrays>> NewArrays(ArraysLayout layout, Lender* lender,
                                                        ComputePool* compute) final;
  bool on_host() const final { return true; }
  const kernels::KernelTable& host_kernels() const final { return kernels_; }
  std::string name() const final { return "cpu"; }
  v1::Device Describe() const override;
  absl::Status CheckWorking() const final { return absl::OkStatus(); }
  const Budget* budget() const final { return nullptr; }

  // Applies `update`: the new parameters are written over the gradient, and what keeps its value is written there too,
  // and to slots whose output is another block. Never fails; tests have it fail. After an error the outputs are
  // indeterminate.
  virtual absl::Status Update(const BlockUpdate& update);
  // Applies `update`, in place, and writes the new parameters over the gradients, too. As Update otherwise.
  virtual absl::Status UpdateRows(const RowsUpdate& update);

 private:
  const kernels::KernelTable& kernels_;
};

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BACKEND_CPU_BACKEND_H_
