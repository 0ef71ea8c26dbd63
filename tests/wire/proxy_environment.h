// A proxy in the environment, as Docker puts one into containers.
#ifndef ADAMANT_TESTS_WIRE_PROXY_ENVIRONMENT_H_
#define ADAMANT_TESTS_WIRE_PROXY_ENVIRONMENT_H_

#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"

namespace adamant {

// While it lives, the environment of this process, and of those that it starts, names the proxy at `address`,
// HOST:PORT, and no target that does without. Thread-hostile, as the environment is.
class ProxyEnvironment {
 public:
  explicit ProxyEnvironment(const std::string& address) {
    const std::string proxy = absl::StrCat("http://", address);
    for (const char* name : {"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy"}) Set(name, proxy);
    for (const char* name : {"no_proxy", "NO_PROXY", "no_grpc_proxy"}) Set(name, "");
  }
  ~ProxyEnvironment() {
    for (const auto& [name, value] : before_) {
      if (value.has_value()) {
        setenv(name.c_str(), value->c_str(), /*overwrite=*/1);
      } else {
        unsetenv(name.c_str());
      }
    }
  }
  ProxyEnvironment(const ProxyEnvironment&) = delete;
  ProxyEnvironment& operator=(const ProxyEnvironment&) = delete;

 private:
  void Set(const char* name, const std::string& value) {
    const char* const before = std::getenv(name);
    before_[name] = before == nullptr ? std::nullopt : std::make_optional(std::string(before));
    setenv(name, value.c_str(), /*overwrite=*/1);
  }

  std::map<std::string, std::optional<std::string>> before_;
};

}  // namespace adamant

#endif  // ADAMANT_TESTS_WIRE_PROXY_ENVIRONMENT_H_
