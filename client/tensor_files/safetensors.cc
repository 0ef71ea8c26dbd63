// The JSON goes through nlohmann's event parser, not into its tree: a hostile header then takes no more memory than it
// is long, and a key that is there twice is seen.
#include "client/tensor_files/safetensors.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace adamant::tensor_files {
namespace {

constexpr char kMetadata[] = "__metadata__";
constexpr struct {
  const char* name;
  int64_t bits;
} kTypes[] = {{"F32", 32},    {"F16", 16},    {"BF16", 16}, {"F64", 64},    {"BOOL", 8},    {"U8", 8},     {"I8", 8},
              {"U16", 16},    {"I16", 16},    {"U32", 32},  {"I32", 32},    {"U64", 64},    {"I64", 64},   {"C64", 64},
              {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F4", 4},    {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E8M0", 8}};

// Some of a hostile name is enough for an error.
std::string Quote(absl::string_view name) {
  constexpr size_t kMost = 64;
  return absl::StrCat("'", name.substr(0, kMost), name.size() > kMost ? "...'" : "'");
}

// The bytes of a tensor; INVALID_ARGUMENT where there are more than 2^63 bits, or half a byte.
absl::StatusOr<int64_t> SizeOf(const SafetensorsTensor& tensor) {
  const std::optional<int64_t> bits = SafetensorsBits(tensor.dtype);
  if (!bits.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quote(tensor.name), " is of the dtype ", Quote(tensor.dtype), ", which is unknown"));
  }
  int64_t size = *bits;
  for (const int64_t extent : tensor.shape) {
    if (extent < 0 || __builtin_mul_overflow(size, extent, &size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(tensor.name), " has a shape that is no size: [",
          absl::StrJoin(absl::MakeConstSpan(tensor.shape).first(std::min<size_t>(tensor.shape.size(), 16)), ", "),
          "]"));
    }
  }
  if (size % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor.name), " ends within a byte"));
  }
  return size / 8;
}

