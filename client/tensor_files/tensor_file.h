// Tensors in files: .safetensors, .npy, and raw little-endian fp32.
#ifndef ADAMANT_CLIENT_TENSOR_FILES_TENSOR_FILE_H_
#define ADAMANT_CLIENT_TENSOR_FILES_TENSOR_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace adamant::tensor_files {

enum class FileFormat { kSafetensors, kNpy, kRaw };

// By the end of the name: `.safetensors`, `.npy`, and `.raw` or `.bin`. INVALID_ARGUMENT for any other.
absl::StatusOr<FileFormat> FormatOfPath(absl::string_view path);

struct FileTensor {
  // Of a .safetensors file only: otherwise empty.
  std::string name = {};
  // Extents, outermost first; none: a scalar. A raw file is one row of all of its elements.
  std::vector<int64_t> shape = {};
  int64_t element_count = 0;
  // As .safetensors files call it. F32, F16 and BF16 are what Read takes.
  std::string dtype = {};
};

// A file that is read. Whatever is of no interest is not read, and nothing is kept: a file may be larger than memory.
// What others do to it meanwhile is met by Read, and by nothing else. Thread-safe once it is open.
class TensorFile {
 public:
  // Understands what is in the file, whose format its name says. INVALID_ARGUMENT if it is not of that format, is cut
  // off or is too long; NOT_FOUND or another error of the system's if it cannot be read. Errors begin with `path`.
  static absl::StatusOr<TensorFile> Open(const std::string& path);

  TensorFile(TensorFile&&);
  TensorFile& operator=(TensorFile&&);
  ~TensorFile();

  // As it was given to Open.
  const std::string& path() const;
  FileFormat format() const;
  // In the order of the file.
  const std::vector<FileTensor>& tensors() const;
  // Of a .safetensors file.
  const std::map<std::string, std::string>& metadata() const;

  // Whether Read takes the tensor.
  static bool IsFloat(const FileTensor& tensor);
  // Reads the elements from `begin` on of tensors()[index], row-major, until `to` is full; those of 16 bits are
  // widened, exactly. Errors begin with `path` and name the tensor: INVALID_ARGUMENT for other types, and where the
  // file has become too short; UNKNOWN for what the system could not read. Requires: begin + to.size() is at most the
  // tensor's element_count.
  absl::Status Read(size_t index, int64_t begin, absl::Span<float> to) const;

 private:
  struct Rep;
  explicit TensorFile(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

// A file that is written: row-major. It takes its name only when it is complete, so that nobody meets half of one
// and an older one stays until then. Thread-compatible.
class TensorFileWriter {
 public:
  // Makes room for the tensors, of which `name` and `shape` are of account, at `path`; `-` is standard output, which,
  // like a pipe or a device at `path`, takes memory until Commit. A file that is there is replaced, where a link leads,
  // and keeps its permissions. A .npy file has one tensor; a raw file has one behind the other, and no names.
  // Elements are of `dtype`: `F32`, or in a .safetensors file also `F16` or `BF16`. INVALID_ARGUMENT if that, or the
  // tensors, do not make a file of the format; an error of the system's if there is no room, or no right to write.
  static absl::StatusOr<TensorFileWriter> Create(const std::string& path, FileFormat format,
                                                 const std::vector<FileTensor>& tensors,
                                                 const std::map<std::string, std::string>& metadata = {},
                                                 absl::string_view dtype = "F32");

  TensorFileWriter(TensorFileWriter&&);
  TensorFileWriter& operator=(TensorFileWriter&&);
  // Removes what was not committed.
  ~TensorFileWriter();

  // Other values for the metadata of a .safetensors file, for who knows them late. INVALID_ARGUMENT unless they take no
  // more room than those given to Create; the file is then as it was. Requires: the format is kSafetensors.
  absl::Status ReplaceMetadata(const std::map<std::string, std::string>& metadata);
  // Where the elements of the tensor go; zero before. Those that the file has in 16 bits take memory until Commit,
  // which rounds them to the nearest, halfway to even.
  absl::Span<float> Elements(size_t index);
  // Once, when all elements are there: on OK the file is on disk under its name, or everything has been written to
  // what is no file. On error there is nothing of it but what that has taken.
  absl::Status Commit();
  // How many elements Commit has made infinite, as they are too large for their type.
  int64_t overflowed() const;

 private:
  struct Rep;
  explicit TensorFileWriter(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace adamant::tensor_files

#endif  // ADAMANT_CLIENT_TENSOR_FILES_TENSOR_FILE_H_
