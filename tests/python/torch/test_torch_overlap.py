"""Gradients that are sent while the backward pass goes on: the numbers are those of steps that send them afterwards."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest
import torch
from torch import nn

import adamant
import adamant.torch as remote
from adamant import _connection

STEPS = 5


def make_model():
    torch.manual_seed(0)
    layers = [nn.Linear(300, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 300)]
    return nn.Sequential(*layers)


def loss_of(model, seed):
    inputs = torch.randn(4, 300, generator=torch.Generator().manual_seed(seed))
    return (model(inputs) ** 2).sum()


@pytest.fixture
def begun(monkeypatch):
    """Steps that were begun in a backward pass, and those of them that were made of what had been sent then."""
    found = {"begun": 0, "made": 0}
    begin, step = _connection.RetryingConnection.begin_step, _connection.BegunStep.step

    def count_begin(*args):
        found["begun"] += 1
        return begin(*args)

    def count_step(*args):
        found["made"] += 1
        return step(*args)

    monkeypatch.setattr(_connection.RetryingConnection, "begin_step", count_begin)
    monkeypatch.setattr(_connection.BegunStep, "step", count_step)
    return found


# What happens in a step.


def plain(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    optimizer.step()


def gradients_that_stay(optimizer, model, i):
    model.zero_grad(set_to_none=False)
    loss_of(model, i).backward()
    optimizer.step()


def without_zeroing(optimizer, model, i):
    loss_of(model, i).backward()
    optimizer.step()


def accumulated(optimizer, model, i):
    optimizer.zero_grad()
    for part in range(3):
        loss_of(model, 10 * i + part).backward()
    optimizer.step()


def accumulated_now_and_then(optimizer, model, i):
    optimizer.zero_grad()
    for part in range(1 + i % 2):
        loss_of(model, 10 * i + part).backward()
    optimizer.step()


def clipped_here(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def scaled(optimizer, model, i, unscaled=False):
    scaler = optimizer.__dict__.setdefault("scaler", torch.amp.GradScaler("cpu", init_scale=1024.0))
    optimizer.zero_grad()
    scaler.scale(loss_of(model, i)).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def scaled_and_unscaled_here(optimizer, model, i):
    scaled(optimizer, model, i, unscaled=True)


def learning_rate_changed_in_between(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step()


def learning_rate_scheduled(optimizer, model, i):
    plain(optimizer, model, i)
    optimizer.param_groups[0]["lr"] *= 0.5


def gradient_taken_away(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    model[2].weight.grad = None
    optimizer.step()


def gradient_replaced(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    model[2].weight.grad = model[2].weight.grad * 2
    optimizer.step()


def gradient_written_past_torch(optimizer, model, i):
    """As DistributedDataParallel does."""
    optimizer.zero_grad()
    loss_of(model, i).backward()
    model[2].weight.grad.numpy()[7, 7] += 1.0
    optimizer.step()


def gradient_written_by_a_later_hook(optimizer, model, i):
    optimizer.zero_grad()

    def double(parameter):
        parameter.grad.mul_(2)

    handle = model[4].weight.register_post_accumulate_grad_hook(double)
    loss_of(model, i).backward()
    handle.remove()
    optimizer.step()


def given_up(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i + 100).backward()
    plain(optimizer, model, i)


def parameter_unused(optimizer, model, i):
    optimizer.zero_grad()
    inputs = torch.randn(4, 500, generator=torch.Generator().manual_seed(i))
    loss = loss_of(model, i) if i % 2 else (model[2:](inputs) ** 2).sum()
    loss.backward()
    optimizer.step()


def parameter_written(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    model[0].weight.data.clamp_(-0.01, 0.01)
    optimizer.step()


def closure(optimizer, model, i):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(model, i)
        loss.backward()
        return loss

    optimizer.step(evaluate)


def loaded_again(optimizer, model, i):
    optimizer.zero_grad()
    loss_of(model, i).backward()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def evaluated_in_between(optimizer, model, i):
    """Gradients that no step is made of."""
    plain(optimizer, model, i)
    loss_of(model, i + 50).backward()
    model.zero_grad()


ALL_BUT_THE_FIRST = STEPS - 1
# How many steps can be made of what was sent before. None: whether what torch does not tell of came before the gradient
# was read, and so was sent, is a matter of time.
SITUATIONS = {
    plain: ALL_BUT_THE_FIRST,
    gradients_that_stay: ALL_BUT_THE_FIRST,
    without_zeroing: ALL_BUT_THE_FIRST,
    accumulated: ALL_BUT_THE_FIRST,
    accumulated_now_and_then: 0,
    clipped_here: 0,
    scaled: ALL_BUT_THE_FIRST,
    scaled_and_unscaled_here: None,
    learning_rate_changed_in_between: 0,
    learning_rate_scheduled: ALL_BUT_THE_FIRST,
    gradient_taken_away: 0,
    gradient_replaced: 0,
    gradient_written_past_torch: None,
    gradient_written_by_a_later_hook: 0,
    given_up: ALL_BUT_THE_FIRST,
    parameter_unused: 0,
    parameter_written: 0,
    closure: ALL_BUT_THE_FIRST,
    loaded_again: ALL_BUT_THE_FIRST,
    evaluated_in_between: ALL_BUT_THE_FIRST,
}
CASES = [(remote.RemoteAdam, situation) for situation in SITUATIONS]
CASES += [(cls, plain) for cls in (remote.RemoteAdamW, remote.RemoteSGD)]


def name_of(value):
    return value.__name__


@pytest.mark.parametrize(("cls", "situation"), CASES, ids=name_of)
def test_the_numbers_are_those_without(make, begun, cls, situation):
    bits = []
    for overlap in (False, True):
        model = make_model()
        optimizer = make(cls, model.parameters(), lr=1e-3, overlap=overlap)
        for i in range(STEPS):
            situation(optimizer, model, i)
        assert optimizer.last_result.step == STEPS
        if not overlap:
            assert begun["begun"] == 0
        bits.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*bits))
    assert SITUATIONS[situation] in (None, begun["made"])


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_every_type(calls, adam, begun, dtype, wire_dtype):
    bits = []
    for overlap in (False, True):
        model = make_model().to(dtype)
        optimizer = adam(model.parameters(), overlap=overlap, wire_dtype=wire_dtype)
        for i in range(STEPS):
            optimizer.zero_grad()
            inputs = torch.randn(4, 300, generator=torch.Generator().manual_seed(i)).to(dtype)
            (model(inputs) ** 2).sum().backward()
            optimizer.step()
        bits.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*bits))
    assert begun["made"] == ALL_BUT_THE_FIRST


def test_gradients_go_up_before_the_step(adam, network):
    model = make_model()
    optimizer = adam(model.parameters(), target=network.address, overlap=True)
    plain(optimizer, model, 0)
    optimizer.zero_grad()
    arrived = threading.Event()
    release = network.hold("up", after=1_000_000, then=arrived.set)
    loss_of(model, 1).backward()
    assert arrived.wait(60)
    release()
    optimizer.step()
    assert optimizer.last_result.step == 2


def test_what_fits_into_one_message_is_sent_by_the_step(adam, begun):
    model = nn.Linear(30, 30)
    optimizer = adam(model.parameters(), overlap=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 30)).sum().backward()
        optimizer.step()
    assert begun["begun"] == 0


def test_groups_that_are_added_later_are_sent_too(adam, begun):
    model = make_model()
    optimizer = adam(model[:3].parameters(), overlap=True)
    plain(optimizer, model, 0)
    optimizer.add_param_group({"params": model[4].parameters(), "lr": 1e-2})
    for i in range(1, 4):
        plain(optimizer, model, i)
    assert begun["made"] == 2
    assert int(optimizer.state[model[4].weight]["step"]) == 3


def test_a_step_that_was_begun_is_in_nobodys_way(adam, client, begun, name):
    model, others = make_model(), make_model()
    optimizer, other = (adam(each.parameters(), name=name, overlap=True) for each in (model, others))
    plain(optimizer, model, 0)
    other.pull()
    loss_of(model, 1).backward()
    assert begun["begun"] == 1
    plain(other, others, 1)
    assert other.last_result.step == 2
    with pytest.raises(adamant.StepMismatchError):
        optimizer.step()
    optimizer.pull()
    plain(optimizer, model, 2)
    assert optimizer.last_result.step == 3


@pytest.mark.parametrize("end", ["zero_grad", "close", "del", "backward"])
def test_what_the_server_keeps_for_a_step_that_does_not_come_is_let_go(start_server, begun, end):
    """Of two such steps only one has room in the server."""
    size = sum(parameter.numel() for parameter in make_model().parameters()) * 4
    server = start_server(f"--inflight_bytes={int(1.6 * size)}")
    model, others = make_model(), make_model()
    optimizer = remote.RemoteAdam(model.parameters(), target=server.address, overlap=True)
    other = remote.RemoteAdam(others.parameters(), target=server.address)
    plain(optimizer, model, 0)
    loss_of(model, 1).backward()
    assert begun["begun"] == 1
    if end == "zero_grad":
        optimizer.zero_grad()
    elif end == "close":
        optimizer.close()
    elif end == "backward":
        loss_of(model, 2).backward()
    else:
        del optimizer
    plain(other, others, 0)
    assert other.last_result.step == 1
    other.close()


def test_a_connection_that_is_lost_meanwhile_costs_no_step(adam, network, begun):
    expected, model = make_model(), make_model()
    without = adam(expected.parameters())
    optimizer = adam(model.parameters(), target=network.address, overlap=True)
    for i in range(3):
        plain(without, expected, i)
        optimizer.zero_grad()
        cut = network.cut_request_after(500_000) if i == 1 else None
        loss_of(model, i).backward()
        optimizer.step()
        assert cut is None or cut.is_set()
    assert optimizer.last_result.step == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters()))


def test_a_reply_that_is_lost_is_asked_for(adam, network, begun):
    expected, model = make_model(), make_model()
    without = adam(expected.parameters())
    optimizer = adam(model.parameters(), target=network.address, overlap=True)
    for i in range(3):
        plain(without, expected, i)
        optimizer.zero_grad()
        loss_of(model, i).backward()
        if i == 1:
            network.cut_before_reply()
        optimizer.step()
    assert begun["made"] == 2
    assert optimizer.last_result.step == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters()))


def test_ctrl_c_in_a_step_that_was_begun(adam, client, begun, monkeypatch):
    model = make_model()
    optimizer = adam(model.parameters(), overlap=True)
    plain(optimizer, model, 0)
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    rest = _connection._Sender.rest

    def interrupt_and_go_on(*args):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)
        yield from rest(*args)

    monkeypatch.setattr(_connection._Sender, "rest", interrupt_and_go_on)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    state = client.read(optimizer.set_name)
    assert all((p.detach().numpy() == state.parameters[str(i)]).all() for i, p in enumerate(model.parameters()))
    assert optimizer.last_result.step == state.step
    plain(optimizer, model, 2)
    assert optimizer.last_result.step == state.step + 1


def test_an_optimizer_that_is_closed_sends_nothing(adam, begun):
    model = make_model()
    optimizer = adam(model.parameters(), overlap=True)
    plain(optimizer, model, 0)
    optimizer.close()
    loss_of(model, 1).backward()
    assert begun["begun"] == 0


def test_gradients_that_the_model_no_longer_has_are_not_kept(adam, begun):
    model = make_model()
    optimizer = adam(model.parameters(), overlap=True)
    plain(optimizer, model, 0)
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    gradient = weakref.ref(model[0].weight.grad)
    assert begun["begun"] == 1
    model.zero_grad()
    loss_of(model, 2).backward()
    for thread in threading.enumerate():
        if thread.name == "adamant-sender":
            thread.join()
    gc.collect()
    assert gradient() is None
    optimizer.step()
    assert optimizer.last_result.step == 2


def test_parameters_do_not_keep_the_optimizer(adam, client, server):
    model = make_model()
    optimizer = remote.RemoteAdam(model.parameters(), target=server.address, overlap=True)
    plain(optimizer, model, 0)
    loss_of(model, 1).backward()
    name = optimizer.set_name
    del optimizer
    with pytest.raises(adamant.SetNotFoundError):
        client.get(name)
    loss_of(model, 2).backward()
