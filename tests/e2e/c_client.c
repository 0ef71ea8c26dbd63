// A program in C that trains through libadamant_c.so alone, of which it knows the header.
//
//   c_client TARGET CREATE STEP WRITE NAME   with the messages as hexadecimal digits; NAME has the set's as its field 1
//
// Creates a set of one tensor of three elements, steps it, reads it, watches it until it is deleted, and asks for it
// once more. Prints a line for each.
#include <adamant_c.h>
#include <stdio.h>
#include <string.h>

#define COUNT 3

static adamant_connection* connection;
static uint8_t message[4096];

static size_t Decode(const char* digits) {
  size_t size = 0;
  unsigned byte;
  for (; size < sizeof(message) && sscanf(digits + 2 * size, "%2x", &byte) == 1; ++size) message[size] = (uint8_t)byte;
  return size;
}

// Returns `code` once it has said what has become of `what`.
static int32_t Say(const char* what, int32_t code, adamant_status* status) {
  printf("%s: %d %d %.*s, %zu bytes of details\n", what, code, status->code, (int)status->message.size,
         status->message.size > 0 ? (const char*)status->message.data : "", status->details.size);
  adamant_status_free(status);
  return code;
}

static void SayValues(const char* what, const float* values) {
  printf("%s: %g %g %g\n", what, values[0], values[1], values[2]);
}

static void Call(const char* method, const void* request, size_t size) {
  adamant_status status;
  adamant_bytes response = {0};
  Say(method, adamant_call(connection, method, request, size, &response, &status), &status);
  adamant_bytes_free(&response);
}

static void OnWait(void* context, const adamant_status* reason) {
  printf("waits: %s %d\n", (const char*)context, reason->code);
}

int main(int argc, char** argv) {
  if (argc != 6 || adamant_abi_version() != ADAMANT_ABI_VERSION) return 2;
  adamant_status status;
  adamant_options options = adamant_options_default();
  options.max_attempts = 0;
  Say("options", adamant_connect(argv[1], &options, &connection, &status), &status);

  options = adamant_options_default();
  options.connect_timeout = 0.1;
  char context[] = "nobody";
  options.on_wait = OnWait;
  options.context = context;
  if (Say("connect", adamant_connect("127.0.0.1:1", &options, &connection, &status), &status) != ADAMANT_OK) return 1;
  Call("GetServerInfo", NULL, 0);
  adamant_disconnect(connection);

  if (Say("connect", adamant_connect(argv[1], NULL, &connection, &status), &status) != ADAMANT_OK) return 1;
  Call("CreateParameterSet", message, Decode(argv[2]));
  Call("CreateParameterSet", "\xff", 1);
  Call("NoSuchCall", NULL, 0);

  const float gradient[COUNT] = {1, -2, 4};
  float parameters[COUNT];
  const adamant_source source = {gradient, COUNT};
  const adamant_destination destination = {parameters, COUNT};
  adamant_step_call call = {0};
  call.header_size = Decode(argv[3]);
  call.header = message;
  call.gradient_dtype = 1;
  call.tensor_count = 1;
  call.gradients = &source;
  call.parameters = &destination;
  adamant_bytes bytes;
  if (Say("Step", adamant_step(connection, &call, &bytes, &status), &status) != ADAMANT_OK) return 1;
  adamant_bytes_free(&bytes);
  SayValues("stepped", parameters);

  const float written[COUNT] = {8, 16, 32};
  const adamant_source write_source = {written, COUNT};
  const adamant_source_slot write_slot = {1, 1, &write_source};
  const size_t write_size = Decode(argv[4]);
  if (Say("Write", adamant_write(connection, message, write_size, &write_slot, 1, &bytes, &status), &status) !=
      ADAMANT_OK) {
    return 1;
  }
  adamant_bytes_free(&bytes);

  memset(parameters, 0, sizeof(parameters));
  const adamant_destination_slot read_slot = {1, 1, &destination};
  const size_t name_size = Decode(argv[5]);
  if (Say("Read", adamant_read(connection, message, name_size, &read_slot, 1, &bytes, &status), &status) !=
      ADAMANT_OK) {
    return 1;
  }
  adamant_bytes_free(&bytes);
  SayValues("read", parameters);

  adamant_watch* watch;
  if (Say("Watch", adamant_watch_begin(connection, message, name_size, &watch, &status), &status) != ADAMANT_OK)
    return 1;
  Call("DeleteParameterSet", message, name_size);
  int32_t ended = 0;
  int events = 0;
  for (; ended == 0; ++events) {
    if (adamant_watch_next(watch, &bytes, &ended, &status) != ADAMANT_OK) break;
    adamant_bytes_free(&bytes);
    adamant_status_free(&status);
  }
  printf("events: %d, ended %d\n", events - 1, ended);
  adamant_watch_end(watch);
  Call("GetParameterSet", message, name_size);
  adamant_disconnect(connection);
  return 0;
}
