// adamant-diloco: DiLoCo's outer loop, a worked example.
//
// DiLoCo (Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023) trains one
// network on machines between which little can be sent. Each of K workers has a shard of the samples and a copy of the
// network, and trains that alone, with an optimizer of its own, for H steps. Then it sends how far it has come: the
// parameters that it started from less those that it has now, its pseudo-gradient. The mean of these is the gradient of
// one step of an outer optimizer, SGD with Nesterov momentum, and from what that makes of the parameters all workers
// start again. So they talk every H steps, and not every step: 1/H of the traffic of adamant-sanity-train
// --synchronous, where all workers make each step together.
//
// What is the server's business:
//   The outer parameters and their momentum are a parameter set of one group: Sgd, learning rate 0.7, Nesterov momentum
//   0.9, as in the paper (OuterSet).
//   The mean is a round of the set's `workers`: a pseudo-gradient is one contribution to it, of its worker's rank, and
//   a step is made when all have come. Its bits do not depend on who comes first.
//   Who does not come is left out: `round_timeout` after the first contribution the step is made of those that there
//   are, if they are a `quorum`. So a worker that is killed costs the others the wait, and nothing else.
//   Who comes too late for a round is told so (REFUSED_LATE), with the parameters of now, and goes on from there: its
//   H steps were in vain. So a worker joins at any time by just reading the parameters and starting.
//   Counting once: a contribution has a name that follows from rank and round. A worker that was killed after it had
//   sent one, and was started again, may send it again, and still counts once.
//
// What is a worker's business: samples, gradients, and the local optimizer, here LocalAdam, which nobody else sees, and
// whose moments stay with the worker from round to round. Where a worker is in its samples, and what its learning rate
// is, follows from the set's step: so whoever joins late, or again, is where the others are.
//
// Who begins: all workers create the set, and the server takes the first and gives it to the others
// (IF_EXISTS_USE_IF_SAME_SPEC). All that find it without parameters write those of the --seed, and demand the
// incarnation that they have seen: the first write makes another one, so that it is the only one (Begin).
//
// K workers as threads of one program, or each as a program of its own, to be killed and started again at will:
//   adamant-diloco --target=localhost:50051
//   for rank in 0 1 2 3; do adamant-diloco --target=localhost:50051 --set=diloco/1 --rank=$rank & done
// The parameters stay in a set that --set names; another run with it goes on where it stands.
//
// How it compares. The defaults see each sample as often as
//   adamant-sanity-train --target=localhost:50051 --layers=96,4,1 --samples=4096 --epochs=30 --batch=64 --lr=0.02
//       --schedule=linear --synchronous --workers=4
// in 120 exchanges a worker instead of 1,920. Losses at the end, over all samples, which are the same in every run (of
// the synchronous training those of its last pass, 0.3 % more than after it, to which 0.02 is as good a learning rate
// as any of 0.005 to 0.04, within 1 %):
//   --seed                            0         1         2         3         4
//   synchronous                       3.341     3.403     2.915     3.040     2.694
//   120 steps of 16 local ones        3.247     3.391     2.933     3.064     2.680    at most 1 % more
//   60 steps of 32                    3.330     3.453     3.021     3.103     2.733    at most 4 % more
// tests/e2e/diloco_test.cc holds the first three columns to 2 %. The network is too small for what it learns, so that
// there is a loss to converge to. Where the loss would go on to zero it says how fast a training is, and no more: with
// --layers=8,32,32,1 --samples=1024 a learning rate of 0.001 leaves DiLoCo 0.0039 and synchronous training 0.0095, as
// the outer momentum makes steps longer, and 0.01, where that is no help, 0.0018 and 0.0015.
//
// Losses go to stdout; progress, waits, counts and errors to stderr. Exits with 1 after any error.
#include <adamant/client.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/command_line/command_line.h"
#include "client/programs/console.h"
#include "client/programs/initialization.h"
#include "client/programs/layer_widths.h"
#include "client/programs/mlp.h"
#include "client/programs/network_set.h"
#include "client/programs/regression.h"

