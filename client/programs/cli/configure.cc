// What a set is: create and update.
#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/programs/cli/renaming.h"
#include "client/programs/cli/set_flags.h"
#include "client/programs/cli/shell.h"
#include "client/programs/cli/tensor_match.h"

namespace adamant::programs::cli {
namespace {

using tensor_files::FileTensor;
using tensor_files::TensorFile;

struct CreateOptions {
  std::string name, from, spec, device, durability;
  std::vector<std::string> tensors, renames;
  bool awaits_write = false, skip_other_types = false, if_not_exists = false;
  GroupFlags group;
  SetFlags set;
};

absl::Status ReadSpec(const std::string& path, v1::ParameterSetSpec* spec) {
  std::ifstream file(path);
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const auto status = google::protobuf::util::JsonStringToMessage(json, spec);
  if (status.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected a ParameterSetSpec as JSON: ", std::string(status.message())));
}

// The tensors that `--tensor` names.
absl::Status AddTensors(const std::vector<std::string>& texts, v1::ParameterSetSpec* spec) {
  for (const std::string& text : texts) {
    // A name may have the sign, and a shape has none.
    const size_t at = text.rfind('=');
    if (at == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("--tensor: expected NAME=SHAPE, got '", text, "'"));
    }
    const absl::StatusOr<std::vector<int64_t>> shape = ParseShape(text.substr(at + 1));
    if (!shape.ok()) return absl::InvalidArgumentError(absl::StrCat("--tensor: ", shape.status().message()));
    v1::TensorSpec* const tensor = spec->add_tensors();
    tensor->set_name(text.substr(0, at));
    tensor->mutable_shape()->Add(shape->begin(), shape->end());
  }
  return absl::OkStatus();
}

// The tensors of a model.
absl::Status AddTensors(const TensorFile& file, bool skip_other_types, const Renaming& renaming,
                        v1::ParameterSetSpec* spec) {
  for (const FileTensor& tensor : file.tensors()) {
    if (!TensorFile::IsFloat(tensor)) {
      if (skip_other_types) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(file.path(), ": tensor '", tensor.name, "': expected elements of type F32, F16 or BF16, got ",
                       tensor.dtype, "; with --skip-other-types the set does without it"));
    }
    v1::TensorSpec* const added = spec->add_tensors();
    added->set_name(renaming.Apply(tensor.name));
    added->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  }
  return absl::OkStatus();
}

absl::Status Create(Shell* shell, const CreateOptions& options) {
  v1::ParameterSetSpec spec;
  absl::Status status;
  if (!options.spec.empty()) {
    status = ReadSpec(options.spec, &spec);
  } else {
    absl::StatusOr<v1::ParameterGroup> group = options.group.Make();
    status = group.status();
    if (group.ok()) *spec.add_groups() = *std::move(group);
  }
  if (!status.ok()) return status;
  spec.set_name(options.name);
  if (!options.device.empty()) spec.set_device(options.device);
  std::vector<std::string> fields;
  status = options.set.Set(&spec, &fields);
  if (status.ok()) status = SetDurability(options.durability, &spec);
  if (status.ok()) status = AddTensors(options.tensors, &spec);
  if (!status.ok()) return status;

  std::unique_ptr<TensorFile> file;
  const absl::StatusOr<Renaming> renaming = Renaming::Parse(options.renames);
  if (!renaming.ok()) return renaming.status();
  if (!options.from.empty()) {
    absl::StatusOr<TensorFile> opened = TensorFile::Open(options.from);
    if (!opened.ok()) return opened.status();
    file = std::make_unique<TensorFile>(*std::move(opened));
    if (file->format() != tensor_files::FileFormat::kSafetensors) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.from, ": expected a .safetensors file: tensors have names"));
    }
    status = renaming->Check(ParameterNames(*file));
    if (status.ok() && spec.tensors().empty()) {
      status = AddTensors(*file, options.skip_other_types, *renaming, &spec);
    }
    if (!status.ok()) return status;
  }
  if (spec.initialization() == v1::INITIALIZATION_UNSPECIFIED || file != nullptr) {
    const bool written = file != nullptr || options.awaits_write;
    spec.set_initialization(written ? v1::INITIALIZATION_WRITTEN : v1::INITIALIZATION_ZEROS);
  }

  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  absl::StatusOr<Client> transfers = shell->ConnectForTransfers();
  if (!transfers.ok()) return transfers.status();
  absl::StatusOr<v1::CreateParameterSetResponse> response =
      client->CreateParameterSet(spec, options.if_not_exists ? v1::IF_EXISTS_USE_IF_SAME_SPEC : v1::IF_EXISTS_FAIL);
  if (!response.ok()) return response.status();
  v1::ParameterSet* const set = response->mutable_parameter_set();
  // One that was there keeps what it has.
  if (file != nullptr && set->state() == v1::PARAMETER_SET_STATE_UNINITIALIZED) {
    const absl::StatusOr<std::vector<v1::Tensor>> tensors = client->ListTensors(options.name);
    status = tensors.status();
    absl::StatusOr<TensorMatch> match = absl::UnknownError("");
    if (status.ok()) {
      std::vector<std::string> names;
      for (const FileTensor& tensor : file->tensors()) names.push_back(renaming->Apply(tensor.name));
      match = TensorMatch::FindSlot(*file, names, *tensors);
      status = match.status();
    }
    if (status.ok() && !match->complete()) {
      status = absl::InvalidArgumentError(absl::StrCat(options.from, ": expected the ", tensors->size(),
                                                       " tensors of the set, got ", match->present().size()));
    }
    if (status.ok()) {
      const absl::StatusOr<v1::WriteTensorsResponse> written = transfers->WriteParameters(
          options.name, match->spans(),
          {.incarnation = set->incarnation(), .read = match->Reader(), .progress = shell->ShowProgress("write")});
      status = written.status();
      if (written.ok()) {
        set->set_incarnation(written->incarnation());
        set->set_state(v1::PARAMETER_SET_STATE_READY);
      }
    }
    if (!status.ok()) return response->created() ? Undo(*set, status, &*client) : status;
  }
  if (shell->json()) {
    shell->PrintJson(*response);
  } else {
    shell->Print(absl::StrCat(response->created() ? "created " : "exists: ", options.name, ", ", set->parameter_count(),
                              " parameters in ", set->tensor_count(), " tensors", KeptText(*set)));
  }
  return absl::OkStatus();
}

