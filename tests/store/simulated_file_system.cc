#include "tests/store/simulated_file_system.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/store/errors.h"

namespace adamant::store {
namespace {

// What a disk writes whole or not at all.
constexpr int64_t kAtomicBytes = 512;
constexpr int64_t kAtOnceLimit = int64_t{1} << 40;

using Sector = std::array<std::byte, kAtomicBytes>;
using Contents = std::vector<std::byte>;

absl::Status IoError(absl::string_view call, absl::string_view path) {
  return absl::InternalError(absl::StrCat(call, " ", path, ": Input/output error"));
}

absl::Status NoSpace(absl::string_view call, absl::string_view path) {
  return DiskExhausted(absl::StrCat(call, " ", path, ": No space left on device"));
}

absl::Status NotThere(absl::string_view call, absl::string_view path) {
  return absl::NotFoundError(absl::StrCat(call, " ", path, ": No such file or directory"));
}

// A sector of a file, with zeros behind the file's end.
Sector SectorOf(const Contents& contents, int64_t sector) {
  Sector result{};
  const int64_t begin = sector * kAtomicBytes;
  const int64_t end = std::min(begin + kAtomicBytes, static_cast<int64_t>(contents.size()));
  if (begin < end) std::copy(contents.begin() + begin, contents.begin() + end, result.begin());
  return result;
}

}  // namespace

// A file or a folder.
struct SimulatedFileSystem::Inode {
  explicit Inode(bool is_directory) : is_directory(is_directory) {}

  const bool is_directory;

  // Of a file: what is read, what lasts, and what has come between them, oldest first.
  Contents contents;
  Contents lasting;
  struct Unsynced {
    std::vector<Sector> versions;
    // A sync has failed since the last one was written, and the system takes it for written.
    bool forgotten = false;
  };
  std::map<int64_t, Unsynced> sectors;
  std::vector<int64_t> sizes;

  // Of a folder: likewise. What has come between them is in Disk::name_changes.
  std::map<std::string, std::shared_ptr<Inode>> entries;
  std::map<std::string, std::shared_ptr<Inode>> lasting_entries;

  void AddVersion(int64_t sector) {
    Unsynced& unsynced = sectors[sector];
    unsynced.versions.push_back(SectorOf(contents, sector));
    unsynced.forgotten = false;
  }

  void Sync() {
    lasting.resize(contents.size());
    sizes.clear();
    std::erase_if(sectors, [&](const auto& entry) {
      const auto& [sector, unsynced] = entry;
      if (unsynced.forgotten) return false;
      const int64_t begin = sector * kAtomicBytes;
      const int64_t count = std::min<int64_t>(kAtomicBytes, static_cast<int64_t>(lasting.size()) - begin);
      if (count > 0) std::copy_n(unsynced.versions.back().begin(), count, lasting.begin() + begin);
      return true;
    });
  }

  void Put(int64_t offset, absl::Span<const std::byte> bytes) {
    if (bytes.empty()) return;
    const int64_t end = offset + static_cast<int64_t>(bytes.size());
    if (end > static_cast<int64_t>(contents.size())) {
      contents.resize(end);
      sizes.push_back(end);
    }
    std::copy(bytes.begin(), bytes.end(), contents.begin() + offset);
    for (int64_t sector = offset / kAtomicBytes; sector * kAtomicBytes < end; ++sector) {
      AddVersion(sector);
    }
  }

  void Resize(int64_t size) {
    const auto old_size = static_cast<int64_t>(contents.size());
    if (size == old_size) return;
    contents.resize(size);
    sizes.push_back(size);
    for (int64_t sector = size / kAtomicBytes; sector * kAtomicBytes < old_size; ++sector) {
      AddVersion(sector);
    }
  }

