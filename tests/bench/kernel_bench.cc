// The kernels beside what bounds them, the same memory traffic without arithmetic, and the root and the quotient alone;
// and each variant beside Adam.
//
// Google Benchmark's table first, then lines that begin with `ratio`: medians over rounds in which the two that are
// compared take turns, which is what holds on a machine that is not idle.
// ADAMANT_BENCH_SMALL=1 shrinks sizes and rounds to see that everything runs.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/dispatch.h"
#include "kernels/instruction_sets.h"
#include "kernels/scalars.h"
#include "kernels/update.h"
#include "tests/bench/conversion_bench.h"
#include "tests/kernels/update_inputs.h"

namespace adamant::kernels {
namespace {

const bool kSmall = std::getenv("ADAMANT_BENCH_SMALL") != nullptr;
const int64_t kFew = 65;  // the acceptance model of the trainer: what a call costs
const int64_t kInCache = 64 * 1024;
const int64_t kInMemory = (kSmall ? 1 : 64) * 1024 * 1024;
const int kRounds = kSmall ? 3 : 31;

constexpr int64_t kStepBytes = 28;  // a parameter of Adam: reads p, g, m, v; writes p, m, v
constexpr int64_t kMeasureBytes = 4;

// Any of the functions that are compared.
using Pass = UpdateFunction;

#if defined(__x86_64__)
// The kernels' prefetch, so that the traffic alone has it too.
void PrefetchAll(const UpdateSpan& span, int64_t i) {
  for (const float* x : {span.p_in, span.g, span.slots[0].in, span.slots[1].in}) {
    _mm_prefetch(reinterpret_cast<const char*>(x + i + kPrefetchDistance), _MM_HINT_T0);
  }
}

// A step's reads and writes: the new parameters are the old ones, and the gradient is read for nothing.
[[gnu::target("avx512f")]] void TrafficAvx512(const UpdateScalars&, const UpdateSpan& caller_span) {
  const UpdateSpan span = caller_span;
  for (int64_t i = 0; i < span.size; i += 16) {
    PrefetchAll(span, i);
    const __m512i g = _mm512_loadu_si512(span.g + i);
    asm volatile("" : : "v"(g));
    const __m512i p = _mm512_loadu_si512(span.p_in + i);
    const __m512i m = _mm512_loadu_si512(span.slots[0].in + i);
    const __m512i v = _mm512_loadu_si512(span.slots[1].in + i);
    _mm512_storeu_si512(span.p_out + i, p);
    _mm512_storeu_si512(span.slots[0].out + i, m);
    _mm512_storeu_si512(span.slots[1].out + i, v);
  }
}

[[gnu::target("avx512f")]] void RootAndQuotientAvx512(const UpdateScalars&, const UpdateSpan& caller_span) {
  const UpdateSpan span = caller_span;
  for (int64_t i = 0; i < span.size; i += 16) {
    const __m512 root = _mm512_maskz_sqrt_ps(0xFFFF, _mm512_loadu_ps(span.slots[1].in + i));
    _mm512_storeu_ps(span.p_out + i, _mm512_div_ps(_mm512_loadu_ps(span.slots[0].in + i), root));
  }
}

[[gnu::target("avx2")]] void TrafficAvx2(const UpdateScalars&, const UpdateSpan& caller_span) {
  const UpdateSpan span = caller_span;
  for (int64_t i = 0; i < span.size; i += 8) {
    PrefetchAll(span, i);
    const __m256 g = _mm256_loadu_ps(span.g + i);
    asm volatile("" : : "x"(g));
    const __m256 p = _mm256_loadu_ps(span.p_in + i);
    const __m256 m = _mm256_loadu_ps(span.slots[0].in + i);
    const __m256 v = _mm256_loadu_ps(span.slots[1].in + i);
    _mm256_storeu_ps(span.p_out + i, p);
    _mm256_storeu_ps(span.slots[0].out + i, m);
    _mm256_storeu_ps(span.slots[1].out + i, v);
  }
}

[[gnu::target("avx2")]] void RootAndQuotientAvx2(const UpdateScalars&, const UpdateSpan& caller_span) {
  const UpdateSpan span = caller_span;
  for (int64_t i = 0; i < span.size; i += 8) {
    const __m256 root = _mm256_sqrt_ps(_mm256_loadu_ps(span.slots[1].in + i));
    _mm256_storeu_ps(span.p_out + i, _mm256_div_ps(_mm256_loadu_ps(span.slots[0].in + i), root));
  }
}
#endif

// What bounds one instruction set's kernel, in its own vectors.
struct Bounds {
  const char* name;
  Pass traffic;
  Pass root_and_quotient;
};

const std::vector<Bounds> kBounds = {
#if defined(__x86_64__)
    {"avx2", &TrafficAvx2, &RootAndQuotientAvx2},
    {"avx512", &TrafficAvx512, &RootAndQuotientAvx512},
#endif
};

// What the gradients and moments are.
enum class Units {
  kLive,  // ordinary gradients and moments
  kDead,  // all zero
  kTiny,  // gradients of 1e-18, moments zero
};

// The arrays of a step, in huge pages, each from the start of a cache line on.
class Arrays {
 public:
  Arrays(int64_t size, Units units) : size_(size), stride_((size + 15) / 16 * 16) {
    constexpr size_t kHugePage = 2 << 20;
    const size_t bytes =
        (static_cast<size_t>(stride_) * kArrays * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage;
    memory_ = static_cast<float*>(std::aligned_alloc(kHugePage, bytes));
    if (memory_ == nullptr) {
      std::fprintf(stderr, "no %zu bytes of memory\n", bytes);
      std::exit(1);
    }
    madvise(memory_, bytes, MADV_HUGEPAGE);
    std::mt19937 bits(1);
    const auto unit = [&] { return static_cast<float>(bits() >> 8) * 0x1p-24f; };
    for (int64_t i = 0; i < size; ++i) {
      p()[i] = unit() - 0.5f;
      g()[i] = units == Units::kLive ? unit() - 0.5f : units == Units::kTiny ? 1e-18f : 0.0f;
      m()[i] = units == Units::kLive ? unit() - 0.5f : 0.0f;
      v()[i] = v_max()[i] = units == Units::kLive ? unit() + 0.01f : 0.0f;
    }
  }
  Arrays(const Arrays&) = delete;
  Arrays& operator=(const Arrays&) = delete;
  ~Arrays() { std::free(memory_); }

  int64_t size() const { return size_; }
  float* p() const { return memory_; }
  float* g() const { return memory_ + stride_; }
  float* m() const { return memory_ + 2 * stride_; }
  float* v() const { return memory_ + 3 * stride_; }
  float* v_max() const { return memory_ + 4 * stride_; }

  // [begin, end) with the new parameters over the gradient, as in a dense step, or over the old ones, so that the next
  // pass meets the same gradient.
  UpdateSpan Span(int64_t begin, int64_t end, bool over_gradient) const {
    return {.size = end - begin,
            .g = g() + begin,
            .p_in = p() + begin,
            .p_out = (over_gradient ? g() : p()) + begin,
            .slots = {{m() + begin, m() + begin}, {v() + begin, v() + begin}, {v_max() + begin, v_max() + begin}}};
  }

 private:
  static constexpr int kArrays = 2 + kMaxSlots;

  const int64_t size_;
  const int64_t stride_;
  float* memory_;
};

// For every update: Adam's scalars and SGD's, each of which ignores the other's. Nothing decays to zero meanwhile.
UpdateScalars Scalars() {
  UpdateScalars scalars = MakeAdamScalars(
      {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 1e-6}, 1000, {});
  const UpdateScalars sgd = MakeSgdScalars({.learning_rate = 1e-3, .momentum = 0.9}, 1000, {});
  scalars.momentum = sgd.momentum;
  scalars.buffer_decay = sgd.buffer_decay;
  scalars.omd = sgd.omd;
  return scalars;
}
const UpdateScalars kScalars = Scalars();

// One pass over memory, on one thread or two.
void RunInMemory(Pass pass, const Arrays& arrays, int threads) {
  const int64_t half = threads == 2 ? arrays.size() / 2 : 0;
  std::thread other;
  if (half > 0) other = std::thread([&] { pass(kScalars, arrays.Span(0, half, true)); });
  pass(kScalars, arrays.Span(half, arrays.size(), true));
  if (half > 0) other.join();
}

void RunInCache(Pass pass, const Arrays& arrays) { pass(kScalars, arrays.Span(0, arrays.size(), false)); }

void Register(const std::string& name, int64_t bytes, const std::function<void()>& run) {
  benchmark::RegisterBenchmark(name.c_str(), [bytes, run](benchmark::State& state) {
    for (auto _ : state) run();
    state.SetBytesProcessed(state.iterations() * bytes);
  })->UseRealTime();
}

void RegisterPass(const std::string& name, Pass pass, const Arrays& in_cache, const Arrays& in_memory) {
  Register(name + "/in_cache", kInCache * kStepBytes, [&, pass] { RunInCache(pass, in_cache); });
  for (int threads : {1, 2}) {
    Register(name + "/in_memory/threads:" + std::to_string(threads), kInMemory * kStepBytes,
             [&, pass, threads] { RunInMemory(pass, in_memory, threads); });
  }
}

double Seconds(const std::function<void()>& run, int repeats) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

void PrintRatio(const std::string& name, int repeats, const std::function<void()>& measured,
                const std::function<void()>& baseline) {
  Seconds(measured, repeats);
  Seconds(baseline, repeats);
  std::vector<double> ratios, seconds;
  for (int round = 0; round < kRounds; ++round) {
    seconds.push_back(Seconds(measured, repeats));
    ratios.push_back(seconds.back() / Seconds(baseline, repeats));
  }
  std::sort(ratios.begin(), ratios.end());
  std::sort(seconds.begin(), seconds.end());
  std::printf("ratio %-44s median %.3f  quartiles %.3f-%.3f  time %.1f us\n", name.c_str(), ratios[kRounds / 2],
              ratios[kRounds / 4], ratios[kRounds * 3 / 4], seconds[kRounds / 2] * 1e6);
}

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const Arrays few(kFew, Units::kLive);
  const Arrays live(kInCache, Units::kLive), dead(kInCache, Units::kDead), tiny(kInCache, Units::kTiny);
  const Arrays in_memory(kInMemory, Units::kLive);

