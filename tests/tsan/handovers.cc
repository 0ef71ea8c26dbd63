// Tells ThreadSanitizer how Debian's gRPC and Abseil, which are not instrumented, hand memory from thread to thread:
// they do so under locks and atomics that it does not see, and it would report a race at most of them (277 in the
// eleven tests of e2e_values_test; none with this). Linked into every program that links gRPC, in builds with
// ThreadSanitizer: what is defined here comes before the libraries' own.
//
// Each mark says no more than the library promises: a mutex, a notification, an operation and its completion, the
// reactions of a call and its OnDone. So two callbacks that nothing orders are as unordered for ThreadSanitizer as
// they are.
//
// Compiled without access control: gRPC has no other name for how a completion is run and how a call's end is counted.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace {

// What the library calls `name`: the definition that this file's stands before.
template <typename Function>
Function* Library(const char* name) {
  void* const function = dlsym(RTLD_NEXT, name);
  if (function == nullptr) {
    std::fprintf(stderr, "tests/tsan/handovers.cc: no library has %s\n", name);
    std::abort();
  }
  return reinterpret_cast<Function*>(function);
}

using RunFunction = void(grpc_completion_queue_functor*, int);

// Of an operation of a callback call, in place of gRPC's own.
void RunCompletion(grpc_completion_queue_functor* completion, int ok) {
  __tsan_acquire(completion);
  grpc::internal::CallbackWithSuccessTag::StaticRun(completion, ok);
}

// An operation begins, whose completion `tag` is.
void ReleaseOperation(void* tag) {
  // Other tags begin with a pointer to a table, never to this function.
  RunFunction** const run = static_cast<RunFunction**>(tag);
  if (tag != nullptr && *run == &grpc::internal::CallbackWithSuccessTag::StaticRun) *run = &RunCompletion;
  __tsan_release(tag);
}

grpc_event AcquireOperation(const grpc_event& event) {
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

// What goes with memory that gRPC refers to: how it is told that gRPC has let go of it.
struct LetGo {
  void (*destroy)(void*);
  void* user_data;
};

// On whatever thread lets go last.
void AcquireAndLetGo(void* user_data) {
  __tsan_acquire(user_data);
  const std::unique_ptr<LetGo> let_go(static_cast<LetGo*>(user_data));
  let_go->destroy(let_go->user_data);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const library = Library<void(Mutex*)>("_ZN4absl7debian35Mutex4LockEv");
  library(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static auto* const library = Library<bool(Mutex*)>("_ZN4absl7debian35Mutex7TryLockEv");
  const bool locked = library(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static auto* const library = Library<void(Mutex*)>("_ZN4absl7debian35Mutex6UnlockEv");
  __tsan_release(this);
  library(this);
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const library = Library<void(CondVar*, Mutex*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  library(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const library =
      Library<bool(CondVar*, Mutex*, Duration)>("_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool timed_out = library(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const library =
      Library<bool(CondVar*, Mutex*, Time)>("_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool timed_out = library(this, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

void Notification::Notify() {
  static auto* const library = Library<void(Notification*)>("_ZN4absl7debian312Notification6NotifyEv");
  __tsan_release(this);
  library(this);
}

void Notification::WaitForNotification() const {
  static auto* const library =
      Library<void(const Notification*)>("_ZNK4absl7debian312Notification19WaitForNotificationEv");
  library(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

ABSL_NAMESPACE_END
}  // namespace absl

namespace grpc::internal {

// All calls that the server, or a server of the tests, answers by callbacks of ours are of this kind. The library has a
// copy, in which nothing is visible; a program's own comes before it.
template class CallbackBidiHandler<ByteBuffer, ByteBuffer>;

namespace {

// OnCancel of `reactor`, and its end. Deletes itself.
class CancelReaction : public ServerReactor {
 public:
  CancelReaction(ServerReactor* reactor, void* count) : reactor_(reactor), count_(count) {}

  void OnCancel() override {
    reactor_->OnCancel();
    __tsan_release(count_);
    delete this;
  }
  void OnDone() override {}

 private:
  bool InternalInlineable() override { return reactor_->InternalInlineable(); }

  ServerReactor* const reactor_;
  void* const count_;
};

}  // namespace

// A call's OnDone comes after all of its other reactions, by a count of those that are to come. Headers count most of
// them, visibly; the library counts OnCancel, and it may be the one who finds the count to be zero.
void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  static auto* const library = Library<void(ServerCallbackCall*, ServerReactor*)>(
      "_ZN4grpc8internal18ServerCallbackCall12CallOnCancelEPNS0_13ServerReactorE");
  library(this, new CancelReaction(reactor, &callbacks_outstanding_));
}

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static auto* const library =
      Library<void(ServerCallbackCall*, bool)>("_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  __tsan_acquire(&callbacks_outstanding_);
  library(this, inline_ondone);
}

}  // namespace grpc::internal

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t nops, void* tag, void* reserved) {
  static auto* const library = Library<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  ReleaseOperation(tag);
  return library(call, ops, nops, tag, reserved);
}

grpc_call_error grpc_server_request_call(grpc_server* server, grpc_call** call, grpc_call_details* details,
                                         grpc_metadata_array* metadata, grpc_completion_queue* call_queue,
                                         grpc_completion_queue* notification_queue, void* tag) {
  static auto* const library = Library<decltype(grpc_server_request_call)>("grpc_server_request_call");
  ReleaseOperation(tag);
  return library(server, call, details, metadata, call_queue, notification_queue, tag);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static auto* const library = Library<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  return AcquireOperation(library(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline, void* reserved) {
  static auto* const library = Library<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  return AcquireOperation(library(queue, tag, deadline, reserved));
}

grpc_slice grpc_slice_new_with_user_data(void* data, size_t size, void (*destroy)(void*), void* user_data) {
  static auto* const library = Library<decltype(grpc_slice_new_with_user_data)>("grpc_slice_new_with_user_data");
  LetGo* const let_go = new LetGo{destroy, user_data};
  __tsan_release(let_go);
  return library(data, size, &AcquireAndLetGo, let_go);
}

}  // extern "C"
