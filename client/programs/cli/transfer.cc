// What is in a set: read, write, export and import.
#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/programs/cli/renaming.h"
#include "client/programs/cli/saved_state.h"
#include "client/programs/cli/set_flags.h"
#include "client/programs/cli/shell.h"
#include "client/programs/cli/tensor_match.h"
#include "client/programs/optimizer_choice.h"
#include "client/tensor_files/tensor_file.h"

namespace adamant::programs::cli {
namespace {

using tensor_files::FileFormat;
using tensor_files::FileTensor;
using tensor_files::TensorFile;
using tensor_files::TensorFileWriter;

// The place of a slot in a state.
template <typename State>
auto& SlotOf(v1::Slot slot, State* state) {
  switch (slot) {
    case v1::SLOT_EXP_AVG:
      return state->exp_avg;
    case v1::SLOT_EXP_AVG_SQ:
      return state->exp_avg_sq;
    case v1::SLOT_MAX_EXP_AVG_SQ:
      return state->max_exp_avg_sq;
    case v1::SLOT_MOMENTUM_BUFFER:
      return state->momentum_buffer;
    default:
      return state->parameters;
  }
}

std::vector<int64_t> Shape(const v1::Tensor& tensor) { return {tensor.shape().begin(), tensor.shape().end()}; }

// As protobuf has floats in JSON.
std::string JsonFloat(float value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  // The shortest that is this float and no other.
  for (int digits = 6; digits < 9; ++digits) {
    std::string text = absl::StrFormat("%.*g", digits, value);
    float back;
    if (absl::SimpleAtof(text, &back) && back == value) return text;
  }
  return absl::StrFormat("%.9g", value);
}

std::vector<std::string> Summary(const v1::Tensor& tensor, absl::Span<const float> elements) {
  double least = std::numeric_limits<double>::infinity(), most = -least, sum = 0, squares = 0;
  for (const float element : elements) {
    // A NaN is to show in all of them.
    least = element >= least ? least : element;
    most = element <= most ? most : element;
    sum += element;
    squares += static_cast<double>(element) * element;
  }
  if (elements.empty()) return {tensor.name(), RenderShape(tensor.shape()), "-", "-", "-", "-"};
  return {tensor.name(),
          RenderShape(tensor.shape()),
          RenderNumber(least),
          RenderNumber(most),
          RenderNumber(sum / static_cast<double>(elements.size())),
          RenderNumber(std::sqrt(squares))};
}

struct ReadFlags {
  std::string set, output, format, slot = "parameter";
  std::vector<std::string> tensors;
};

// Where what is read goes: a file, or memory.
struct Destination {
  std::optional<TensorFileWriter> file;
  std::vector<std::vector<float>> memory;
  // By index of the set's tensors.
  std::vector<absl::Span<float>> spans;
};

absl::StatusOr<FileFormat> OutputFormat(const std::string& path, const std::string& format) {
  if (format.empty() && path == "-") {
    return absl::InvalidArgumentError("--output=- needs --format=safetensors, npy or raw");
  }
  return tensor_files::FormatOfPath(format.empty() ? path : absl::StrCat(".", format));
}

absl::StatusOr<Destination> MakeDestination(const ReadFlags& flags, const std::vector<v1::Tensor>& tensors,
                                            const std::vector<int32_t>& wanted) {
  Destination destination;
  destination.spans.resize(tensors.size());
  if (flags.output.empty()) {
    for (const int32_t index : wanted) {
      destination.memory.emplace_back(tensors[index].element_count());
      destination.spans[index] = absl::MakeSpan(destination.memory.back());
    }
    return destination;
  }
  const absl::StatusOr<FileFormat> format = OutputFormat(flags.output, flags.format);
  if (!format.ok()) return format.status();
  std::vector<FileTensor> entries;
  for (const int32_t index : wanted) {
    entries.push_back({.name = tensors[index].name(), .shape = Shape(tensors[index])});
  }
  absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(flags.output, *format, entries);
  if (!writer.ok()) return writer.status();
  for (size_t i = 0; i < wanted.size(); ++i) destination.spans[wanted[i]] = writer->Elements(i);
  destination.file = *std::move(writer);
  return destination;
}

absl::Status Read(Shell* shell, const ReadFlags& flags) {
  const absl::StatusOr<v1::Slot> slot = ParseSlot(flags.slot);
  if (!slot.ok()) return slot.status();
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::vector<v1::Tensor>> tensors = client->ListTensors(flags.set);
  if (!tensors.ok()) return tensors.status();

  std::vector<int32_t> wanted;
  for (const v1::Tensor& tensor : *tensors) {
    const auto named = std::find(flags.tensors.begin(), flags.tensors.end(), tensor.name());
    if (flags.tensors.empty() || named != flags.tensors.end()) wanted.push_back(tensor.index());
  }
  for (const std::string& name : flags.tensors) {
    const bool there =
        std::any_of(tensors->begin(), tensors->end(), [&](const v1::Tensor& tensor) { return tensor.name() == name; });
    if (!there) return absl::NotFoundError(absl::StrCat("the set '", flags.set, "' has no tensor '", name, "'"));
  }
  absl::StatusOr<Destination> destination = MakeDestination(flags, *tensors, wanted);
  if (!destination.ok()) return destination.status();
  MutableState state;
  SlotOf(*slot, &state) = destination->spans;
  ReadOptions options = {.progress = shell->ShowProgress("read")};
  if (!flags.tensors.empty()) options.tensors = wanted;
  const absl::StatusOr<v1::ReadHeader> header = client->ReadState(flags.set, state, options);
  if (!header.ok()) return header.status();

  if (destination->file.has_value()) {
    const absl::Status written = destination->file->Commit();
    if (!written.ok() || flags.output == "-") return written;
    if (shell->json()) {
      shell->Print(absl::StrCat("{\"header\":", RenderJson(*header, /*one_line=*/true),
                                ",\"file\":", QuoteJson(flags.output), ",\"tensors\":", wanted.size(), "}"));
    } else {
      shell->Print(absl::StrCat("read ", wanted.size(), " tensors of step ", header->step(), " into ", flags.output));
    }
    return absl::OkStatus();
  }
  if (shell->json()) {
    std::string json = absl::StrCat("{\"header\":", RenderJson(*header, /*one_line=*/true),
                                    ",\"slot\":", QuoteJson(v1::Slot_Name(*slot)), ",\"tensors\":[");
    for (const int32_t index : wanted) {
      const v1::Tensor& tensor = (*tensors)[index];
      absl::StrAppend(&json, index == wanted.front() ? "" : ",", "{\"name\":", QuoteJson(tensor.name()), ",\"shape\":[",
                      absl::StrJoin(tensor.shape(), ","), "],\"values\":[",
                      absl::StrJoin(destination->spans[index], ",",
                                    [](std::string* out, float value) { absl::StrAppend(out, JsonFloat(value)); }),
                      "]}");
    }
    shell->Print(absl::StrCat(json, "]}"));
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows;
  for (const int32_t index : wanted) rows.push_back(Summary((*tensors)[index], destination->spans[index]));
  shell->Print(absl::StrCat("Step ", header->step(), "\n\n",
                            RenderTable({"TENSOR", "SHAPE", "MIN", "MAX", "MEAN", "NORM"}, rows)));
  return absl::OkStatus();
}

struct WriteFlags {
  std::string set, request_id;
  std::vector<std::string> files;
  bool partial = false;
};

void PrintWritten(Shell* shell, const v1::WriteTensorsResponse& response, const std::string& what) {
  if (shell->json()) {
    shell->PrintJson(response);
  } else {
    shell->Print(absl::StrCat(what, response.replayed() ? " before" : "", ": step ", response.step(), ", incarnation ",
                              response.incarnation()));
  }
}

absl::Status Write(Shell* shell, const WriteFlags& flags) {
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::vector<v1::Tensor>> tensors = client->ListTensors(flags.set);
  if (!tensors.ok()) return tensors.status();
  const absl::StatusOr<TensorMatch> match = TensorMatch::Find(flags.files, *tensors, flags.partial);
  if (!match.ok()) return match.status();
  WriteOptions options = {
      .request_id = flags.request_id, .read = match->Reader(), .progress = shell->ShowProgress("write")};
  if (!match->complete()) options.tensors = match->present();
  const absl::StatusOr<v1::WriteTensorsResponse> response = client->WriteParameters(flags.set, match->spans(), options);
  if (!response.ok()) return response.status();
  PrintWritten(shell, *response, absl::StrCat("wrote ", match->present().size(), " tensors of ", flags.set));
  return absl::OkStatus();
}

std::string CompactJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return json;
}

// What .safetensors files call it.
std::string FileDtype(v1::Dtype dtype) {
  if (dtype == v1::DTYPE_FLOAT16) return "F16";
  return dtype == v1::DTYPE_BFLOAT16 ? "BF16" : "F32";
}

absl::Status Rename(const Renaming& renaming, std::vector<v1::Tensor>* tensors) {
  std::vector<std::string> names;
  for (const v1::Tensor& tensor : *tensors) names.push_back(tensor.name());
  absl::Status status = renaming.Check(names);
  if (!status.ok()) return status;
  for (v1::Tensor& tensor : *tensors) tensor.set_name(renaming.Apply(tensor.name()));
  return absl::OkStatus();
}

struct ExportFlags {
  std::string set, file, dtype = "float32";
  std::vector<std::string> renames;
  bool optimizer_state = false;
};

// What a file says must be known before its tensors are: room for numbers that are not known yet. JSON does not mind
// spaces, and who reads the metadata takes them away.
constexpr size_t kNumberWidth = 20;

absl::Status Export(Shell* shell, const ExportFlags& flags) {
  const absl::StatusOr<FileFormat> format = tensor_files::FormatOfPath(flags.file);
  if (!format.ok() || *format != FileFormat::kSafetensors) {
    return absl::InvalidArgumentError(absl::StrCat(flags.file, ": expected a name that ends in .safetensors"));
  }
  const absl::StatusOr<v1::Dtype> dtype = ParseDtype(flags.dtype);
  if (!dtype.ok()) return absl::InvalidArgumentError(absl::StrCat("--dtype: ", dtype.status().message()));
  const absl::StatusOr<Renaming> renaming = Renaming::Parse(flags.renames);
  if (!renaming.ok()) return renaming.status();
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::ParameterSet> set = client->GetParameterSet(flags.set);
  if (!set.ok()) return set.status();
  absl::StatusOr<std::vector<v1::Tensor>> tensors = client->ListTensors(flags.set);
  if (!tensors.ok()) return tensors.status();
  absl::Status status = Rename(*renaming, &*tensors);
  if (!status.ok()) return status;

  std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER};
  if (flags.optimizer_state) {
    const std::vector<v1::Slot> moments = OptimizerSlots(*set);
    slots.insert(slots.end(), moments.begin(), moments.end());
  }
  std::vector<FileTensor> entries;
  for (const v1::Slot slot : slots) {
    for (const v1::Tensor& tensor : *tensors) {
      entries.push_back({.name = NameInFile(slot, tensor.name()), .shape = Shape(tensor)});
    }
  }
  // What the file says of its state is known once that has been read, which is when the file is there.
  std::map<std::string, std::string> metadata = {
      {"format", "pt"},
      {kSpecKey, CompactJson(SpecOf(*set, *tensors))},
      {kIncarnationKey, std::string(kNumberWidth, ' ')},
      {kStepKey, std::string(kNumberWidth, ' ')},
  };
  if (flags.optimizer_state) metadata[kUpdateCountsKey] = std::string((kNumberWidth + 1) * tensors->size(), ' ');
  absl::StatusOr<TensorFileWriter> writer =
      TensorFileWriter::Create(flags.file, FileFormat::kSafetensors, entries, metadata, FileDtype(*dtype));
  if (!writer.ok()) return writer.status();
  std::vector<std::vector<absl::Span<float>>> spans;
  MutableState state;
  for (size_t s = 0; s < slots.size(); ++s) {
    std::vector<absl::Span<float>>& of_slot = spans.emplace_back();
    for (size_t i = 0; i < tensors->size(); ++i) of_slot.push_back(writer->Elements(s * tensors->size() + i));
  }
  for (size_t s = 0; s < slots.size(); ++s) SlotOf(slots[s], &state) = spans[s];
  const absl::StatusOr<v1::ReadHeader> header = client->ReadState(
      flags.set, state, {.incarnation = set->incarnation(), .progress = shell->ShowProgress("export")});
  if (!header.ok()) return header.status();
  metadata[kStepKey] = absl::StrFormat("%-*d", kNumberWidth, header->step());
  metadata[kIncarnationKey] = absl::StrFormat("%-*d", kNumberWidth, header->incarnation());
  if (flags.optimizer_state) {
    // Empty where all have the step's.
    std::string counts = absl::StrJoin(header->update_counts(), ",");
    counts.resize(metadata[kUpdateCountsKey].size(), ' ');
    metadata[kUpdateCountsKey] = std::move(counts);
  }
  status = writer->ReplaceMetadata(metadata);
  if (status.ok()) status = writer->Commit();
  if (!status.ok()) return status;
  if (shell->json()) {
    shell->Print(absl::StrCat("{\"header\":", RenderJson(*header, /*one_line=*/true),
                              ",\"file\":", QuoteJson(flags.file), ",\"tensors\":", entries.size(),
                              ",\"overflowed\":", writer->overflowed(), "}"));
  } else {
    shell->Print(absl::StrCat("exported ", flags.set, " of step ", header->step(), " into ", flags.file, ": ",
                              entries.size(), " tensors"));
    if (writer->overflowed() > 0) {
      shell->console().Note(absl::StrCat("adamant: ", writer->overflowed(), " elements are too large for ", flags.dtype,
                                         ", and infinite in the file"));
    }
  }
  return absl::OkStatus();
}

struct ImportFlags {
  std::string set, path, device, durability;
  std::vector<std::string> renames;
  bool create = false;
};

absl::StatusOr<v1::ParameterSet> CreateFrom(const SavedState& saved, const ImportFlags& flags, const Renaming& renaming,
                                            Client* client) {
  if (!saved.spec.ok()) return saved.spec.status();
  v1::ParameterSetSpec spec = *saved.spec;
  spec.set_name(flags.set);
  spec.set_device(flags.device);
  if (absl::Status status = SetDurability(flags.durability, &spec); !status.ok()) return status;
  for (v1::TensorSpec& tensor : *spec.mutable_tensors()) tensor.set_name(renaming.Apply(tensor.name()));
  absl::StatusOr<v1::CreateParameterSetResponse> response = client->CreateParameterSet(spec);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_parameter_set());
}

