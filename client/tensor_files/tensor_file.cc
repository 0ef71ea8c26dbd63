// Files are written where they are mapped, so that a tensor is in memory once. They are not read so: pages that cannot
// be read end the program, or, where it is the kernel that reads them for a socket, the connection.
#include "client/tensor_files/tensor_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/src/formats.h"
#include "client/tensor_files/npy.h"
#include "client/tensor_files/safetensors.h"

namespace adamant::tensor_files {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian, and used where they are mapped");

constexpr char kStandardOutput[] = "-";

// Far above what numpy itself reads, which is 10,000.
constexpr int64_t kMostNpyHeaderBytes = 1 << 20;

absl::Status SystemError(absl::string_view path) {
  const int error = errno;
  return absl::Status(absl::ErrnoToStatusCode(error), absl::StrCat(path, ": ", std::strerror(error)));
}

absl::Status InFile(absl::string_view path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }

 private:
  const int fd_;
};

// Pages of a file, or of no file. An empty one has none.
class Mapping {
 public:
  static std::optional<Mapping> Map(int fd, int64_t size, int protection, int flags) {
    if (size == 0) return Mapping(nullptr, 0);
    void* const at = mmap(nullptr, size, protection, flags, fd, 0);
    if (at == MAP_FAILED) return std::nullopt;
    return Mapping(static_cast<char*>(at), size);
  }
  Mapping(Mapping&& other) noexcept : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Mapping() {
    if (at_ != nullptr) munmap(at_, size_);
  }

  char* data() const { return at_; }
  int64_t size() const { return size_; }
  absl::string_view view() const { return at_ == nullptr ? "" : absl::string_view(at_, size_); }

 private:
  Mapping(char* at, int64_t size) : at_(at), size_(size) {}

  char* at_;
  int64_t size_;
};

// Memory, which is taken as it is written to.
std::optional<Mapping> MapMemory(int64_t size) {
  return Mapping::Map(-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
}

// How many elements a shape has; nothing if there are more than a file of fp32 can have, or an extent is negative.
std::optional<int64_t> CountElements(absl::Span<const int64_t> shape) {
  int64_t count = sizeof(float);
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, extent, &count)) return std::nullopt;
  }
  return count / static_cast<int64_t>(sizeof(float));
}

// A type of numpy's, as .safetensors files call it.
std::optional<std::string> DtypeOfDescr(absl::string_view descr) {
  constexpr struct {
    const char* descr;
    const char* dtype;
  } kTypes[] = {{"<f4", "F32"}, {"<f2", "F16"}, {"<f8", "F64"}, {"<i8", "I64"}, {"<i4", "I32"}};
  for (const auto& type : kTypes) {
    if (descr == type.descr) return type.dtype;
  }
  return std::nullopt;
}

std::optional<v1::Dtype> FloatOf(absl::string_view dtype) {
  if (dtype == "F32") return v1::DTYPE_FLOAT32;
  if (dtype == "F16") return v1::DTYPE_FLOAT16;
  if (dtype == "BF16") return v1::DTYPE_BFLOAT16;
  return std::nullopt;
}

// The folder that a file is in.
std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

absl::StatusOr<FileFormat> FormatOfPath(absl::string_view path) {
  if (absl::EndsWith(path, ".safetensors")) return FileFormat::kSafetensors;
  if (absl::EndsWith(path, ".npy")) return FileFormat::kNpy;
  if (absl::EndsWith(path, ".raw") || absl::EndsWith(path, ".bin")) return FileFormat::kRaw;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected a name that ends in .safetensors, .npy, .raw or .bin"));
}

struct TensorFile::Rep {
  Rep(const std::string& path, FileFormat format, int fd) : path(path), format(format), file(fd) {}

  absl::Status Understand();
  // Reads the bytes from `offset` on until `to` is full. INVALID_ARGUMENT if the file ends before.
  absl::Status ReadBytes(int64_t offset, absl::Span<char> to) const;
  // The first bytes from `offset` on, at most `count`: fewer where the file is shorter.
  absl::StatusOr<std::string> Beginning(int64_t offset, int64_t count) const;

