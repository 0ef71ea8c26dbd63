#include "client/programs/cli/set_flags.h"

#include <CLI/CLI.hpp>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/command_line/durability_flag.h"
#include "client/programs/optimizer_choice.h"

namespace adamant::programs::cli {
namespace {

// What becomes of a learning rate behind its warmup.
std::string DecayName(const v1::Schedule& schedule) {
  switch (schedule.decay_case()) {
    case v1::Schedule::kLinear:
      return "linear";
    case v1::Schedule::kCosine:
      return "cosine";
    case v1::Schedule::kExponential:
      return "exponential";
    case v1::Schedule::kStep:
      return "step";
    case v1::Schedule::kMultiStep:
      return "multi_step";
    case v1::Schedule::kPolynomial:
      return "polynomial";
    case v1::Schedule::DECAY_NOT_SET:
      return "constant";
  }
  return "";
}

// The key and the value of `KEY=VALUE`.
absl::StatusOr<std::pair<std::string, std::string>> Split(absl::string_view text) {
  const size_t at = text.find('=');
  if (at == absl::string_view::npos || at == 0) {
    return absl::InvalidArgumentError(absl::StrCat("expected KEY=VALUE, got '", text, "'"));
  }
  return std::pair(std::string(text.substr(0, at)), std::string(text.substr(at + 1)));
}

// A bound of clipping, where `none` is 0.
absl::StatusOr<double> ParseBound(absl::string_view flag, const std::string& text) {
  double bound;
  if (text == "none") return 0;
  if (!absl::SimpleAtod(text, &bound) || !(bound > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": expected a positive number, or none, got '", text, "'"));
  }
  return bound;
}

}  // namespace

std::string OptimizerName(const v1::ParameterGroup& group) {
  if (group.has_sgd()) return "sgd";
  return group.adam().decoupled_weight_decay() ? "adamw" : "adam";
}

std::string ScheduleName(const v1::Schedule& schedule) {
  if (schedule.warmup_steps() == 0) return DecayName(schedule);
  return absl::StrCat("warmup,", DecayName(schedule));
}

absl::Status ParseLabels(const std::vector<std::string>& texts,
                         google::protobuf::Map<std::string, std::string>* labels) {
  for (const std::string& text : texts) {
    absl::StatusOr<std::pair<std::string, std::string>> label = Split(text);
    if (!label.ok()) return absl::InvalidArgumentError(absl::StrCat("--label: ", label.status().message()));
    (*labels)[label->first] = label->second;
  }
  return absl::OkStatus();
}

absl::Status ParseMetrics(const std::vector<std::string>& texts, std::map<std::string, double>* metrics) {
  for (const std::string& text : texts) {
    absl::StatusOr<std::pair<std::string, std::string>> metric = Split(text);
    double value;
    if (!metric.ok() || !absl::SimpleAtod(metric->second, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("--metric: expected NAME=NUMBER, got '", text, "'"));
    }
    (*metrics)[metric->first] = value;
  }
  return absl::OkStatus();
}

std::string KeptText(const v1::ParameterSet& set) {
  const v1::Durability& durability = set.durability();
  if (durability.has_nothing() || durability.level_case() == v1::Durability::LEVEL_NOT_SET) return "";
  return absl::StrCat(", kept: ", DurabilityText(durability));
}

CLI::Option* AddDurability(CLI::App* app, std::string* text, absl::string_view otherwise) {
  return app
      ->add_option("--durability", *text,
                   absl::StrCat("What of the set outlives the server: nothing; every_step, or every_step:K with K in "
                                "[2, 1024] steps kept beside its checkpoints; or checkpoints:N,T, made after so many "
                                "steps, so much time, such as 60s, or both. Default: ",
                                otherwise, "."))
      ->type_name("WHAT");
}

absl::StatusOr<std::optional<v1::Durability>> ReadDurability(const std::string& text) {
  if (text.empty()) return std::nullopt;
  absl::StatusOr<v1::Durability> durability = ParseDurability(text);
  if (!durability.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--durability: ", durability.status().message()));
  }
  return *std::move(durability);
}