using adamant::programs::LayerWidths;

ABSL_FLAG(std::string, target, "", "The server: host:port or unix:path.");
ABSL_FLAG(
    absl::Duration, timeout, absl::Seconds(10),
    "How long any one call may take, retries and waits for the server included, but not those for other workers.");
ABSL_FLAG(std::string, set, "", "Name of the set, which then stays. Empty: one of this run's own, which does not.");
ABSL_FLAG(std::optional<int32_t>, rank, std::nullopt,
          "Be this worker alone, from 0; the others are programs of their own. Not given: be all of them.");
ABSL_FLAG(int32_t, workers, 4, "How many train together.");
ABSL_FLAG(int32_t, quorum, 0, "Of how many workers a step is made at least. 0: all but one.");
ABSL_FLAG(absl::Duration, round_timeout, absl::Seconds(5), "How long a step waits for those who have not come.");
ABSL_FLAG(LayerWidths, layers, LayerWidths({{96, 4, 1}}), "Inputs, units of each hidden layer, outputs.");
ABSL_FLAG(int32_t, samples, 4096, "Samples of a made-up regression to learn, of which each worker has its share.");
ABSL_FLAG(int32_t, steps, 120, "Outer steps.");
ABSL_FLAG(int32_t, local_steps, 16, "Steps that a worker makes alone for each outer one.");
ABSL_FLAG(int32_t, batch, 16, "Samples in a local step.");
ABSL_FLAG(double, lr, 0.02, "The learning rate of the first local step; it falls to zero at the last one.");
ABSL_FLAG(uint32_t, seed, 0, "Of the first weights and of the samples.");

namespace adamant::programs {
namespace {

constexpr int kMaxWorkers = 64;
constexpr int kMaxSamples = 1 << 24;
constexpr int kLines = 8;
constexpr double kOuterLearningRate = 0.7;
constexpr double kOuterMomentum = 0.9;

// What all workers of a set agree on.
struct Plan {
  std::vector<int> widths;
  Batch samples;
  int workers;
  int quorum;
  absl::Duration round_timeout;
  int64_t steps;
  int local_steps;
  int batch_size;
  double learning_rate;
  uint32_t seed;
};

// The optimizer of one worker: Adam as its authors have it, in fp32.
class LocalAdam {
 public:
  explicit LocalAdam(int64_t size) : m_(size), v_(size) {}

  // Requires: both of the size that this was made for.
  void Step(absl::Span<const float> gradient, double learning_rate, absl::Span<float> parameters) {
    ++steps_;
    const auto rate = static_cast<float>(learning_rate / (1 - std::pow(0.9, steps_)));
    const auto correction = static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, steps_)));
    for (size_t i = 0; i < gradient.size(); ++i) {
      m_[i] = 0.9f * m_[i] + 0.1f * gradient[i];
      v_[i] = 0.999f * v_[i] + 0.001f * gradient[i] * gradient[i];
      parameters[i] -= rate * m_[i] / (std::sqrt(v_[i]) * correction + 1e-8f);
    }
  }

 private:
  std::vector<float> m_;
  std::vector<float> v_;
  int64_t steps_ = 0;
};

v1::ParameterSetSpec OuterSet(const std::string& name, const Plan& plan) {
  v1::ParameterGroup group;
  group.set_learning_rate(kOuterLearningRate);
  group.mutable_sgd()->set_momentum(kOuterMomentum);
  group.mutable_sgd()->set_nesterov(true);
  v1::ParameterSetSpec spec = NetworkSpec(name, Mlp(plan.widths), group);
  spec.mutable_workers()->set_count(plan.workers);
  spec.mutable_workers()->set_quorum(plan.quorum);
  spec.mutable_workers()->set_round_timeout_seconds(absl::ToDoubleSeconds(plan.round_timeout));
  return spec;
}