  // Has `choose`, which is told how many values there are beside what lasts, choose what the file has after a power
  // cut: 0 for what lasts, i for the i-th after that.
  template <typename Choose>
  Contents AfterPowerCut(Choose choose) const {
    Contents result = lasting;
    const size_t size_choice = choose(sizes.size());
    const size_t size = size_choice == 0 ? lasting.size() : static_cast<size_t>(sizes[size_choice - 1]);
    size_t most = std::max(size, result.size());
    if (!sectors.empty()) most = std::max<size_t>(most, (sectors.rbegin()->first + 1) * kAtomicBytes);
    result.resize(most);
    for (const auto& [sector, unsynced] : sectors) {
      const size_t choice = choose(unsynced.versions.size());
      if (choice == 0) continue;
      const Sector& version = unsynced.versions[choice - 1];
      const auto to = result.begin() + sector * kAtomicBytes;
      std::copy_n(version.begin(), std::min<int64_t>(kAtomicBytes, result.end() - to), to);
    }
    result.resize(size);
    return result;
  }
};

struct SimulatedFileSystem::Disk {
  // What one call does to names, all of it or none.
  struct NameChange {
    struct Entry {
      std::shared_ptr<Inode> folder;
      std::string name;
      std::shared_ptr<Inode> now;  // null: the name is gone
    };
    std::vector<Entry> entries;
  };

  core::Mutex mutex;
  int64_t calls ABSL_GUARDED_BY(mutex) = 0;
  std::map<int64_t, Fault> faults ABSL_GUARDED_BY(mutex);
  bool is_off ABSL_GUARDED_BY(mutex) = false;
  int64_t capacity ABSL_GUARDED_BY(mutex) = kAtOnceLimit;
  std::vector<NameChange> name_changes ABSL_GUARDED_BY(mutex);
  std::set<const Inode*> locked ABSL_GUARDED_BY(mutex);
  std::shared_ptr<Inode> root ABSL_GUARDED_BY(mutex) = std::make_shared<Inode>(true);

  // Counts a call, and tells how it is to fail, if it is.
  std::optional<Fault> Count() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto fault = faults.find(++calls);
    if (fault != faults.end() && fault->second == Fault::kPowerOff) is_off = true;
    if (is_off) return Fault::kPowerOff;
    if (fault == faults.end()) return std::nullopt;
    return fault->second;
  }

  // The same for a call that does nothing if it fails.
  absl::Status Count(absl::string_view call, absl::string_view path, bool needs_room)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const std::optional<Fault> fault = Count();
    if (fault == Fault::kIoError || fault == Fault::kPowerOff) return IoError(call, path);
    if (fault == Fault::kNoSpace && needs_room) return NoSpace(call, path);
    return absl::OkStatus();
  }

  // What is at the path now; null if there is nothing.
  std::shared_ptr<Inode> Find(absl::string_view path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::shared_ptr<Inode> inode = root;
    for (absl::string_view name : absl::StrSplit(path, '/', absl::SkipEmpty())) {
      const auto entry = inode->entries.find(std::string(name));
      if (entry == inode->entries.end()) return nullptr;
      inode = entry->second;
    }
    return inode;
  }

  // The folder and the name of a path. The folder is null if it is not there.
  std::pair<std::shared_ptr<Inode>, std::string> Split(const std::string& path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::shared_ptr<Inode> folder = Find(ParentDirectory(path));
    if (folder != nullptr && !folder->is_directory) folder = nullptr;
    return {std::move(folder), path.substr(path.rfind('/') + 1)};
  }

  void Change(NameChange change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (const NameChange::Entry& entry : change.entries) {
      if (entry.now != nullptr) {
        entry.folder->entries[entry.name] = entry.now;
      } else {
        entry.folder->entries.erase(entry.name);
      }
    }
    name_changes.push_back(std::move(change));
  }

  void RemoveEntriesOf(const std::shared_ptr<Inode>& folder) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    while (!folder->entries.empty()) {
      const auto [name, inode] = *folder->entries.begin();
      RemoveEntriesOf(inode);
      Change({{{folder, name, nullptr}}});
    }
  }

  // Makes changes of names in the folder last, with those before them that changed the same names elsewhere.
  void SyncNames(const Inode* folder) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::set<std::pair<const Inode*, std::string>> names;
    std::vector<NameChange> later;
    std::vector<NameChange> lasting;
    for (auto change = name_changes.rbegin(); change != name_changes.rend(); ++change) {
      const bool lasts =
          std::any_of(change->entries.begin(), change->entries.end(), [&](const NameChange::Entry& entry) {
            return entry.folder.get() == folder || names.contains({entry.folder.get(), entry.name});
          });
      if (lasts) {
        for (const NameChange::Entry& entry : change->entries) names.insert({entry.folder.get(), entry.name});
      }
      (lasts ? lasting : later).push_back(std::move(*change));
    }
    for (auto change = lasting.rbegin(); change != lasting.rend(); ++change) {
      for (const NameChange::Entry& entry : change->entries) {
        if (entry.now != nullptr) {
          entry.folder->lasting_entries[entry.name] = entry.now;
        } else {
          entry.folder->lasting_entries.erase(entry.name);
        }
      }
    }
    std::reverse(later.begin(), later.end());
    name_changes = std::move(later);
  }

  static int64_t Room(int64_t size) { return (size + kSectorBytes - 1) / kSectorBytes * kSectorBytes; }

  static int64_t Used(const Inode& inode) {
    int64_t used = Room(static_cast<int64_t>(inode.contents.size()));
    for (const auto& [name, entry] : inode.entries) used += Used(*entry);
    return used;
  }

  // The size to which a file can grow, at most `size`.
  int64_t Grown(const Inode& inode, int64_t size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto now = static_cast<int64_t>(inode.contents.size());
    if (size <= now) return size;
    const int64_t free = std::max<int64_t>(0, capacity - Used(*root)) / kSectorBytes * kSectorBytes;
    return std::max(now, std::min(size, Room(now) + free));
  }
};

