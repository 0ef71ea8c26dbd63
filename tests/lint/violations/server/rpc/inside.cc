// A call that knows what is behind the door.
#include "server/core/set/parameter_set.h"
#include "server/core/set/set_rep.h"