// Waits until somebody has written the set's parameters.
absl::Status AwaitParameters(const std::string& name, Client& client) {
  const absl::StatusOr<std::unique_ptr<EventStream>> events = client.Watch(name);
  if (!events.ok()) return events.status();
  while (true) {
    const auto event = (*events)->Next();
    if (!event.ok()) return event.status();
    if (!event->has_value()) return absl::NotFoundError("the set was deleted");
    if ((*event)->has_written() || (*event)->current().state() == v1::PARAMETER_SET_STATE_READY) {
      return absl::OkStatus();
    }
  }
}

// Creates the set if nobody has, and writes its first parameters if nobody has.
absl::Status Begin(const std::string& name, const Plan& plan, Client& client) {
  const auto created = client.CreateParameterSet(OuterSet(name, plan), v1::IF_EXISTS_USE_IF_SAME_SPEC);
  if (!created.ok()) return Annotate(created.status(), "cannot create the set");
  const v1::ParameterSet& set = created->parameter_set();
  if (set.state() != v1::PARAMETER_SET_STATE_UNINITIALIZED) return absl::OkStatus();
  const std::vector<float> first = InitialParameters(plan.widths, plan.seed);
  const auto written = client.WriteParameters(name, SplitByTensor(Mlp(plan.widths), absl::MakeConstSpan(first)),
                                              {.incarnation = set.incarnation()});
  // Somebody else has written them, or is about to.
  if (absl::IsAborted(written.status())) return AwaitParameters(name, client);
  return written.ok() ? absl::OkStatus() : Annotate(written.status(), "cannot write the first parameters");
}

// One worker's part of the training.
class Worker {
 public:
  Worker(const Plan& plan, int rank)
      : plan_(plan),
        rank_(rank),
        mlp_(plan.widths),
        batches_(SplitIntoBatches(SplitEvenly(plan.samples, plan.workers)[rank], plan.batch_size)),
        optimizer_(mlp_.parameter_count()),
        start_(mlp_.parameter_count()),
        local_(mlp_.parameter_count()),
        gradient_(mlp_.parameter_count()) {}

  // Works until the set is at its last step, whoever else does. Tells `console` of it, unless that is null.
  absl::Status Run(StepStream stream, Console* console) {
    const std::vector<absl::Span<float>> start = SplitByTensor(mlp_, absl::MakeSpan(start_));
    const std::vector<absl::Span<const float>> pseudo_gradient = SplitByTensor(mlp_, absl::MakeConstSpan(gradient_));
    absl::Status status = stream.Refresh(start);
    while (status.ok() && stream.step() < plan_.steps && !Interrupted()) {
      const int64_t step = stream.step();
      TrainAlone(step);
      for (size_t i = 0; i < gradient_.size(); ++i) gradient_[i] = start_[i] - local_[i];
      const absl::StatusOr<v1::StepResult> result =
          stream.Step(pseudo_gradient, start,
                      {.request_id = absl::StrCat("round-", stream.round(), "-rank-", rank_),
                       .contribution = StepOptions::Contribution{.rank = rank_}});
      if (absl::IsAborted(result.status())) {
        // The set has moved on in between, as it may while a worker joins.
        status = stream.Refresh(start);
        continue;
      }
      if (!result.ok()) return result.status();
      if (result->outcome() == v1::STEP_OUTCOME_SKIPPED_NON_FINITE) {
        return absl::FailedPreconditionError("a pseudo-gradient is not finite: the training has diverged");
      }
      ++contributions_;
      if (result->outcome() == v1::STEP_OUTCOME_REFUSED_LATE) ++late_;
      if (console != nullptr) Tell(step, *result, stream.step(), console);
    }
    return status;
  }

  int64_t contributions() const { return contributions_; }
  int64_t late() const { return late_; }

