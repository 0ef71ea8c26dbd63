// The server has the headers of files, too, and knows no client.
#include <adamant/client.h>

#include <nlohmann/json.hpp>

#include "client/tensor_files/safetensors.h"
