// The version of this build.
#ifndef ADAMANT_SERVER_VERSION_H_
#define ADAMANT_SERVER_VERSION_H_

namespace adamant {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace adamant

#endif  // ADAMANT_SERVER_VERSION_H_
