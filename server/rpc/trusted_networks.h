// The networks whose connections need no guard.
#ifndef ADAMANT_SERVER_RPC_TRUSTED_NETWORKS_H_
#define ADAMANT_SERVER_RPC_TRUSTED_NETWORKS_H_

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant::rpc {

// An address of IPv6, or one of IPv4 as IPv6 writes it (::ffff:a.b.c.d): so a connection of IPv4 has one form, whether
// it came to a socket of IPv4 or to one of both.
class IpAddress {
 public:
  // The address of a socket's peer, without its port; nothing if it is not of the internet.
  static std::optional<IpAddress> Of(const sockaddr_storage& peer);
  // `text` is one of IPv4, or of IPv6 without brackets. Nothing if it is neither.
  static std::optional<IpAddress> Parse(absl::string_view text);

  bool is_v4() const;
  // Whether the first `bits` of the 128 are as in `other`.
  bool SharesPrefix(const IpAddress& other, int bits) const;
  // As it is usually written: an address of IPv4 has four numbers.
  std::string ToString() const;

 private:
  std::array<uint8_t, 16> bytes_ = {};
};

// A value; none is trusted at first.
class TrustedNetworks {
 public:
  // Each of `networks` is an address, or a prefix: `10.1.2.3`, `10.0.0.0/8`, `fd00::/8`. Errors: INVALID_ARGUMENT,
  // naming the one that is neither.
  static absl::StatusOr<TrustedNetworks> Parse(const std::vector<std::string>& networks);

  bool Contain(const IpAddress& address) const;

 private:
  struct Network {
    IpAddress address;
    int bits;  // of the 128
  };
  static absl::StatusOr<Network> ParseNetwork(const std::string& text);

  std::vector<Network> networks_;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_TRUSTED_NETWORKS_H_