// Takes the events of the header: an object of tensors, each an object of three fields, and of metadata.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  // What was understood, once the parser has ended without an error.
  SafetensorsHeader& header() { return header_; }
  const std::string& error() const { return error_; }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kFile:
        return Enter(Place::kHeader);
      case Place::kEntry:
        return Enter(in_metadata_ ? Place::kMetadata : Place::kTensor);
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& key) override {
    switch (place_) {
      case Place::kHeader:
        in_metadata_ = key == kMetadata;
        if (!names_.insert(key).second) return Fail(absl::StrCat("the name ", Quote(key), " is there twice"));
        if (!in_metadata_) header_.tensors.push_back({.name = key, .dtype = ""});
        return Enter(Place::kEntry);
      case Place::kMetadata:
        metadata_key_ = key;
        if (header_.metadata.contains(key)) {
          return Fail(absl::StrCat("the key ", Quote(key), " of the metadata is there twice"));
        }
        return Enter(Place::kMetadataValue);
      case Place::kTensor:
        if (key == "dtype") return EnterField(Place::kDtype, &has_dtype_, key);
        if (key == "shape") return EnterField(Place::kShape, &has_shape_, key);
        if (key == "data_offsets") return EnterField(Place::kOffsets, &has_offsets_, key);
        return Fail(absl::StrCat("tensor ", Quote(header_.tensors.back().name), " has an unknown field ", Quote(key)));
      default:
        return Unexpected("a key");
    }
  }

  bool end_object() override {
    switch (place_) {
      case Place::kHeader:
        return Enter(Place::kEnd);
      case Place::kMetadata:
        return Enter(Place::kHeader);
      case Place::kTensor:
        if (!has_dtype_ || !has_shape_ || !has_offsets_) {
          return Fail(absl::StrCat("tensor ", Quote(header_.tensors.back().name), " has no ",
                                   !has_dtype_   ? "dtype"
                                   : !has_shape_ ? "shape"
                                                 : "data_offsets"));
        }
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return Enter(Place::kHeader);
      default:
        return Unexpected("the end of an object");
    }
  }

  bool start_array(size_t) override {
    if (place_ == Place::kShape) return Enter(Place::kExtents);
    if (place_ != Place::kOffsets) return Unexpected("an array");
    offsets_.clear();
    return Enter(Place::kBeginAndEnd);
  }

  bool end_array() override {
    if (place_ == Place::kExtents) return Enter(Place::kTensor);
    if (place_ != Place::kBeginAndEnd) return Unexpected("the end of an array");
    SafetensorsTensor& tensor = header_.tensors.back();
    if (offsets_.size() != 2) {
      return Fail(absl::StrCat("the data_offsets of tensor ", Quote(tensor.name), ": expected 2 numbers, got ",
                               offsets_.size()));
    }
    tensor.begin = offsets_[0];
    tensor.end = offsets_[1];
    return Enter(Place::kTensor);
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadataValue) {
      header_.metadata.emplace(metadata_key_, value);
      return Enter(Place::kMetadata);
    }
    if (place_ != Place::kDtype) return Unexpected("a string");
    header_.tensors.back().dtype = value;
    return Enter(Place::kTensor);
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Unexpected(absl::StrCat(value));
    if (place_ == Place::kExtents) {
      header_.tensors.back().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ != Place::kBeginAndEnd) return Unexpected("a number");
    // More than two are an error at the end of the array, and need no room until then.
    if (offsets_.size() < 3) offsets_.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected(Quote(text)); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool null() override { return Unexpected("null"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("the header is no JSON, from byte ", position, " of it on"));
  }

 private:
  enum class Place {
    kFile,
    kHeader,
    kEntry,
    kMetadata,
    kMetadataValue,
    kTensor,
    kDtype,
    kShape,
    kExtents,
    kOffsets,
    kBeginAndEnd,
    kEnd
  };

  bool Enter(Place place) {
    place_ = place;
    return true;
  }
  bool EnterField(Place place, bool* seen, absl::string_view name) {
    if (*seen) {
      return Fail(
          absl::StrCat("the field ", name, " of tensor ", Quote(header_.tensors.back().name), " is there twice"));
    }
    *seen = true;
    return Enter(place);
  }
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }
  bool Unexpected(absl::string_view what) {
    absl::string_view expected;
    switch (place_) {
      case Place::kFile:
        expected = "the header: expected an object";
        break;
      case Place::kMetadataValue:
        expected = "the metadata: expected strings";
        break;
      case Place::kDtype:
        expected = "a dtype: expected a string";
        break;
      case Place::kShape:
        expected = "a shape: expected an array";
        break;
      case Place::kExtents:
        expected = "a shape: expected whole numbers from 0 to 2^63 - 1";
        break;
      case Place::kOffsets:
        expected = "data_offsets: expected an array";
        break;
      case Place::kBeginAndEnd:
        expected = "data_offsets: expected whole numbers from 0 to 2^63 - 1";
        break;
      default:
        expected = in_metadata_ ? "the metadata: expected an object" : "a tensor: expected an object";
        break;
    }
    const bool of_tensor = !header_.tensors.empty() && place_ != Place::kFile && !in_metadata_;
    return Fail(absl::StrCat(of_tensor ? absl::StrCat("tensor ", Quote(header_.tensors.back().name), ": ") : "",
                             expected, ", got ", what));
  }

  SafetensorsHeader header_;
  std::string error_;
  Place place_ = Place::kFile;
  std::set<std::string> names_;
  bool in_metadata_ = false;
  std::string metadata_key_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<int64_t> offsets_;
};

}  // namespace

std::optional<int64_t> SafetensorsBits(absl::string_view dtype) {
  for (const auto& type : kTypes) {
    if (dtype == type.name) return type.bits;
  }
  return std::nullopt;
}