  for (const KernelTable* table : AllKernels()) {
    if (!table->supported()) continue;
    const std::string isa = table->name;
    const Pass adam = table->update[kAdam];
    RegisterPass("adam/" + isa, adam, live, in_memory);
    Register("adam/" + isa + "/few", kFew * kStepBytes, [&, adam] { RunInCache(adam, few); });
    Register("adam_dead/" + isa + "/in_cache", kInCache * kStepBytes, [&, adam] { RunInCache(adam, dead); });
    Register("adam_tiny/" + isa + "/in_cache", kInCache * kStepBytes, [&, adam] { RunInCache(adam, tiny); });
    const auto register_measure = [&](const char* where, const Arrays& arrays) {
      Register("measure/" + isa + where, arrays.size() * kMeasureBytes,
               [table, &arrays] { benchmark::DoNotOptimize(table->measure(arrays.g(), arrays.size())); });
    };
    register_measure("/few", few);
    register_measure("/in_cache", live);
    register_measure("/in_memory", in_memory);
  }
  for (const Bounds& bounds : kBounds) {
    if (FindKernels(bounds.name) == nullptr) continue;
    RegisterPass(std::string("traffic/") + bounds.name, bounds.traffic, live, in_memory);
    Register(std::string("root_and_quotient/") + bounds.name + "/in_cache", kInCache * kStepBytes,
             [&] { RunInCache(bounds.root_and_quotient, live); });
  }
  RegisterConversions(kInCache, kInMemory);
  benchmark::RunSpecifiedBenchmarks();

