// Memory that knows what it is for.
#include "server/core/set/staging.h"