class SimulatedFile : public File {
 public:
  using Fault = SimulatedFileSystem::Fault;

  SimulatedFile(std::string path, FileSystem::Access access, std::shared_ptr<SimulatedFileSystem::Disk> disk,
                std::shared_ptr<SimulatedFileSystem::Inode> inode)
      : path_(std::move(path)), access_(access), disk_(std::move(disk)), inode_(std::move(inode)) {}

  absl::Status Write(int64_t offset, absl::Span<const std::byte> bytes) override {
    core::MutexLock lock(&disk_->mutex);
    const std::optional<Fault> fault = disk_->Count();
    if (absl::Status status = CheckAligned("write", offset, bytes.data(), bytes.size()); !status.ok()) return status;
    if (fault == Fault::kPowerOff) return IoError("write", path_);
    if (fault == Fault::kIoError) {
      std::mt19937_64 random(static_cast<uint64_t>(disk_->calls));
      const int64_t fits = disk_->Grown(*inode_, offset + static_cast<int64_t>(bytes.size())) - offset;
      ForEachSector(offset, bytes.first(std::max<int64_t>(0, fits)),
                    [&](int64_t at, absl::Span<const std::byte> piece) {
                      if (random() % 2 == 0) inode_->Put(at, piece);
                    });
      return IoError("write", path_);
    }
    int64_t fits = disk_->Grown(*inode_, offset + static_cast<int64_t>(bytes.size())) - offset;
    if (fault == Fault::kNoSpace)
      fits = std::min(fits, static_cast<int64_t>(bytes.size()) / 2 / kAtomicBytes * kAtomicBytes);
    const bool all = fits == static_cast<int64_t>(bytes.size()) && fault != Fault::kNoSpace;
    inode_->Put(offset, bytes.first(std::max<int64_t>(0, fits)));
    return all ? absl::OkStatus() : NoSpace("write", path_);
  }

