// The C++ client for callers in other languages: one connection, its calls, and tensors from and to the caller's
// memory.
//
// Messages are adamant.v1's, as bytes of protocol buffers; what they mean, and what holds after each call, is said in
// their .proto files and in adamant/connection.h, whose functions these are: attempts are repeated as the options say,
// and nothing is stepped or written twice.
//
// Thread-safe, but for adamant_watch_next, which is for one thread at a time, and for the functions that end an object:
// by then no other call may use it. Every function blocks until its call is over; memory that it was given is not
// referred to after that. A forked child must not use what its parent has made.
//
// Functions return ADAMANT_OK or gRPC's code of what went wrong, which they then describe in `*status`. `status` may be
// NULL. A function that fails makes nothing but the status.
#ifndef ADAMANT_C_H_
#define ADAMANT_C_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A shared library of another version may lay out these structs otherwise: compare adamant_abi_version() with this
// before anything else.
#define ADAMANT_ABI_VERSION 1
#define ADAMANT_OK 0

int32_t adamant_abi_version(void);

// Bytes that a function has made, which the caller gives back to adamant_bytes_free, or none: NULL and 0.
typedef struct adamant_bytes {
  uint8_t* data;
  size_t size;
} adamant_bytes;

void adamant_bytes_free(adamant_bytes* bytes);

// How a call has ended. `code` is the function's result. `details` is a google.rpc.Status, as it comes in
// `grpc-status-details-bin`, with the ErrorDetail and the RetryInfo if there are any; nothing where the code is OK. To
// be given back to adamant_status_free.
typedef struct adamant_status {
  int32_t code;
  adamant_bytes message;
  adamant_bytes details;
} adamant_status;

void adamant_status_free(adamant_status* status);

// adamant/options.h says what each of them is; times are in seconds. Begin with what adamant_options_default returns,
// and change in it what is to be another.
typedef struct adamant_options {
  int32_t max_attempts;
  double total_timeout;
  double initial_backoff;
  double max_backoff;
  double multiplier;
  double jitter;
  double connect_timeout;
  double unary_timeout;
  double step_timeout;
  double transfer_timeout;
  int64_t message_bytes;
  // Called on the thread of a call that begins to wait, with the reason, which is the library's. NULL: nobody is.
  void (*on_wait)(void* context, const adamant_status* reason);
  // Asked by a call that waits, ten times a second and on its thread, whether it is to end, CANCELLED: not 0. NULL:
  // none is to.
  int32_t (*interrupted)(void* context);
  void* context;
} adamant_options;

adamant_options adamant_options_default(void);

typedef struct adamant_connection adamant_connection;

// Makes a connection to `target`, which is reached when the first call needs it. INVALID_ARGUMENT when `target` is
// empty or an option is out of its range. `options` may be NULL.
int32_t adamant_connect(const char* target, const adamant_options* options, adamant_connection** connection,
                        adamant_status* status);
// Ends it. None of its calls is under way any more.
void adamant_disconnect(adamant_connection* connection);

// A call that moves no tensors, by its name in service.proto, such as "GetParameterSet". UNIMPLEMENTED for another
// name, INVALID_ARGUMENT for bytes that are no such request.
int32_t adamant_call(adamant_connection* connection, const char* method, const void* request, size_t request_size,
                     adamant_bytes* response, adamant_status* status);

// The elements of one tensor in the caller's memory. NULL and 0 for one that is not brought, or does not come.
typedef struct adamant_source {
  const float* data;
  int64_t count;
} adamant_source;

typedef struct adamant_destination {
  float* data;
  int64_t count;
} adamant_destination;

// Rows of one tensor, as adamant/connection.h's RowsGradient.
typedef struct adamant_rows {
  int32_t tensor;
  const int64_t* rows;
  int64_t row_count;
  const float* values;
  int64_t value_count;
} adamant_rows;

// One step. `header` is a StepHeader; `gradients` has `tensor_count` entries, and so has `parameters`, or it is NULL
// where none come back. `gradient_dtype` is a Dtype. `result` becomes a StepResult.
typedef struct adamant_step_call {
  const void* header;
  size_t header_size;
  int32_t gradient_dtype;
  int64_t tensor_count;
  const adamant_source* gradients;
  const adamant_destination* parameters;
  int64_t row_count;
  const adamant_rows* rows;
  // Of a contribution: how long it may wait for the others, beside the time of a step.
  double round_timeout;
} adamant_step_call;

int32_t adamant_step(adamant_connection* connection, const adamant_step_call* call, adamant_bytes* result,
                     adamant_status* status);

// All tensors of one slot.
typedef struct adamant_source_slot {
  int32_t slot;
  int64_t tensor_count;
  const adamant_source* tensors;
} adamant_source_slot;

typedef struct adamant_destination_slot {
  int32_t slot;
  int64_t tensor_count;
  const adamant_destination* tensors;
} adamant_destination_slot;

// One write. `header` is a WriteHeader; `response` becomes a WriteTensorsResponse.
int32_t adamant_write(adamant_connection* connection, const void* header, size_t header_size,
                      const adamant_source_slot* slots, int64_t slot_count, adamant_bytes* response,
                      adamant_status* status);
// One read. `request` is a ReadTensorsRequest without `slots`; `header` becomes a ReadHeader.
int32_t adamant_read(adamant_connection* connection, const void* request, size_t request_size,
                     const adamant_destination_slot* slots, int64_t slot_count, adamant_bytes* header,
                     adamant_status* status);

typedef struct adamant_watch adamant_watch;

// Begins a watch. `request` is a WatchParameterSetRequest.
int32_t adamant_watch_begin(adamant_connection* connection, const void* request, size_t request_size,
                            adamant_watch** watch, adamant_status* status);
// Waits for the next event, a WatchParameterSetResponse. ADAMANT_OK with `*ended` not 0 once the set has been deleted;
// no event follows that, nor an error.
int32_t adamant_watch_next(adamant_watch* watch, adamant_bytes* event, int32_t* ended, adamant_status* status);
// Ends the watch, and an adamant_watch_next that waits, which is CANCELLED. From any thread.
void adamant_watch_cancel(adamant_watch* watch);
void adamant_watch_end(adamant_watch* watch);

#ifdef __cplusplus
}
#endif

#endif  // ADAMANT_C_H_
