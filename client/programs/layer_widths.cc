// Parsing of the --layers flag.
#include "client/programs/layer_widths.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace adamant::programs {
namespace {

constexpr size_t kMaxLayers = 64;
constexpr int kMaxWidth = 65536;

}  // namespace

bool AbslParseFlag(absl::string_view text, LayerWidths* widths, std::string* error) {
  std::vector<int> values;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    int width;
    if (!absl::SimpleAtoi(part, &width) || width < 1 || width > kMaxWidth) {
      *error = absl::StrCat("'", part, "' is no width in [1, ", kMaxWidth, "]");
      return false;
    }
    values.push_back(width);
  }
  if (values.size() < 2 || values.size() > kMaxLayers) {
    *error = absl::StrCat("2 to ", kMaxLayers, " widths are needed, such as 2,16,1");
    return false;
  }
  widths->values = std::move(values);
  return true;
}

std::string AbslUnparseFlag(const LayerWidths& widths) { return absl::StrJoin(widths.values, ","); }

}  // namespace adamant::programs