  absl::Status Read(int64_t offset, absl::Span<std::byte> bytes) const override {
    core::MutexLock lock(&disk_->mutex);
    if (absl::Status status = disk_->Count("read", path_, false); !status.ok()) return status;
    if (absl::Status status = CheckAligned("read", offset, bytes.data(), bytes.size()); !status.ok()) return status;
    const Contents& contents = inode_->contents;
    if (offset + static_cast<int64_t>(bytes.size()) > static_cast<int64_t>(contents.size())) {
      return absl::OutOfRangeError(absl::StrCat("read ", path_, ": it ends at byte ", contents.size()));
    }
    std::copy_n(contents.begin() + offset, bytes.size(), bytes.begin());
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Size() const override {
    core::MutexLock lock(&disk_->mutex);
    if (absl::Status status = disk_->Count("stat", path_, false); !status.ok()) return status;
    return static_cast<int64_t>(inode_->contents.size());
  }

  absl::Status Allocate(int64_t size) override {
    core::MutexLock lock(&disk_->mutex);
    if (absl::Status status = disk_->Count("allocate", path_, true); !status.ok()) return status;
    if (disk_->Grown(*inode_, size) < size) return NoSpace("allocate", path_);
    if (size > static_cast<int64_t>(inode_->contents.size())) inode_->Resize(size);
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    core::MutexLock lock(&disk_->mutex);
    const std::optional<Fault> fault = disk_->Count();
    if (fault == Fault::kPowerOff) return IoError("sync", path_);
    if (fault == Fault::kIoError) {
      std::mt19937_64 random(static_cast<uint64_t>(disk_->calls));
      inode_->lasting = inode_->AfterPowerCut([&](size_t choices) { return random() % 2 == 0 ? choices : 0; });
      for (auto& [sector, unsynced] : inode_->sectors) unsynced.forgotten = true;
      return IoError("sync", path_);
    }
    inode_->Sync();
    return absl::OkStatus();
  }

  absl::Status Resize(int64_t size) {
    core::MutexLock lock(&disk_->mutex);
    if (absl::Status status = disk_->Count("truncate", path_, true); !status.ok()) return status;
    if (disk_->Grown(*inode_, size) < size) return NoSpace("truncate", path_);
    inode_->Resize(size);
    return absl::OkStatus();
  }

 private:
  template <typename Visit>
  static void ForEachSector(int64_t offset, absl::Span<const std::byte> bytes, Visit visit) {
    while (!bytes.empty()) {
      const int64_t end = (offset / kAtomicBytes + 1) * kAtomicBytes;
      const size_t count = std::min(bytes.size(), static_cast<size_t>(end - offset));
      visit(offset, bytes.first(count));
      bytes.remove_prefix(count);
      offset = end;
    }
  }

  absl::Status CheckAligned(absl::string_view call, int64_t offset, const void* address, size_t size) const {
    const auto where = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address));
    if (access_ == FileSystem::Access::kBuffered ||
        ((offset | where | static_cast<int64_t>(size)) % kSectorBytes) == 0) {
      return absl::OkStatus();
    }
    return absl::InternalError(absl::StrCat(call, " ", path_, ": Invalid argument"));
  }

  const std::string path_;
  const FileSystem::Access access_;
  const std::shared_ptr<SimulatedFileSystem::Disk> disk_;
  const std::shared_ptr<SimulatedFileSystem::Inode> inode_;
};

class SimulatedFileSystem::HeldLock : public FileSystem::Lock {
 public:
  HeldLock(std::shared_ptr<Disk> disk, std::shared_ptr<Inode> inode)
      : disk_(std::move(disk)), inode_(std::move(inode)) {}
  ~HeldLock() override {
    core::MutexLock lock(&disk_->mutex);
    disk_->locked.erase(inode_.get());
  }

 private:
  const std::shared_ptr<Disk> disk_;
  const std::shared_ptr<Inode> inode_;
};

SimulatedFileSystem::SimulatedFileSystem() : disk_(std::make_shared<Disk>()) {}
SimulatedFileSystem::~SimulatedFileSystem() = default;

int64_t SimulatedFileSystem::calls() const {
  core::MutexLock lock(&disk_->mutex);
  return disk_->calls;
}

void SimulatedFileSystem::FailCall(int64_t number, Fault fault) {
  core::MutexLock lock(&disk_->mutex);
  disk_->faults[number] = fault;
}