 private:
  // Sets `local_` to what becomes of `start_`, which are the parameters of this outer step.
  void TrainAlone(int64_t step) {
    local_ = start_;
    for (int64_t i = step * plan_.local_steps; i < (step + 1) * plan_.local_steps; ++i) {
      const double left = 1 - static_cast<double>(i) / static_cast<double>(plan_.steps * plan_.local_steps);
      mlp_.LossAndGradient(local_, batches_[i % batches_.size()], absl::MakeSpan(gradient_));
      optimizer_.Step(gradient_, plan_.learning_rate * left, absl::MakeSpan(local_));
    }
  }

  // `start_` has become that of the step `now`; before, it was that of `before`.
  void Tell(int64_t before, const v1::StepResult& result, int64_t now, Console* console) {
    const int64_t interval = std::max<int64_t>(1, plan_.steps / kLines);
    if (now / interval > before / interval || now >= plan_.steps) {
      const bool is_late = result.outcome() == v1::STEP_OUTCOME_REFUSED_LATE;
      const std::string who = is_late ? "without this worker" : absl::StrCat("of ", result.contributions(), " workers");
      const float loss = mlp_.LossAndGradient(start_, plan_.samples, absl::MakeSpan(gradient_));
      console->Print(absl::StrFormat("Step %03d, %s: loss = %.6f", now, who, loss));
    }
    console->ShowProgress(std::min(now, plan_.steps), plan_.steps, absl::StrCat("step ", now));
  }

  const Plan& plan_;
  const int rank_;
  Mlp mlp_;
  const std::vector<Batch> batches_;
  LocalAdam optimizer_;
  std::vector<float> start_;     // the outer parameters, from which this round's local steps go
  std::vector<float> local_;     // and where they have come
  std::vector<float> gradient_;  // of a local step, and then the pseudo-gradient
  int64_t contributions_ = 0;
  int64_t late_ = 0;
};

// Runs these workers, each on a thread of its own, until all have ended; the first of them tells of it.
absl::Status RunWorkers(const std::string& name, const Plan& plan, const std::vector<int>& ranks, Client& client,
                        Console* console) {
  const absl::Time began = absl::Now();
  absl::Status begun = Begin(name, plan, client);
  if (!begun.ok()) return begun;
  std::vector<Worker> workers;
  for (const int rank : ranks) workers.emplace_back(plan, rank);
  std::vector<absl::Status> statuses(workers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < workers.size(); ++i) {
    threads.emplace_back([&, i] {
      absl::StatusOr<StepStream> stream = client.OpenStepStream(name);
      statuses[i] = stream.ok() ? workers[i].Run(*std::move(stream), i == 0 ? console : nullptr) : stream.status();
    });
  }
  for (std::thread& thread : threads) thread.join();

  int64_t contributions = 0;
  int64_t late = 0;
  for (size_t i = 0; i < workers.size(); ++i) {
    if (!statuses[i].ok()) return Annotate(statuses[i], absl::StrCat("worker ", ranks[i]));
    contributions += workers[i].contributions();
    late += workers[i].late();
  }
  if (Interrupted()) return absl::CancelledError("interrupted");
  console->Note(absl::StrFormat("%d contributions of %d local steps, %d of them late, in %.3f s", contributions,
                                plan.local_steps, late, absl::ToDoubleSeconds(absl::Now() - began)));
  return absl::OkStatus();
}

