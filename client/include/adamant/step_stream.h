// Steps of one parameter set, one after the other: the hot path of a trainer.
#ifndef ADAMANT_STEP_STREAM_H_
#define ADAMANT_STEP_STREAM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/connection.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/step.pb.h"

namespace adamant {

// Made by Client::OpenStepStream. Thread-compatible; any number of streams may step one set or many at the same time.
//
// A stream stands at one state of its set, (incarnation, step), and steps from there and from nowhere else: when
// another client was faster, Step fails rather than applying a gradient to parameters that it was not computed from.
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

  // Applies `gradients` and brings the updated parameters into `parameters`: one span a tensor, of its element count.
  // No span of the one may overlap one of the other. The gradient is sent from where it lies; when this returns,
  // nothing refers to it any more.
  //
  // On OK all parameters are of the one step result.parameters_step(), and step() is that: the step after this one, or
  // a later one when the reply was lost, the outcome was asked for (`replayed`), and others stepped on meanwhile. Look
  // at result.outcome(): a gradient that is not finite is SKIPPED_NON_FINITE, which is no error, and left the set as it
  // was.
  //
  // Failed attempts are repeated as RetryPolicy says, without ever stepping twice. On error the content of `parameters`
  // is indeterminate and step() is as before. The stream can be used again, after Refresh where the error asks for it:
  //   ABORTED             another client stepped or wrote the set, or replaced it: Refresh, compute a new gradient.
  //   DEADLINE_EXCEEDED,  the server could not be reached in time. Whether the step was applied is not known; Refresh
  //   UNAVAILABLE         shows it, and so does Step with the same gradient and `request_id`.
  //   INVALID_ARGUMENT    spans that do not fit the tensors, or overlap. Nothing was sent.
  //
  // `request_id` names the step, so that a trainer that was restarted in the middle of it may repeat it: 1 to 64
  // printable ASCII characters, new for every step. Empty: a random one.
  absl::StatusOr<v1::StepResult> Step(ConstTensors gradients, MutableTensors parameters,
                                      absl::string_view request_id = {});

  // Brings the set's current parameters into `parameters` and moves the stream to their state. On error the content of
  // `parameters` is indeterminate and the stream stays where it was.
  absl::Status Refresh(MutableTensors parameters);

 private:
  friend class Client;

  StepStream(std::shared_ptr<Connection> connection, const v1::ParameterSet& set, std::vector<v1::Tensor> tensors);

  std::shared_ptr<Connection> connection_;
  std::string set_;
  uint64_t schema_fingerprint_;
  std::vector<v1::Tensor> tensors_;
  uint64_t incarnation_;
  int64_t step_;
};

}  // namespace adamant

#endif  // ADAMANT_STEP_STREAM_H_
