// adamant-sanity-train: trains a small network on a server and says whether the losses are those of the reference.
//
// Losses and the verdict go to stdout; progress, waits, timings and errors to stderr. Exits with 1 after any error.
#include <adamant/client.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/command_line/command_line.h"
#include "client/programs/console.h"
#include "client/programs/layer_widths.h"
#include "client/programs/network_set.h"
#include "client/programs/optimizer_choice.h"
#include "client/programs/regression.h"
#include "client/programs/training.h"

using adamant::programs::LayerWidths;

ABSL_FLAG(std::string, target, "", "The server: host:port or unix:path.");
ABSL_FLAG(
    absl::Duration, timeout, absl::Seconds(10),
    "How long any one call may take, retries and waits for the server included, but not those for other workers.");
ABSL_FLAG(std::string, device, "", "Where the set lives: cpu or cuda:N. Empty: the server's default.");
ABSL_FLAG(bool, check, false, "Exit with 1 if the losses are not the reference's.");
ABSL_FLAG(LayerWidths, layers, LayerWidths({{2, 16, 1}}), "Inputs, units of each hidden layer, outputs.");
ABSL_FLAG(int32_t, samples, 0, "Samples of a made-up regression to learn. 0: the reference's single sample.");
ABSL_FLAG(int32_t, epochs, 50, "Passes over the samples.");
ABSL_FLAG(int32_t, batch, 0, "Samples in a step. 0: all.");
ABSL_FLAG(std::string, optimizer, "adam", "adam, adamw or sgd.");
ABSL_FLAG(double, lr, 1e-3, "The learning rate.");
ABSL_FLAG(std::optional<double>, weight_decay, std::nullopt,
          "How strongly weights are drawn towards zero. Not given: 0.01 with adamw, else 0.");
ABSL_FLAG(double, momentum, 0, "Of sgd.");
ABSL_FLAG(std::string, schedule, "constant",
          "How the learning rate goes on: constant; linear, cosine or polynomial:POWER, down to zero at the last step; "
          "exponential:GAMMA, by that factor a step; or step:STEPS:GAMMA, every so many steps.");
ABSL_FLAG(int64_t, warmup, 0, "Steps in which the learning rate rises from zero before that.");
ABSL_FLAG(double, clip, 0, "Gradients whose norm is larger are scaled down to it. 0: none are.");
ABSL_FLAG(std::string, dtype, "float32", "How gradients and parameters travel: float32, bfloat16 or float16.");
ABSL_FLAG(int32_t, workers, 1,
          "Threads that train the same set, each without waiting for the others. Give them a --batch to share.");
ABSL_FLAG(bool, synchronous, false, "Workers make each step together instead: each takes its share of every batch.");
ABSL_FLAG(int32_t, accumulate, 1, "Parts in which one worker computes and sends the gradient of each batch.");
ABSL_FLAG(uint32_t, seed, 0, "Of the first weights and of the samples.");