  const std::string path;
  const FileFormat format;
  const Descriptor file;
  int64_t size = 0;  // when it was opened, in bytes
  std::vector<FileTensor> tensors;
  // Where the bytes of each are.
  std::vector<int64_t> offsets;
  std::map<std::string, std::string> metadata;
};

TensorFile::TensorFile(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
TensorFile::TensorFile(TensorFile&&) = default;
TensorFile& TensorFile::operator=(TensorFile&&) = default;
TensorFile::~TensorFile() = default;

const std::string& TensorFile::path() const { return rep_->path; }
FileFormat TensorFile::format() const { return rep_->format; }
const std::vector<FileTensor>& TensorFile::tensors() const { return rep_->tensors; }
const std::map<std::string, std::string>& TensorFile::metadata() const { return rep_->metadata; }
bool TensorFile::IsFloat(const FileTensor& tensor) { return FloatOf(tensor.dtype).has_value(); }

absl::Status TensorFile::Rep::ReadBytes(int64_t offset, absl::Span<char> to) const {
  while (!to.empty()) {
    const ssize_t got = pread(file.get(), to.data(), to.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    // Whatever the system calls it: no server is to blame, and nothing is better in a moment.
    if (got < 0) return absl::UnknownError(absl::StrCat("cannot be read at byte ", offset, ": ", std::strerror(errno)));
    if (got == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected the ", size, " bytes that the file had when it was opened, and there is none at ",
                       offset, ": others have cut it off"));
    }
    to.remove_prefix(got);
    offset += got;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> TensorFile::Rep::Beginning(int64_t offset, int64_t count) const {
  std::string bytes(std::clamp<int64_t>(size - offset, 0, count), '\0');
  absl::Status status = ReadBytes(offset, absl::MakeSpan(bytes.data(), bytes.size()));
  if (!status.ok()) return status;
  return bytes;
}

absl::Status TensorFile::Rep::Understand() {
  switch (format) {
    case FileFormat::kSafetensors: {
      const absl::StatusOr<std::string> prefix = Beginning(0, kSafetensorsPrefixBytes);
      if (!prefix.ok()) return prefix.status();
      const absl::StatusOr<int64_t> length = ParseSafetensorsPrefix(*prefix, size);
      if (!length.ok()) return length.status();
      const int64_t data = kSafetensorsPrefixBytes + *length;
      const absl::StatusOr<std::string> json = Beginning(kSafetensorsPrefixBytes, *length);
      if (!json.ok()) return json.status();
      absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(*json, size - data);
      if (!header.ok()) return header.status();
      for (SafetensorsTensor& tensor : header->tensors) {
        const int64_t count = (tensor.end - tensor.begin) * 8 / *SafetensorsBits(tensor.dtype);
        offsets.push_back(data + tensor.begin);
        tensors.push_back({std::move(tensor.name), std::move(tensor.shape), count, std::move(tensor.dtype)});
      }
      metadata = std::move(header->metadata);
      return absl::OkStatus();
    }
    case FileFormat::kNpy: {
      const absl::StatusOr<std::string> start = Beginning(0, kMostNpyHeaderBytes);
      if (!start.ok()) return start.status();
      absl::StatusOr<NpyHeader> header = ParseNpyHeader(*start);
      if (!header.ok()) return header.status();
      const std::optional<std::string> dtype = DtypeOfDescr(header->descr);
      if (!dtype.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("expected elements of type '<f4' or '<f2', got '", header->descr.substr(0, 64), "'"));
      }
      const std::optional<int64_t> count = CountElements(header->shape);
      const int64_t element_bytes = *SafetensorsBits(*dtype) / 8;
      const int64_t got = size - header->data_offset;
      if (!count.has_value() || *count > got / element_bytes || *count * element_bytes != got) {
        return absl::InvalidArgumentError(
            absl::StrCat("expected as many bytes as the array has elements of ", element_bytes, ", ",
                         count.has_value() ? absl::StrCat(*count) : "more than any file", ", got ", got));
      }
      offsets.push_back(header->data_offset);
      tensors.push_back({"", std::move(header->shape), *count, *dtype});
      return absl::OkStatus();
    }
    case FileFormat::kRaw:
      if (size % sizeof(float) != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("expected whole elements of ", sizeof(float), " bytes, got ", size, " bytes"));
      }
      offsets.push_back(0);
      const auto count = size / static_cast<int64_t>(sizeof(float));
      tensors.push_back({"", {count}, count, "F32"});
      return absl::OkStatus();
  }
  return absl::InternalError("no such format");
}

