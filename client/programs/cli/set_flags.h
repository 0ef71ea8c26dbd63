// The flags that say how a set is to be stepped.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_SET_FLAGS_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_SET_FLAGS_H_

#include <adamant/client.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace adamant::programs::cli {

// `adam`, `adamw` or `sgd`.
std::string OptimizerName(const v1::ParameterGroup& group);
// Such as `cosine`, or `warmup,cosine`.
std::string ScheduleName(const v1::Schedule& schedule);

// Adds each `KEY=VALUE`. INVALID_ARGUMENT for anything else.
absl::Status ParseLabels(const std::vector<std::string>& texts,
                         google::protobuf::Map<std::string, std::string>* labels);
// The same for numbers.
absl::Status ParseMetrics(const std::vector<std::string>& texts, std::map<std::string, double>* metrics);

// What is said of a new set's durability, behind the rest; nothing where nothing of it is kept.
std::string KeptText(const v1::ParameterSet& set);
// Adds the flag of commands that create a set, which is `*text` then; without it the durability is as `otherwise` says.
CLI::Option* AddDurability(CLI::App* app, std::string* text, absl::string_view otherwise = "the server's");
// What the flag says; nothing if it was not given. INVALID_ARGUMENT for what is no durability.
absl::StatusOr<std::optional<v1::Durability>> ReadDurability(const std::string& text);
// Sets what it says.
absl::Status SetDurability(const std::string& text, v1::ParameterSetSpec* spec);

// A group's optimizer and learning rate.
struct GroupFlags {
  std::optional<std::string> optimizer;
  std::optional<double> learning_rate, eps, weight_decay, momentum, dampening;
  std::vector<double> betas;
  bool amsgrad = false, nesterov = false, maximize = false;
  std::optional<std::string> schedule;
  std::optional<int64_t> warmup, total_steps;

  // With `optimizer` and what a set is made of once, where `creates`.
  void AddTo(CLI::App* app, bool creates);
  // The group of a new set; INVALID_ARGUMENT for what does not go together.
  absl::StatusOr<v1::ParameterGroup> Make() const;
  // What is given, as new values of a group as it is now, and the names of their fields.
  absl::Status Change(const v1::ParameterGroup& now, v1::ParameterGroup* values,
                      std::vector<std::string>* fields) const;
};

// What a set has beside its groups.
struct SetFlags {
  std::optional<std::string> clip_norm, clip_value, non_finite;
  std::optional<int32_t> max_staleness, workers, quorum;
  std::vector<std::string> labels;

  void AddTo(CLI::App* app);
  // Sets what is given in `spec`, and names its fields. A label is added to those that `spec` has.
  absl::Status Set(v1::ParameterSetSpec* spec, std::vector<std::string>* fields) const;
};

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_SET_FLAGS_H_