absl::Status SetDurability(const std::string& text, v1::ParameterSetSpec* spec) {
  absl::StatusOr<std::optional<v1::Durability>> durability = ReadDurability(text);
  if (durability.ok() && durability->has_value()) *spec->mutable_durability() = **std::move(durability);
  return durability.status();
}

void GroupFlags::AddTo(CLI::App* app, bool creates) {
  constexpr char kGroup[] = "Optimizer";
  if (creates) {
    app->add_option("--optimizer", optimizer, "adam, adamw or sgd. Default: adam.")->group(kGroup);
    app->add_flag("--amsgrad", amsgrad, "Adam divides by the largest v so far.")->group(kGroup);
    app->add_flag("--nesterov", nesterov, "SGD with Nesterov's momentum.")->group(kGroup);
    app->add_flag("--maximize", maximize, "Ascends.")->group(kGroup);
  }
  app->add_option("--lr", learning_rate, creates ? "The learning rate. Default: 1e-3." : "The learning rate.")
      ->group(kGroup);
  app->add_option("--betas", betas, "Adam's decays of both means, such as 0.9,0.999.")
      ->type_name("B1,B2")
      ->delimiter(',')
      ->expected(2)
      ->group(kGroup);
  app->add_option("--eps", eps, "Adam's term in the denominator.")->group(kGroup);
  app->add_option("--weight-decay", weight_decay,
                  creates ? "How strongly parameters are drawn to zero. Default: 0.01 with adamw, else 0."
                          : "How strongly parameters are drawn to zero.")
      ->group(kGroup);
  app->add_option("--momentum", momentum, "Of SGD.")->group(kGroup);
  app->add_option("--dampening", dampening, "Of SGD.")->group(kGroup);
  app->add_option("--schedule", schedule,
                  "constant; linear, cosine or polynomial:POWER, down to zero at --total-steps; exponential:GAMMA, by "
                  "that factor a step; step:STEPS:GAMMA, every so many steps.")
      ->group(kGroup);
  app->add_option("--warmup", warmup, "Steps in which the learning rate rises from zero before that.")->group(kGroup);
  app->add_option("--total-steps", total_steps, "How many steps the schedule takes, its warmup included.")
      ->group(kGroup);
}

absl::StatusOr<v1::ParameterGroup> GroupFlags::Make() const {
  OptimizerChoice choice;
  if (optimizer.has_value()) choice.optimizer = *optimizer;
  if (learning_rate.has_value()) choice.learning_rate = *learning_rate;
  choice.weight_decay = weight_decay;
  choice.momentum = momentum.value_or(0);
  if (schedule.has_value()) choice.schedule = *schedule;
  choice.warmup_steps = warmup.value_or(0);
  const absl::string_view decay = absl::string_view(choice.schedule).substr(0, choice.schedule.find(':'));
  if ((decay == "linear" || decay == "cosine" || decay == "polynomial") && !total_steps.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--schedule=", choice.schedule, " needs --total-steps"));
  }
  absl::StatusOr<v1::ParameterGroup> group =
      MakeGroup(choice, total_steps.value_or(std::numeric_limits<int64_t>::max()));
  if (!group.ok()) return group.status();
  const bool sgd = group->has_sgd();
  if (sgd && (!betas.empty() || eps.has_value() || amsgrad)) {
    return absl::InvalidArgumentError("--betas, --eps and --amsgrad are Adam's, and not SGD's");
  }
  if (!sgd && (dampening.has_value() || nesterov)) {
    return absl::InvalidArgumentError("--dampening and --nesterov are SGD's, and not Adam's");
  }
  if (sgd) {
    if (dampening.has_value()) group->mutable_sgd()->set_dampening(*dampening);
    group->mutable_sgd()->set_nesterov(nesterov);
    group->mutable_sgd()->set_maximize(maximize);
  } else {
    if (!betas.empty()) {
      group->mutable_adam()->set_beta1(betas[0]);
      group->mutable_adam()->set_beta2(betas[1]);
    }
    if (eps.has_value()) group->mutable_adam()->set_eps(*eps);
    group->mutable_adam()->set_amsgrad(amsgrad);
    group->mutable_adam()->set_maximize(maximize);
  }
  return group;
}

