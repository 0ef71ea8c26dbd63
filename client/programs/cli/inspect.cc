// What is there: list, get, info, delete, watch.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command_line/durability_flag.h"
#include "client/programs/cli/set_flags.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

constexpr int kListPageSize = 1000;

std::string State(const v1::ParameterSet& set) {
  return RenderEnum(v1::ParameterSetState_Name(set.state()), "PARAMETER_SET_STATE_");
}

// What the groups of a set are updated by, each once.
std::string Optimizers(const v1::ParameterSet& set) {
  std::vector<std::string> names;
  for (const v1::ParameterGroup& group : set.groups()) {
    const std::string name = OptimizerName(group);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return absl::StrJoin(names, ",");
}

std::string Clipping(const v1::Clipping& clipping) {
  switch (clipping.bound_case()) {
    case v1::Clipping::kMaxNorm:
      return absl::StrCat("norm ", RenderNumber(clipping.max_norm()));
    case v1::Clipping::kMaxValue:
      return absl::StrCat("value ", RenderNumber(clipping.max_value()));
    case v1::Clipping::BOUND_NOT_SET:
      return "none";
  }
  return "";
}

std::string Metrics(const google::protobuf::Map<std::string, double>& metrics) {
  const std::map<std::string, double> sorted(metrics.begin(), metrics.end());
  std::string text;
  for (const auto& [name, value] : sorted) absl::StrAppend(&text, "  ", name, "=", RenderNumber(value));
  return text;
}

std::string Time(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(time.seconds()), absl::UTCTimeZone());
}

std::string DescribeCheckpoint(const v1::Checkpoint& checkpoint) {
  return absl::StrCat("step ", checkpoint.step(), ", ", Time(checkpoint.time()), ", ", RenderBytes(checkpoint.bytes()));
}

// A set as lines of a name and a value, and its groups as a table.
std::string Describe(const v1::ParameterSet& set) {
  std::string text;
  const auto line = [&text](absl::string_view name, absl::string_view value) {
    absl::StrAppendFormat(&text, "%-18s%s\n", absl::StrCat(name, ":"), value);
  };
  line("Name", set.name());
  line("State", State(set));
  line("Step", absl::StrCat(set.step()));
  line("Incarnation", absl::StrCat(set.incarnation()));
  line("Parameters", absl::StrCat(set.parameter_count(), " in ", set.tensor_count(), " tensors"));
  line("Memory", RenderBytes(set.state_bytes()));
  line("Device", set.device());
  line("Created", Time(set.create_time()));
  line("Durability", DurabilityText(set.durability()));
  if (set.has_last_checkpoint()) line("Last checkpoint", DescribeCheckpoint(set.last_checkpoint()));
  if (set.has_restored_from()) line("Restored from", DescribeCheckpoint(set.restored_from()));
  line("Clipping", Clipping(set.clipping()));
  line("Not finite", RenderEnum(v1::NonFinitePolicy_Name(set.non_finite_policy()), "NON_FINITE_POLICY_"));
  if (set.max_staleness() > 0) line("Max staleness", absl::StrCat(set.max_staleness()));
  if (set.has_workers()) {
    line("Workers", absl::StrCat(set.workers().count(), ", quorum ", set.workers().quorum(), ", round ", set.round()));
  }
  const std::map<std::string, std::string> labels(set.labels().begin(), set.labels().end());
  for (const auto& [key, value] : labels) line("Label", absl::StrCat(key, "=", value));
  const v1::SetStatistics& statistics = set.statistics();
  line("Steps", absl::StrCat(statistics.applied(), " applied, ", statistics.non_finite(), " not finite, ",
                             statistics.refused(), " refused, ", statistics.replayed(), " replayed"));
  line("Last grad norm", RenderNumber(statistics.last_grad_norm()));
  if (!statistics.last_metrics().empty()) {
    line("Last metrics", absl::StripLeadingAsciiWhitespace(Metrics(statistics.last_metrics())));
  }
  std::vector<std::vector<std::string>> groups;
  for (const v1::ParameterGroup& group : set.groups()) {
    groups.push_back({group.name(), OptimizerName(group), RenderNumber(group.learning_rate()),
                      RenderNumber(group.has_sgd() ? group.sgd().weight_decay() : group.adam().weight_decay()),
                      ScheduleName(group.schedule()), group.frozen() ? "yes" : "no"});
  }
  return absl::StrCat(text, "\n",
                      RenderTable({"GROUP", "OPTIMIZER", "LR", "WEIGHT DECAY", "SCHEDULE", "FROZEN"}, groups));
}

