// A client that knows the server.
#include "server/core/schema.h"
