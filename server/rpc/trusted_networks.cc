#include "server/rpc/trusted_networks.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace adamant::rpc {
namespace {

// Of ::ffff:0:0/96, where IPv6 has the addresses of IPv4.
constexpr std::array<uint8_t, 12> kV4Prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr int kV4PrefixBits = 96;
constexpr int kBits = 128;

}  // namespace

std::optional<IpAddress> IpAddress::Of(const sockaddr_storage& peer) {
  IpAddress address;
  if (peer.ss_family == AF_INET6) {
    std::memcpy(address.bytes_.data(), &reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr, kBits / 8);
    return address;
  }
  if (peer.ss_family != AF_INET) return std::nullopt;
  std::copy(kV4Prefix.begin(), kV4Prefix.end(), address.bytes_.begin());
  std::memcpy(address.bytes_.data() + kV4Prefix.size(), &reinterpret_cast<const sockaddr_in&>(peer).sin_addr,
              sizeof(in_addr));
  return address;
}

std::optional<IpAddress> IpAddress::Parse(absl::string_view text) {
  const std::string address(text);
  sockaddr_storage place = {};
  if (inet_pton(AF_INET, address.c_str(), &reinterpret_cast<sockaddr_in&>(place).sin_addr) == 1) {
    place.ss_family = AF_INET;
  } else if (inet_pton(AF_INET6, address.c_str(), &reinterpret_cast<sockaddr_in6&>(place).sin6_addr) == 1) {
    place.ss_family = AF_INET6;
  }
  return Of(place);
}

bool IpAddress::is_v4() const { return std::equal(kV4Prefix.begin(), kV4Prefix.end(), bytes_.begin()); }

bool IpAddress::SharesPrefix(const IpAddress& other, int bits) const {
  const int whole = bits / 8;
  if (!std::equal(bytes_.begin(), bytes_.begin() + whole, other.bytes_.begin())) return false;
  return bits % 8 == 0 || (bytes_[whole] ^ other.bytes_[whole]) >> (8 - bits % 8) == 0;
}

std::string IpAddress::ToString() const {
  char text[INET6_ADDRSTRLEN] = "";
  if (is_v4()) {
    inet_ntop(AF_INET, bytes_.data() + kV4Prefix.size(), text, sizeof(text));
  } else {
    inet_ntop(AF_INET6, bytes_.data(), text, sizeof(text));
  }
  return text;
}

absl::StatusOr<TrustedNetworks> TrustedNetworks::Parse(const std::vector<std::string>& networks) {
  TrustedNetworks trusted;
  for (const std::string& text : networks) {
    absl::StatusOr<Network> network = ParseNetwork(text);
    if (!network.ok()) return network.status();
    trusted.networks_.push_back(*network);
  }
  return trusted;
}

absl::StatusOr<TrustedNetworks::Network> TrustedNetworks::ParseNetwork(const std::string& text) {
  const size_t slash = text.find('/');
  const std::optional<IpAddress> address = IpAddress::Parse(absl::string_view(text).substr(0, slash));
  if (!address.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected addresses and prefixes, such as 10.1.2.3, 10.0.0.0/8 or fd00::/8, got `", text, "`"));
  }
  const int first_bit = address->is_v4() ? kV4PrefixBits : 0;
  int bits = kBits - first_bit;
  if (slash == std::string::npos) return Network{*address, kBits};
  const std::string length = text.substr(slash + 1);
  int prefix;
  const bool digits = std::all_of(length.begin(), length.end(), [](char c) { return absl::ascii_isdigit(c); });
  if (!digits || !absl::SimpleAtoi(length, &prefix) || prefix > bits) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a prefix of 0 to ", bits, " bits after the address, got `", text, "`"));
  }
  return Network{*address, first_bit + prefix};
}

bool TrustedNetworks::Contain(const IpAddress& address) const {
  return std::any_of(networks_.begin(), networks_.end(), [&address](const Network& network) {
    return address.SharesPrefix(network.address, network.bits);
  });
}

}  // namespace adamant::rpc