absl::StatusOr<TensorFile> TensorFile::Open(const std::string& path) {
  const absl::StatusOr<FileFormat> format = FormatOfPath(path);
  if (!format.ok()) return format.status();
  auto rep = std::make_unique<Rep>(path, *format, open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status;
  if (rep->file.get() < 0 || fstat(rep->file.get(), &status) != 0) return SystemError(path);
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": expected a regular file"));
  rep->size = status.st_size;
  const absl::Status understood = rep->Understand();
  if (!understood.ok()) return InFile(path, understood);
  return TensorFile(std::move(rep));
}

absl::Status TensorFile::Read(size_t index, int64_t begin, absl::Span<float> to) const {
  const FileTensor& tensor = rep_->tensors[index];
  const std::optional<v1::Dtype> dtype = FloatOf(tensor.dtype);
  const std::string where = tensor.name.empty() ? rep_->path : absl::StrCat(rep_->path, ": tensor '", tensor.name, "'");
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": expected elements of type F32, F16 or BF16, got ", tensor.dtype));
  }
  const int64_t offset = rep_->offsets[index];
  if (!Is16Bit(*dtype)) {
    const absl::Status status =
        rep_->ReadBytes(offset + begin * static_cast<int64_t>(sizeof(float)),
                        absl::MakeSpan(reinterpret_cast<char*>(to.data()), to.size() * sizeof(float)));
    return status.ok() ? status : InFile(where, status);
  }
  constexpr int64_t kPiece = 65536;
  std::vector<char> piece(std::min<int64_t>(kPiece, to.size()) * sizeof(uint16_t));
  while (!to.empty()) {
    const int64_t count = std::min<int64_t>(kPiece, to.size());
    const absl::Status status = rep_->ReadBytes(offset + begin * static_cast<int64_t>(sizeof(uint16_t)),
                                                absl::MakeSpan(piece.data(), count * sizeof(uint16_t)));
    if (!status.ok()) return InFile(where, status);
    Widen(*dtype, piece.data(), count, to.data());
    to.remove_prefix(count);
    begin += count;
  }
  return absl::OkStatus();
}

struct TensorFileWriter::Rep {
  ~Rep() {
    if (!temporary_path.empty()) unlink(temporary_path.c_str());
  }
  // Looks at what is at `path`: a file is replaced where a link leads, and keeps its permissions; anything else, such
  // as a pipe, is written to.
  absl::Status LookAtPath();
  // Makes the file, under no name: then it goes with the program, however that ends. Some file systems cannot do that,
  // and it gets a name that shows that it is incomplete.
  absl::Status MakeFile();
  // Gives the file its name.
  absl::Status Name();

  std::string path;
  // None for standard output, for a file that has none, and for one that is complete.
  std::string temporary_path = {};
  // Null where what is made goes to `stream`, or to standard output.
  std::unique_ptr<Descriptor> file = nullptr;
  std::unique_ptr<Descriptor> stream = nullptr;
  mode_t mode = 0;  // of the file that there is; 0: there is none
  std::optional<Mapping> mapping = std::nullopt;
  v1::Dtype dtype = v1::DTYPE_FLOAT32;
  // Where that has 16 bits: the elements in fp32, one tensor behind the other, and where each begins.
  std::optional<Mapping> wide = std::nullopt;
  std::vector<int64_t> begins = {};
  int64_t overflowed = 0;
  // Of a .safetensors file: its tensors, and how long its header is.
  std::vector<SafetensorsTensor> entries = {};
  int64_t header_bytes = 0;
  std::vector<int64_t> offsets = {};
  std::vector<int64_t> counts = {};
};