absl::Status List(Shell* shell, const std::string& prefix, const std::vector<std::string>& labels, bool quiet) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  v1::ListParameterSetsRequest request;
  request.set_page_size(kListPageSize);
  request.set_name_prefix(prefix);
  absl::Status status = ParseLabels(labels, request.mutable_labels());
  if (!status.ok()) return status;
  v1::ListParameterSetsResponse all;
  do {
    absl::StatusOr<v1::ListParameterSetsResponse> page = client->ListParameterSets(request);
    if (!page.ok()) return page.status();
    all.mutable_parameter_sets()->MergeFrom(page->parameter_sets());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (quiet) {
    for (const v1::ParameterSet& set : all.parameter_sets()) shell->Print(set.name());
    return absl::OkStatus();
  }
  if (shell->json()) {
    shell->PrintJson(all);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::ParameterSet& set : all.parameter_sets()) {
    rows.push_back({set.name(), State(set), absl::StrCat(set.step()), absl::StrCat(set.parameter_count()),
                    absl::StrCat(set.tensor_count()), Optimizers(set), RenderBytes(set.state_bytes()), set.device(),
                    DurabilityText(set.durability())});
  }
  shell->Print(
      RenderTable({"NAME", "STATE", "STEP", "PARAMETERS", "TENSORS", "OPTIMIZER", "MEMORY", "DEVICE", "KEPT"}, rows));
  return absl::OkStatus();
}

absl::Status Get(Shell* shell, const std::string& name, bool with_tensors) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::ParameterSet> set = client->GetParameterSet(name);
  if (!set.ok()) return set.status();
  v1::ListTensorsResponse tensors;
  if (with_tensors) {
    absl::StatusOr<std::vector<v1::Tensor>> listed = client->ListTensors(name);
    if (!listed.ok()) return listed.status();
    tensors.mutable_tensors()->Add(listed->begin(), listed->end());
  }
  if (shell->json()) {
    std::string json = absl::StrCat("{\"parameter_set\":", RenderJson(*set, /*one_line=*/true));
    if (with_tensors) {
      std::vector<std::string> entries;
      for (const v1::Tensor& tensor : tensors.tensors()) entries.push_back(RenderJson(tensor, /*one_line=*/true));
      absl::StrAppend(&json, ",\"tensors\":[", absl::StrJoin(entries, ","), "]");
    }
    shell->Print(absl::StrCat(json, "}"));
    return absl::OkStatus();
  }
  shell->Print(Describe(*set));
  if (with_tensors) {
    std::vector<std::vector<std::string>> rows;
    for (const v1::Tensor& tensor : tensors.tensors()) {
      rows.push_back({absl::StrCat(tensor.index()), tensor.name(), RenderShape(tensor.shape()),
                      absl::StrCat(tensor.element_count()), tensor.group(), absl::StrCat(tensor.update_count())});
    }
    shell->Print(absl::StrCat("\n", RenderTable({"INDEX", "TENSOR", "SHAPE", "ELEMENTS", "GROUP", "UPDATES"}, rows)));
  }
  return absl::OkStatus();
}

absl::Status Info(Shell* shell) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::GetServerInfoResponse> info = client->GetServerInfo();
  if (!info.ok()) return info.status();
  if (shell->json()) {
    shell->PrintJson(*info);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> devices;
  for (const v1::Device& device : info->devices()) {
    devices.push_back({device.name(), RenderEnum(v1::DeviceState_Name(device.state()), "DEVICE_STATE_"),
                       absl::StrCat(device.threads()),
                       device.memory_bytes() > 0 ? RenderBytes(device.memory_bytes()) : "the host's",
                       device.description()});
  }
  std::vector<std::vector<std::string>> budgets;
  for (const v1::MemoryBudget& budget : info->budgets()) {
    budgets.push_back({budget.name(), RenderBytes(budget.used_bytes()), RenderBytes(budget.capacity_bytes())});
  }
  shell->Print(absl::StrCat("Version: ", info->version(), "\n\n",
                            RenderTable({"DEVICE", "STATE", "THREADS", "MEMORY", "DESCRIPTION"}, devices), "\n\n",
                            RenderTable({"BUDGET", "USED", "CAPACITY"}, budgets)));
  return absl::OkStatus();
}

absl::Status Delete(Shell* shell, const std::vector<std::string>& names) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  std::vector<std::string> deleted;
  absl::Status status;
  for (const std::string& name : names) {
    const absl::StatusOr<v1::ParameterSet> set = client->GetParameterSet(name);
    status = set.ok() ? client->DeleteParameterSet(name, set->incarnation()) : set.status();
    if (!status.ok()) break;
    deleted.push_back(name);
    if (!shell->json()) shell->Print(absl::StrCat("deleted ", name));
  }
  if (shell->json()) {
    shell->Print(absl::StrCat(
        "{\"deleted\":[",
        absl::StrJoin(deleted, ",",
                      [](std::string* out, const std::string& name) { absl::StrAppend(out, QuoteJson(name)); }),
        "]}"));
  }
  return status;
}

