"""What a step does, by a real server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adamant
from adamant import v1

pytestmark = pytest.mark.usefixtures("calls")


def adam(parameters, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """Adam, in double, from zero moments."""
    p = parameters.astype(np.float64)
    m = np.zeros_like(p)
    v = np.zeros_like(p)
    for t, gradient in enumerate(gradients, 1):
        g = gradient.astype(np.float64)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def bfloat16_bits(array):
    """Round to nearest, ties to even, one number at a time."""
    bits = int(np.float32(array).view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@pytest.mark.parametrize("size", [65, 100_000, 1_500_000], ids=str)
def test_steps_are_adam(client, name, size):
    random = np.random.default_rng(size)
    w = random.normal(size=size).astype(np.float32)
    gradients = [random.normal(size=size).astype(np.float32) for _ in range(3)]
    expected = adam(w, gradients, lr=1e-2)
    client.create(name, {"w": w}, adamant.Adam(lr=1e-2))
    steps = client.open_steps(name)
    for i, gradient in enumerate(gradients, 1):
        result = steps.step([gradient], [w])
        assert (result.outcome, result.step, steps.step_number) == (adamant.StepOutcome.APPLIED, i, i)
        assert result.grad_norm == pytest.approx(np.linalg.norm(gradient.astype(np.float64)), rel=1e-12)
        assert result.learning_rates == {"default": 1e-2}
        assert not result.replayed
    np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(w, client.read(name).parameters["w"])


def test_many_tensors_of_all_shapes_come_back_where_they_belong(client, name):
    random = np.random.default_rng(7)
    shapes = [(), (1,), (0, 3), (3, 5), (2, 3, 4)] + [(n,) for n in range(1, 200)]
    arrays = {f"t{i}": random.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    client.create(name, arrays, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    expected = {key: array.copy() for key, array in arrays.items()}
    for _ in range(4):  # The second and later replies are placed by how the first was made.
        gradients = {key: random.normal(size=array.shape).astype(np.float32) for key, array in arrays.items()}
        steps.step(gradients, arrays)
        for key, gradient in gradients.items():
            expected[key] = expected[key] - gradient
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key])


def test_a_reply_made_in_another_way_than_the_one_before_is_placed_rightly(client, name):
    client.create(name, {f"t{i}": (3,) for i in range(20)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    ones = {f"t{i}": np.ones(3, np.float32) for i in range(20)}
    out = {key: np.full(3, 9, np.float32) for key in ones}
    steps.step(ones, out)
    half = {key: np.full(3, 9, np.float16) for key in ones}
    steps.step(ones, half)
    flat = {key: np.full(3, 9, np.float32) for key in ones}
    steps.step(ones, flat, reply_dtype="bfloat16")
    assert all((out[key] == -1).all() and (half[key] == -2).all() and (flat[key] == -3).all() for key in ones)


def test_without_out_the_parameters_come_in_new_arrays(client, name):
    client.create(name, {"a": (2, 3), "b": (4,)}, adamant.SGD(lr=1.0))
    result = client.open_steps(name).step([np.ones((2, 3), np.float32), np.ones(4, np.float32)])
    assert {key: array.tolist() for key, array in result.parameters.items()} == {"a": [[-1] * 3] * 2, "b": [-1] * 4}


def test_a_step_can_bring_some_of_the_tensors(client, name):
    client.create(name, {"a": (2,), "b": (2,), "c": (2,)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    one = np.ones(2, np.float32)
    result = steps.step({"b": one, "c": one}, tensors=["c", 1])
    assert sorted(result.parameters) == ["b", "c"]
    parameters = client.read(name).parameters
    assert {key: array.tolist() for key, array in parameters.items()} == {"a": [0, 0], "b": [-1, -1], "c": [-1, -1]}
    out = [np.full(2, 7, np.float32) for _ in range(3)]
    steps.step([None, None, one], out, tensors=["c"])
    assert [array.tolist() for array in out] == [[7, 7], [7, 7], [-2, -2]]
    assert steps.step_number == 2


def test_frozen_tensors_need_no_gradient(client, name):
    groups = [adamant.Group("x", adamant.SGD(lr=1.0), ["a"]), adamant.Group("y", adamant.SGD(lr=1.0), ["b"])]
    client.create(name, {"a": (2,), "b": (2,)}, groups=groups)
    steps = client.open_steps(name)
    one = np.ones(2, np.float32)
    client.update_group(name, "x", frozen=True)
    # The stream does not know yet.
    assert sorted(steps.step({"a": one, "b": one}).parameters) == ["b"]
    assert sorted(steps.step({"b": one}).parameters) == ["b"]
    client.update_group(name, "x", frozen=False)
    with pytest.raises(ValueError, match="none for 'a'"):
        steps.step({"b": one})
    assert client.read(name).parameters["a"].tolist() == [0, 0]


def test_overrides_hold_for_one_step(client, name):
    client.create(name, {"a": (1,)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    one = [np.ones(1, np.float32)]
    assert steps.step(one, overrides={"default": {"learning_rate": 0.5}}).parameters["a"] == -0.5
    assert steps.step(one, overrides=[v1.GroupOverride(learning_rate=0.25)]).learning_rates == {"default": 0.25}
    assert steps.step(one).parameters["a"] == -1.75


def test_grad_scale_is_divided_out(client, name):
    client.create(name, {"a": (1,)}, adamant.SGD(lr=1.0))
    result = client.open_steps(name).step([np.full(1, 1024, np.float32)], grad_scale=1024)
    assert (result.grad_norm, result.parameters["a"]) == (1, -1)


def test_clipping_by_norm(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0), max_grad_norm=1.0)
    result = client.open_steps(name).step([np.array([30, 40], np.float32)])
    assert result.grad_norm == 50
    np.testing.assert_allclose(result.parameters["a"], [-0.6, -0.8], rtol=1e-6)


def test_omitted_parameters_do_not_come(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    out = [np.full(2, 7, np.float32)]
    result = steps.step([np.ones(2, np.float32)], out, omit_parameters=True)
    assert (result.parameters, out[0].tolist(), steps.step_number) == (None, [7, 7], 1)
    steps.step([np.ones(2, np.float32)], out)
    assert out[0].tolist() == [-2, -2]


@pytest.mark.parametrize("size", [10, 700_000], ids=str)
def test_16_bits_both_ways(client, name, size):
    random = np.random.default_rng(size)
    w = random.normal(size=size).astype(np.float32)
    g = random.normal(size=size).astype(np.float32)
    client.create(name, {"w": w}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    out = np.empty_like(w)
    steps.step([g], [out], gradient_dtype="bfloat16", reply_dtype="float16")
    rounded = np.array([bfloat16_bits(x) for x in g[:1000]], np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(out[:1000], (w[:1000] - rounded.view(np.float32)).astype(np.float16))
    # The set has all bits.
    exact = client.read(name).parameters["w"]
    np.testing.assert_array_equal(exact[:1000], w[:1000] - rounded.view(np.float32))
    # Native arrays go up and come down as they are.
    halves = g.astype(np.float16)
    bits = np.empty(size, np.uint16)
    steps.step([halves], [bits], reply_dtype="bfloat16")
    after = exact - halves.astype(np.float32)
    assert bits[:1000].tolist() == [bfloat16_bits(x) for x in after[:1000]]


def test_ml_dtypes_bfloat16(client, name):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    client.create(name, {"a": (3,), "b": (3,)}, adamant.SGD(lr=1.0))
    out = [np.zeros(3, bfloat16), np.zeros(3, np.float32)]
    client.open_steps(name).step([np.array([1, 2, 3], bfloat16), np.ones(3, np.float32)], out, reply_dtype="bfloat16")
    assert [array.astype(np.float32).tolist() for array in out] == [[-1, -2, -3], [-1, -1, -1]]


def test_replies_that_overflow_16_bits_are_counted(client, name):
    client.create(name, {"a": np.full(4, 70_000, np.float32)}, adamant.SGD(lr=1.0))
    result = client.open_steps(name).step([np.zeros(4, np.float32)], reply_dtype="float16")
    assert result.overflowed == 4


def test_a_gradient_that_is_not_finite_is_skipped(client, name):
    client.create(name, {"a": (2,), "b": (3,)}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    bad = [np.ones(2, np.float32), np.array([1, 1, np.nan], np.float32)]
    result = steps.step(bad)
    assert result.outcome == adamant.StepOutcome.SKIPPED_NON_FINITE
    assert not result.applied
    assert result.non_finite == adamant.NonFinite("b", 2, None)
    assert (steps.step_number, result.parameters["a"].tolist()) == (0, [0, 0])
    assert steps.step([np.ones(2, np.float32), np.ones(3, np.float32)]).applied


def test_a_gradient_that_is_not_finite_is_rejected_where_the_set_says_so(client, name):
    client.create(name, {"a": (2,)}, on_non_finite="reject")
    steps = client.open_steps(name)
    with pytest.raises(adamant.NonFiniteGradientError) as raised:
        steps.step([np.array([1, np.inf], np.float32)])
    assert (raised.value.detail.tensor, raised.value.detail.offset) == (0, 1)
    assert steps.step([np.ones(2, np.float32)]).step == 1


def test_a_stream_that_others_overtook_says_so_and_goes_on_after_refresh(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0))
    slow, fast = client.open_steps(name), client.open_steps(name)
    one = [np.ones(2, np.float32)]
    fast.step(one)
    with pytest.raises(adamant.StepMismatchError) as raised:
        slow.step(one)
    assert raised.value.detail.step == 1
    assert slow.refresh()["a"].tolist() == [-1, -1]
    assert slow.step(one).step == 2


def test_asynchronous_steps_may_be_behind(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0), max_staleness=1)
    slow, fast = client.open_steps(name), client.open_steps(name)
    one = [np.ones(2, np.float32)]
    fast.step(one, asynchronous=True)
    result = slow.step(one, asynchronous=True)
    assert (result.applied, result.staleness, slow.step_number) == (True, 1, 2)
    fast_again = fast.step(one, asynchronous=True)
    assert fast_again.applied
    fast.step(one, asynchronous=True)
    result = slow.step(one, asynchronous=True)
    assert result.outcome == adamant.StepOutcome.REFUSED_STALE
    assert result.parameters["a"].tolist() == [-4, -4]
    assert slow.step_number == 4


def test_workers_make_one_step_of_their_contributions(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0), workers=v1.Workers(count=2))

    def work(rank):
        steps = client.open_steps(name)
        out = [np.empty(2, np.float32)]
        for _ in range(3):
            result = steps.step(
                [np.full(2, rank, np.float32)], out, contribution=adamant.Contribution(rank, weight=1 + 2 * rank)
            )
        return result, out[0].tolist(), steps.round_number

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    for result, out, round_number in results:
        assert (result.step, result.contributions, round_number) == (3, 2, 4)
        assert out == [-2.25, -2.25]


def test_one_client_accumulates_by_contributing_several_ranks(client, name):
    client.create(name, {"a": (2,)}, adamant.SGD(lr=1.0), workers=v1.Workers(count=2))
    steps = client.open_steps(name)
    one = [np.ones(2, np.float32)]
    first = steps.step(one, contribution=adamant.Contribution(0, ack_when_folded=True))
    assert (first.outcome, first.parameters) == (adamant.StepOutcome.ACCUMULATED, None)
    assert steps.step(one, contribution=adamant.Contribution(1)).parameters["a"].tolist() == [-1, -1]


def test_metrics_and_steps_are_told_to_watchers(client, name):
    client.create(name, {"a": (2,)})
    with client.watch(name) as watch:
        assert next(watch).WhichOneof("event") == "current"
        client.open_steps(name).step([np.ones(2, np.float32)], metrics={"loss": 0.5})
        event = next(watch)
    assert (event.step, dict(event.committed.metrics)) == (1, {"loss": 0.5})


def test_what_does_not_fit_is_said_before_anything_is_sent(client, name):
    client.create(name, {"a": (2, 3), "b": (4,)})
    steps = client.open_steps(name)
    a, b = np.zeros((2, 3), np.float32), np.zeros(4, np.float32)
    for arrays, error, message in (
        ([a], ValueError, "expected an array for each of 2 tensors, got 1"),
        ({"a": a}, ValueError, "got none for 'b'"),
        ({"a": a, "b": b, "c": b}, ValueError, "no tensor 'c'"),
        ([a.T, b], ValueError, r"\['a'\]: expected shape \(2, 3\), got \(3, 2\)"),
        ([a, b.astype(np.float64)], TypeError, r"\['b'\]: expected float32.* got float64"),
        ([a, [0.0] * 4], TypeError, "expected a numpy array, got builtins.list"),
        (a, TypeError, "in a list or by name"),
    ):
        with pytest.raises(error, match=message):
            steps.step(arrays)
    with pytest.raises(ValueError, match="read-only"):
        readonly = b.copy()
        readonly.flags.writeable = False
        steps.step([a, b], [a, readonly])
    with pytest.raises(ValueError, match="C-contiguous"):
        steps.step([a, b], [np.zeros((2, 6), np.float32)[:, ::2], b])
    with pytest.raises(ValueError, match="gradient_dtype: expected 'float32'"):
        steps.step([a, b], gradient_dtype="float64")
    with pytest.raises(ValueError, match="tensors: expected names or indices of the set's 2, got 'c'"):
        steps.step([a, b], tensors=["c"])
    assert client.get(name).step == 0
    assert steps.step([a, b]).step == 1


def test_gradients_that_are_not_contiguous_are_copied(client, name):
    client.create(name, {"a": (2, 3)}, adamant.SGD(lr=1.0))
    gradient = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert (client.open_steps(name).step([gradient]).parameters["a"] == -gradient).all()


def test_gradients_of_a_large_step_may_not_overlap_the_parameters(client, name):
    size = 1_000_000
    client.create(name, {"a": (size,), "b": (size,)})
    memory = np.zeros(3 * size, np.float32)
    other = np.zeros(size, np.float32)
    steps = client.open_steps(name)
    with pytest.raises(ValueError, match="overlaps"):
        steps.step([other, memory[:size]], [memory[size - 1 : 2 * size - 1], memory[2 * size :]])
    assert steps.step([other, memory[:size]], [memory[size : 2 * size], memory[2 * size :]]).applied


def test_two_threads_on_one_stream_are_told_off(client, name):
    client.create(name, {"a": (2,)}, workers=v1.Workers(count=2))
    steps = client.open_steps(name)
    one = [np.ones(2, np.float32)]
    waits = threading.Event()

    class Tell(dict):
        # Looked at by the step that has begun.
        def __bool__(self):
            waits.set()
            return False

    thread = threading.Thread(
        target=lambda: steps.step(one, contribution=adamant.Contribution(0), metrics=Tell()), daemon=True
    )
    thread.start()
    waits.wait()
    with pytest.raises(RuntimeError, match="another thread"):
        steps.step(one, contribution=adamant.Contribution(1))
    client.open_steps(name).step(one, contribution=adamant.Contribution(1))
    thread.join()
    assert steps.last_result.contributions == 2


def test_steps_that_bring_parameters_back_and_steps_that_do_not_take_turns(client, name):
    client.create(name, {"w": (3,), "b": ()}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    grads = [np.ones(3, np.float32), np.ones((), np.float32)]
    out = [np.zeros(3, np.float32), np.zeros((), np.float32)]
    for i in range(1, 7):
        brings_back = i % 3 == 0
        result = steps.step(grads, out if brings_back else None, omit_parameters=not brings_back)
        assert (result.step, result.parameters) == (i, None)
        assert (out[0] == -(i - i % 3)).all()
    assert steps.step(grads).parameters["b"] == -7


def lazy_adam(table, steps, lr, betas=(0.9, 0.999), eps=1e-8):
    """Adam of the rows that come, in double: duplicates add up, and other rows keep parameters and moments."""
    p = table.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (rows, values) in enumerate(steps, 1):
        g = np.zeros_like(p)
        np.add.at(g, rows, values.astype(np.float64))
        touched = np.unique(rows)
        m[touched] = betas[0] * m[touched] + (1 - betas[0]) * g[touched]
        v[touched] = betas[1] * v[touched] + (1 - betas[1]) * g[touched] ** 2
        step = (m[touched] / (1 - betas[0] ** t)) / (np.sqrt(v[touched] / (1 - betas[1] ** t)) + eps)
        p[touched] -= lr * step
    return p


# The larger ones take several messages, of rows that take up to three bytes.
@pytest.mark.parametrize(("extent", "width", "count"), [(50, 3, 20), (40_000, 40, 9_000)], ids=str)
@pytest.mark.parametrize("in_place", [True, False])
def test_rows_are_lazy_adam(client, name, extent, width, count, in_place):
    random = np.random.default_rng(extent)
    table = random.normal(size=(extent, width)).astype(np.float32)
    before = table.copy()
    bias = np.zeros(3, np.float32)
    client.create(name, {"bias": bias, "table": table}, adamant.Adam(lr=1e-2))
    steps = client.open_steps(name)
    sent = []
    for i in range(3):
        rows = random.integers(0, extent, size=count)
        values = random.normal(size=(count, width)).astype(np.float32)
        sent.append((rows, values))
        out = [bias, table] if in_place else None
        result = steps.step({"bias": np.ones(3, np.float32)}, out, rows={"table": (rows, values)})
        assert (result.outcome, steps.step_number) == (adamant.StepOutcome.APPLIED, i + 1)
        if result.parameters is not None:
            table[np.unique(rows)] = result.parameters["table"]
            bias = result.parameters["bias"]
    np.testing.assert_allclose(table, lazy_adam(before, sent, 1e-2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bias, adam(np.zeros(3), [np.ones(3)] * 3, 1e-2), rtol=1e-5)
    state = client.read(name).parameters
    np.testing.assert_array_equal(state["table"], table)
    np.testing.assert_array_equal(state["bias"], bias)


def test_rows_of_several_tensors_travel_in_any_form(client, name):
    shapes = {"whole": (2,), "scalars": (9,), "cubes": (70_000, 2, 2)}
    client.create(name, shapes, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    out = {key: np.full(shape, 7, np.float32) for key, shape in shapes.items()}
    rows = {
        "cubes": (np.array([69_999, 128, 69_999], np.int32), np.ones((3, 2, 2), np.float16)),
        1: (np.array([8, 0, 8]), np.full(3, 0x3F80, np.uint16)),
    }
    # bfloat16 has no room for -1.001.
    whole = {"whole": np.full(2, 1.001, np.float32)}
    steps.step(whole, out, rows=rows, gradient_dtype="float32", reply_dtype="bfloat16")
    assert out["whole"].tolist() == [-1, -1]
    assert out["scalars"].tolist() == [-1, 7, 7, 7, 7, 7, 7, 7, -2]
    assert out["cubes"][[0, 128, 69_999], 0, 0].tolist() == [7, -1, -2]
    halves = {key: np.full(shape, 0x40E0, np.uint16) for key, shape in shapes.items()}
    steps.step({}, halves, tensors=["scalars"], rows={1: rows[1]}, reply_dtype="bfloat16")
    assert halves["scalars"].tolist() == [0xC000, *[0x40E0] * 7, 0xC080]
    assert (halves["whole"] == 0x40E0).all()
    assert steps.step({}, tensors=[1], rows={1: (np.array([], np.int64), np.array([], np.float32))}).step == 3
    assert steps.step({}, tensors=[1], rows={1: rows[1]}, omit_parameters=True).step == 4
    assert client.read(name).parameters["scalars"].tolist() == [-3, 0, 0, 0, 0, 0, 0, 0, -6]


def test_rows_that_there_are_not_are_named_and_change_nothing(client, name):
    client.create(name, {"table": (10, 2), "scalar": ()}, adamant.SGD(lr=1.0))
    steps = client.open_steps(name)
    ones, scalar = np.ones((2, 2), np.float32), [None, np.ones((), np.float32)]

    def refused(error, match, rows):
        with pytest.raises(error, match=match):
            steps.step(scalar, rows=rows)

    refused(ValueError, r"rows\['table'\]: expected rows below 10, got 10", {"table": (np.array([3, 10]), ones)})
    refused(ValueError, r"rows\['table'\]: expected rows below 10, got -1", {"table": (np.array([-1, 3]), ones)})
    refused(ValueError, r"rows\['table'\]: expected shape \(1, 2\), got \(2, 2\)", {"table": (np.array([3]), ones)})
    refused(TypeError, r"rows\['table'\]: expected rows .* got 1 of float64", {"table": (np.array([3.0]), ones)})
    refused(ValueError, r"rows\['scalar'\]: expected a tensor that has rows", {"scalar": (np.array([0]), ones)})
    refused(ValueError, "rows: expected names or indices of the set's 2, got 'no'", {"no": (np.array([0]), ones)})
    both = {"table": (np.array([0, 1]), ones), 0: (np.array([0, 1]), ones)}
    refused(ValueError, "tensor 'table' is there by its name and by its index", both)
    # The client knows no better, and the server does.
    with pytest.raises(adamant.InvalidFieldError, match="sparse"):
        steps.step(scalar, tensors=["scalar"], rows={"table": (np.array([3, 4]), ones)})
    assert steps.pending is None
    assert client.get(name).step == 0
    assert not client.read(name).parameters["table"].any()
    table = np.zeros((10, 2), np.float32)
    with pytest.raises(ValueError, match="overlaps"):
        steps.step(scalar, [table, scalar[1].copy()], rows={"table": (np.array([3, 4]), table[:2])})
