// Trains a network whose parameters and optimizer live on a server: the trainer sends gradients and receives
// parameters.
#ifndef ADAMANT_CLIENT_PROGRAMS_TRAINING_H_
#define ADAMANT_CLIENT_PROGRAMS_TRAINING_H_

#include <adamant/client.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/programs/mlp.h"

namespace adamant::programs {

// How long a step that is made of contributions waits for those that have not come: the training then ends.
constexpr absl::Duration kRoundTimeout = absl::Minutes(1);

struct TrainingPlan {
  // As in Mlp; `data` fits them.
  std::vector<int> widths;
  Batch data;
  // Passes over the data, at least 1.
  int epochs;
  // Samples a step, in [1, 2^30]; the last step of an epoch may have fewer.
  int batch_size;
  // The optimizer, its learning rate and its schedule, for all tensors.
  v1::ParameterGroup group;
  // Of the first parameters.
  uint32_t seed;
  // Where the set lives, such as `cuda:0`; empty: where the server has it by default.
  std::string device = "";
  // What is done to gradients. None by default.
  v1::Clipping clipping = {};
  // How gradients and parameters travel.
  v1::Dtype dtype = v1::DTYPE_FLOAT32;
  // How many work at the same time, in [1, 64].
  //
  // Each takes the next batch that nobody has taken. A gradient may then be behind the parameters by one step of each
  // of the others; one that is further behind is computed again. With one worker a run has the same bits every time;
  // with several it depends on who is faster.
  int workers = 1;
  // Workers make each step together instead: each takes its share of every batch, and the step is that of the whole
  // batch. A run then has the same bits every time. Requires: no batch has fewer samples than there are workers.
  bool synchronous = false;
  // In how many parts one worker computes and sends the gradient of a batch, in [1, 64]: the network then needs memory
  // for one part at a time. The step is that of the whole batch. Requires: 1, or one worker, and no batch with fewer
  // samples.
  int accumulate = 1;
};

struct TrainingSummary {
  int64_t steps;
  // Of all epochs, the network's own arithmetic included.
  absl::Duration elapsed;
  // Median of the remote calls alone, each of them a step or a contribution to one.
  absl::Duration median_step;
};

// How far a training has come.
struct TrainingProgress {
  int64_t steps_done = 0;
  int64_t steps_in_all = 0;
  // The epoch of the last step, from 1, and whether that was its last. Epochs are done in order.
  int epoch = 0;
  bool epoch_done = false;
  // Mean over the epoch's samples so far, each before the update that it took part in.
  double loss = 0;
};

// Called after each step, and once more if it completes further epochs that several workers are in. From any thread,
// one call at a time. Returns whether to go on.
using StepCallback = absl::FunctionRef<bool(const TrainingProgress& progress)>;

// Creates the set `name`, trains it and deletes it again, also after an error, unless the server could not be reached:
// then the error says that the set may be left. CANCELLED if the callback says so. A step that the server skips is an
// error: the training has diverged.
absl::StatusOr<TrainingSummary> Train(const TrainingPlan& plan, const std::string& name, Client client,
                                      StepCallback after_step);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_TRAINING_H_