// By index of the set's tensors, which may be in another order than the file's.
absl::StatusOr<std::vector<int64_t>> UpdateCountsFor(const std::vector<v1::Tensor>& tensors, const SavedState& saved,
                                                     const Renaming& renaming) {
  if (!saved.update_counts.ok() || saved.update_counts->empty()) return saved.update_counts;
  if (saved.update_counts->size() != saved.names.size()) {
    return absl::InvalidArgumentError(absl::StrCat(saved.path, ": expected counts of updates of ", saved.names.size(),
                                                   " tensors, got ", saved.update_counts->size()));
  }
  std::map<std::string, int64_t> by_name;
  for (size_t i = 0; i < saved.names.size(); ++i) {
    by_name[renaming.Apply(saved.names[i])] = (*saved.update_counts)[i];
  }
  std::vector<int64_t> counts;
  // Each of them is there, as its parameters are, unless it has no elements.
  for (const v1::Tensor& tensor : tensors) counts.push_back(by_name[tensor.name()]);
  return counts;
}

// Restores what the files have: everything, or the parameters if they have no more.
absl::StatusOr<v1::WriteTensorsResponse> Restore(Shell* shell, const v1::ParameterSet& set, const Renaming& renaming,
                                                 const SavedState& saved, Client* client, bool* everything) {
  const absl::StatusOr<std::vector<v1::Tensor>> tensors = client->ListTensors(set.name());
  if (!tensors.ok()) return tensors.status();
  std::vector<v1::Slot> slots = OptimizerSlots(set);
  slots.insert(slots.begin(), v1::SLOT_PARAMETER);
  std::vector<TensorMatch> matches;
  matches.reserve(slots.size());
  *everything = true;
  bool moments = false;
  ConstState state;
  for (const v1::Slot slot : slots) {
    SavedSlot found = saved.TensorsOf(slot);
    for (std::string& name : found.names) name = name.empty() ? "" : renaming.Apply(name);
    absl::StatusOr<TensorMatch> match = TensorMatch::FindSlot(*found.file, found.names, *tensors);
    if (!match.ok()) return match.status();
    if (slot == v1::SLOT_PARAMETER && !match->complete()) {
      return absl::InvalidArgumentError(absl::StrCat(saved.path, ": expected the ", tensors->size(),
                                                     " tensors of the set, got ", match->present().size()));
    }
    *everything = *everything && match->complete();
    moments = moments || (slot != v1::SLOT_PARAMETER && match->complete());
    matches.push_back(*std::move(match));
    SlotOf(slot, &state) = matches.back().spans();
  }
  if (slots.size() > 1 && moments && !*everything) {
    return absl::InvalidArgumentError(absl::StrCat(saved.path, ": has a part of the optimizer's state, and not all"));
  }
  // A set without moments has a step all the same, but a file of parameters alone is none of a whole state.
  if (slots.size() == 1) *everything = saved.is_whole;
  if (!*everything) {
    return client->WriteParameters(set.name(), matches.front().spans(),
                                   {.incarnation = set.incarnation(),
                                    .read = matches.front().Reader(),
                                    .progress = shell->ShowProgress("import")});
  }
  if (!saved.step.ok()) return saved.step.status();
  const absl::StatusOr<std::vector<int64_t>> counts = UpdateCountsFor(*tensors, saved, renaming);
  if (!counts.ok()) return counts.status();
  state.step = *saved.step;
  state.update_counts = *counts;
  const auto read = [&](v1::Slot slot, int32_t tensor, int64_t begin, absl::Span<float> to) {
    return matches[std::find(slots.begin(), slots.end(), slot) - slots.begin()].Read(tensor, begin, to);
  };
  return client->WriteState(
      set.name(), state, {.incarnation = set.incarnation(), .read = read, .progress = shell->ShowProgress("import")});
}