std::string DescribeEvent(const v1::WatchParameterSetResponse& event) {
  std::string text;
  if (event.missed() > 0) absl::StrAppend(&text, "(", event.missed(), " events missed)  ");
  absl::StrAppend(&text, "step ", event.step(), "  ");
  switch (event.event_case()) {
    case v1::WatchParameterSetResponse::kCurrent:
      return absl::StrCat(text, "is ", State(event.current()), ", ", event.current().parameter_count(), " parameters");
    case v1::WatchParameterSetResponse::kCommitted: {
      const v1::CommittedEvent& committed = event.committed();
      absl::StrAppend(&text, "grad_norm=", RenderNumber(committed.grad_norm()),
                      "  lr=", absl::StrJoin(committed.learning_rates(), ",", [](std::string* out, double rate) {
                        absl::StrAppend(out, RenderNumber(rate));
                      }));
      if (committed.staleness() > 0) absl::StrAppend(&text, "  staleness=", committed.staleness());
      return absl::StrCat(text, Metrics(committed.metrics()));
    }
    case v1::WatchParameterSetResponse::kSkipped:
      absl::StrAppend(&text, "skipped: not finite at tensor ", event.skipped().non_finite_tensor(), " offset ",
                      event.skipped().non_finite_offset());
      if (event.skipped().has_non_finite_rank()) {
        absl::StrAppend(&text, " of rank ", event.skipped().non_finite_rank());
      }
      return text;
    case v1::WatchParameterSetResponse::kConfigChanged:
      return absl::StrCat(text, "configuration changed, revision ", event.config_changed().config_revision());
    case v1::WatchParameterSetResponse::kWritten:
      return absl::StrCat(text, "written: ", RenderEnum(v1::WriteMode_Name(event.written().mode()), "WRITE_MODE_"));
    case v1::WatchParameterSetResponse::kDeleted:
      return absl::StrCat(text, "deleted");
    case v1::WatchParameterSetResponse::kRoundFailed:
      return absl::StrCat(text, "round ", event.round_failed().round(), " failed with ",
                          event.round_failed().contributions(), " contributions");
    case v1::WatchParameterSetResponse::EVENT_NOT_SET:
      return absl::StrCat(text, "an event that is not known here");
  }
  return text;
}

absl::Status Watch(Shell* shell, const std::string& name, int64_t most) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::unique_ptr<EventStream>> events = client->Watch(name);
  if (!events.ok()) return events.status();
  for (int64_t count = 0; most == 0 || count < most; ++count) {
    const absl::StatusOr<std::optional<v1::WatchParameterSetResponse>> event = (*events)->Next();
    if (!event.ok()) return event.status();
    if (!event->has_value()) return absl::OkStatus();
    shell->Print(shell->json() ? RenderJson(**event, /*one_line=*/true) : DescribeEvent(**event));
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommands(CLI::App* app, Shell* shell, Command* chosen) {
  struct Options {
    std::string name;
    std::vector<std::string> names, labels;
    bool quiet = false, tensors = false;
    int64_t events = 0;
  };
  const auto options = std::make_shared<Options>();

  CLI::App* const list = app->add_subcommand("list", "Lists the sets of the server.");
  list->add_option("PREFIX", options->name, "Only sets whose name begins with this.");
  list->add_option("-l,--label", options->labels, "Only sets that have this label; may be repeated.")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  list->add_flag("-q,--quiet", options->quiet, "Prints names alone.");
  list->callback([=] { *chosen = [=] { return List(shell, options->name, options->labels, options->quiet); }; });

  CLI::App* const get = app->add_subcommand("get", "Describes a set: its state, its configuration and its groups.");
  get->add_option("SET", options->name, "Name of the set.")->required();
  get->add_flag("-t,--tensors", options->tensors, "Lists its tensors, too.");
  get->callback([=] { *chosen = [=] { return Get(shell, options->name, options->tensors); }; });

  CLI::App* const info = app->add_subcommand("info", "Describes the server: version, devices, memory and limits.");
  info->footer("The limits are in --json alone.");
  info->callback([=] { *chosen = [=] { return Info(shell); }; });

  CLI::App* const remove = app->add_subcommand("delete", "Deletes sets, without asking.");
  remove->add_option("SET", options->names, "Names of the sets.")->required();
  remove->callback([=] { *chosen = [=] { return Delete(shell, options->names); }; });

  CLI::App* const watch = app->add_subcommand(
      "watch", "Prints what happens to a set, as it happens: a line an event, and with --json an object a line.");
  watch->add_option("SET", options->name, "Name of the set.")->required();
  watch->add_option("-n,--events", options->events, "Ends after so many events. 0: when the set is deleted.")
      ->check(CLI::NonNegativeNumber);
  watch->footer("The first event is how the set stands. `adamant plot` draws what --json has recorded.");
  watch->callback([=] { *chosen = [=] { return Watch(shell, options->name, options->events); }; });
}

}  // namespace adamant::programs::cli
