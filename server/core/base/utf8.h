// What counts as text: the strings that clients name things with.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_CORE_BASE_UTF8_H_
#define ADAMANT_SERVER_CORE_BASE_UTF8_H_

#include "absl/strings/string_view.h"

namespace adamant::core {

// Whether all of `text` is UTF-8: no overlong form, no surrogate, nothing above U+10FFFF.
bool IsUtf8(absl::string_view text);

// The same, and without control characters: U+0000 to U+001F and U+007F to U+009F.
bool IsUtf8WithoutControls(absl::string_view text);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_UTF8_H_
