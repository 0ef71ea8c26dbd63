// The sets of a server, by name.
#ifndef ADAMANT_SERVER_CORE_REGISTRY_H_
#define ADAMANT_SERVER_CORE_REGISTRY_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "adamant/v1/service.pb.h"
#include "server/core/base/mutex.h"
#include "server/core/set/parameter_set.h"
#include "server/core/set/resources.h"

namespace adamant::core {

// Thread-safe.
class Registry {
 public:
  // `devices` are what sets can be created on, and number `default_device` is for those that name none. Everything in
  // them outlives the registry and its sets.
  explicit Registry(std::vector<Resources> devices, size_t default_device = 0)
      : devices_(std::move(devices)), default_device_(default_device) {}

  absl::Span<const Resources> devices() const { return devices_; }

  // Creates a set, or finds the one that there is, as CreateParameterSet says. Creates are one at a time, so that of N
  // workers who ask for the same set one makes it; it may take long (memory is mapped here), so not on a thread that
  // others wait for.
  absl::StatusOr<v1::CreateParameterSetResponse> Create(const v1::CreateParameterSetRequest& request)
      ABSL_LOCKS_EXCLUDED(create_mutex_, mutex_);

  // Makes a set of another one, as Fork says. May take long; one at a time with creates.
  absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request) ABSL_LOCKS_EXCLUDED(create_mutex_, mutex_);

  // Adds a set that has come back, whose name no other has: for whoever does that before anybody else knows of the
  // registry.
  void Add(std::shared_ptr<ParameterSet> set);
  // Forgets all sets, which stay on disk, if they are there.
  void Clear();

  // NOT_FOUND if there is none of that name; INVALID_ARGUMENT naming `field`, where the request has it, if there could
  // be none.
  absl::StatusOr<std::shared_ptr<ParameterSet>> Find(absl::string_view name, absl::string_view field = "name") const;

  // The first `most` of the sets whose names start with `prefix` and stand behind `after`, in order of name; fewer
  // where there are no more. The lock that every Find takes is held for as long as that many references take to copy.
  std::vector<std::shared_ptr<ParameterSet>> FindBehind(absl::string_view after, absl::string_view prefix,
                                                        int most) const;

  // As DeleteParameterSet says. `done` is called once, perhaps before this returns.
  void Delete(const v1::DeleteParameterSetRequest& request, absl::AnyInvocable<void(absl::Status)> done);

  // Begins checkpoints of those sets whose journals want one: what is to be called now and then, for sets that have not
  // stepped for a while.
  void CheckpointInTime();
  // OK, or why nothing outlives the process any more that is to.
  absl::Status CheckJournal() const;

  // Ends the rounds that are open: who waits for others that will not come hears `status`.
  void EndRounds(const absl::Status& status);

 private:
  // The resources of the device of that name, or of the default one for an empty name. Error: INVALID_ARGUMENT, about
  // the request's `field`.
  absl::StatusOr<const Resources*> FindDevice(absl::string_view name, absl::string_view field) const;

  const std::vector<Resources> devices_;
  const size_t default_device_;

  // Held for as long as one create takes, by the creating threads alone. No set's mutex is taken under `mutex_`.
  Mutex create_mutex_;
  mutable Mutex mutex_ ABSL_ACQUIRED_AFTER(create_mutex_);
  absl::btree_map<std::string, std::shared_ptr<ParameterSet>> sets_ ABSL_GUARDED_BY(mutex_);
};

// A page of a server's sets, as ListParameterSets says. It takes a few sets at a time from the registry and compares
// and describes them without its lock. However many sets there are, it looks at 1,000 at most, so that it may run on a
// thread that others wait for.
absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const Registry& registry,
                                                                const v1::ListParameterSetsRequest& request);

// A page of a set's tensors, as ListTensors says.
absl::StatusOr<v1::ListTensorsResponse> ListTensors(const ParameterSet& set, const v1::ListTensorsRequest& request);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_REGISTRY_H_
