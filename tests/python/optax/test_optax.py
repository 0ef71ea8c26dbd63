"""adamant.optax beside optax."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamant
import adamant.optax
from adamant import _connection

README = Path(__file__).resolve().parents[3] / "client/python/README.md"


def model(params, inputs):
    return jnp.tanh(inputs @ params["first"]["w"] + params["first"]["b"]) @ params["second"]


@pytest.fixture
def problem():
    random = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params = {"first": {"w": array(6, 16), "b": array(16)}, "second": array(16, 2)}
    inputs, labels = array(64, 6), array(64, 2)
    return params, jax.grad(lambda p: jnp.mean((model(p, inputs) - labels) ** 2))


def train(optimizer, params, grad, steps, *, jit):
    def step(params, state):
        updates, state = optimizer.update(grad(params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_near(ours, theirs, tolerance):
    for a, b in zip(jax.tree_util.tree_leaves(ours), jax.tree_util.tree_leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("rate", [1e-2, optax.cosine_decay_schedule(1e-2, 150, 0.1)], ids=["constant", "schedule"])
def test_200_steps_are_those_of_optax(server, problem, rate, jit):
    params, grad = problem
    ours, state = train(adamant.optax.remote_adam(rate, target=server.address), params, grad, 200, jit=jit)
    theirs, _ = train(optax.adam(rate), params, grad, 200, jit=jit)
    assert int(state.count) == 200
    assert_near(ours, theirs, 2e-5)
    moved = np.abs(np.asarray(ours["second"] - params["second"])).max()
    assert moved > 0.1


def test_with_the_same_gradients_they_differ_by_rounding_alone(server, problem):
    params, _ = problem
    random = np.random.default_rng(1)
    mine, theirs = adamant.optax.remote_adam(1e-2, target=server.address), optax.adam(1e-2)
    states = [mine.init(params), theirs.init(params)]
    results = [params, params]
    for _ in range(200):
        grads = jax.tree_util.tree_map(lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), params)
        for i, optimizer in enumerate((mine, theirs)):
            updates, states[i] = optimizer.update(grads, states[i], results[i])
            results[i] = optax.apply_updates(results[i], updates)
    # 200 roundings of numbers up to 4.
    assert_near(*results, 200 * 2.4e-7)


def test_what_comes_before_it_in_a_chain_counts(server, problem):
    params, grad = problem
    ours, _ = train(
        optax.chain(optax.clip_by_global_norm(0.01), adamant.optax.remote_adam(1e-2, target=server.address)),
        params,
        grad,
        20,
        jit=True,
    )
    theirs, _ = train(optax.chain(optax.clip_by_global_norm(0.01), optax.adam(1e-2)), params, grad, 20, jit=True)
    assert_near(ours, theirs, 5e-6)


def test_in_a_scan_steps_come_in_order(server, client, name, problem):
    params, grad = problem
    optimizer = adamant.optax.remote_adam(1e-2, target=server.address, name=name)

    @jax.jit
    def many(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(grad(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=20)[0]

    ours, state = many(params, optimizer.init(params))
    theirs, _ = train(optax.adam(1e-2), params, grad, 20, jit=True)
    assert int(state.count) == 20
    assert client.get(name).step == 20
    assert_near(ours, theirs, 5e-6)


def test_a_set_is_kept_as_it_is_asked_to_be(start_server, tmp_path):
    address = start_server(f"--data_dir={tmp_path / 'data'}").address
    params = {"w": jnp.ones(3)}
    adamant.optax.remote_adam(1e-2, target=address, name="kept", durability="every_step:4").init(params)
    adamant.optax.remote_adam(1e-2, target=address, name="servers").init(params)
    with adamant.Client(address) as client:
        assert client.get("kept").durability.every_step.journal_steps == 4
        assert client.get("servers").durability.WhichOneof("level") == "nothing"
    with pytest.raises(ValueError, match="durability: expected 'nothing', 'every_step'"):
        adamant.optax.remote_adam(1e-2, target=address, durability="always")


def test_large_parameters_come_through(server):
    params = jnp.zeros(5_000_000, jnp.float32)
    optimizer = adamant.optax.remote_adam(1e-2, target=server.address)
    ours, _ = train(optimizer, params, lambda p: p - 1, 3, jit=True)
    theirs, _ = train(optax.adam(1e-2), params, lambda p: p - 1, 3, jit=True)
    assert_near(ours, theirs, 1e-6)


def test_16_bits(server, client, name):
    params = jnp.ones(100, jnp.bfloat16)
    optimizer = adamant.optax.remote_adam(1e-4, target=server.address, name=name)
    ours, _ = train(optimizer, params, jnp.ones_like, 100, jit=True)
    assert ours.dtype == jnp.bfloat16
    # A step of 1e-4 is lost on a bfloat16 of 1, but not on the server's.
    np.testing.assert_allclose(client.read(name).parameters["params"], 0.99, atol=1e-5)
    np.testing.assert_allclose(np.asarray(ours, np.float32), 0.99, atol=4e-3)


def test_a_gradient_that_is_not_finite_is_passed_over(server, problem):
    params, grad = problem
    optimizer = adamant.optax.remote_adam(1e-2, target=server.address)
    state = optimizer.init(params)
    bad = jax.tree_util.tree_map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, state = optimizer.update(bad, state, params)
    assert int(state.count) == 0
    assert all((leaf == 0).all() for leaf in jax.tree_util.tree_leaves(updates))
    _, state = optimizer.update(grad(params), state, params)
    assert int(state.count) == 1


# What raises in a callback: JAX may run no other ordered one in its process after that.


@pytest.mark.parametrize("is_applied", [True, False])
def test_after_an_error_it_is_found_out_whether_the_step_was_applied(server, name, monkeypatch, is_applied):
    remote = adamant.optax._Remote(adamant.Adam(), server.address, name)
    params = [np.zeros(3, np.float32)]
    grads = [np.ones(3, np.float32)]
    remote.create(["params"], params)
    step = _connection.RetryingConnection.step

    def lose(connection, call):
        if is_applied:
            step(connection, call)
        raise adamant.UnavailableError(grpc.StatusCode.UNAVAILABLE, "lost")

    with monkeypatch.context() as patched, pytest.raises(adamant.UnavailableError, match="lost"):
        patched.setattr(_connection.RetryingConnection, "step", lose)
        remote.step(0, 1e-3, grads, params)
    if is_applied:
        with pytest.raises(RuntimeError, match=r"the state is not that of the set .*: expected count 1, got 0"):
            remote.step(0, 1e-3, grads, params)
    count, _ = remote.step(1 if is_applied else 0, 1e-3, grads, params)
    assert count == (2 if is_applied else 1)


def test_an_error_reaches_whoever_waits_for_the_result(server):
    program = (
        "import sys, jax, jax.numpy as jnp, adamant.optax\n"
        "optimizer = adamant.optax.remote_adam(1e-2, target=sys.argv[1])\n"
        "params = jnp.zeros(3)\n"
        "state = optimizer.init(params)\n"
        "wrong = adamant.optax.RemoteAdamState(state.count + 7)\n"
        "jax.block_until_ready(jax.jit(optimizer.update)(params, wrong, params))\n"
    )
    made = subprocess.run([sys.executable, "-c", program, server.address], capture_output=True, text=True)
    assert made.returncode == 1
    assert "the state is not that of the set" in made.stderr
    assert "expected count 0, got 7" in made.stderr


def test_looking_at_shapes_makes_no_set(server, client, name, problem):
    params, _ = problem
    optimizer = adamant.optax.remote_adam(1e-2, target=server.address, name=name)
    jax.eval_shape(optimizer.init, params)
    with pytest.raises(adamant.SetNotFoundError):
        client.get(name)


def test_a_named_set_goes_on(server, client, name, problem):
    params, grad = problem
    expected, _ = train(adamant.optax.remote_adam(1e-2, target=server.address), params, grad, 10, jit=True)
    half, state = train(adamant.optax.remote_adam(1e-2, target=server.address, name=name), params, grad, 5, jit=True)
    again = adamant.optax.remote_adam(1e-2, target=server.address, name=name)
    for _ in range(5):
        updates, state = again.update(grad(half), state, half)
        half = optax.apply_updates(half, updates)
    assert_near(half, expected, 2e-6)
    # init begins from its parameters, with the moments that are there.
    begun = again.init(params)
    assert int(begun.count) == 10
    np.testing.assert_array_equal(client.read(name).parameters["['second']"], params["second"])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_other_types_are_refused(server, dtype):
    with pytest.raises(TypeError, match=f"params.*: expected float32, bfloat16 or float16, got {jnp.dtype(dtype)}"):
        adamant.optax.remote_adam(1e-2, target=server.address).init({"w": jnp.zeros(3, dtype)})


def test_params_are_needed(server, problem):
    params, grad = problem
    optimizer = adamant.optax.remote_adam(1e-2, target=server.address)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="params: expected those that the gradient was computed from, got None"):
        optimizer.update(grad(params), state)


def test_its_own_set_ends_with_the_program(server, client):
    program = (
        "import sys, jax.numpy as jnp, adamant.optax\n"
        "optimizer = adamant.optax.remote_adam(1e-2, target=sys.argv[1])\n"
        "optimizer.init(jnp.zeros(3))\n"
        "print([each.name for each in adamant.Client(sys.argv[1]).list('optax/')])\n"
    )
    before = {each.name for each in client.list("optax/")}
    made = subprocess.run(
        [sys.executable, "-c", program, server.address], stdout=subprocess.PIPE, text=True, check=True
    )
    assert "optax/" in made.stdout
    assert {each.name for each in client.list("optax/")} <= before


def test_the_example_of_the_readme_runs(server, monkeypatch):
    (block,) = re.findall(r"^```python optax\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("ADAMANT_TARGET", server.address)
    session: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), session)
    assert int(session["state"].count) == 100
    assert (session["params"] > 0.3).all()