absl::Status GroupFlags::Change(const v1::ParameterGroup& now, v1::ParameterGroup* values,
                                std::vector<std::string>* fields) const {
  // The optimizer stays, and whose the fields are is the server's to say: it knows the error better.
  GroupFlags given = *this;
  given.optimizer = now.has_sgd() ? "sgd" : "adam";
  absl::StatusOr<v1::ParameterGroup> made = given.Make();
  if (!made.ok()) return made.status();
  const std::string optimizer_field = now.has_sgd() ? "sgd" : "adam";
  const auto add = [&](bool is_given, absl::string_view field) {
    if (is_given) fields->push_back(absl::StrCat(optimizer_field, ".", field));
  };
  if (learning_rate.has_value()) fields->push_back("learning_rate");
  if (schedule.has_value() || warmup.has_value()) fields->push_back("schedule");
  add(!betas.empty(), "beta1");
  add(!betas.empty(), "beta2");
  add(eps.has_value(), "eps");
  add(weight_decay.has_value(), "weight_decay");
  add(momentum.has_value(), "momentum");
  add(dampening.has_value(), "dampening");
  *values = *std::move(made);
  values->set_name(now.name());
  return absl::OkStatus();
}

void SetFlags::AddTo(CLI::App* app) {
  constexpr char kGroup[] = "Set";
  CLI::Option* const norm =
      app->add_option("--clip-norm", clip_norm, "Scales a gradient whose norm is larger down to it; none: does not.")
          ->type_name("X|none")
          ->group(kGroup);
  app->add_option("--clip-value", clip_value, "Draws larger elements of a gradient to it; none: does not.")
      ->type_name("X|none")
      ->group(kGroup)
      ->excludes(norm);
  app->add_option("--non-finite", non_finite, "What becomes of a step whose gradient is not finite: skip or reject.")
      ->type_name("POLICY")
      ->group(kGroup);
  app->add_option("--max-staleness", max_staleness, "How many steps a gradient may be behind.")->group(kGroup);
  app->add_option("--workers", workers, "How many workers make each step together; 0: each steps for itself.")
      ->group(kGroup);
  app->add_option("--quorum", quorum, "With how many of them a step may be made.")->group(kGroup);
  app->add_option("-l,--label", labels, "A label; may be repeated.")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->group(kGroup);
}

absl::Status SetFlags::Set(v1::ParameterSetSpec* spec, std::vector<std::string>* fields) const {
  if (clip_norm.has_value() || clip_value.has_value()) {
    const bool norm = clip_norm.has_value();
    const absl::StatusOr<double> bound =
        norm ? ParseBound("--clip-norm", *clip_norm) : ParseBound("--clip-value", *clip_value);
    if (!bound.ok()) return bound.status();
    v1::Clipping* const clipping = spec->mutable_clipping();
    clipping->clear_bound();
    if (*bound > 0) norm ? clipping->set_max_norm(*bound) : clipping->set_max_value(*bound);
    fields->push_back("clipping");
  }
  if (non_finite.has_value()) {
    if (*non_finite != "skip" && *non_finite != "reject") {
      return absl::InvalidArgumentError(absl::StrCat("--non-finite: expected skip or reject, got '", *non_finite, "'"));
    }
    spec->set_non_finite_policy(*non_finite == "skip" ? v1::NON_FINITE_POLICY_SKIP : v1::NON_FINITE_POLICY_REJECT);
    fields->push_back("non_finite_policy");
  }
  if (max_staleness.has_value()) {
    spec->set_max_staleness(*max_staleness);
    fields->push_back("max_staleness");
  }
  if (quorum.has_value() && !workers.has_value()) return absl::InvalidArgumentError("--quorum needs --workers");
  if (workers.has_value()) {
    spec->clear_workers();
    if (*workers != 0) spec->mutable_workers()->set_count(*workers);
    if (quorum.has_value()) spec->mutable_workers()->set_quorum(*quorum);
    fields->push_back("workers");
  }
  if (!labels.empty()) fields->push_back("labels");
  return ParseLabels(labels, spec->mutable_labels());
}

}  // namespace adamant::programs::cli
