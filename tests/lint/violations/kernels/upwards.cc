// A kernel that depends on something.
#include "absl/status/status.h"