struct ChangeOptions {
  std::string name, group_name, frozen;
  GroupFlags group;
  SetFlags set;
};

absl::Status Update(Shell* shell, const ChangeOptions& options) {
  absl::StatusOr<Client> client = shell->Connect();
  if (!client.ok()) return client.status();
  absl::StatusOr<v1::ParameterSet> set = client->GetParameterSet(options.name);
  if (!set.ok()) return set.status();

  const v1::ParameterGroup* group = nullptr;
  for (const v1::ParameterGroup& candidate : set->groups()) {
    if (group == nullptr && (options.group_name.empty() || candidate.name() == options.group_name)) group = &candidate;
  }
  if (group == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("--group: the set has no group '", options.group_name, "'"));
  }
  v1::ParameterGroup values;
  std::vector<std::string> group_fields;
  absl::Status status = options.group.Change(*group, &values, &group_fields);
  if (!status.ok()) return status;
  if (!options.frozen.empty()) {
    values.set_frozen(options.frozen == "true");
    group_fields.push_back("frozen");
  }
  if (!group_fields.empty() && options.group_name.empty() && set->groups_size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("which of the ", set->groups_size(), " groups? Say --group, such as --group=", group->name()));
  }
  v1::ParameterSetSpec spec;
  spec.set_name(options.name);
  *spec.mutable_labels() = set->labels();
  std::vector<std::string> set_fields;
  status = options.set.Set(&spec, &set_fields);
  if (!status.ok()) return status;
  // Removes a label, which has no other meaning.
  for (auto label = spec.mutable_labels()->begin(); label != spec.mutable_labels()->end();) {
    label = label->second.empty() ? spec.mutable_labels()->erase(label) : std::next(label);
  }
  if (group_fields.empty() && set_fields.empty()) {
    return absl::InvalidArgumentError("what is to change? See adamant update --help");
  }

  const uint64_t incarnation = set->incarnation();
  if (!group_fields.empty()) {
    set = client->UpdateParameterGroup(options.name, values, group_fields, {.incarnation = incarnation});
    if (!set.ok()) return set.status();
  }
  if (!set_fields.empty()) {
    set = client->UpdateParameterSet(spec, set_fields, {.incarnation = incarnation});
    if (!set.ok()) return set.status();
  }
  if (shell->json()) {
    v1::UpdateParameterSetResponse response;
    *response.mutable_parameter_set() = *std::move(set);
    shell->PrintJson(response);
  } else {
    shell->Print(absl::StrCat("updated ", options.name, ", configuration revision ", set->config_revision()));
  }
  return absl::OkStatus();
}

}  // namespace

