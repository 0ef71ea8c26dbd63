"""Sets: created, described, changed, read, written, watched, and deleted."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adamant
from adamant import errors, v1

pytestmark = pytest.mark.usefixtures("calls")


def test_create_writes_arrays_and_leaves_shapes_zero(client, name):
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = client.create(name, {"w": w, "b": np.ones(3, np.float32)}, adamant.SGD(lr=0.5, momentum=0.9))
    assert made.state == v1.PARAMETER_SET_STATE_READY
    assert (made.groups[0].learning_rate, made.groups[0].sgd.momentum) == (0.5, 0.9)
    np.testing.assert_array_equal(client.read(name).parameters["w"], w)
    client.create(name + "/zeros", {"w": (2, 3), "b": 3, "scalar": ()})
    parameters = client.read(name + "/zeros").parameters
    assert {k: (a.shape, a.sum()) for k, a in parameters.items()} == {
        "w": ((2, 3), 0),
        "b": ((3,), 0),
        "scalar": ((), 0),
    }


def test_create_says_what_of_an_optimizer_torch_would(client, name):
    betas = (0.8, 0.9)
    made = client.create(name, {"w": (2,)}, adamant.AdamW(lr=0.1, betas=betas, eps=1e-7, amsgrad=True, maximize=True))
    adam = made.groups[0].adam
    assert (adam.beta1, adam.beta2, adam.eps, adam.weight_decay) == (0.8, 0.9, 1e-7, 0.01)
    assert adam.decoupled_weight_decay and adam.amsgrad and adam.maximize
    assert not client.create(name + "/adam", {"w": (2,)}).groups[0].adam.decoupled_weight_decay


def test_create_with_groups(client, name):
    schedule = v1.Schedule(warmup_steps=4)
    groups = [
        adamant.Group("weights", adamant.AdamW(lr=0.1), ["w"]),
        adamant.Group("rest", adamant.SGD(lr=0.2, schedule=schedule), ["b"], frozen=True),
    ]
    made = client.create(name, {"b": (2,), "w": (2,)}, groups=groups, labels={"a": "b"}, max_grad_norm=2.0)
    assert [group.name for group in made.groups] == ["weights", "rest"]
    assert [tensor.group for tensor in client.list_tensors(name)] == ["rest", "weights"]
    assert (made.groups[1].frozen, made.groups[1].schedule.warmup_steps) == (True, 4)
    assert (dict(made.labels), made.clipping.max_norm) == ({"a": "b"}, 2.0)


def test_create_by_specification(client, name):
    spec = v1.ParameterSetSpec(name=name, initialization=v1.INITIALIZATION_WRITTEN)
    spec.tensors.add(name="w", shape=[2])
    made = client.create(spec, {"w": np.ones(2, np.float32)})
    assert (made.state, client.read(name).parameters["w"].tolist()) == (v1.PARAMETER_SET_STATE_READY, [1, 1])


def test_create_refuses_what_does_not_go_together(client, name):
    sgd = adamant.SGD()
    for arguments, message in (
        (({},), "expected at least one"),
        (({"w": (2,), "b": np.zeros(2, np.float32)},), "got some of both"),
        (({"w": np.zeros(2)},), "expected float32"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            client.create(name, *arguments)
    for groups, message in (
        ([adamant.Group("g", sgd, ["x"])], "has tensor 'x', which the set has not"),
        ([adamant.Group("g", sgd, [])], "tensor 'w' is in none"),
        ([adamant.Group("g", sgd, ["w"]), adamant.Group("h", sgd, ["w"])], "is in 'g' and in 'h'"),
    ):
        with pytest.raises(ValueError, match=message):
            client.create(name, {"w": (2,)}, groups=groups)
    with pytest.raises(ValueError, match="got both"):
        client.create(name, {"w": (2,)}, sgd, groups=[adamant.Group("g", sgd, ["w"])])
    with pytest.raises(ValueError, match="got both"):
        client.create(name, {"w": (2,)}, max_grad_norm=1.0, max_grad_value=1.0)
    with pytest.raises(adamant.SetNotFoundError):
        client.get(name)


def test_a_set_that_exists(client, name):
    client.create(name, {"w": np.ones(2, np.float32)})
    with pytest.raises(adamant.SetExistsError):
        client.create(name, {"w": np.zeros(2, np.float32)})
    client.create(name, {"w": np.zeros(2, np.float32)}, exist_ok=True)
    assert client.read(name).parameters["w"].tolist() == [1, 1]
    with pytest.raises(adamant.SpecMismatchError) as raised:
        client.create(name, {"w": np.zeros(3, np.float32)}, exist_ok=True)
    assert raised.value.detail.field


def test_many_may_create_and_one_initializes(server, name):
    def create(i):
        with adamant.Client(server.address) as client:
            made = client.create(name, {"w": np.full(500_000, i, np.float32)}, exist_ok=True)
            assert made.state == v1.PARAMETER_SET_STATE_READY
            return made.incarnation, client.read(name).parameters["w"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(create, range(8)))
    assert len({incarnation for incarnation, _ in found}) == 1
    assert len({value for _, array in found for value in np.unique(array)}) == 1


def test_a_first_write_that_broke_off_is_taken_over(client, name):
    spec = v1.ParameterSetSpec(name=name, initialization=v1.INITIALIZATION_WRITTEN)
    spec.tensors.add(name="w", shape=[2])
    spec.groups.add(learning_rate=1e-3)
    client.create(spec)
    assert client.get(name).state == v1.PARAMETER_SET_STATE_UNINITIALIZED
    client.create(name, {"w": np.ones(2, np.float32)}, exist_ok=True)
    assert client.read(name).parameters["w"].tolist() == [1, 1]


def test_list_goes_over_pages(client, name):
    for i in range(1003):
        client.create(f"{name}/{i:04}", {"w": (1,)}, labels={"odd": str(i % 2)})
    assert [each.name for each in client.list(name + "/")] == [f"{name}/{i:04}" for i in range(1003)]
    assert len(list(client.list(name + "/", labels={"odd": "1"}))) == 501


def test_tensors_are_listed_over_pages(client, name):
    client.create(name, {f"t{i}": (1,) for i in range(5000)})
    assert [tensor.name for tensor in client.list_tensors(name)] == [f"t{i}" for i in range(5000)]


def test_delete(client, name):
    made = client.create(name, {"w": (1,)})
    with pytest.raises(adamant.IncarnationMismatchError):
        client.delete(name, incarnation=made.incarnation + 1)
    client.delete(name)
    with pytest.raises(adamant.SetNotFoundError) as raised:
        client.get(name)
    assert (raised.value.reason, raised.value.detail.set) == ("SET_NOT_FOUND", name)


def test_read_into_arrays_and_only_what_is_newer(client, name):
    client.create(name, {"a": np.ones(3, np.float32), "b": (np.ones(2, np.float32))})
    out = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float16)}
    state = client.read(name, out)
    assert (state.step, out["a"].tolist(), out["b"].tolist()) == (0, [1, 1, 1], [1, 1])
    assert client.read(name, if_newer_than_step=0) is None
    client.open_steps(name).step([np.ones(3, np.float32), np.ones(2, np.float32)])
    assert client.read(name, if_newer_than_step=0).step == 1
    with pytest.raises(adamant.IncarnationMismatchError):
        client.read(name, incarnation=state.incarnation + 1)


def test_read_of_some_tensors_brings_those_alone(client, name):
    client.create(name, {t: np.full(2, i, np.float32) for i, t in enumerate("abc")})
    parameters = client.read(name, tensors=["c", "b"]).parameters
    assert {t: values.tolist() for t, values in parameters.items()} == {"b": [1, 1], "c": [2, 2]}
    out = {"a": np.full(2, 7, np.float32), "b": np.zeros(2, np.float16)}
    assert client.read(name, out, tensors=["b"]).parameters.keys() == {"b"}
    assert (out["a"].tolist(), out["b"].tolist()) == ([7, 7], [1, 1])
    for tensors, error in ((["d"], "no tensor 'd'"), ([], "at least one")):
        with pytest.raises(ValueError, match=error):
            client.read(name, tensors=tensors)


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (adamant.Adam(), ["exp_avg", "exp_avg_sq"]),
        (adamant.Adam(amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (adamant.SGD(), []),
        (adamant.SGD(momentum=0.5), ["momentum_buffer"]),
    ],
    ids=["adam", "amsgrad", "sgd", "momentum"],
)
def test_a_state_moves_to_another_set_bit_for_bit(client, name, optimizer, slots):
    random = np.random.default_rng(3)
    tensors = {"a": random.normal(size=400_000).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
    client.create(name, tensors, optimizer)
    steps = client.open_steps(name)
    gradients = [random.normal(size=400_000).astype(np.float32), random.normal(size=5).astype(np.float32)]
    for chosen in (None, ["b"], None):
        steps.step(gradients, tensors=chosen)
    state = client.read_state(name)
    assert list(state.tensors) == ["parameter", *slots]
    assert (state.step, state.update_counts) == (3, [2, 3])
    client.create(name + "/copy", tensors, optimizer)
    client.write_state(name + "/copy", state)
    copy = client.read_state(name + "/copy")
    assert (copy.step, copy.update_counts) == (3, [2, 3])
    for slot, arrays in state.tensors.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, copy.tensors[slot][key])
    # They go on alike.
    steps.step(gradients)
    client.open_steps(name + "/copy").step(gradients)
    np.testing.assert_array_equal(client.read(name).parameters["a"], client.read(name + "/copy").parameters["a"])


def test_a_write_can_bring_some_of_the_tensors(client, name):
    client.create(name, {"a": (2,), "b": (2,)})
    client.write(name, {"b": np.ones(2, np.float32)}, tensors=["b"])
    assert {k: a.tolist() for k, a in client.read(name).parameters.items()} == {"a": [0, 0], "b": [1, 1]}
    with pytest.raises(ValueError, match="none for 'a'"):
        client.write(name, {"b": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="no tensor 'c'"):
        client.write(name, {"b": np.ones(2, np.float32)}, tensors=["c"])


def test_streams_move_to_a_write_by_refresh(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    written = client.write(name, [np.full(2, 5, np.float32)])
    with pytest.raises(adamant.IncarnationMismatchError):
        steps.step([np.ones(2, np.float32)])
    assert steps.refresh()["a"].tolist() == [5, 5]
    assert steps.incarnation == written.incarnation
    assert steps.step([np.ones(2, np.float32)]).parameters["a"].tolist() == [4, 4]


def test_values_that_no_write_may_bring(client, name):
    client.create(name, {"a": (2,)})
    with pytest.raises(adamant.ValueOutOfRangeError) as raised:
        client.write(name, [np.array([0, np.inf], np.float32)])
    assert (raised.value.detail.tensor, raised.value.detail.offset) == (0, 1)


def test_update_group(client, name):
    made = client.create(name, {"a": (2,)}, adamant.Adam())
    changed = client.update_group(name, learning_rate=0.5, adam={"weight_decay": 0.25, "beta1": 0.5})
    group = changed.groups[0]
    assert (group.learning_rate, group.adam.weight_decay, group.adam.beta1, group.adam.beta2) == (0.5, 0.25, 0.5, 0.999)
    assert changed.config_revision == made.config_revision + 1
    with pytest.raises(adamant.ConfigChangedError):
        client.update_group(name, learning_rate=0.1, config_revision=made.config_revision)
    everything = v1.ParameterGroup(learning_rate=0.75, frozen=True)
    assert client.update_group(name, everything, ["learning_rate"]).groups[0].learning_rate == 0.75
    assert not client.get(name).groups[0].frozen
    with pytest.raises(adamant.InvalidFieldError) as raised:
        client.update_group(name, learning_rate=-1.0)
    assert raised.value.detail.field == "group.learning_rate"
    with pytest.raises(ValueError, match="got nothing"):
        client.update_group(name)


def test_update_set(client, name):
    client.create(name, {"a": (2,)}, labels={"x": "y"})
    changed = client.update_set(name, labels={"z": ""}, clipping=v1.Clipping(max_value=2.0), max_staleness=3)
    assert (dict(changed.labels), changed.clipping.max_value, changed.max_staleness) == ({"z": ""}, 2.0, 3)
    with pytest.raises(ValueError, match="got nothing"):
        client.update_set(name)


def test_add_tensors(client, name):
    client.create(name, {"a": np.ones(2, np.float32)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    more = {"b": np.full(3, 2, np.float32), "c": (1,)}
    changed = client.add_tensors(name, more, groups=[adamant.Group("new", adamant.SGD(lr=0.5), ["b"])])
    assert (changed.tensor_count, [group.name for group in changed.groups]) == (3, ["default", "new"])
    assert {k: a.tolist() for k, a in client.read(name).parameters.items()} == {"a": [1, 1], "b": [2, 2, 2], "c": [0]}
    with pytest.raises((adamant.SchemaMismatchError, adamant.IncarnationMismatchError)):
        steps.step([np.ones(2, np.float32)])
    result = client.open_steps(name).step([np.ones(n, np.float32) for n in (2, 3, 1)])
    assert {k: a.tolist() for k, a in result.parameters.items()} == {"a": [0, 0], "b": [1.5] * 3, "c": [-1]}


def test_watch_tells_from_create_to_delete(client, name):
    client.create(name, {"a": (2,)})
    with client.watch(name) as watch:
        steps = client.open_steps(name)
        steps.step([np.ones(2, np.float32)])
        steps.step([np.full(2, np.nan, np.float32)])
        client.write(name, [np.ones(2, np.float32)])
        client.update_group(name, learning_rate=0.1)
        client.delete(name)
        events = [event.WhichOneof("event") for event in watch]
    assert events == ["current", "committed", "skipped", "written", "config_changed", "deleted"]


def test_a_watch_can_be_cancelled(client, name):
    client.create(name, {"a": (2,)})
    watch = client.watch(name)
    next(watch)
    watch.cancel()
    assert list(watch) == []


def test_step_results_can_be_asked_for(client, name):
    client.create(name, {"a": (2,)})
    client.open_steps(name).step([np.ones(2, np.float32)], request_id="first")
    found = client.get_step_result(name, "first")
    assert (found.state, found.result.step, found.result.replayed) == (v1.STEP_STATE_COMMITTED, 1, True)
    assert client.get_step_result(name, "second").state == v1.STEP_STATE_UNKNOWN


def test_server_info(client):
    info = client.server_info()
    assert info.version
    assert info.limits.max_message_bytes == 4 << 20
    assert [device.name for device in info.devices][:1] == ["cpu"]


def test_the_target_is_in_the_environment(server, monkeypatch):
    monkeypatch.setenv("ADAMANT_TARGET", server.address)
    with adamant.Client() as client:
        assert client.target == server.address
        assert client.server_info().version
    monkeypatch.delenv("ADAMANT_TARGET")
    with pytest.raises(ValueError, match="ADAMANT_TARGET"):
        adamant.Client()


def test_options_are_checked():
    for make, message in (
        (lambda: adamant.RetryPolicy(max_attempts=0), "max_attempts: expected at least 1, got 0"),
        (lambda: adamant.RetryPolicy(jitter=2), "jitter: expected 0 to 1, got 2"),
        (lambda: adamant.Timeouts(step=0), "step: expected more than 0, got 0"),
        (lambda: adamant.Client("localhost:1", message_bytes=5 << 20), "message_bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_every_reason_has_an_exception_of_its_own():
    reasons = {number for number in v1.ErrorReason.values() if number != v1.ERROR_REASON_UNSPECIFIED}
    assert set(errors.REASONS) == reasons
    assert len(set(errors.REASONS.values())) == len(reasons)
    for number, error in errors.REASONS.items():
        words = v1.ErrorReason.Name(number)[len("ERROR_REASON_") :].split("_")
        assert error.__name__ == "".join(word.capitalize() for word in words) + "Error"
        assert getattr(adamant, error.__name__) is error


def test_errors_survive_pickling(client):
    with pytest.raises(adamant.SetNotFoundError) as raised:
        client.get("nobody/has/this")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy)) == (adamant.SetNotFoundError, str(raised.value))
    assert "expected the name of a set, got `nobody/has/this`" in str(copy)


def test_a_reason_that_is_not_known_goes_by_its_code():
    import grpc

    error = errors.make_error(grpc.StatusCode.ABORTED, "new", v1.ErrorDetail(reason=9999))
    assert (type(error), error.reason, error.code) == (adamant.AdamantError, "9999", grpc.StatusCode.ABORTED)


def test_progress_is_told_of_reads_and_writes(server, name):
    told = []
    with adamant.Client(server.address, on_progress=lambda *each: told.append(each)) as client:
        total = 4 * 1_000_003
        client.create(name, {"a": np.ones(1_000_000, np.float32), "b": np.ones(3, np.float32)})
        assert told[0] == ("write", 0, total)
        assert told[-1] == ("write", total, total)
        assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
        assert len(told) > 3
        told.clear()
        client.read(name)
        client.read_state(name)
        assert told[0] == ("read", 0, total)
        assert told[-1] == ("read", 3 * total, 3 * total)
        assert ("read", total, total) in told
        told.clear()
        client.open_steps(name).step([np.ones(1_000_000, np.float32), np.ones(3, np.float32)])
        assert told == []
