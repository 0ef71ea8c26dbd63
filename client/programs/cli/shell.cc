#include "client/programs/cli/shell.h"

#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace adamant::programs::cli {
namespace {

// Enough for what a disk or a network takes; a server that is silent ends the call far earlier.
constexpr absl::Duration kTransferTimeout = absl::Hours(12);

// Code points, which is what a terminal shows of most names.
size_t Width(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

bool IsNumber(absl::string_view text) {
  double number;
  return text.empty() || text == "-" || absl::SimpleAtod(text.substr(0, text.find(' ')), &number);
}

}  // namespace

const char kExitCodesHelp[] =
    "Exit codes:\n"
    "  0   done\n"
    "  1   any other error, such as one of a file\n"
    "  2   the command line is wrong, or a value or a file is not valid (INVALID_ARGUMENT)\n"
    "  3   there is no such set, or no such file (NOT_FOUND)\n"
    "  4   there is one already (ALREADY_EXISTS)\n"
    "  5   the set is not in a state for this, or a file is of a later version (FAILED_PRECONDITION)\n"
    "  6   others have changed the set meanwhile (ABORTED)\n"
    "  7   the server cannot be reached, or does not answer in time (UNAVAILABLE, DEADLINE_EXCEEDED)\n"
    "  8   the server, or the disk, has no room for it (RESOURCE_EXHAUSTED)\n"
    "  9   the set's state is lost, or what it was to be imported from is damaged (DATA_LOSS): import another one\n"
    "  10  the step was not applied: its gradient is not finite, or came too late\n";

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kDone;
    case absl::StatusCode::kInvalidArgument:
      return kWrongUsage;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kAlreadyExists:
      return kAlreadyExists;
    case absl::StatusCode::kFailedPrecondition:
      return kPrecondition;
    case absl::StatusCode::kAborted:
      return kConflict;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnavailable;
    case absl::StatusCode::kResourceExhausted:
      return kNoRoom;
    case absl::StatusCode::kDataLoss:
      return kDataLoss;
    default:
      return kOtherError;
  }
}

absl::Status Undo(const v1::ParameterSet& created, const absl::Status& error, Client* client) {
  const absl::Status deleted = client->DeleteParameterSet(created.name(), created.incarnation());
  if (deleted.ok() || absl::IsNotFound(deleted)) return error;
  absl::Status longer(error.code(),
                      absl::StrCat(error.message(), "; the set '", created.name(),
                                   "' was created, awaits a write, and could not be deleted: ", deleted.message()));
  error.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { longer.SetPayload(url, payload); });
  return longer;
}

std::string RenderTable(const std::vector<std::string>& titles, const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  std::vector<bool> numbers;
  for (size_t column = 0; column < titles.size(); ++column) {
    widths.push_back(Width(titles[column]));
    numbers.push_back(!rows.empty());
    for (const std::vector<std::string>& row : rows) {
      widths.back() = std::max(widths.back(), Width(row[column]));
      numbers.back() = numbers.back() && IsNumber(row[column]);
    }
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (size_t column = 0; column < cells.size(); ++column) {
      const std::string padding(widths[column] - Width(cells[column]), ' ');
      absl::StrAppend(&text, column > 0 ? "  " : "", numbers[column] ? padding : "", cells[column],
                      numbers[column] ? "" : padding);
    }
    return std::string(absl::StripTrailingAsciiWhitespace(text));
  };
  std::string table = line(titles);
  for (const std::vector<std::string>& row : rows) absl::StrAppend(&table, "\n", line(row));
  return table;
}

std::string RenderShape(absl::Span<const int64_t> shape) {
  return shape.empty() ? "scalar" : absl::StrJoin(shape, "x");
}

absl::StatusOr<std::vector<int64_t>> ParseShape(absl::string_view text) {
  std::vector<int64_t> shape;
  if (text == "scalar") return shape;
  for (const absl::string_view extent : absl::StrSplit(text, 'x')) {
    if (!absl::SimpleAtoi(extent, &shape.emplace_back()) || shape.back() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("a shape: expected extents such as 16x2, or scalar, got '", text, "'"));
    }
  }
  return shape;
}

std::string RenderBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto amount = static_cast<double>(bytes);
  size_t unit = 0;
  while (amount >= 1024 && unit + 1 < std::size(kUnits)) {
    amount /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", amount, kUnits[unit]);
}

std::string RenderNumber(double number) { return absl::StrFormat("%.6g", number); }

std::string RenderEnum(absl::string_view name, absl::string_view prefix) {
  return std::string(absl::StripPrefix(name, prefix));
}

std::string RenderJson(const google::protobuf::Message& message, bool one_line) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  options.add_whitespace = !one_line;
  std::string json;
  // Fails only for messages of types that it does not know.
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return std::string(absl::StripTrailingAsciiWhitespace(json));
}

std::string QuoteJson(absl::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void Shell::AddOptions(CLI::App* app) {
  app->add_option("--target", target_, "The server: host:port or unix:path.")
      ->envname("ADAMANT_TARGET")
      ->take_last()
      ->type_name("TARGET");
  app->add_option("--timeout", timeout_,
                  "How long a call, or a wait for the server, may take, such as 500ms or 1m; transfers of tensors take "
                  "as long as they need.")
      ->type_name("TIME")
      ->take_last()
      ->capture_default_str();
  app->add_flag("--json", json_, "Prints JSON: the protocol's messages, with its names of fields.");
}

absl::StatusOr<Client> Shell::Connect() { return ConnectWithin(absl::ZeroDuration()); }
absl::StatusOr<Client> Shell::ConnectForTransfers() { return ConnectWithin(kTransferTimeout); }

absl::StatusOr<Client> Shell::ConnectWithin(absl::Duration least_transfer_timeout) {
  if (target_.empty()) {
    return absl::InvalidArgumentError("which server? Give --target=HOST:PORT, or set $ADAMANT_TARGET");
  }
  absl::Duration timeout;
  if (!absl::ParseDuration(timeout_, &timeout) || timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("--timeout: expected a time such as 10s, got '", timeout_, "'"));
  }
  ClientOptions options = console_.MakeClientOptions(timeout);
  options.step_timeout = options.transfer_timeout = options.retry.total_timeout =
      std::max(timeout, least_transfer_timeout);
  return Client::Connect(target_, options);
}

Progress Shell::ShowProgress(const std::string& what) {
  return [this, what](int64_t done, int64_t total) {
    constexpr int64_t kElementBytes = sizeof(float);
    console_.ShowProgress(
        done, total,
        absl::StrCat(what, " ", RenderBytes(done * kElementBytes), " of ", RenderBytes(total * kElementBytes)));
  };
}

}  // namespace adamant::programs::cli