absl::Status Import(Shell* shell, const ImportFlags& flags) {
  const absl::StatusOr<SavedState> saved = SavedState::Open(flags.path);
  if (!saved.ok()) return saved.status();
  const absl::StatusOr<Renaming> renaming = Renaming::Parse(flags.renames);
  if (!renaming.ok()) return renaming.status();
  const absl::Status checked = renaming->Check(saved->names);
  if (!checked.ok()) return checked;
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::ParameterSet> set =
      flags.create ? CreateFrom(*saved, flags, *renaming, &*client) : client->GetParameterSet(flags.set);
  if (!set.ok()) return set.status();
  bool everything = false;
  const absl::StatusOr<v1::WriteTensorsResponse> response =
      Restore(shell, *set, *renaming, *saved, &*client, &everything);
  if (!response.ok()) {
    return flags.create ? Undo(*set, response.status(), &*client) : response.status();
  }
  PrintWritten(shell, *response,
               absl::StrCat("imported ", flags.set, everything ? " with its optimizer's state" : ", parameters alone"));
  return absl::OkStatus();
}

}  // namespace

void AddTransferCommands(CLI::App* app, Shell* shell, Command* chosen) {
  const auto read_flags = std::make_shared<ReadFlags>();
  CLI::App* const read = app->add_subcommand(
      "read", "Reads tensors of one single step: sums them up, prints them (--json), or puts them into a file.");
  read->add_option("SET", read_flags->set, "Name of the set.")->required();
  read->add_option("TENSOR", read_flags->tensors, "Names of tensors. Default: all.");
  read->add_option("-o,--output", read_flags->output, "Where to put them, in the format that the name says; -: stdout.")
      ->type_name("FILE");
  read->add_option("--format", read_flags->format, "safetensors, npy or raw, whatever the file's name says.")
      ->check(CLI::IsMember({"safetensors", "npy", "raw"}));
  read->add_option("--slot", read_flags->slot, "parameter, exp_avg, exp_avg_sq, max_exp_avg_sq or momentum_buffer.")
      ->capture_default_str();
  read->callback([=] { *chosen = [=] { return Read(shell, *read_flags); }; });

  const auto write_flags = std::make_shared<WriteFlags>();
  CLI::App* const write =
      app->add_subcommand("write", "Replaces parameters by those of files, all at once. The optimizer's state stays.");
  write->add_option("SET", write_flags->set, "Name of the set.")->required();
  write->add_option("FILE", write_flags->files, kFilesHelp)->required()->type_name("[TENSOR=]FILE");
  write->add_flag("--partial", write_flags->partial, "Leaves tensors that no file has as they are.");
  write->add_option("--request-id", write_flags->request_id,
                    "Names the write: repeated under the same name, it is not written twice.");
  write->callback([=] { *chosen = [=] { return Write(shell, *write_flags); }; });

  const auto export_flags = std::make_shared<ExportFlags>();
  CLI::App* const export_command =
      app->add_subcommand("export", "Saves a set as a .safetensors file, of one single step.");
  export_command->add_option("SET", export_flags->set, "Name of the set.")->required();
  export_command->add_option("FILE", export_flags->file, "Ends in .safetensors. One that is there is replaced.")
      ->required();
  CLI::Option* const optimizer_state =
      export_command->add_flag("--optimizer-state", export_flags->optimizer_state,
                               "With what it takes to go on training, bit for bit: moments, as exp_avg/TENSOR and so "
                               "on, and counts of updates.");
  export_command
      ->add_option("--dtype", export_flags->dtype,
                   "float32, bfloat16 or float16: the parameters are rounded to the nearest, halfway to even.")
      ->capture_default_str()
      ->excludes(optimizer_state);
  export_command->add_option("--rename", export_flags->renames, kRenameHelp)
      ->type_name("FROM=TO")
      ->allow_extra_args(false);
  export_command->footer(
      "The metadata have the step (adamant.step), the incarnation, and what the set was made like (adamant.spec).");
  export_command->callback([=] { *chosen = [=] { return Export(shell, *export_flags); }; });

  const auto import_flags = std::make_shared<ImportFlags>();
  CLI::App* const import_command = app->add_subcommand(
      "import", "Restores what export or a checkpoint has saved: everything, or the parameters if there is no more.");
  import_command->add_option("SET", import_flags->set, "Name of the set.")->required();
  import_command
      ->add_option("FILE", import_flags->path,
                   "A .safetensors file, or the folder of a checkpoint in a server's --data_dir, or a copy of it.")
      ->required();
  import_command->add_option("--rename", import_flags->renames, kRenameHelp)
      ->type_name("FROM=TO")
      ->allow_extra_args(false);
  CLI::Option* const create = import_command->add_flag(
      "--create", import_flags->create, "Creates the set, like the one that was saved, but for --durability.");
  import_command->add_option("--device", import_flags->device, "Where the new set lives: cpu or cuda:N.")
      ->needs(create);
  AddDurability(import_command, &import_flags->durability)->needs(create);
  import_command->callback([=] { *chosen = [=] { return Import(shell, *import_flags); }; });
}

}  // namespace adamant::programs::cli