void AddConfigureCommands(CLI::App* app, Shell* shell, Command* chosen) {
  const auto options = std::make_shared<CreateOptions>();
  CLI::App* const create =
      app->add_subcommand("create", "Creates a set, of a model's tensors or of those that are named.");
  create->add_option("SET", options->name, "Name of the set.")->required();
  CLI::Option* const tensor = create
                                  ->add_option("--tensor", options->tensors,
                                               "A tensor, such as weight=16x2, bias=16 or scale=scalar; may be "
                                               "repeated. They begin with zeros.")
                                  ->type_name("NAME=SHAPE")
                                  ->allow_extra_args(false);
  CLI::Option* const from = create
                                ->add_option("--from", options->from,
                                             "A .safetensors file: the set has its tensors, and begins with what is "
                                             "in them.")
                                ->type_name("FILE")
                                ->excludes(tensor);
  CLI::Option* const spec = create
                                ->add_option("--spec", options->spec,
                                             "The whole set as JSON, a ParameterSetSpec of the protocol: for several "
                                             "groups, and what has no flag here.")
                                ->type_name("FILE");
  create->add_option("--rename", options->renames, kRenameHelp)
      ->type_name("FROM=TO")
      ->allow_extra_args(false)
      ->needs(from);
  create
      ->add_flag("--skip-other-types", options->skip_other_types,
                 "Leaves out tensors of the file that are not F32, F16 or BF16.")
      ->needs(from);
  create->add_flag("--await-write", options->awaits_write, "Begins with nothing: the set awaits a write.")
      ->excludes(from);
  create->add_option("--device", options->device, "Where the set lives: cpu or cuda:N. Default: the server's.");
  AddDurability(create, &options->durability);
  create->add_flag("--if-not-exists", options->if_not_exists,
                   "Is content with a set that is there already, if it was made alike; it keeps what it has.");
  options->group.AddTo(create, /*creates=*/true);
  options->set.AddTo(create);
  for (CLI::Option* const option :
       create->get_options([](const CLI::Option* option) { return option->get_group() == "Optimizer"; })) {
    option->excludes(spec);
  }
  create->callback([=] { *chosen = [=] { return Create(shell, *options); }; });

  const auto changes = std::make_shared<ChangeOptions>();
  CLI::App* const update = app->add_subcommand("update", "Changes how a set is stepped, from its next step on.");
  update->add_option("SET", changes->name, "Name of the set.")->required();
  update->add_option("-g,--group", changes->group_name,
                     "The group whose optimizer changes. May be left out where there is one.");
  update->add_option("--frozen", changes->frozen, "Whether the group's tensors take no part in steps: true or false.")
      ->type_name("BOOL")
      ->check(CLI::IsMember({"true", "false"}));
  changes->group.AddTo(update, /*creates=*/false);
  changes->set.AddTo(update);
  update->footer("A label without a value, as in --label=KEY=, is removed.");
  update->callback([=] { *chosen = [=] { return Update(shell, *changes); }; });
}

}  // namespace adamant::programs::cli