  for (const Bounds& bounds : kBounds) {
    const KernelTable* table = FindKernels(bounds.name);
    if (table == nullptr) continue;
    const std::string isa = std::string(bounds.name) + " ";
    const auto adam_on = [&](const Arrays& arrays) { return [&, table] { RunInCache(table->update[kAdam], arrays); }; };
    for (int threads : {1, 2}) {
      PrintRatio(
          isa + "adam/traffic, in memory, threads " + std::to_string(threads), 1,
          [&] { RunInMemory(table->update[kAdam], in_memory, threads); },
          [&] { RunInMemory(bounds.traffic, in_memory, threads); });
    }
    PrintRatio(isa + "adam/root and quotient, in cache", 20, adam_on(live),
               [&] { RunInCache(bounds.root_and_quotient, live); });
    PrintRatio(isa + "adam/traffic, in cache", 20, adam_on(live), [&] { RunInCache(bounds.traffic, live); });
    PrintRatio(isa + "dead/live, in cache", 20, adam_on(dead), adam_on(live));
    PrintRatio(isa + "tiny/live, in cache", 20, adam_on(tiny), adam_on(live));
  }
  for (int update = kAdam + 1; update < kUpdates; ++update) {
    const UpdateFunction variant = BestKernels().update[update];
    const UpdateFunction adam = BestKernels().update[kAdam];
    const std::string name = std::string(BestKernels().name) + " " + kUpdateNames[update] + "/Adam, ";
    PrintRatio(
        name + "in memory, threads 1", 1, [&] { RunInMemory(variant, in_memory, 1); },
        [&] { RunInMemory(adam, in_memory, 1); });
    PrintRatio(
        name + "in cache", 20, [&] { RunInCache(variant, live); }, [&] { RunInCache(adam, live); });
  }
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace adamant::kernels

int main(int argc, char** argv) { return adamant::kernels::Main(argc, argv); }
