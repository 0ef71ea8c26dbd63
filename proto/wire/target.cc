// Targets as gRPC reads them: SCHEME:[//AUTHORITY/]ENDPOINT[,ENDPOINT...], or a host and port alone.
#include "proto/wire/target.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace adamant::wire {
namespace {

// Of HOST, HOST:PORT, [HOST] and [HOST]:PORT. More than one colon outside of brackets are an IPv6 address without port.
absl::string_view Host(absl::string_view endpoint) {
  if (absl::ConsumePrefix(&endpoint, "[")) return endpoint.substr(0, endpoint.find(']'));
  const size_t colon = endpoint.find(':');
  return colon == endpoint.rfind(':') ? endpoint.substr(0, colon) : endpoint;
}

bool IsLocalAddress(in_addr address) {
  const uint32_t bits = ntohl(address.s_addr);
  return bits >> 24 == IN_LOOPBACKNET || bits == INADDR_ANY;
}

bool IsLocalHost(absl::string_view host) {
  const std::string text(absl::StripSuffix(host, "."));
  for (const char* name : {"localhost", "ip6-localhost", "ip6-loopback"}) {
    if (absl::EqualsIgnoreCase(text, name)) return true;
  }
  in_addr address;
  if (inet_pton(AF_INET, text.c_str(), &address) == 1) return IsLocalAddress(address);
  in6_addr address6;
  if (inet_pton(AF_INET6, text.c_str(), &address6) != 1) return false;
  if (IN6_IS_ADDR_V4MAPPED(&address6)) {
    std::copy_n(address6.s6_addr + 12, 4, reinterpret_cast<uint8_t*>(&address.s_addr));
    return IsLocalAddress(address);
  }
  return IN6_IS_ADDR_LOOPBACK(&address6) || IN6_IS_ADDR_UNSPECIFIED(&address6);
}

}  // namespace

bool IsLocalTarget(absl::string_view target) {
  if (absl::StartsWith(target, "unix:") || absl::StartsWith(target, "unix-abstract:")) return true;
  if (absl::ConsumePrefix(&target, "dns:") || absl::ConsumePrefix(&target, "ipv4:") ||
      absl::ConsumePrefix(&target, "ipv6:")) {
    if (absl::ConsumePrefix(&target, "//")) target.remove_prefix(std::min(target.find('/'), target.size()));
    absl::ConsumePrefix(&target, "/");
  }
  // What an address has that a URI must escape.
  const std::string endpoints = absl::StrReplaceAll(target, {{"%5B", "["}, {"%5b", "["}, {"%5D", "]"}, {"%5d", "]"}});
  const auto is_local = [](absl::string_view endpoint) { return IsLocalHost(Host(endpoint)); };
  const std::vector<absl::string_view> all = absl::StrSplit(endpoints, ',');
  return std::all_of(all.begin(), all.end(), is_local);
}

grpc::ChannelArguments ArgumentsForTarget(absl::string_view target) {
  grpc::ChannelArguments arguments;
  if (IsLocalTarget(target)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace adamant::wire