void SimulatedFileSystem::SetCapacity(int64_t bytes) {
  core::MutexLock lock(&disk_->mutex);
  disk_->capacity = bytes;
}

std::unique_ptr<SimulatedFileSystem> SimulatedFileSystem::PowerCut(uint64_t seed) const {
  auto result = std::make_unique<SimulatedFileSystem>();
  core::MutexLock lock(&disk_->mutex);
  // Nobody else has it yet.
  core::MutexLock result_lock(&result->disk_->mutex);
  std::mt19937_64 random(seed);
  // Not only one half of everything: nearly all, or nearly nothing, is where what is missing matters most.
  const double keep = std::array{0.0, 0.1, 0.5, 0.9, 1.0}[random() % 5];
  const auto choose = [&](size_t choices) -> size_t {
    if (choices == 0 || std::uniform_real_distribution<>()(random) >= keep) return 0;
    return random() % 2 == 0 ? choices : 1 + random() % choices;
  };

  std::map<const Inode*, std::map<std::string, std::shared_ptr<Inode>>> kept;
  const auto entries_of = [&](const Inode* folder) -> std::map<std::string, std::shared_ptr<Inode>>& {
    return kept.try_emplace(folder, folder->lasting_entries).first->second;
  };
  for (const Disk::NameChange& change : disk_->name_changes) {
    if (choose(1) == 0) continue;
    for (const Disk::NameChange::Entry& entry : change.entries) {
      if (entry.now != nullptr) {
        entries_of(entry.folder.get())[entry.name] = entry.now;
      } else {
        entries_of(entry.folder.get()).erase(entry.name);
      }
    }
  }
  // By name, so that the same seed cuts the same way in every run.
  const auto copy = [&](const auto& self, const Inode& from) -> std::shared_ptr<Inode> {
    auto to = std::make_shared<Inode>(from.is_directory);
    to->contents = to->lasting = from.AfterPowerCut(choose);
    for (const auto& [name, inode] : entries_of(&from)) to->entries[name] = self(self, *inode);
    to->lasting_entries = to->entries;
    return to;
  };
  result->disk_->root = copy(copy, *disk_->root);
  result->disk_->capacity = disk_->capacity;
  return result;
}

int64_t SimulatedFileSystem::SizeOf(const std::string& path) const {
  core::MutexLock lock(&disk_->mutex);
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  return inode == nullptr ? -1 : static_cast<int64_t>(inode->contents.size());
}

void SimulatedFileSystem::FlipBit(const std::string& path, int64_t bit) {
  core::MutexLock lock(&disk_->mutex);
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  for (Contents* contents : {&inode->contents, &inode->lasting}) {
    if (bit / 8 < static_cast<int64_t>(contents->size())) (*contents)[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

absl::StatusOr<std::unique_ptr<File>> SimulatedFileSystem::Create(const std::string& path, Access access) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("open", path, true); !status.ok()) return status;
  const auto [folder, name] = disk_->Split(path);
  if (folder == nullptr) return NotThere("open", path);
  std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) {
    inode = std::make_shared<Inode>(false);
    disk_->Change({{{folder, name, inode}}});
  } else if (inode->is_directory) {
    return absl::InternalError(absl::StrCat("open ", path, ": Is a directory"));
  } else {
    inode->Resize(0);
  }
  return std::make_unique<SimulatedFile>(path, access, disk_, std::move(inode));
}

absl::StatusOr<std::unique_ptr<File>> SimulatedFileSystem::Open(const std::string& path, Access access) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("open", path, false); !status.ok()) return status;
  std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) return NotThere("open", path);
  if (inode->is_directory) return absl::InternalError(absl::StrCat("open ", path, ": Is a directory"));
  return std::make_unique<SimulatedFile>(path, access, disk_, std::move(inode));
}

absl::Status SimulatedFileSystem::MakeDirectory(const std::string& path) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("mkdir", path, true); !status.ok()) return status;
  const auto [folder, name] = disk_->Split(path);
  if (folder == nullptr) return NotThere("mkdir", path);
  if (const std::shared_ptr<Inode> inode = disk_->Find(path); inode != nullptr) {
    return inode->is_directory ? absl::OkStatus() : absl::InternalError(absl::StrCat("mkdir ", path, ": File exists"));
  }
  disk_->Change({{{folder, name, std::make_shared<Inode>(true)}}});
  return absl::OkStatus();
}