// What is wrong with the flags, or nothing.
std::string FlagError(const std::vector<char*>& arguments) {
  std::string error = CommonFlagError(arguments, absl::GetFlag(FLAGS_target), absl::GetFlag(FLAGS_timeout));
  if (!error.empty()) return error;
  const int32_t workers = absl::GetFlag(FLAGS_workers);
  if (workers < 1 || workers > kMaxWorkers) return absl::StrCat("--workers must be in [1, ", kMaxWorkers, "]");
  const int32_t quorum = absl::GetFlag(FLAGS_quorum);
  if (quorum < 0 || quorum > workers) return absl::StrCat("--quorum must be in [0, ", workers, "]");
  if (const std::optional<int32_t> rank = absl::GetFlag(FLAGS_rank); rank.has_value()) {
    if (*rank < 0 || *rank >= workers) return absl::StrCat("--rank must be in [0, ", workers, ")");
    if (absl::GetFlag(FLAGS_set).empty()) return "--rank needs --set, so that the workers find each other";
  }
  if (absl::GetFlag(FLAGS_round_timeout) <= absl::ZeroDuration()) return "--round_timeout must be positive";
  const int32_t samples = absl::GetFlag(FLAGS_samples);
  if (samples < workers || samples > kMaxSamples) {
    return absl::StrCat("--samples must be in [", workers, ", ", kMaxSamples, "]: at least one for each worker");
  }
  if (absl::GetFlag(FLAGS_steps) < 1) return "--steps must be at least 1";
  if (absl::GetFlag(FLAGS_local_steps) < 1) return "--local_steps must be at least 1";
  const int32_t batch = absl::GetFlag(FLAGS_batch);
  if (batch < 1 || batch > kMaxSamples) return absl::StrCat("--batch must be in [1, ", kMaxSamples, "]");
  if (!(absl::GetFlag(FLAGS_lr) >= 0)) return "--lr must not be negative";
  return "";
}

// Requires: flags without an error.
Plan MakePlan() {
  const std::vector<int> widths = absl::GetFlag(FLAGS_layers).values;
  const int workers = absl::GetFlag(FLAGS_workers);
  const int quorum = absl::GetFlag(FLAGS_quorum);
  const uint32_t seed = absl::GetFlag(FLAGS_seed);
  return {.widths = widths,
          .samples = MakeRegression(widths.front(), widths.back(), absl::GetFlag(FLAGS_samples), seed),
          .workers = workers,
          .quorum = quorum == 0 ? std::max(1, workers - 1) : quorum,
          .round_timeout = absl::GetFlag(FLAGS_round_timeout),
          .steps = absl::GetFlag(FLAGS_steps),
          .local_steps = absl::GetFlag(FLAGS_local_steps),
          .batch_size = absl::GetFlag(FLAGS_batch),
          .learning_rate = absl::GetFlag(FLAGS_lr),
          .seed = seed};
}

int Main(const std::vector<char*>& arguments) {
  Console console("adamant-diloco");
  if (const std::string error = FlagError(arguments); !error.empty()) return console.Fail(error);
  const Plan plan = MakePlan();
  const std::string target = absl::GetFlag(FLAGS_target);
  ClientOptions options = console.MakeClientOptions(absl::GetFlag(FLAGS_timeout));
  options.retry.total_timeout += plan.round_timeout;
  absl::StatusOr<Client> client = Client::Connect(target, options);
  if (!client.ok()) return console.Fail(absl::StrCat(target, ": ", client.status().ToString()));

  std::vector<int> ranks;
  for (int rank = 0; rank < plan.workers; ++rank) {
    if (absl::GetFlag(FLAGS_rank).value_or(rank) == rank) ranks.push_back(rank);
  }
  const bool stays = !absl::GetFlag(FLAGS_set).empty();
  const std::string name = stays ? absl::GetFlag(FLAGS_set) : UniqueSetName("diloco");
  CatchInterrupts();
  absl::Status status = RunWorkers(name, plan, ranks, *client, &console);
  if (!stays && !absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
    status.Update(DeleteSet(name, *client));
  }
  return status.ok() ? 0 : console.Fail(absl::StrCat(target, ": ", status.ToString()));
}

}  // namespace
}  // namespace adamant::programs

int main(int argc, char** argv) {
  return adamant::programs::Main(adamant::ParseCommandLine(
      argc, argv,
      "trains one network by several workers that seldom talk: DiLoCo's outer loop.\n"
      "  adamant-diloco --target=localhost:50051\n"
      "  adamant-diloco --target=localhost:50051 --set=diloco/1 --rank=0, and so on for each of the --workers",
      __FILE__));
}
