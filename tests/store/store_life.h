// What clients do to the sets of a server with a data directory, from a seed, and what they were told: for tests of the
// store. Knows no test framework.
#ifndef ADAMANT_TESTS_STORE_STORE_LIFE_H_
#define ADAMANT_TESTS_STORE_STORE_LIFE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "adamant/v1/parameter_set.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/registry.h"
#include "server/store/file_system.h"
#include "server/store/store.h"
#include "tests/core/sequential_model.h"
#include "tests/core/set_fixture.h"

namespace adamant::store {

// A server without a network, with the sets of a data directory.
class StoreServer {
 public:
  // Opens the directory and restores its sets; see status(). Without a name of kernels: with the fastest that there
  // are. Sets are on `device`, if one is given, and on the processor otherwise. What the store warns of is in
  // warnings(), and goes nowhere else.
  StoreServer(FileSystem* file_system, StoreOptions options, const char* kernels = nullptr,
              core::Backend* device = nullptr);
  // As if the process was killed, but for what is under way: that ends first.
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

  // What opening and restoring came to. Unless it is OK the rest is of no use.
  const absl::Status& status() const { return status_; }
  Store* store() { return store_.get(); }
  core::Registry* registry() { return registry_.get(); }
  std::shared_ptr<core::ParameterSet> Find(const std::string& name) { return *registry_->Find(name); }
  absl::Status Create(const v1::ParameterSetSpec& spec);
  absl::Status Delete(const std::string& name);
  // A line each.
  std::string warnings() const;

 private:
  mutable core::Mutex mutex_;
  std::string warnings_ ABSL_GUARDED_BY(mutex_);
  core::CpuBackend backend_;
  core::TestServer server_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<core::Registry> registry_;
  absl::Status status_;
};

// A step that a set was asked for, to be asked for again.
struct AskedStep {
  v1::StepHeader header;
  core::Values gradient;
  std::vector<int> whole;
  std::vector<core::BroughtRows> rows;
};

// A set as it is to be.
struct ExpectedSet {
  core::SequentialModel model;
  bool is_initialized;
  uint64_t incarnation;  // 0: another one than before
  int64_t config_revision;
  std::optional<AskedStep> last;  // that it remembers

  // What is wrong with a set that is to be like this; nothing if it is.
  std::string Differs(core::ParameterSet* set) const;
};

// Tables, of some of which steps bring rows, in less than a block, and more than a record has in itself.
v1::ParameterSetSpec TablesSpec(const std::string& name);

// Waits for a checkpoint of the set that is made now.
absl::Status AwaitCheckpoint(core::ParameterSet* set);

// Three sets, of which two keep each change, one of them its gradients in slots, and one has checkpoints; and one of
// several blocks that keeps each change, if asked for. A set is made when it is first chosen, and may be deleted and
// made again. What a function returns says what is wrong; empty: nothing.
class StoreLife {
 public:
  StoreLife(FileSystem* file_system, StoreOptions options, uint64_t seed, bool has_large = false,
            core::Backend* device = nullptr);
  StoreLife(StoreLife&&) noexcept;
  ~StoreLife();

  // So many actions, with a restart now and then. With `may_fail` the disk may: then changes may be refused, and the
  // life ends early where the store says that it has failed, or does not open.
  std::string Live(int actions, bool may_fail);
  // Ends the server, and has another one bring the sets back from a disk that does not fail: they are as was told.
  std::string Restart(FileSystem* file_system, const char* sqlite_vfs);
  // Asks each set for its last step again, and for one more. After Restart.
  std::string GoOn();
  // Ends the server, which leaves nothing under way.
  void Close() { server_.reset(); }
  // Another life, without a server, that was told the same.
  StoreLife AsTold() const;

  // What is wrong with a server that has restored the sets. With `poisoned`, sets may be POISONED, and are counted.
  std::string Check(core::Registry* registry, int* poisoned = nullptr);

 private:
  // Null: there is no such set.
  using Expected = std::shared_ptr<const ExpectedSet>;
  struct Told {
    Expected now;
    std::optional<Expected> or_this;  // of a change of which nobody knows
    // Of a set that has checkpoints: what it was, since the last one of which it was told.
    std::vector<Expected> before = {};
  };

  uint32_t Choose(uint32_t n) { return static_cast<uint32_t>((random_() >> 32) * n >> 32); }
  std::string Act(const std::string& name);
  std::string Create(const std::string& name);
  std::string Change(const std::string& name, core::ParameterSet* set);
  std::string Write(const std::string& name, core::ParameterSet* set);
  std::string Step(const std::string& name, core::ParameterSet* set, const AskedStep& asked, bool again);
  AskedStep AnyStep(const ExpectedSet& now, const core::Schema& schema);
  // What was said of a change that leads to `after`.
  std::string Settle(const std::string& name, const absl::Status& status, Expected after);
  std::string CheckOne(const std::string& name, core::Registry* registry, int* poisoned);

  FileSystem* file_system_;
  StoreOptions options_;
  core::Backend* device_;
  std::mt19937_64 random_;
  std::unique_ptr<StoreServer> server_;
  std::map<std::string, Told> told_;
  bool may_fail_ = false;
  bool has_failed_ = false;     // the store says so
  bool is_to_restart_ = false;  // a set has lost in memory what it has on disk
  int requests_ = 0;
};

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_STORE_LIFE_H_