absl::Status SimulatedFileSystem::Rename(const std::string& from, const std::string& to) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("rename", from, true); !status.ok()) return status;
  const std::shared_ptr<Inode> inode = disk_->Find(from);
  const auto [from_folder, from_name] = disk_->Split(from);
  const auto [to_folder, to_name] = disk_->Split(to);
  if (inode == nullptr || to_folder == nullptr) return NotThere("rename", from);
  const std::shared_ptr<Inode> replaced = disk_->Find(to);
  if (replaced == inode) return absl::OkStatus();
  if (replaced != nullptr && replaced->is_directory && (!inode->is_directory || !replaced->entries.empty())) {
    return absl::InternalError(absl::StrCat("rename ", from, " to ", to, ": Directory not empty"));
  }
  disk_->Change({{{from_folder, from_name, nullptr}, {to_folder, to_name, inode}}});
  return absl::OkStatus();
}

absl::Status SimulatedFileSystem::Remove(const std::string& path) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("unlink", path, false); !status.ok()) return status;
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) return absl::OkStatus();
  if (inode->is_directory) return absl::InternalError(absl::StrCat("unlink ", path, ": Is a directory"));
  const auto [folder, name] = disk_->Split(path);
  disk_->Change({{{folder, name, nullptr}}});
  return absl::OkStatus();
}

absl::Status SimulatedFileSystem::RemoveAll(const std::string& path) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("remove all of", path, false); !status.ok()) return status;
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) return absl::OkStatus();
  disk_->RemoveEntriesOf(inode);
  const auto [folder, name] = disk_->Split(path);
  disk_->Change({{{folder, name, nullptr}}});
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SimulatedFileSystem::List(const std::string& path) const {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("list", path, false); !status.ok()) return status;
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) return NotThere("list", path);
  if (!inode->is_directory) return absl::InternalError(absl::StrCat("list ", path, ": Not a directory"));
  std::vector<std::string> names;
  for (const auto& [name, entry] : inode->entries) names.push_back(name);
  return names;
}

absl::Status SimulatedFileSystem::SyncDirectory(const std::string& path) {
  core::MutexLock lock(&disk_->mutex);
  const std::optional<Fault> fault = disk_->Count();
  const std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) return NotThere("sync", path);
  if (!inode->is_directory) return absl::InternalError(absl::StrCat("sync ", path, ": Not a directory"));
  if (fault == Fault::kIoError || fault == Fault::kPowerOff) return IoError("sync", path);
  disk_->SyncNames(inode.get());
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SimulatedFileSystem::FreeBytes(const std::string& path) const {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("statvfs", path, false); !status.ok()) return status;
  if (disk_->Find(path) == nullptr) return NotThere("statvfs", path);
  return std::max<int64_t>(0, disk_->capacity - Disk::Used(*disk_->root));
}

absl::StatusOr<std::unique_ptr<FileSystem::Lock>> SimulatedFileSystem::TakeLock(const std::string& path) {
  core::MutexLock lock(&disk_->mutex);
  if (absl::Status status = disk_->Count("lock", path, true); !status.ok()) return status;
  const auto [folder, name] = disk_->Split(path);
  if (folder == nullptr) return NotThere("lock", path);
  std::shared_ptr<Inode> inode = disk_->Find(path);
  if (inode == nullptr) {
    inode = std::make_shared<Inode>(false);
    disk_->Change({{{folder, name, inode}}});
  }
  if (!disk_->locked.insert(inode.get()).second) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is locked by another process"));
  }
  return std::make_unique<HeldLock>(disk_, std::move(inode));
}

absl::Status SimulatedFileSystem::Resize(File* file, int64_t size) {
  return static_cast<SimulatedFile*>(file)->Resize(size);
}

}  // namespace adamant::store