absl::StatusOr<int64_t> ParseSafetensorsPrefix(absl::string_view prefix, int64_t file_bytes) {
  if (static_cast<int64_t>(prefix.size()) < kSafetensorsPrefixBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at least ", kSafetensorsPrefixBytes, " bytes, got ", prefix.size()));
  }
  uint64_t length = 0;
  for (int i = kSafetensorsPrefixBytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(prefix[i]);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::InvalidArgumentError(absl::StrCat("the length of the header: expected at most ",
                                                   kMaxSafetensorsHeaderBytes, " bytes, got ", length));
  }
  if (static_cast<int64_t>(length) > file_bytes - kSafetensorsPrefixBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the file is cut off: it has ", file_bytes,
                                                   " bytes, and its header alone ",
                                                   static_cast<int64_t>(length) + kSafetensorsPrefixBytes));
  }
  return static_cast<int64_t>(length);
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json, int64_t data_bytes) {
  // The format's rule, and what tells apart a file of another kind.
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError("the header does not begin with '{': is this a .safetensors file?");
  }
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) {
    return absl::InvalidArgumentError(reader.error());
  }
  std::vector<SafetensorsTensor>& tensors = reader.header().tensors;
  std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t next = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    const absl::StatusOr<int64_t> size = SizeOf(tensor);
    if (!size.ok()) return size.status();
    if (tensor.end < tensor.begin || tensor.end - tensor.begin != *size) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor.name), ": expected ", *size,
                                                     " bytes for its shape and its dtype ", tensor.dtype,
                                                     ", got the data_offsets ", tensor.begin, " and ", tensor.end));
    }
    if (tensor.begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quote(tensor.name), " begins at byte ", tensor.begin,
                       tensor.begin < next ? ", within another one: expected " : ", behind a gap: expected ", next));
    }
    next = tensor.end;
  }
  if (next != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the file ", next > data_bytes ? "is cut off" : "is too long",
                                                   ": expected ", next, " bytes of tensors, got ", data_bytes));
  }
  return std::move(reader.header());
}

absl::StatusOr<std::string> FormatSafetensorsHeader(std::vector<SafetensorsTensor>* tensors,
                                                    const std::map<std::string, std::string>& metadata,
                                                    int64_t alignment) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[kMetadata] = metadata;
  std::set<absl::string_view> names = {kMetadata};
  // The library looks through all keys of an ordered object for each new one: this is its list itself.
  auto& entries = json.get_ref<nlohmann::ordered_json::object_t&>();
  int64_t next = 0;
  for (SafetensorsTensor& tensor : *tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("the name ", Quote(tensor.name), " is there twice, or reserved"));
    }
    const absl::StatusOr<int64_t> size = SizeOf(tensor);
    if (!size.ok()) return size.status();
    tensor.begin = next;
    if (__builtin_add_overflow(next, *size, &next)) {
      return absl::InvalidArgumentError("all tensors together are larger than a file can be");
    }
    tensor.end = next;
    nlohmann::ordered_json entry;
    entry["dtype"] = tensor.dtype;
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {tensor.begin, tensor.end};
    entries.push_back({tensor.name, std::move(entry)});
  }
  std::string text;
  try {
    text = json.dump();
  } catch (const nlohmann::json::type_error&) {
    return absl::InvalidArgumentError("a name, or the metadata, is no UTF-8");
  }
  const int64_t used = kSafetensorsPrefixBytes + static_cast<int64_t>(text.size());
  text.append((alignment - used % alignment) % alignment, ' ');
  if (static_cast<int64_t>(text.size()) > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header: expected at most ", kMaxSafetensorsHeaderBytes, " bytes, got ", text.size()));
  }
  std::string prefix(kSafetensorsPrefixBytes, '\0');
  for (int i = 0; i < kSafetensorsPrefixBytes; ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return prefix + text;
}

}  // namespace adamant::tensor_files