absl::Status TensorFileWriter::Rep::LookAtPath() {
  struct stat there;
  if (stat(path.c_str(), &there) != 0) return absl::OkStatus();  // Who makes the file tells what is wrong.
  if (!S_ISREG(there.st_mode)) {
    stream = std::make_unique<Descriptor>(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    return stream->get() >= 0 ? absl::OkStatus() : SystemError(path);
  }
  mode = there.st_mode & 07777;
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  if (real == nullptr) return SystemError(path);
  path = real.get();
  return absl::OkStatus();
}

absl::Status TensorFileWriter::Rep::MakeFile() {
  constexpr mode_t kMode = 0666;
  file = std::make_unique<Descriptor>(open(FolderOf(path).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, kMode));
  if (file->get() >= 0) return absl::OkStatus();
  if (errno != EOPNOTSUPP && errno != EISDIR) return SystemError(path);
  const std::string name = absl::StrCat(path, ".incomplete-", getpid());
  file = std::make_unique<Descriptor>(open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, kMode));
  if (file->get() < 0) return SystemError(path);
  temporary_path = name;
  return absl::OkStatus();
}

absl::Status TensorFileWriter::Rep::Name() {
  if (temporary_path.empty()) {
    // A link replaces no file, and renaming does.
    const std::string name = absl::StrCat(path, ".incomplete-", getpid());
    const std::string handle = absl::StrCat("/proc/self/fd/", file->get());
    if (linkat(AT_FDCWD, handle.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0) return SystemError(path);
    temporary_path = name;
  }
  if (rename(temporary_path.c_str(), path.c_str()) != 0) return SystemError(path);
  temporary_path.clear();
  return absl::OkStatus();
}

TensorFileWriter::TensorFileWriter(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
TensorFileWriter::TensorFileWriter(TensorFileWriter&&) = default;
TensorFileWriter& TensorFileWriter::operator=(TensorFileWriter&&) = default;
TensorFileWriter::~TensorFileWriter() = default;

absl::StatusOr<TensorFileWriter> TensorFileWriter::Create(const std::string& path, FileFormat format,
                                                          const std::vector<FileTensor>& tensors,
                                                          const std::map<std::string, std::string>& metadata,
                                                          absl::string_view dtype) {
  auto rep = std::make_unique<Rep>();
  rep->path = path;
  const std::optional<v1::Dtype> known = FloatOf(dtype);
  if (!known.has_value() || (*known != v1::DTYPE_FLOAT32 && format != FileFormat::kSafetensors)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected elements of type F32, or in a .safetensors file F16 or BF16, got ", dtype));
  }
  rep->dtype = *known;
  const bool is_16_bit = Is16Bit(*known);
  const auto element_bytes = static_cast<int64_t>(is_16_bit ? sizeof(uint16_t) : sizeof(float));
  std::string header;
  if (format == FileFormat::kSafetensors) {
    for (const FileTensor& tensor : tensors) rep->entries.push_back({tensor.name, std::string(dtype), tensor.shape});
    absl::StatusOr<std::string> formatted = FormatSafetensorsHeader(&rep->entries, metadata);
    if (!formatted.ok()) return InFile(path, formatted.status());
    header = *std::move(formatted);
  } else if (format == FileFormat::kNpy) {
    if (tensors.size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": a .npy file has one tensor, and here are ", tensors.size()));
    }
    header = FormatNpyHeader(tensors[0].shape);
  }
  auto size = static_cast<int64_t>(header.size());
  rep->header_bytes = size;
  int64_t elements = 0;
  for (const FileTensor& tensor : tensors) {
    const std::optional<int64_t> count = CountElements(tensor.shape);
    rep->offsets.push_back(size);
    if (!count.has_value() || __builtin_add_overflow(size, *count * element_bytes, &size)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": the tensors are larger than a file can be"));
    }
    rep->counts.push_back(*count);
    rep->begins.push_back(elements);
    elements += *count;
  }
  if (is_16_bit) {
    rep->wide = MapMemory(elements * static_cast<int64_t>(sizeof(float)));
    if (!rep->wide.has_value()) return SystemError(path);
  }

  if (path != kStandardOutput) {
    const absl::Status looked = rep->LookAtPath();
    if (!looked.ok()) return looked;
  }
  if (path == kStandardOutput || rep->stream != nullptr) {
    rep->mapping = MapMemory(size);
  } else {
    const absl::Status made = rep->MakeFile();
    if (!made.ok()) return made;
    if (rep->mode != 0 && fchmod(rep->file->get(), rep->mode) != 0) return SystemError(path);
    // A disk that is full is met here, and not as a signal while the pages are written.
    if (size > 0) {
      errno = posix_fallocate(rep->file->get(), 0, size);
      if (errno != 0) return SystemError(path);
    }
    rep->mapping = Mapping::Map(rep->file->get(), size, PROT_READ | PROT_WRITE, MAP_SHARED);
  }
  if (!rep->mapping.has_value()) return SystemError(path);
  if (!header.empty()) std::memcpy(rep->mapping->data(), header.data(), header.size());
  return TensorFileWriter(std::move(rep));
}

