#include "client/programs/cli/tensor_match.h"

#include <functional>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

using tensor_files::FileFormat;
using tensor_files::FileTensor;
using tensor_files::TensorFile;

constexpr v1::Slot kSlots[] = {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ, v1::SLOT_MAX_EXP_AVG_SQ,
                               v1::SLOT_MOMENTUM_BUFFER};

absl::Status Wrong(absl::string_view file, absl::string_view tensor, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": ", tensor.empty() ? "" : absl::StrCat("tensor '", tensor, "': "), why));
}

std::map<std::string, int32_t, std::less<>> Index(const std::vector<v1::Tensor>& tensors) {
  std::map<std::string, int32_t, std::less<>> index;
  for (const v1::Tensor& tensor : tensors) index[tensor.name()] = tensor.index();
  return index;
}

// Whether `name` is a moment of one of the tensors.
template <typename Index>
bool IsMoment(absl::string_view name, const Index& index) {
  for (const v1::Slot slot : kSlots) {
    if (slot == v1::SLOT_PARAMETER) continue;
    const std::string prefix = NameInFile(slot, "");
    if (absl::StartsWith(name, prefix) && index.contains(name.substr(prefix.size()))) return true;
  }
  return false;
}

}  // namespace

std::string SlotName(v1::Slot slot) { return absl::AsciiStrToLower(RenderEnum(v1::Slot_Name(slot), "SLOT_")); }

absl::StatusOr<v1::Slot> ParseSlot(absl::string_view name) {
  std::string names;
  for (const v1::Slot slot : kSlots) {
    if (name == SlotName(slot)) return slot;
    absl::StrAppend(&names, names.empty() ? "" : ", ", SlotName(slot));
  }
  return absl::InvalidArgumentError(absl::StrCat("--slot: expected one of ", names, ", got '", name, "'"));
}

std::string NameInFile(v1::Slot slot, absl::string_view tensor) {
  return slot == v1::SLOT_PARAMETER ? std::string(tensor) : absl::StrCat(SlotName(slot), "/", tensor);
}

std::vector<std::string> ParameterNames(const TensorFile& file) {
  std::set<std::string, std::less<>> all;
  for (const FileTensor& tensor : file.tensors()) all.insert(tensor.name);
  std::vector<std::string> names;
  for (const FileTensor& tensor : file.tensors()) {
    if (!IsMoment(tensor.name, all)) names.push_back(tensor.name);
  }
  return names;
}

absl::Status TensorMatch::Read(int32_t tensor, int64_t begin, absl::Span<float> to) const {
  const Place& place = places_[tensor];
  absl::Status status = place.file->Read(place.index, place.begin + begin, to);
  if (status.ok() || !place.file->tensors()[place.index].name.empty()) return status;
  // The file does not know what it has.
  return absl::Status(status.code(), absl::StrCat(status.message(), "; it was read for tensor '", place.tensor, "'"));
}

ElementReader TensorMatch::Reader() const {
  return [this](v1::Slot /*slot*/, int32_t tensor, int64_t begin, absl::Span<float> to) {
    return Read(tensor, begin, to);
  };
}

absl::Status TensorMatch::Put(const v1::Tensor& tensor, const Place& place) {
  Place& known = places_[tensor.index()];
  if (known.file != nullptr) return Wrong(place.file->path(), tensor.name(), "is there for the second time");
  known = place;
  known.tensor = tensor.name();
  spans_[tensor.index()] = absl::Span<const float>(nullptr, tensor.element_count());
  return absl::OkStatus();
}

absl::Status TensorMatch::Take(const TensorFile& file, size_t index, const v1::Tensor& tensor) {
  const FileTensor& from = file.tensors()[index];
  const bool raw = file.format() == FileFormat::kRaw;
  if (raw ? from.element_count != tensor.element_count()
          : !std::equal(from.shape.begin(), from.shape.end(), tensor.shape().begin(), tensor.shape().end())) {
    return Wrong(
        file.path(), tensor.name(),
        raw ? absl::StrCat("expected ", tensor.element_count(), " elements, got ", from.element_count)
            : absl::StrCat("expected the shape ", RenderShape(tensor.shape()), ", got ", RenderShape(from.shape)));
  }
  // Says at once what is wrong with the type.
  absl::Status readable = file.Read(index, 0, {});
  return readable.ok() ? Put(tensor, {.file = &file, .index = index}) : readable;
}

