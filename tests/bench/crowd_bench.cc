// What clients get of a running server that several use at the same time: small sets together, and one beside a large
// set. Clients of small sets are threads of this process, each with a connection and a set of its own; that of a large
// one and the server are other processes: what shares a process shares gRPC's threads.
//   crowd_bench --target=HOST:PORT [--durability=every_step] [--writers=16] [--beside=67108864]
// Prints rates, times and their ratios, which are of one run: each thing is measured in turn with what it is compared
// with.
#include <adamant/client.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/command_line/command_line.h"
#include "client/command_line/durability_flag.h"
#include "tests/bench/child_process.h"
#include "tests/bench/samples.h"

ABSL_FLAG(std::string, target, "", "A running server.");
ABSL_FLAG(std::string, durability, "every_step", "What is kept of the sets, as in the server's flag.");
ABSL_FLAG(int64_t, params, 65, "Parameters of a small set.");
ABSL_FLAG(int, writers, 16, "Small sets that step at the same time.");
ABSL_FLAG(int64_t, beside, 0, "Parameters of a large set, beside which a small one steps. 0: there is none.");
ABSL_FLAG(int, steps, 2000, "Of each small set, in each round.");
ABSL_FLAG(int, rounds, 5, "Rounds.");
ABSL_FLAG(bool, endless, false, "Step one set until the process is ended. Says when it has begun.");

namespace adamant::bench {
namespace {

constexpr char kLargeSet[] = "crowd/large";

// A client and its set, which ends with it.
class Writer {
 public:
  static absl::StatusOr<std::unique_ptr<Writer>> Create(int64_t params) {
    ClientOptions options;
    options.unary_timeout = absl::Minutes(2);
    absl::StatusOr<Client> client = Client::Connect(absl::GetFlag(FLAGS_target), options);
    if (!client.ok()) return client.status();
    absl::StatusOr<v1::Durability> durability = ParseDurability(absl::GetFlag(FLAGS_durability));
    if (!durability.ok()) return durability.status();
    std::random_device random;
    v1::ParameterSetSpec spec;
    spec.set_name(absl::GetFlag(FLAGS_endless) ? kLargeSet : absl::StrFormat("crowd/%08x%08x", random(), random()));
    spec.set_initialization(v1::INITIALIZATION_ZEROS);
    *spec.mutable_durability() = *std::move(durability);
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name("parameters");
    tensor->add_shape(params);
    const auto created = client->CreateParameterSet(spec);
    if (!created.ok()) return created.status();
    absl::StatusOr<StepStream> stream = client->OpenStepStream(spec.name());
    if (!stream.ok()) return stream.status();
    return std::unique_ptr<Writer>(
        new Writer(*std::move(client), *std::move(stream), created->parameter_set(), params));
  }
  ~Writer() { client_.DeleteParameterSet(set_.name(), set_.incarnation()).IgnoreError(); }

  absl::Status DeleteSet(const std::string& name) {
    const absl::StatusOr<v1::ParameterSet> set = client_.GetParameterSet(name);
    return set.ok() ? client_.DeleteParameterSet(name, set->incarnation()) : set.status();
  }

  absl::Status Step() {
    const absl::Span<const float> gradients[] = {gradient_};
    const absl::Span<float> parameters[] = {absl::MakeSpan(parameters_)};
    return stream_.Step(gradients, parameters).status();
  }

 private:
  Writer(Client client, StepStream stream, v1::ParameterSet set, int64_t params)
      : client_(std::move(client)),
        stream_(std::move(stream)),
        set_(std::move(set)),
        gradient_(params, 0.01f),
        parameters_(params) {}