absl::Status TensorFileWriter::ReplaceMetadata(const std::map<std::string, std::string>& metadata) {
  // Aligned to the length that there is, it is as long.
  absl::StatusOr<std::string> header = FormatSafetensorsHeader(&rep_->entries, metadata);
  if (!header.ok()) return InFile(rep_->path, header.status());
  if (static_cast<int64_t>(header->size()) > rep_->header_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(rep_->path, ": the header has room for ", rep_->header_bytes,
                                                   " bytes, and not for ", header->size()));
  }
  header = FormatSafetensorsHeader(&rep_->entries, metadata, rep_->header_bytes);
  if (!header.ok()) return InFile(rep_->path, header.status());
  std::memcpy(rep_->mapping->data(), header->data(), header->size());
  return absl::OkStatus();
}

absl::Span<float> TensorFileWriter::Elements(size_t index) {
  if (rep_->counts[index] == 0) return {};
  if (rep_->wide.has_value()) {
    return absl::MakeSpan(reinterpret_cast<float*>(rep_->wide->data()) + rep_->begins[index], rep_->counts[index]);
  }
  return absl::MakeSpan(reinterpret_cast<float*>(rep_->mapping->data() + rep_->offsets[index]), rep_->counts[index]);
}

int64_t TensorFileWriter::overflowed() const { return rep_->overflowed; }

absl::Status TensorFileWriter::Commit() {
  for (size_t i = 0; rep_->wide.has_value() && i < rep_->counts.size(); ++i) {
    const absl::Span<float> elements = Elements(i);
    rep_->overflowed += Round(rep_->dtype, elements);
    Narrow(rep_->dtype, elements.data(), rep_->counts[i], rep_->mapping->data() + rep_->offsets[i]);
  }
  if (rep_->file == nullptr) {
    absl::string_view left = rep_->mapping->view();
    while (!left.empty()) {
      const ssize_t written =
          write(rep_->stream != nullptr ? rep_->stream->get() : STDOUT_FILENO, left.data(), left.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return SystemError(rep_->stream != nullptr ? rep_->path : "standard output");
      left.remove_prefix(written);
    }
    return absl::OkStatus();
  }
  if (rep_->mapping->size() > 0 && msync(rep_->mapping->data(), rep_->mapping->size(), MS_SYNC) != 0) {
    return SystemError(rep_->path);
  }
  if (fsync(rep_->file->get()) != 0) return SystemError(rep_->path);
  const absl::Status named = rep_->Name();
  if (!named.ok()) return named;
  // The name is on disk once its folder is.
  const Descriptor folder(open(FolderOf(rep_->path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0 || fsync(folder.get()) != 0) return SystemError(rep_->path);
  return absl::OkStatus();
}

}  // namespace adamant::tensor_files
