// Interleaved rounds on live connections.
#include "tests/bench/worker.h"

#include <adamant/client.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/src/channel.h"
#include "tests/bench/exchange.h"
#include "tests/bench/float_array.h"
#include "tests/bench/kernel_alone.h"
#include "tests/bench/socket_exchange.h"

namespace adamant::bench {
namespace {

// Memory is touched, pools are filled and connections have opened their windows after so many.
constexpr int kUncountedRounds = 3;
// The server's: a step of one block runs where it is.
constexpr int64_t kBlockElements = 65536;

// A set, while it is measured: of one tensor, or of some that are alike.
class RemoteSet {
 public:
  static absl::StatusOr<std::unique_ptr<RemoteSet>> Create(const std::string& target, int64_t params,
                                                           const std::string& device,
                                                           v1::Dtype dtype = v1::DTYPE_FLOAT32, int64_t table_rows = 0,
                                                           int64_t tensors = 1, const v1::Durability& durability = {}) {
    // A step that had to be tried twice is none to measure.
    ClientOptions options;
    options.retry.max_attempts = 1;
    // Memory for a large table is not there at once.
    options.unary_timeout = absl::Minutes(2);
    absl::StatusOr<Client> client = Client::Connect(target, options);
    if (!client.ok()) return client.status();
    std::random_device random;
    v1::ParameterSetSpec spec;
    spec.set_name(absl::StrFormat("bench/%08x%08x", random(), random()));
    spec.set_initialization(v1::INITIALIZATION_ZEROS);
    spec.set_device(device);
    if (durability.level_case() != v1::Durability::LEVEL_NOT_SET) *spec.mutable_durability() = durability;
    for (int64_t i = 0; i < tensors; ++i) {
      v1::TensorSpec* tensor = spec.add_tensors();
      tensor->set_name(absl::StrCat("parameters", i));
      tensor->add_shape(table_rows > 0 ? table_rows : params / tensors);
      if (table_rows > 0) tensor->add_shape(kRowElements);
    }
    const auto created = client->CreateParameterSet(spec);
    if (!created.ok()) return created.status();
    auto set = std::unique_ptr<RemoteSet>(new RemoteSet(*std::move(client), created->parameter_set()));
    set->options_.gradient_dtype = dtype;
    set->options_.reply_dtype = dtype;
    set->gradients_.resize(tensors);
    set->parameters_.resize(tensors);
    absl::StatusOr<StepStream> stream = set->client_.OpenStepStream(spec.name());
    if (!stream.ok()) return stream.status();
    set->stream_ = std::make_unique<StepStream>(*std::move(stream));
    return set;
  }

  ~RemoteSet() { client_.DeleteParameterSet(set_.name(), set_.incarnation()).IgnoreError(); }

  absl::Status Step(absl::Span<const float> gradient, absl::Span<float> parameters) {
    const size_t tensors = gradients_.size();
    for (size_t i = 0; i < tensors; ++i) {
      gradients_[i] = gradient.subspan(i * (gradient.size() / tensors), gradient.size() / tensors);
      parameters_[i] = parameters.subspan(i * (parameters.size() / tensors), parameters.size() / tensors);
    }
    const absl::StatusOr<v1::StepResult> result = stream_->Step(gradients_, parameters_, options_);
    if (!result.ok()) return result.status();
    return result->outcome() == v1::STEP_OUTCOME_APPLIED ? absl::OkStatus() : absl::InternalError("a step was skipped");
  }

  // Of these rows.
  absl::Status StepRows(absl::Span<const int64_t> rows, absl::Span<const float> gradient,
                        absl::Span<float> parameters) {
    options_.rows = {{.tensor = 0, .rows = rows, .values = gradient}};
    return Step({}, parameters);
  }

  // How many threads the server's kernel takes for a step of this set.
  absl::StatusOr<int> KernelThreads() {
    const absl::StatusOr<v1::GetServerInfoResponse> info = client_.GetServerInfo();
    if (!info.ok()) return info.status();
    if (info->devices().empty() || set_.parameter_count() <= kBlockElements) return 1;
    return std::max(1, info->devices(0).threads());
  }

 private:
  RemoteSet(Client client, v1::ParameterSet set) : client_(std::move(client)), set_(std::move(set)) {}