  Client client_;
  StepStream stream_;
  const v1::ParameterSet set_;
  const std::vector<float> gradient_;
  std::vector<float> parameters_;
};

// Seconds of each step.
absl::Status StepAndTime(Writer* writer, std::vector<double>* times) {
  for (int i = 0; i < absl::GetFlag(FLAGS_steps); ++i) {
    const int64_t begin = absl::GetCurrentTimeNanos();
    if (absl::Status status = writer->Step(); !status.ok()) return status;
    times->push_back(1e-9 * static_cast<double>(absl::GetCurrentTimeNanos() - begin));
  }
  return absl::OkStatus();
}

// Steps a second of all of them together.
absl::StatusOr<double> Rate(absl::Span<const std::unique_ptr<Writer>> writers) {
  std::vector<absl::Status> statuses(writers.size());
  std::vector<std::thread> threads;
  const int64_t begin = absl::GetCurrentTimeNanos();
  for (size_t i = 0; i < writers.size(); ++i) {
    threads.emplace_back([&, i] {
      std::vector<double> times;
      statuses[i] = StepAndTime(writers[i].get(), &times);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = 1e-9 * static_cast<double>(absl::GetCurrentTimeNanos() - begin);
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return static_cast<double>(writers.size()) * absl::GetFlag(FLAGS_steps) / seconds;
}

double Quantile(std::vector<double> values, double quantile) {
  const auto at = values.begin() + static_cast<int64_t>(quantile * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

std::string Spread(const std::vector<double>& values) {
  return absl::StrFormat("%.2f (%.2f-%.2f)", Median(values), Min(values), Max(values));
}

absl::Status MeasureTogether() {
  std::vector<std::unique_ptr<Writer>> writers;
  for (int i = 0; i < absl::GetFlag(FLAGS_writers); ++i) {
    absl::StatusOr<std::unique_ptr<Writer>> writer = Writer::Create(absl::GetFlag(FLAGS_params));
    if (!writer.ok()) return writer.status();
    writers.push_back(*std::move(writer));
  }
  std::vector<double> alone, together, ratios;
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    const absl::StatusOr<double> one = Rate(absl::MakeConstSpan(writers).first(1));
    if (!one.ok()) return one.status();
    const absl::StatusOr<double> all = Rate(writers);
    if (!all.ok()) return all.status();
    alone.push_back(*one);
    together.push_back(*all);
    ratios.push_back(*all / *one);
  }
  std::cout << absl::StrFormat("1 set: %.0f steps/s; %d sets: %.0f; ratio %s\n", Median(alone),
                               absl::GetFlag(FLAGS_writers), Median(together), Spread(ratios));
  return absl::OkStatus();
}

// The client of a large set, which steps it for as long as this lives.
absl::StatusOr<std::unique_ptr<ChildProcess>> StepLargeSet() {
  absl::StatusOr<std::unique_ptr<ChildProcess>> process =
      ChildProcess::Start({std::filesystem::read_symlink("/proc/self/exe").string(), "--endless",
                           absl::StrCat("--target=", absl::GetFlag(FLAGS_target)),
                           absl::StrCat("--durability=", absl::GetFlag(FLAGS_durability)),
                           absl::StrCat("--params=", absl::GetFlag(FLAGS_beside))},
                          {});
  if (!process.ok()) return process.status();
  if (absl::StatusOr<std::string> line = (*process)->ReadLine(); !line.ok()) return line.status();
  return process;
}

absl::Status StepEndlessly() {
  absl::StatusOr<std::unique_ptr<Writer>> writer = Writer::Create(absl::GetFlag(FLAGS_params));
  absl::Status status = writer.status();
  if (status.ok()) status = (*writer)->Step();
  if (status.ok()) std::cout << "stepping" << std::endl;
  while (status.ok()) status = (*writer)->Step();
  return status;
}

absl::Status MeasureBeside() {
  absl::StatusOr<std::unique_ptr<Writer>> small = Writer::Create(absl::GetFlag(FLAGS_params));
  if (!small.ok()) return small.status();
  std::vector<double> alone50, alone99, beside50, beside99, ratios50, ratios99;
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    std::vector<double> alone, beside;
    if (absl::Status status = StepAndTime(small->get(), &alone); !status.ok()) return status;
    {
      const absl::StatusOr<std::unique_ptr<ChildProcess>> large = StepLargeSet();
      if (!large.ok()) return large.status();
      if (absl::Status status = StepAndTime(small->get(), &beside); !status.ok()) return status;
    }
    // The process has left it.
    if (absl::Status status = (*small)->DeleteSet(kLargeSet); !status.ok()) return status;
    alone50.push_back(Quantile(alone, 0.5));
    alone99.push_back(Quantile(alone, 0.99));
    beside50.push_back(Quantile(beside, 0.5));
    beside99.push_back(Quantile(beside, 0.99));
    ratios50.push_back(beside50.back() / alone50.back());
    ratios99.push_back(beside99.back() / alone99.back());
  }
  std::cout << absl::StrFormat(
      "a small step alone: p50 %.0f us, p99 %.0f us; beside steps of %d: %.0f, %.0f; ratio of p50 %s, of p99 %s\n",
      1e6 * Median(alone50), 1e6 * Median(alone99), absl::GetFlag(FLAGS_beside), 1e6 * Median(beside50),
      1e6 * Median(beside99), Spread(ratios50), Spread(ratios99));
  return absl::OkStatus();
}

}  // namespace
}  // namespace adamant::bench

int main(int argc, char** argv) {
  adamant::ParseCommandLine(argc, argv, "steps many small sets at a running server, or one beside a large one",
                            __FILE__);
  const absl::Status status = absl::GetFlag(FLAGS_endless)      ? adamant::bench::StepEndlessly()
                              : absl::GetFlag(FLAGS_beside) > 0 ? adamant::bench::MeasureBeside()
                                                                : adamant::bench::MeasureTogether();
  if (status.ok()) return 0;
  std::cerr << "crowd_bench: " << status << "\n";
  return 1;
}
