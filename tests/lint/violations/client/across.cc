// A client that knows the server.
#include "server/core/spec/schema.h"