absl::Status TensorMatch::TakeAll(const TensorFile& file, const std::vector<v1::Tensor>& tensors) {
  int64_t total = 0;
  for (const v1::Tensor& tensor : tensors) total += tensor.element_count();
  if (file.tensors()[0].element_count != total) {
    return Wrong(file.path(), "",
                 absl::StrCat("expected the ", total, " elements of all tensors, got ", file.tensors()[0].element_count,
                              "; say TENSOR=FILE if it has one of them"));
  }
  int64_t begin = 0;
  for (const v1::Tensor& tensor : tensors) {
    absl::Status status = Put(tensor, {.file = &file, .index = 0, .begin = begin});
    if (!status.ok()) return status;
    begin += tensor.element_count();
  }
  return absl::OkStatus();
}

void TensorMatch::Finish(const std::vector<v1::Tensor>& tensors) {
  for (const v1::Tensor& tensor : tensors) {
    if (places_[tensor.index()].file != nullptr || tensor.element_count() == 0) present_.push_back(tensor.index());
  }
}

absl::StatusOr<TensorMatch> TensorMatch::Find(const std::vector<std::string>& arguments,
                                              const std::vector<v1::Tensor>& tensors, bool partial) {
  const std::map<std::string, int32_t, std::less<>> index = Index(tensors);
  TensorMatch match(tensors);
  for (const std::string& argument : arguments) {
    // Names of tensors and of files may have any character: what decides is which tensors there are.
    size_t equals = argument.rfind('=');
    auto named = index.end();
    while (equals != std::string::npos && (named = index.find(argument.substr(0, equals))) == index.end()) {
      equals = equals == 0 ? std::string::npos : argument.rfind('=', equals - 1);
    }
    absl::StatusOr<TensorFile> opened = TensorFile::Open(named == index.end() ? argument : argument.substr(equals + 1));
    if (absl::IsNotFound(opened.status()) && named == index.end() && absl::StrContains(argument, '=')) {
      return absl::NotFoundError(absl::StrCat(opened.status().message(), ", and the set has no tensor '",
                                              argument.substr(0, argument.rfind('=')), "'"));
    }
    if (!opened.ok()) return opened.status();
    match.files_.push_back(std::make_unique<TensorFile>(*std::move(opened)));
    const TensorFile& file = *match.files_.back();
    if (file.format() == FileFormat::kSafetensors) {
      for (size_t i = 0; i < file.tensors().size(); ++i) {
        const std::string& name = file.tensors()[i].name;
        if (named != index.end() && name != named->first) continue;
        const auto found = index.find(name);
        if (found == index.end()) {
          if (IsMoment(name, index)) continue;
          return Wrong(file.path(), name, "the set has no tensor of this name");
        }
        absl::Status status = match.Take(file, i, tensors[found->second]);
        if (!status.ok()) return status;
      }
      continue;
    }
    absl::Status status;
    if (named != index.end()) {
      status = match.Take(file, 0, tensors[named->second]);
    } else if (tensors.size() == 1) {
      status = match.Take(file, 0, tensors[0]);
    } else if (file.format() == FileFormat::kRaw) {
      status = match.TakeAll(file, tensors);
    } else {
      status = Wrong(file.path(), "", absl::StrCat("of which of the ", tensors.size(), " tensors? Say TENSOR=FILE"));
    }
    if (!status.ok()) return status;
  }
  match.Finish(tensors);
  for (const v1::Tensor& tensor : tensors) {
    if (partial || match.places_[tensor.index()].file != nullptr || tensor.element_count() == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("no file has the tensor '", tensor.name(), "', and there are ",
                                                   tensors.size() - match.present_.size(),
                                                   " such; with --partial they are left as they are"));
  }
  return match;
}

absl::StatusOr<TensorMatch> TensorMatch::FindSlot(const TensorFile& file, absl::Span<const std::string> names,
                                                  const std::vector<v1::Tensor>& tensors) {
  std::map<std::string, size_t, std::less<>> index;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!names[i].empty()) index.emplace(names[i], i);
  }
  TensorMatch match(tensors);
  for (const v1::Tensor& tensor : tensors) {
    const auto found = index.find(tensor.name());
    if (found == index.end()) continue;
    absl::Status status = match.Take(file, found->second, tensor);
    if (!status.ok()) return status;
  }
  match.Finish(tensors);
  return match;
}

}  // namespace adamant::programs::cli
