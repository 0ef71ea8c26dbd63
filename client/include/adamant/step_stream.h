// Steps of one parameter set, one after the other: the hot path of a trainer.
#ifndef ADAMANT_STEP_STREAM_H_
#define ADAMANT_STEP_STREAM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "adamant/connection.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/step.pb.h"

namespace adamant {

// What a step is beside a gradient for all tensors. Plain data; most steps need none of it.
struct StepOptions {
  // Names the step, so that a trainer that was restarted in the middle of it may repeat it: 1 to 64 printable ASCII
  // characters, new for every step. Empty: a random one.
  std::string request_id = {};

  // Indices of the tensors that the step brings, ascending. The others keep their parameters and their state, and their
  // spans are not looked at. Empty: all that no group has frozen.
  std::vector<int32_t> tensors = {};
  // Tensors of which the step brings some rows only, by ascending index, each at most once; where `tensors` is not
  // empty, they are among them. Their spans in `gradients` are not looked at. The new parameters of these rows come
  // into the tensor's span in `parameters`, each at its place, and the other rows stay as they are, there and in the
  // set: no moment decays, and no weight.
  std::vector<RowsGradient> rows = {};
  // Hyperparameters that hold instead of their groups' for this step alone, at most one a group.
  std::vector<v1::GroupOverride> overrides = {};
  // What the gradient was multiplied with: it is divided out before anything else is done with it.
  double grad_scale = 1;
  // What was measured, such as the loss: shown to those who watch the set.
  std::map<std::string, double> metrics = {};

  // How the gradient and the parameters travel: with 16 bits they take half of the bytes, and are rounded to the
  // nearest on the way. The set keeps all of its bits.
  v1::Dtype gradient_dtype = v1::DTYPE_FLOAT32;
  v1::Dtype reply_dtype = v1::DTYPE_FLOAT32;
  // Brings back no parameters: there need be no spans for them.
  bool omit_parameters = false;
  // Asks for result.state_digest(), by which two runs can be told to be the same to the bit. See
  // StepHeader.digest_state for what that costs.
  bool digest_state = false;
  // Where the gradient comes from, with the size of each span: its memory is not looked at. Of rows it does not hold.
  // Empty: from the spans.
  ElementReader read = nullptr;
  // Is told how far the step has come, gradient and parameters together; rows do not count. Empty: nobody is.
  Progress progress = nullptr;

  // In a set with workers, where it must be given: the step is one contribution to their round.
  struct Contribution {
    // Which of them, in [0, workers.count).
    int32_t rank = 0;
    // What it counts beside the others: the round's step applies their weighted mean.
    double weight = 1;
    // Returns as soon as it counts (ACCUMULATED), and brings back no parameters: for one client that contributes
    // several ranks of a round, one after the other, to all of them but the last. That is gradient accumulation.
    bool ack_when_folded = false;
  };
  std::optional<Contribution> contribution = std::nullopt;

  // Others step the set at the same time: the gradient counts although the set has moved on since step(), by as many
  // steps as its max_staleness; further on, and the outcome is REFUSED_STALE.
  bool asynchronous = false;
};

// Made by Client::OpenStepStream. Thread-compatible; any number of streams may step one set or many at the same time.
//
// A stream stands at one state of its set, (incarnation, step), that of the parameters which it brought last, and steps
// from there and from nowhere else: when another client was faster, Step fails rather than applying a gradient to
// parameters that it was not computed from. Asynchronous steps are those that may be behind.
class StepStream {
 public:
  StepStream(StepStream&&) = default;
  StepStream& operator=(StepStream&&) = default;

  const std::string& set() const { return set_; }
  // The set's tensors in order of their index: what each span below is for, and how long it is.
  const std::vector<v1::Tensor>& tensors() const { return tensors_; }
  // The state that the next step starts from.
  uint64_t incarnation() const { return incarnation_; }
  int64_t step() const { return step_; }
  // In a set with workers: the round that the next contribution is for.
  int64_t round() const { return round_; }

  // Applies `gradients` and brings the updated parameters into `parameters`: one span a tensor, of its element count.
  // No span of the one may overlap one of the other. The gradient is sent from where it lies; when this returns,
  // nothing refers to it any more.
  //
  // On OK all parameters are of the one step result.parameters_step(), and step() is that: the step after this one, or
  // a later one when the reply was lost, the outcome was asked for (`replayed`), and others stepped on meanwhile. Look
  // at result.outcome(): a gradient that is not finite is SKIPPED_NON_FINITE, and one that comes too late is
  // REFUSED_STALE, which are no errors, and left the set as it was; the parameters are those of now.
  //
  // A contribution returns when the round has become a step, which takes the other workers, or until they time out
  // (`Workers.round_timeout_seconds`). If it missed its round, or that came to nothing, it is REFUSED_LATE: the
  // parameters are those of now, and the next contribution is for the round of now.
  //
  // Of a step that brings some of the tensors, or rows of them, only their parameters come back. If others stepped
  // between, the rest is older than that, and step() stays; so it does where an asynchronous step omits the parameters.
  // Refresh brings it on.
  //
  // Failed attempts are repeated as RetryPolicy says, without ever stepping twice. On error the content of `parameters`
  // is indeterminate and step() is as before. The stream can be used again, after Refresh where the error asks for it:
  //   ABORTED             another client stepped or wrote the set, or replaced it: Refresh, compute a new gradient.
  //   DEADLINE_EXCEEDED,  the server could not be reached in time. Whether the step was applied is not known; Refresh
  //   UNAVAILABLE         shows it, and so does Step with the same gradient and `request_id`.
  //   INVALID_ARGUMENT    spans that do not fit the tensors, or overlap: nothing was sent. Or what the server does not
  //                       take of the options.
  absl::StatusOr<v1::StepResult> Step(ConstTensors gradients, MutableTensors parameters,
                                      const StepOptions& options = {});

  // Brings the set's current parameters into `parameters` and moves the stream to their state. On error the content of
  // `parameters` is indeterminate and the stream stays where it was.
  absl::Status Refresh(MutableTensors parameters);

 private:
  friend class Client;

  StepStream(std::shared_ptr<Connection> connection, const v1::ParameterSet& set, std::vector<v1::Tensor> tensors);

  // Which tensors a step brings, by index; empty: all.
  absl::StatusOr<std::vector<bool>> Carried(const StepOptions& options) const;
  // Whether the rows fit the tensors.
  absl::Status CheckRows(const StepOptions& options) const;
  // A step that is known to be in order but for what the server alone can say.
  absl::StatusOr<v1::StepResult> Send(ConstTensors gradients, MutableTensors parameters, const StepOptions& options);
  void MoveOn(const v1::StepResult& result, const StepOptions& options);

  // Learns which tensors are frozen. Returns whether the configuration is another one than before.
  absl::StatusOr<bool> LearnConfiguration();
  void TakeConfiguration(const v1::ParameterSet& set);

  std::shared_ptr<Connection> connection_;
  std::string set_;
  uint64_t schema_fingerprint_;
  std::vector<v1::Tensor> tensors_;
  uint64_t incarnation_;
  int64_t step_;
  int64_t config_revision_ = 0;
  int64_t round_ = 0;
  absl::Duration round_timeout_ = absl::ZeroDuration();
  // By tensor; empty: none is.
  std::vector<bool> frozen_;
};

}  // namespace adamant

#endif  // ADAMANT_STEP_STREAM_H_
