// Memory that files which are open for direct access take.
#ifndef ADAMANT_SERVER_STORE_ALIGNED_BUFFER_H_
#define ADAMANT_SERVER_STORE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/types/span.h"
#include "server/store/file_system.h"

namespace adamant::store {

// At least so many bytes as one asks for, in whole sectors, zero. Movable.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t bytes)
      : size_((bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes),
        data_(size_ == 0 ? nullptr
                         : static_cast<std::byte*>(std::aligned_alloc(kSectorBytes, static_cast<size_t>(size_)))) {
    if (data_ != nullptr) std::memset(data_.get(), 0, static_cast<size_t>(size_));
  }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<std::byte> span() { return {data_.get(), static_cast<size_t>(size_)}; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };

  int64_t size_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace adamant::store

#endif  // ADAMANT_SERVER_STORE_ALIGNED_BUFFER_H_
