// Tells glibc's allocator, before main, to keep what gRPC frees. Linked into programs that have no tcmalloc.
//
// gRPC's slices come and go by the megabyte; given back to the kernel and faulted in again, they cost half of the
// throughput of a large step.
#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>

namespace {

const bool kRaised = [] {
  // Half of a thread's heap: older versions refuse more.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // More than two heaps, so that an emptied heap of a thread is kept as well. Address space, not memory.
  mallopt(M_TOP_PAD, 256 << 20);
  return true;
}();

}  // namespace
#endif
