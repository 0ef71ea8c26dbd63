#include "tests/bench/conversion_bench.h"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/formats.h"

namespace adamant::kernels {
namespace {

// What is converted: fp32, and as many elements of 16 bits; and a second array of floats.
struct Numbers {
  explicit Numbers(int64_t n) : floats(n, 0.37f), others(n, -1.5f), halves(n, 0x3C5A) {}
  int64_t size() const { return static_cast<int64_t>(floats.size()); }

  std::vector<float> floats, others;
  std::vector<uint16_t> halves;
};

}  // namespace

void RegisterConversions(int64_t in_cache, int64_t in_memory) {
  for (const auto& [where, size] : {std::pair("/in_cache", in_cache), std::pair("/in_memory", in_memory)}) {
    const auto numbers = std::make_shared<Numbers>(size);
    // `bytes` are what is read and written for each element.
    const auto add = [&, where = where](const std::string& name, int64_t bytes, auto run) {
      benchmark::RegisterBenchmark((name + where).c_str(), [numbers, bytes, run](benchmark::State& state) {
        for (auto _ : state) {
          run(numbers.get());
          benchmark::ClobberMemory();
        }
        state.SetBytesProcessed(state.iterations() * numbers->size() * bytes);
      });
    };
    add("memcpy_fp32", 8, [](Numbers* n) { std::memcpy(n->others.data(), n->floats.data(), 4 * n->size()); });
    for (const KernelTable* table : AllKernels()) {
      if (!table->supported()) continue;
      for (const auto& [format, name] : {std::pair(kBfloat16, "/bfloat16/"), std::pair(kFloat16, "/float16/")}) {
        const std::string suffix = std::string(name) + table->name;
        add("widen" + suffix, 6,
            [widen = table->widen[format]](Numbers* n) { widen(n->halves.data(), n->floats.data(), n->size()); });
        add("narrow" + suffix, 6, [narrow = table->narrow[format]](Numbers* n) {
          benchmark::DoNotOptimize(narrow(n->floats.data(), n->halves.data(), n->size()));
        });
      }
      for (const auto& [first, name] : {std::pair(true, "/first/"), std::pair(false, "/next/")}) {
        add("fold" + std::string(name) + table->name, first ? 8 : 12, [fold = table->fold, first = first](Numbers* n) {
          fold(0.5f, n->floats.data(), n->others.data(), n->size(), first);
        });
      }
    }
  }
}

}  // namespace adamant::kernels