namespace adamant::programs {
namespace {

// After manual_seed(0), before the updates of epochs 5, 10, ..., 50.
constexpr const char* kReferenceLosses[] = {"0.809774", "0.721449", "0.638959", "0.562460", "0.491979",
                                            "0.428558", "0.372196", "0.320848", "0.274360", "0.232563"};
constexpr int kLines = std::size(kReferenceLosses);
constexpr int kMaxSamples = 1 << 24;
constexpr int kMaxWorkers = 64;
constexpr int kMaxParts = 64;

int64_t Samples() { return std::max(1, absl::GetFlag(FLAGS_samples)); }

int64_t SamplesOfBatch() {
  const int32_t batch = absl::GetFlag(FLAGS_batch);
  return batch == 0 ? Samples() : std::min<int64_t>(batch, Samples());
}

int64_t Steps() { return absl::GetFlag(FLAGS_epochs) * ((Samples() + SamplesOfBatch() - 1) / SamplesOfBatch()); }

absl::StatusOr<v1::ParameterGroup> Group() {
  return MakeGroup({.optimizer = absl::GetFlag(FLAGS_optimizer),
                    .learning_rate = absl::GetFlag(FLAGS_lr),
                    .weight_decay = absl::GetFlag(FLAGS_weight_decay),
                    .momentum = absl::GetFlag(FLAGS_momentum),
                    .schedule = absl::GetFlag(FLAGS_schedule),
                    .warmup_steps = absl::GetFlag(FLAGS_warmup)},
                   Steps());
}

// What is wrong with the flags, or nothing.
std::string FlagError(const std::vector<char*>& arguments) {
  std::string error = CommonFlagError(arguments, absl::GetFlag(FLAGS_target), absl::GetFlag(FLAGS_timeout));
  if (!error.empty()) return error;
  const int32_t samples = absl::GetFlag(FLAGS_samples);
  if (samples < 0 || samples > kMaxSamples) return absl::StrCat("--samples must be in [0, ", kMaxSamples, "]");
  if (absl::GetFlag(FLAGS_epochs) < 1) return "--epochs must be at least 1";
  const int32_t batch = absl::GetFlag(FLAGS_batch);
  if (batch < 0 || batch > kMaxSamples) return absl::StrCat("--batch must be in [0, ", kMaxSamples, "]");
  const int32_t workers = absl::GetFlag(FLAGS_workers);
  if (workers < 1 || workers > kMaxWorkers) return absl::StrCat("--workers must be in [1, ", kMaxWorkers, "]");
  const int32_t accumulate = absl::GetFlag(FLAGS_accumulate);
  if (accumulate < 1 || accumulate > kMaxParts) return absl::StrCat("--accumulate must be in [1, ", kMaxParts, "]");
  if (accumulate > 1 && workers > 1) return "--accumulate is for one of --workers";
  const int32_t parts = std::max(accumulate, absl::GetFlag(FLAGS_synchronous) ? workers : 1);
  const int64_t left_over = Samples() % SamplesOfBatch();
  if (const int64_t least = left_over == 0 ? SamplesOfBatch() : left_over; parts > least) {
    return absl::StrCat("every batch is cut into ", parts, " parts, and one has only ", least,
                        " samples: choose other --samples or another --batch");
  }
  if (!(absl::GetFlag(FLAGS_clip) >= 0)) return "--clip must not be negative";
  absl::Status status = ParseDtype(absl::GetFlag(FLAGS_dtype)).status();
  status.Update(Group().status());
  if (!status.ok()) return std::string(status.message());
  const LayerWidths layers = absl::GetFlag(FLAGS_layers);
  if (samples == 0 && (layers.values.front() != 2 || layers.values.back() != 1)) {
    return "--samples is needed with these --layers: the reference's sample has 2 inputs and 1 output";
  }
  return "";
}

bool IsReferenceRun() {
  return absl::GetFlag(FLAGS_layers).values == std::vector<int>{2, 16, 1} && absl::GetFlag(FLAGS_samples) == 0 &&
         absl::GetFlag(FLAGS_epochs) == 50 && absl::GetFlag(FLAGS_lr) == 1e-3 && absl::GetFlag(FLAGS_seed) == 0 &&
         absl::GetFlag(FLAGS_optimizer) == "adam" && absl::GetFlag(FLAGS_weight_decay).value_or(0) == 0 &&
         absl::GetFlag(FLAGS_schedule) == "constant" && absl::GetFlag(FLAGS_warmup) == 0 &&
         absl::GetFlag(FLAGS_clip) == 0 && absl::GetFlag(FLAGS_dtype) == "float32" &&
         absl::GetFlag(FLAGS_workers) == 1 && absl::GetFlag(FLAGS_accumulate) == 1;
}

// Requires: flags without an error.
TrainingPlan Plan() {
  const std::vector<int> widths = absl::GetFlag(FLAGS_layers).values;
  const int samples = absl::GetFlag(FLAGS_samples);
  const uint32_t seed = absl::GetFlag(FLAGS_seed);
  const int batch = absl::GetFlag(FLAGS_batch);
  v1::Clipping clipping;
  if (absl::GetFlag(FLAGS_clip) > 0) clipping.set_max_norm(absl::GetFlag(FLAGS_clip));
  return {.widths = widths,
          .data = samples == 0 ? ReferenceSample() : MakeRegression(widths.front(), widths.back(), samples, seed),
          .epochs = absl::GetFlag(FLAGS_epochs),
          .batch_size = batch == 0 ? kMaxSamples : batch,
          .group = *Group(),
          .seed = seed,
          .device = absl::GetFlag(FLAGS_device),
          .clipping = clipping,
          .dtype = *ParseDtype(absl::GetFlag(FLAGS_dtype)),
          .workers = absl::GetFlag(FLAGS_workers),
          .synchronous = absl::GetFlag(FLAGS_synchronous),
          .accumulate = absl::GetFlag(FLAGS_accumulate)};
}

int Main(const std::vector<char*>& arguments) {
  Console console("adamant-sanity-train");
  if (const std::string error = FlagError(arguments); !error.empty()) return console.Fail(error);
  if (absl::GetFlag(FLAGS_check) && !IsReferenceRun()) {
    return console.Fail("--check is for the reference run: leave the training flags");
  }
  const std::string target = absl::GetFlag(FLAGS_target);
  ClientOptions options = console.MakeClientOptions(absl::GetFlag(FLAGS_timeout));
  // Not to be taken for a server that does not answer: who is done first waits for the others.
  if (absl::GetFlag(FLAGS_synchronous)) options.retry.total_timeout += kRoundTimeout;
  const absl::StatusOr<Client> client = Client::Connect(target, options);
  if (!client.ok()) return console.Fail(absl::StrCat(target, ": ", client.status().ToString()));

  // The first one ends the training after this step and leaves no set behind.
  CatchInterrupts();
  const TrainingPlan plan = Plan();
  const int interval = std::max(1, plan.epochs / kLines);
  std::vector<std::string> losses;
  const auto after_step = [&](const TrainingProgress& progress) {
    const std::string loss = absl::StrFormat("%.6f", progress.loss);
    if (progress.epoch_done && progress.epoch % interval == 0) {
      console.Print(absl::StrFormat("Epoch %02d: loss = %s", progress.epoch, loss));
      losses.push_back(loss);
    }
    console.ShowProgress(progress.steps_done, progress.steps_in_all, absl::StrCat("loss ", loss));
    return !Interrupted();
  };
  const absl::StatusOr<TrainingSummary> summary = Train(plan, UniqueSetName("sanity-train"), *client, after_step);
  if (!summary.ok()) return console.Fail(absl::StrCat(target, ": ", summary.status().ToString()));

  bool matches = true;
  if (IsReferenceRun()) {
    matches = std::equal(losses.begin(), losses.end(), std::begin(kReferenceLosses), std::end(kReferenceLosses));
    console.Print(absl::StrFormat("The losses %s the reference.", matches ? "match" : "do not match"));
  }
  const double seconds = absl::ToDoubleSeconds(summary->elapsed);
  console.Note(absl::StrFormat("%d steps in %.3f s: %.0f a second; median of a remote step %.1f us", summary->steps,
                               seconds, summary->steps / seconds, absl::ToDoubleMicroseconds(summary->median_step)));
  return absl::GetFlag(FLAGS_check) && !matches ? 1 : 0;
}

}  // namespace
}  // namespace adamant::programs

int main(int argc, char** argv) {
  return adamant::programs::Main(adamant::ParseCommandLine(
      argc, argv,
      "trains a small network whose parameters and optimizer live on a server.\n"
      "  adamant-sanity-train --target=localhost:50051 --check\n"
      "  adamant-sanity-train --target=localhost:50051 --layers=2,64,64,1 --samples=4096 --batch=64 --epochs=20\n"
      "      --optimizer=adamw --schedule=cosine --warmup=64 --clip=1 --dtype=bfloat16 --workers=4\n"
      "  adamant-sanity-train --target=localhost:50051 --layers=2,64,64,1 --samples=4096 --batch=64 --epochs=20\n"
      "      --workers=4 --synchronous, or --accumulate=4",
      __FILE__));
}
