// The remembered requests of one set, newest last.
#include "server/core/replay.h"

#include <algorithm>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/core/fingerprint.h"

namespace adamant::core {
namespace {

uint64_t HashMessage(const google::protobuf::MessageLite& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream output(&stream);
    output.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&output);
  }
  Fingerprint fingerprint;
  fingerprint.AddString(bytes);
  return fingerprint.value();
}

}  // namespace

void ReplayMemory::Remember(Entry entry) {
  entries_.push_back(std::move(entry));
  if (entries_.size() > kRememberedSteps) entries_.pop_front();
}

const ReplayMemory::Entry* ReplayMemory::Find(absl::string_view request_id) const {
  if (request_id.empty()) return nullptr;
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [request_id](const Entry& entry) { return entry.request_id == request_id; });
  return found != entries_.end() ? &*found : nullptr;
}

uint64_t HashHeader(const v1::StepHeader& header) {
  v1::StepHeader request = header;
  request.clear_attempt();
  return HashMessage(request);
}

uint64_t HashHeader(const v1::WriteHeader& header) { return HashMessage(header); }

}  // namespace adamant::core