  Client client_;
  v1::ParameterSet set_;
  std::unique_ptr<StepStream> stream_;
  StepOptions options_;
  // A span for each tensor.
  std::vector<absl::Span<const float>> gradients_;
  std::vector<absl::Span<float>> parameters_;
};

absl::Status Time(std::vector<double>* samples, const std::function<absl::Status()>& round) {
  const int64_t begin = absl::GetCurrentTimeNanos();
  absl::Status status = round();
  samples->push_back(1e-9 * static_cast<double>(absl::GetCurrentTimeNanos() - begin));
  return status;
}

}  // namespace

absl::StatusOr<PairSamples> RunWorker(const WorkerPlan& plan) {
  const int64_t floats = std::max<int64_t>(plan.params, plan.exchange_bytes / sizeof(float));
  FloatArray gradient(floats, 0.01f);
  FloatArray parameters(floats, 0);

  std::unique_ptr<RemoteSet> set;
  if (!plan.server.empty()) {
    absl::StatusOr<std::unique_ptr<RemoteSet>> created =
        RemoteSet::Create(plan.server, plan.params, plan.device.empty() ? "" : "cpu", v1::DTYPE_FLOAT32,
                          /*table_rows=*/0, plan.tensors);
    if (!created.ok()) return created.status();
    set = *std::move(created);
  }
  std::unique_ptr<RemoteSet> on_device;
  if (!plan.device.empty()) {
    absl::StatusOr<std::unique_ptr<RemoteSet>> created = RemoteSet::Create(plan.server, plan.params, plan.device);
    if (!created.ok()) return created.status();
    on_device = *std::move(created);
  }
  std::unique_ptr<RemoteSet> of_halves;
  if (plan.dtype != v1::DTYPE_FLOAT32) {
    absl::StatusOr<std::unique_ptr<RemoteSet>> created = RemoteSet::Create(plan.server, plan.params, "", plan.dtype);
    if (!created.ok()) return created.status();
    of_halves = *std::move(created);
  }
  std::unique_ptr<RemoteSet> kept;
  if (plan.durability.level_case() != v1::Durability::LEVEL_NOT_SET) {
    absl::StatusOr<std::unique_ptr<RemoteSet>> created = RemoteSet::Create(
        plan.server, plan.params, "", v1::DTYPE_FLOAT32, /*table_rows=*/0, /*tensors=*/1, plan.durability);
    if (!created.ok()) return created.status();
    kept = *std::move(created);
  }
  std::unique_ptr<RemoteSet> table;
  std::vector<int64_t> rows(plan.table_rows > 0 ? plan.params / kRowElements : 0);
  // Of which the rows alone are ever touched.
  FloatArray table_parameters(std::max<int64_t>(1, plan.table_rows * kRowElements));
  if (plan.table_rows > 0) {
    absl::StatusOr<std::unique_ptr<RemoteSet>> created =
        RemoteSet::Create(plan.server, 0, "", v1::DTYPE_FLOAT32, plan.table_rows);
    if (!created.ok()) return created.status();
    table = *std::move(created);
  }
  std::mt19937_64 row_random(2);
  const auto source = absl::MakeConstSpan(gradient.bytes(), plan.exchange_bytes);
  const auto sink = absl::MakeSpan(parameters.bytes(), plan.exchange_bytes);
  std::unique_ptr<ExchangeCall> exchange;
  if (!plan.peer.empty()) {
    ClientOptions options;
    options.channel_arguments = [&](grpc::ChannelArguments* arguments) { AddClientSettings(plan.settings, arguments); };
    exchange = std::make_unique<ExchangeCall>(MakeChannel(plan.peer, options), source, sink, plan.settings);
  }
  std::unique_ptr<SocketExchange> tcp;
  if (!plan.tcp_peer.empty()) {
    absl::StatusOr<std::unique_ptr<SocketExchange>> connected = SocketExchange::Connect(plan.tcp_peer, source, sink);
    if (!connected.ok()) return connected.status();
    tcp = *std::move(connected);
  }
  std::unique_ptr<KernelAlone> kernel;
  if (set && exchange) {
    const absl::StatusOr<int> threads = set->KernelThreads();
    if (!threads.ok()) return threads.status();
    kernel = std::make_unique<KernelAlone>(plan.params, *threads);
  }

  std::vector<std::pair<Part, std::function<absl::Status()>>> parts;
  if (set) {
    parts.emplace_back(Part::kStep, [&] {
      return set->Step(gradient.span().first(plan.params), parameters.span().first(plan.params));
    });
  }
  if (on_device) {
    parts.emplace_back(Part::kDeviceStep, [&] {
      return on_device->Step(gradient.span().first(plan.params), parameters.span().first(plan.params));
    });
  }
  if (of_halves) {
    parts.emplace_back(Part::kHalfStep, [&] {
      return of_halves->Step(gradient.span().first(plan.params), parameters.span().first(plan.params));
    });
  }
  if (table) {
    parts.emplace_back(Part::kRowsStep, [&] {
      return table->StepRows(rows, gradient.span().first(plan.params), table_parameters.span());
    });
  }
  if (kept) {
    parts.emplace_back(Part::kDurableStep, [&] {
      return kept->Step(gradient.span().first(plan.params), parameters.span().first(plan.params));
    });
  }
  if (exchange) parts.emplace_back(Part::kExchange, [&] { return exchange->Round(); });
  if (tcp) parts.emplace_back(Part::kTcp, [&] { return tcp->Round(); });
  if (kernel) {
    parts.emplace_back(Part::kKernel, [&] {
      kernel->Round();
      return absl::OkStatus();
    });
  }

  PairSamples samples;
  std::mt19937 random(1);
  for (int round = 0; round < kUncountedRounds + plan.steps; ++round) {
    if (round == kUncountedRounds) samples.clear();
    // What comes first in a round leaves caches and sleeping threads to the next: each follows each of the others.
    std::shuffle(parts.begin(), parts.end(), random);
    for (int64_t& row : rows) row = std::uniform_int_distribution<int64_t>(0, plan.table_rows - 1)(row_random);
    for (const auto& [part, run] : parts) {
      if (absl::Status status = Time(&samples[part], run); !status.ok()) return status;
    }
  }
  return samples;
}

std::string SamplesLine(const std::vector<double>& samples) { return absl::StrJoin(samples, " "); }

absl::StatusOr<std::vector<double>> ParseSamplesLine(absl::string_view line) {
  std::vector<double> samples;
  for (absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
    double sample;
    if (!absl::SimpleAtod(word, &sample)) return absl::InternalError(absl::StrCat("not a time: '", word, "'"));
    samples.push_back(sample);
  }
  return samples;
}

}  // namespace adamant::bench
