// One step of a set, by a gradient that is in files.
#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/programs/cli/set_flags.h"
#include "client/programs/cli/shell.h"
#include "client/programs/cli/tensor_match.h"
#include "client/programs/optimizer_choice.h"
#include "client/tensor_files/tensor_file.h"

namespace adamant::programs::cli {
namespace {

using tensor_files::FileTensor;
using tensor_files::TensorFileWriter;

struct StepFlags {
  std::string set, request_id, output, dtype = "float32";
  std::vector<std::string> files, metrics;
  std::optional<int64_t> expected_step;
  std::optional<double> learning_rate;
  std::optional<int32_t> rank;
  double grad_scale = 1, weight = 1;
  bool partial = false, digest = false;
};

void PrintResult(Shell* shell, const v1::StepResult& result) {
  const bool applied = result.outcome() == v1::STEP_OUTCOME_APPLIED || result.outcome() == v1::STEP_OUTCOME_ACCUMULATED;
  if (!applied) shell->set_exit_code(kNotApplied);
  if (shell->json()) {
    shell->PrintJson(result);
    return;
  }
  std::string text =
      absl::StrCat("step ", result.step(), "  ", RenderEnum(v1::StepOutcome_Name(result.outcome()), "STEP_OUTCOME_"),
                   result.replayed() ? " before" : "", "  grad_norm=", RenderNumber(result.grad_norm()));
  if (!result.learning_rates().empty()) {
    absl::StrAppend(&text, "  lr=", absl::StrJoin(result.learning_rates(), ",", [](std::string* out, double rate) {
      absl::StrAppend(out, RenderNumber(rate));
    }));
  }
  if (result.has_non_finite_tensor()) {
    absl::StrAppend(&text, "  not finite at tensor ", result.non_finite_tensor(), " offset ",
                    result.non_finite_offset());
  }
  if (!result.state_digest().empty()) {
    absl::StrAppend(&text, "  digest=", absl::BytesToHexString(result.state_digest()));
  }
  shell->Print(text);
}

// Where the parameters go that come back: to the file, if there is to be one.
absl::StatusOr<std::optional<TensorFileWriter>> MakeOutput(const StepFlags& flags,
                                                           const std::vector<v1::Tensor>& tensors,
                                                           std::vector<absl::Span<float>>* parameters) {
  if (flags.output.empty()) return std::nullopt;
  const absl::StatusOr<tensor_files::FileFormat> format = tensor_files::FormatOfPath(flags.output);
  if (!format.ok()) return format.status();
  std::vector<FileTensor> entries;
  for (const v1::Tensor& tensor : tensors) {
    entries.push_back({.name = tensor.name(), .shape = {tensor.shape().begin(), tensor.shape().end()}});
  }
  absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(flags.output, *format, entries);
  if (!writer.ok()) return writer.status();
  for (size_t i = 0; i < tensors.size(); ++i) parameters->push_back(writer->Elements(i));
  return *std::move(writer);
}

absl::Status Step(Shell* shell, const StepFlags& flags) {
  StepOptions options;
  options.request_id = flags.request_id;
  options.grad_scale = flags.grad_scale;
  options.digest_state = flags.digest;
  absl::Status status = ParseMetrics(flags.metrics, &options.metrics);
  if (!status.ok()) return status;
  const absl::StatusOr<v1::Dtype> dtype = ParseDtype(flags.dtype);
  if (!dtype.ok()) return absl::InvalidArgumentError(absl::StrCat("--dtype: ", dtype.status().message()));
  options.gradient_dtype = *dtype;
  if (flags.rank.has_value()) options.contribution = {.rank = *flags.rank, .weight = flags.weight};

  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  // Who repeats a step by its name need not know whether it was the command or its answer that was lost.
  if (!flags.request_id.empty()) {
    const absl::StatusOr<v1::GetStepResultResponse> before = client->GetStepResult(flags.set, flags.request_id);
    if (!before.ok()) return before.status();
    if (before->state() == v1::STEP_STATE_COMMITTED) {
      if (!flags.output.empty()) {
        return absl::FailedPreconditionError(
            "the step was applied before, and its parameters are gone: read those of now with adamant read");
      }
      PrintResult(shell, before->result());
      return absl::OkStatus();
    }
  }
  absl::StatusOr<StepStream> stream = client->OpenStepStream(flags.set);
  if (!stream.ok()) return stream.status();
  if (flags.expected_step.has_value() && *flags.expected_step != stream->step()) {
    return absl::AbortedError(
        absl::StrCat("the set '", flags.set, "' is at step ", stream->step(), ", and not at ", *flags.expected_step));
  }
  if (flags.learning_rate.has_value()) {
    const absl::StatusOr<v1::ParameterSet> set = client->GetParameterSet(flags.set);
    if (!set.ok()) return set.status();
    for (const v1::ParameterGroup& group : set->groups()) {
      v1::GroupOverride& override = options.overrides.emplace_back();
      override.set_group(group.name());
      override.set_learning_rate(*flags.learning_rate);
    }
  }
  const absl::StatusOr<TensorMatch> match = TensorMatch::Find(flags.files, stream->tensors(), flags.partial);
  if (!match.ok()) return match.status();
  if (!match->complete()) options.tensors = match->present();
  if (!match->complete() && !flags.output.empty()) {
    return absl::InvalidArgumentError("--output is for steps of all tensors: only what a step brings comes back");
  }
  std::vector<absl::Span<float>> parameters;
  absl::StatusOr<std::optional<TensorFileWriter>> output = MakeOutput(flags, stream->tensors(), &parameters);
  if (!output.ok()) return output.status();
  options.omit_parameters = !output->has_value();
  options.read = match->Reader();
  options.progress = shell->ShowProgress("step");
  const absl::StatusOr<v1::StepResult> result = stream->Step(match->spans(), parameters, options);
  if (!result.ok()) return result.status();
  if (output->has_value()) status = (*output)->Commit();
  PrintResult(shell, *result);
  return status;
}

}  // namespace

void AddStepCommands(CLI::App* app, Shell* shell, Command* chosen) {
  const auto flags = std::make_shared<StepFlags>();
  CLI::App* const step = app->add_subcommand("step", "Applies one step, by a gradient that is in files.");
  step->add_option("SET", flags->set, "Name of the set.")->required();
  step->add_option("FILE", flags->files, kFilesHelp)->required()->type_name("[TENSOR=]FILE");
  step->add_flag("--partial", flags->partial, "Steps the tensors that the files have; the others keep all they have.");
  step->add_option("-o,--output", flags->output, "Where to put the parameters after the step.")->type_name("FILE");
  step->add_option("--expected-step", flags->expected_step, "Steps only from this step of the set.");
  step->add_option("--request-id", flags->request_id,
                   "Names the step: repeated under the same name, it is not applied twice.");
  step->add_option("--lr", flags->learning_rate, "Learning rate of this step alone, of all groups.");
  step->add_option("--grad-scale", flags->grad_scale, "What the gradient was multiplied with; it is divided out.")
      ->capture_default_str();
  step->add_option("--metric", flags->metrics, "What was measured, for those who watch; may be repeated.")
      ->type_name("NAME=NUMBER")
      ->allow_extra_args(false);
  step->add_flag("--digest", flags->digest, "Prints a hash of the set's new state, chained to the one before.");
  step->add_option("--dtype", flags->dtype, "How the gradient travels: float32, bfloat16 or float16.")
      ->capture_default_str();
  CLI::Option* const rank =
      step->add_option("--rank", flags->rank, "In a set with workers: which of them this is. Waits for the others.");
  step->add_option("--weight", flags->weight, "What it counts beside the others.")->needs(rank)->capture_default_str();
  step->footer("Exits with 10 when the step was not applied.");
  step->callback([=] { *chosen = [=] { return Step(shell, *flags); }; });
}

}  // namespace adamant::programs::cli
