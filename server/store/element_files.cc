#include "server/store/element_files.h"

#include <cstddef>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/store/errors.h"
#include "server/store/stored_elements.h"

namespace adamant::store {
namespace {

std::string ElementsPath(const std::string& directory, int32_t file, int64_t slot_bytes) {
  return absl::StrCat(directory, "/elements-", file, "-", slot_bytes);
}

}  // namespace

bool HasSlots(int64_t flat_size) { return flat_size * static_cast<int64_t>(sizeof(float)) > kInlineBytes; }

absl::Status ReadElements(const StoreParts& parts, const StoredSet& stored, int32_t slots,
                          const StoredElements& elements, const core::BroughtElements& to) {
  ElementPieces pieces = ElementPieces::ToRead(to);
  if (elements.has_here()) {
    if (!pieces.Split(elements.here())) return Damaged("a record has other elements than its header says");
  } else {
    SlotContents contents = {.slot = elements.slot().slot(), .bytes = elements.slot().bytes(), .checksums = {}};
    contents.checksums.assign(elements.slot().checksums().begin(), elements.slot().checksums().end());
    for (const int32_t part : elements.slot().halved()) {
      if (part < 0 || part >= elements.slot().checksums_size()) return Damaged("a record has a part that there is not");
      contents.halved.resize(contents.checksums.size());
      contents.halved[part] = true;
    }
    const absl::Span<std::byte> rest = pieces.Cut(elements.slot().slot_bytes());
    if (contents.bytes != pieces.sector_bytes() || rest.size() != elements.slot().rest().size()) {
      return Damaged("a record has other elements than its header says");
    }
    absl::c_copy(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(elements.slot().rest().data()), rest.size()),
                 rest.begin());
    const std::string path =
        ElementsPath(SetDirectory(parts, stored), elements.slot().file(), elements.slot().slot_bytes());
    absl::StatusOr<std::unique_ptr<GradientSlots>> file = GradientSlots::Open(
        parts.file_system, path, slots, elements.slot().slot_bytes(), absl::MakeConstSpan(&contents.slot, 1));
    if (!file.ok()) return file.status();
    if (absl::Status status = (*file)->Read(contents, pieces.read()); !status.ok()) return status;
  }
  pieces.Scatter();
  return absl::OkStatus();
}

ElementFiles::ElementFiles(FileSystem* file_system, std::shared_ptr<SetFolder> folder, int32_t slots)
    : file_system_(file_system), folder_(std::move(folder)), slots_(slots) {}

absl::Status ElementFiles::Open(int64_t flat_size, absl::Span<const ElementPlace> taken) {
  bool has_current = false;
  if (absl::Status status = OpenThere(SectorBytesOf(flat_size), taken, &has_current); !status.ok()) return status;
  return has_current ? absl::OkStatus() : Make(flat_size);
}

absl::Status ElementFiles::OpenThere(int64_t slot_bytes, absl::Span<const ElementPlace> taken, bool* has_current) {
  core::MutexLock lock(&mutex_);
  absl::StatusOr<std::vector<std::string>> names = file_system_->List(folder_->directory());
  if (!names.ok()) return names.status();
  std::map<int32_t, std::vector<int32_t>> taken_slots;
  for (const ElementPlace& place : taken) taken_slots[place.file].push_back(place.slot);
  std::map<int32_t, std::string> found;
  for (const std::string& name : *names) {
    const std::vector<absl::string_view> parts = absl::StrSplit(name, '-');
    int32_t file;
    if (parts.size() != 3 || parts[0] != "elements" || !absl::SimpleAtoi(parts[1], &file)) continue;
    found[file] = name;
  }
  for (const auto& [file, name] : found) {
    const std::string path = absl::StrCat(folder_->directory(), "/", name);
    int64_t file_slot_bytes = 0;
    if (!absl::SimpleAtoi(name.substr(name.rfind('-') + 1), &file_slot_bytes)) continue;
    const bool is_current = file == found.rbegin()->first && file_slot_bytes == slot_bytes;
    last_file_ = file;
    // A set that has grown has made another file; and one that has not, perhaps, for a growth that came to nothing, of
    // which there may be a part.
    const bool is_taken = taken_slots.contains(file);
    absl::StatusOr<std::unique_ptr<GradientSlots>> opened = absl::DataLossError("nothing is in it");
    if (is_current || is_taken) {
      opened = GradientSlots::Open(file_system_, path, slots_, file_slot_bytes, taken_slots[file]);
    }
    if (!is_taken && absl::IsDataLoss(opened.status())) {
      if (absl::Status status = file_system_->Remove(path); !status.ok()) return status;
      continue;
    }
    if (!opened.ok()) return opened.status();
    // What made it may have been killed before that.
    if (!is_taken) {
      if (absl::Status status = (*opened)->Sync(); !status.ok()) return status;
    }
    files_[file] = *std::move(opened);
  }
  const auto last = files_.find(last_file_);
  *has_current = last != files_.end() && last->second->slot_bytes() == slot_bytes;
  return absl::OkStatus();
}

absl::Status ElementFiles::Make(int64_t flat_size) {
  if (!HasSlots(flat_size)) return absl::OkStatus();
  int32_t number;
  {
    core::MutexLock lock(&mutex_);
    number = last_file_ + 1;
  }
  const int64_t slot_bytes = SectorBytesOf(flat_size);
  absl::StatusOr<std::unique_ptr<GradientSlots>> made =
      GradientSlots::Create(file_system_, ElementsPath(folder_->directory(), number, slot_bytes), slots_, slot_bytes);
  if (!made.ok()) return made.status();
  core::MutexLock lock(&mutex_);
  last_file_ = number;
  files_[number] = *std::move(made);
  return absl::OkStatus();
}

bool ElementFiles::empty() const {
  core::MutexLock lock(&mutex_);
  return files_.empty();
}

std::optional<ElementFiles::Slot> ElementFiles::Take() {
  core::MutexLock lock(&mutex_);
  GradientSlots* const file = files_[last_file_].get();
  const std::optional<int32_t> slot = file->Take();
  if (!slot.has_value()) return std::nullopt;
  return Slot{.place = {.file = last_file_, .slot = *slot}, .file = file};
}

void ElementFiles::Free(const ElementPlace& place) {
  core::MutexLock lock(&mutex_);
  files_[place.file]->Free(place.slot);
}

void ElementFiles::RemoveUnused() {
  std::vector<std::string> unused;
  {
    core::MutexLock lock(&mutex_);
    for (auto file = files_.begin(); file != files_.end();) {
      if (file->first != last_file_ && file->second->free_slots() == file->second->slots()) {
        unused.push_back(ElementsPath(folder_->directory(), file->first, file->second->slot_bytes()));
        file = files_.erase(file);
      } else {
        ++file;
      }
    }
  }
  for (const std::string& path : unused) file_system_->Remove(path).IgnoreError();
}

}  // namespace adamant::store
