"""State dicts, checkpoints, local changes, sets that are shared, and the end of an optimizer."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PAIRS
from test_torch_steps import assert_near, gradients, parameters
from torch import nn

import adamant
import adamant.torch as remote
from adamant import v1

KWARGS = {
    remote.RemoteAdam: {"lr": 0.1, "amsgrad": True},
    remote.RemoteAdamW: {"lr": 0.1, "weight_decay": 0.1},
    remote.RemoteSGD: {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
}
EVERY = pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)


def train(optimizer, params, seeds, without=()):
    for seed in seeds:
        gradients(params, seed)
        for index in without:
            params[index].grad = None
        optimizer.step()


def incarnation(optimizer):
    return optimizer.client.get(optimizer.set_name).incarnation


def state_of(optimizer):
    return optimizer.client.read_state(optimizer.set_name)


def assert_same_state(ours, theirs):
    """Bit for bit, of what both have."""
    assert len(ours) == len(theirs)
    for i, entry in theirs.items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(ours[i][key])), (i, key)


# What a state dict has.


@EVERY
def test_a_state_dict_is_as_torchs(make, cls):
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    mine, torchs = make(cls, ours, **KWARGS[cls]), PAIRS[cls](theirs, **KWARGS[cls])
    train(mine, ours, range(5))
    train(torchs, theirs, range(5))
    got, expected = mine.state_dict(), torchs.state_dict()
    assert got["param_groups"] == expected["param_groups"]
    for i, entry in expected["state"].items():
        assert set(entry) | {"step"} == set(got["state"][i])
        for key, value in entry.items():
            assert got["state"][i][key].dtype == value.dtype
            torch.testing.assert_close(got["state"][i][key], value, rtol=1e-5, atol=1e-7)
    assert got["adamant"] == {"set": mine.set_name, "incarnation": incarnation(mine), "step": 5}


@EVERY
def test_the_step_is_there_as_soon_as_it_is_attached(make, cls):
    params = parameters((3,), (4,))
    optimizer = make(cls, params, **KWARGS[cls])
    assert [optimizer.state[p] for p in params] == [{"step": torch.tensor(0.0)}] * 2
    assert optimizer.state[params[0]]["step"].dtype == torch.float32


@EVERY
def test_torch_to_remote_to_torch_keeps_every_bit(make, cls):
    theirs = parameters((3,), (4, 5), ())
    torchs = PAIRS[cls](theirs, **KWARGS[cls])
    train(torchs, theirs, range(4))
    # From here on their counts differ.
    train(torchs, theirs, range(4, 7), without=[1])
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    mine = make(cls, ours, **KWARGS[cls])
    mine.load_state_dict(torchs.state_dict())
    assert_same_state(mine.state_dict()["state"], torchs.state_dict()["state"])
    back = PAIRS[cls]([nn.Parameter(p.detach().clone()) for p in theirs], lr=1.0)
    back.load_state_dict(mine.state_dict())
    assert_same_state(back.state_dict()["state"], torchs.state_dict()["state"])
    if cls is not remote.RemoteSGD:
        assert [int(mine.state[p]["step"]) for p in ours] == [7, 4, 7]
    train(torchs, theirs, range(7, 10))
    train(mine, ours, range(7, 10))
    assert_near(ours, theirs)


@EVERY
def test_a_parameter_that_never_had_a_gradient_has_none_after_loading(make, cls):
    theirs = parameters((3,), (4,))
    torchs = PAIRS[cls](theirs, **KWARGS[cls])
    train(torchs, theirs, range(2), without=[1])
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    mine = make(cls, ours, **KWARGS[cls])
    mine.load_state_dict(torchs.state_dict())
    back = PAIRS[cls]([nn.Parameter(p.detach().clone()) for p in theirs], **KWARGS[cls])
    back.load_state_dict(mine.state_dict())
    for params, optimizer in ((theirs, torchs), (ours, mine), (list(back.param_groups[0]["params"]), back)):
        train(optimizer, params, range(2, 4))
    assert_near(ours, theirs)
    assert_near(back.param_groups[0]["params"], theirs)


@EVERY
def test_loading_what_is_there_is_nothing(make, cls):
    params = parameters((3,))
    optimizer = make(cls, params, **KWARGS[cls])
    train(optimizer, params, range(3))
    before = incarnation(optimizer)
    # As Accelerate does when it wraps an optimizer.
    optimizer.load_state_dict(optimizer.state_dict())
    assert incarnation(optimizer) == before
    assert int(optimizer.state[params[0]]["step"]) == 3
    train(optimizer, params, [3])
    assert optimizer.last_result.step == 4


@EVERY
@pytest.mark.parametrize("emptied", [True, False])
def test_loading_what_was_there_and_was_changed_is_that(make, cls, emptied):
    """As those do who reset an optimizer's moments."""
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    mine, torchs = make(cls, ours, **KWARGS[cls]), PAIRS[cls](theirs, **KWARGS[cls])
    for optimizer, params in ((mine, ours), (torchs, theirs)):
        train(optimizer, params, range(3))
        saved = copy.deepcopy(optimizer.state_dict())
        if emptied:
            saved["state"] = {}
        else:
            for entry in saved["state"].values():
                for value in entry.values():
                    value.mul_(0.25) if value.dim() else value.fill_(2)
        optimizer.load_state_dict(saved)
        train(optimizer, params, range(3, 5))
    assert_near(ours, theirs)


def test_loading_what_was_there_undoes_no_step_of_another_client(make, name):
    ours, theirs = parameters((3,)), parameters((3,))
    mine, other = (make(remote.RemoteAdam, params, name=name) for params in (ours, theirs))
    train(mine, ours, [0])
    saved = mine.state_dict()
    other.pull()
    train(other, theirs, [1])
    mine.load_state_dict(saved)
    assert state_of(other).step == 2
    with pytest.raises(adamant.StepMismatchError):
        train(mine, ours, [2])


@EVERY
def test_loading_an_earlier_state_goes_back_to_it(make, cls):
    params = parameters((3,), (4,))
    optimizer = make(cls, params, **KWARGS[cls])
    train(optimizer, params, range(3))
    model, saved = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, range(3, 6))
    after = [p.detach().clone() for p in params]
    for order in (0, 1):
        if order:
            optimizer.load_state_dict(saved)
        with torch.no_grad():
            for parameter, value in zip(params, model):
                parameter.copy_(value)
        if not order:
            optimizer.load_state_dict(saved)
        train(optimizer, params, range(3, 6))
        assert all(torch.equal(a, b) for a, b in zip(params, after))
        assert optimizer.last_result.step == 6


def test_a_checkpoint_of_16_bits_goes_on_with_all_32(adam):
    def halves():
        return [nn.Parameter(p.detach().bfloat16()) for p in parameters((200,), (30,))]

    params = halves()
    optimizer = adam(params, lr=1e-4)
    train(optimizer, params, range(5))
    model, saved = [p.detach().clone() for p in params], optimizer.state_dict()
    assert saved["state"][0]["exp_avg"].dtype == torch.float32
    assert not torch.equal(saved["state"][0]["exp_avg"].bfloat16().float(), saved["state"][0]["exp_avg"])
    train(optimizer, params, range(5, 8))
    expected = state_of(optimizer)
    for model_first in (True, False):
        restored = halves()
        another = adam(restored, lr=1e-4)
        if not model_first:
            another.load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for parameter, value in zip(restored, model):
                parameter.copy_(value)
        if model_first:
            another.load_state_dict(copy.deepcopy(saved))
        train(another, restored, range(5, 8))
        got = state_of(another)
        for slot, arrays in expected.tensors.items():
            for name, array in arrays.items():
                assert (got.tensors[slot][name] == array).all(), (slot, name)


def test_parameters_that_are_here_win_over_those_that_were_saved(adam):
    params = [nn.Parameter(parameters((200,))[0].detach().bfloat16())]
    optimizer = adam(params, lr=1e-4)
    train(optimizer, params, range(3))
    others = [nn.Parameter(parameters((200,), seed=9)[0].detach().bfloat16())]
    mine = others[0].detach().float()
    another = adam(others, lr=1e-4)
    another.load_state_dict(optimizer.state_dict())
    train(another, others, [3])
    assert (torch.from_numpy(state_of(another).parameters["0"]) - mine).abs().max() < 2e-4


def test_the_sets_step_is_saved_too(adam):
    """It is more than any parameter's count where none has been in all steps."""
    params = parameters((3,), (4,))
    optimizer = adam(params)
    for i in range(6):
        train(optimizer, params, [i], without=[i % 2])
    others = parameters((3,), (4,))
    another = adam(others)
    another.load_state_dict(optimizer.state_dict())
    assert [int(another.state[p]["step"]) for p in others] == [3, 3]
    train(another, others, [6])
    assert another.last_result.step == 7


def test_saved_with_weights_only(adam):
    params = parameters((3,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    before = incarnation(optimizer)
    optimizer.load_state_dict(loaded)
    assert incarnation(optimizer) == before


def test_state_dicts_of_old_versions_of_torch(adam):
    """Whose step is no tensor, and whose groups lack what came later."""
    params = parameters((3,))
    torchs = torch.optim.Adam(parameters((3,)))
    train(torchs, torchs.param_groups[0]["params"], range(3))
    old = torchs.state_dict()
    old["state"][0]["step"] = 3
    for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay", "amsgrad"):
        old["param_groups"][0].pop(key, None)
    optimizer = adam(params)
    optimizer.load_state_dict(old)
    assert int(optimizer.state[params[0]]["step"]) == 3
    train(optimizer, params, [4])
    assert optimizer.last_result.step == 4


def test_a_state_dict_that_does_not_fit_changes_nothing(adam):
    params = parameters((3,))
    optimizer = adam(params)
    train(optimizer, params, range(3))
    other = torch.optim.Adam(parameters((4,)), lr=7.0)
    train(other, other.param_groups[0]["params"], range(2))
    before = incarnation(optimizer)
    with pytest.raises(ValueError, match=r"exp_avg of parameter '0': expected shape \(3,\), got \(4,\)"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="amsgrad cannot change"):
        optimizer.load_state_dict(torch.optim.Adam(parameters((3,)), amsgrad=True).state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert incarnation(optimizer) == before
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert int(optimizer.state[params[0]]["step"]) == 3
    train(optimizer, params, [4])
    assert optimizer.last_result.step == 4


def test_hooks_of_state_dicts(adam):
    params = parameters((3,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before save"))
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(sorted(saved["state"][0])))

    def pre_hook(_, loaded):
        seen.append("before load")
        loaded = copy.deepcopy(loaded)
        loaded["state"][0]["exp_avg"].fill_(0.5)
        loaded.pop("adamant")
        return loaded

    optimizer.register_load_state_dict_pre_hook(pre_hook)
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(int(opt.state[params[0]]["step"])))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before save", ["exp_avg", "exp_avg_sq", "step"], "before load", 2]
    assert (state_of(optimizer).tensors["exp_avg"]["0"] == 0.5).all()


def test_what_others_keep_in_the_state_stays(adam):
    params = parameters((3,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    optimizer.state[params[0]]["note"] = "mine"
    saved = optimizer.state_dict()
    assert saved["state"][0]["note"] == "mine"
    optimizer.load_state_dict(saved)
    assert optimizer.state[params[0]]["note"] == "mine"
    assert set(optimizer.state[params[0]]) == {"note", "step"}


@EVERY
def test_distributed_checkpoint_does_not_move_the_set(make, cls):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = nn.Linear(3, 2)
    optimizer = make(cls, model.parameters(), **KWARGS[cls])
    before = optimizer.client.get(optimizer.set_name)
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.client.get(optimizer.set_name) == before
    train(optimizer, list(model.parameters()), range(3))
    saved = get_optimizer_state_dict(model, optimizer)
    expected = state_of(optimizer)
    another = make(cls, model.parameters(), **KWARGS[cls])
    set_optimizer_state_dict(model, another, saved)
    for slot, arrays in state_of(another).tensors.items():
        for name, array in arrays.items():
            assert (expected.tensors[slot][name] == array).all()


# Sets that are there already.


def test_a_named_set_stays_and_is_found_again(adam, name):
    params = parameters((3,))
    first = adam(params, name=name)
    train(first, params, range(3))
    first.close()
    others = parameters((3,), seed=9)
    second = adam(others, name=name)
    assert torch.equal(others[0], params[0])
    assert int(second.state[others[0]]["step"]) == 3
    train(second, others, [3])
    assert second.last_result.step == 4


def test_whoever_comes_first_makes_the_set(adam, name):
    models = [parameters((100_000,), seed=seed) for seed in range(8)]
    firsts = [params[0].detach().clone() for params in models]
    with ThreadPoolExecutor() as pool:
        optimizers = list(pool.map(lambda params: adam(params, name=name, max_grad_norm=0.3), models))
    assert sum(torch.equal(models[0][0], first) for first in firsts) == 1
    assert all(torch.equal(params[0], models[0][0]) for params in models)
    train(optimizers[5], models[5], [0])
    assert optimizers[5].last_result.step == 1


def test_whoever_writes_first_has_written_the_set(adam, client, name, monkeypatch):
    theirs = parameters((3,), seed=9)[0].detach().numpy()
    create = adamant.Client.create

    def outrun(maker, *args, **kwargs):
        created = create(maker, *args, **kwargs)
        # As a worker does who comes between its creation and its first write.
        client.write(name, [theirs])
        return created

    monkeypatch.setattr(adamant.Client, "create", outrun)
    params = parameters((3,))
    optimizer = adam(params, name=name)
    assert (params[0].detach().numpy() == theirs).all()
    train(optimizer, params, [0])
    assert optimizer.last_result.step == 1


def test_a_set_that_was_stepped_while_a_group_was_added_is_pulled(adam, name):
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    first, second = adam(ours[:1], name=name), adam(theirs[:1], name=name)
    train(second, theirs[:1], [0])
    first.add_param_group({"params": ours[1:]})
    gradients(ours, 1)
    with pytest.raises(RuntimeError, match=r"stepped by somebody else while a group was added, .*: pull\(\)"):
        first.step()
    first.pull()
    assert torch.equal(ours[0], theirs[0])
    first.step()
    assert first.last_result.step == 2


def test_a_set_whose_maker_has_never_written_is_written(adam, client, name):
    params = parameters((3,))
    groups = [adamant.Group("0", adamant.Adam(), ["0"])]
    spec = v1.ParameterSetSpec(
        name=name,
        tensors=[v1.TensorSpec(name="0", shape=[3], group="0")],
        groups=[group.to_proto() for group in groups],
        initialization=v1.INITIALIZATION_WRITTEN,
    )
    client.create(spec)
    before = params[0].detach().clone()
    adam(params, name=name)
    assert torch.equal(params[0], before)
    assert (client.read(name).parameters["0"] == before.numpy()).all()


def test_whose_parameters_win_is_said(adam, client, name):
    params = parameters((3,))
    first = adam(params, name=name)
    others = parameters((3,), seed=9)
    mine = others[0].detach().clone()
    # It has not stepped.
    adam(parameters((3,)), name=name, attach="error")
    train(first, params, range(3))
    with pytest.raises(RuntimeError, match=r"attach='error': .* expected step 0, got 3"):
        adam(others, name=name, attach="error")
    assert torch.equal(others[0], mine)
    second = adam(others, name=name, attach="push")
    assert torch.equal(others[0], mine)
    assert torch.equal(torch.from_numpy(client.read(name).parameters["0"]), mine)
    assert int(second.state[others[0]]["step"]) == 3


@pytest.mark.parametrize(
    ("shapes", "cls", "kwargs", "message"),
    [
        ([(4,)], remote.RemoteAdam, {}, r"expected shape \[4\] of tensor 0 \('0'\), got \[3\]"),
        ([(3,), (1,)], remote.RemoteAdam, {}, "expected 2 tensors, got 1"),
        ([(3,)], remote.RemoteSGD, {}, "expected .*SGD.*, got .*Adam"),
        ([(3,)], remote.RemoteAdam, {"amsgrad": True}, "expected .*'amsgrad': True.*, got .*'amsgrad': False"),
        ([(3,)], remote.RemoteAdam, {"max_grad_norm": 1.0}, "max_grad_norm .*: expected 1.0, got None"),
        ([(3,)], remote.RemoteAdam, {"on_non_finite": "reject"}, "on_non_finite .*: expected 'reject', got 'skip'"),
        ([(3,)], remote.RemoteAdam, {"workers": 2}, "workers .*: expected 2, got 1"),
    ],
)
def test_a_set_that_is_another_models_is_refused(make, client, name, shapes, cls, kwargs, message):
    make(remote.RemoteAdam, parameters((3,)), name=name)
    with pytest.raises(ValueError, match=message):
        make(cls, parameters(*shapes), name=name, **kwargs)
    # Nobody has deleted it.
    client.get(name)


def test_a_set_of_two_groups_is_no_set_of_one(make, client, name):
    client.create(name, {"a": (3,), "b": (4,)})
    first, second = parameters((3,), (4,))
    with pytest.raises(ValueError, match=r"updates tensors alike .* groups 0 and 1"):
        make(remote.RemoteAdam, [{"params": [first]}, {"params": [second]}], name=name)


def test_a_set_that_somebody_else_has_made_is_used(adam, client, name):
    """Such as a program in another language: tensors are known by their order and, if both have them, their names."""
    client.create(
        name,
        {"x": (3,), "y": (4,)},
        groups=[adamant.Group("first", adamant.Adam(lr=1.0), ["x"]), adamant.Group("second", adamant.Adam(), ["y"])],
    )
    params = parameters((3,), (4,))
    optimizer = adam(params, name=name, lr=0.25)
    assert (params[0] == 0).all()
    train(optimizer, params, [0])
    assert optimizer.last_result.learning_rates == {"first": 0.25, "second": 0.25}
    with pytest.raises(ValueError, match="expected tensor 1 to be 'z', got 'y'"):
        adam(list(zip(["x", "z"], parameters((3,), (4,)))), name=name)


def test_a_set_that_others_write_is_pushed_or_pulled(adam, client, name):
    params = parameters((3,))
    optimizer = adam(params, name=name)
    train(optimizer, params, range(2))
    for recover in (optimizer.pull, optimizer.push):
        mine = params[0].detach().clone()
        client.write(name, [parameters((3,), seed=9)[0].detach().numpy()])
        with pytest.raises(adamant.IncarnationMismatchError):
            train(optimizer, params, [2])
        recover()
        assert torch.equal(params[0], mine) == (recover == optimizer.push)
        assert (client.read(name).parameters["0"] == params[0].detach().numpy()).all()
        train(optimizer, params, [3])
    assert optimizer.last_result.step == 4


def test_named_parameters_name_the_tensors(adam):
    model = nn.Linear(3, 2)
    optimizer = adam(model.named_parameters())
    names = [tensor.name for tensor in optimizer.client.list_tensors(optimizer.set_name)]
    assert names == ["weight", "bias"]


def test_a_set_that_others_step_is_pulled(adam, name):
    params, others = parameters((3,)), parameters((3,))
    first, second = adam(params, name=name), adam(others, name=name)
    train(first, params, range(2))
    gradients(others, 5)
    with pytest.raises(adamant.StepMismatchError):
        second.step()
    with pytest.raises(RuntimeError, match=r"the last step failed .*: pull\(\) them from the server, or push\(\)"):
        second.step()
    second.pull()
    assert torch.equal(others[0], params[0])
    assert int(second.state[others[0]]["step"]) == 2
    second.step()
    assert second.last_result.step == 3
    mine = others[0].detach().clone()
    with pytest.raises(adamant.StepMismatchError):
        train(first, params, [6])
    first.push()
    second.pull()
    assert torch.equal(others[0], params[0])
    assert not torch.equal(others[0], mine)


def test_a_state_is_that_of_the_parameters_that_are_here(adam, name):
    params, others = parameters((3,)), parameters((3,))
    first, second = adam(params, name=name), adam(others, name=name)
    second.state_dict()
    train(first, params, range(2))
    with pytest.raises(RuntimeError, match=r"another client has stepped .* step 0, .* of step 2: pull\(\) first"):
        second.state_dict()
    second.pull()
    assert second.state_dict()["adamant"]["step"] == 2
    first.push()
    with pytest.raises(adamant.IncarnationMismatchError, match=r"pull\(\) first"):
        second.state_dict()
    second.pull()
    assert_same_state(second.state_dict()["state"], first.state_dict()["state"])


# What is written here.

WRITES = {
    "data": lambda p: p.data.clamp_(-0.1, 0.1),
    "no_grad": lambda p: p.detach().mul_(0.5),
    # All signs, of as many numbers below zero as above.
    "signs": lambda p: p.data.neg_(),
    "order in place": lambda p: p.data.copy_(p.data.flip(0)),
    "one bit": lambda p: p.data.view(torch.int32)[49:].bitwise_xor_(1),
    "elsewhere": lambda p: setattr(p, "data", p.detach() * 0.5),
    "numpy": lambda p: p.detach().numpy().__setitem__(0, 3.0),
    "order": lambda p: p.detach().copy_(p.detach().flip(0)),
    "order elsewhere": lambda p: setattr(p, "data", p.detach().flip(0)),
}


def balanced():
    first, second = parameters((50,), (3,))
    first.data[::2] = first.data[::2].abs()
    first.data[1::2] = -first.data[1::2].abs()
    return [first, second]


@pytest.mark.parametrize("write", WRITES)
@EVERY
def test_what_is_written_here_counts(make, cls, write):
    ours, theirs = balanced(), balanced()
    mine, torchs = make(cls, ours, **KWARGS[cls]), PAIRS[cls](theirs, **KWARGS[cls])
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2))
        WRITES[write](params[0])
        train(optimizer, params, range(2, 4))
    assert_near(ours, theirs)
    # Once.
    before = incarnation(mine)
    train(mine, ours, [4])
    assert incarnation(mine) == before


@pytest.mark.parametrize("size", [1, 2, 3, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_one_bit_of_any_element_is_noticed(adam, size, dtype, is_contiguous):
    whole = parameters((size, 2))[0].detach().to(dtype)
    params = [nn.Parameter(whole.reshape(2, size) if is_contiguous else whole.t())]
    optimizer = adam(params, local_changes="raise")
    params[0].grad = torch.zeros_like(params[0])
    for element in {0, size // 2, size - 1}:
        for i in (0, 1):
            params[0].data[i, element] = -params[0].data[i, element]
            with pytest.raises(RuntimeError, match="somebody has written"):
                optimizer.step()
            params[0].data[i, element] = -params[0].data[i, element]
            optimizer.step()


@pytest.mark.parametrize(
    "write",
    [lambda p: p.detach().copy_(p.detach().flip(0)), lambda p: setattr(p, "data", p.detach().flip(0))],
    ids=["in place", "elsewhere"],
)
def test_rows_of_4_kib_that_trade_places_are_noticed(adam, write):
    params = parameters((8, 1024))
    optimizer = adam(params, local_changes="raise")
    write(params[0])
    gradients(params, 0)
    with pytest.raises(RuntimeError, match="somebody has written"):
        optimizer.step()


def test_a_matrix_that_is_turned_where_it_lies_is_noticed(adam):
    ours, theirs = parameters((3, 3)), parameters((3, 3))
    mine, torchs = adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2))
        address = params[0].data_ptr()
        params[0].data = params[0].data.t()
        assert params[0].data_ptr() == address
        train(optimizer, params, range(2, 4))
    assert_near(ours, theirs)


def test_a_parameter_that_becomes_another_type_goes_on(adam):
    params = parameters((30,), (40,))
    optimizer = adam(params, lr=1e-4)
    train(optimizer, params, range(2))
    params[0].data = params[0].data.bfloat16()
    for i in range(2, 5):
        train(optimizer, params, [i])
    assert params[0].dtype == torch.bfloat16
    kept = torch.from_numpy(state_of(optimizer).parameters["0"])
    assert torch.equal(kept.bfloat16(), params[0].detach())
    assert not torch.equal(kept.bfloat16().float(), kept)
    params[1].data = params[1].data.t().clone()
    train(optimizer, params, [5])
    assert optimizer.last_result.step == 6


def test_many_parameters_of_which_some_are_written(adam):
    """Small ones and large ones, of which more than one place keeps what they were."""
    shapes = [(5000,) if i % 7 == 3 else (i % 5, 3) for i in range(40)]
    ours, theirs = parameters(*shapes), parameters(*shapes)
    mine, torchs = adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2), without=[3, 6, 11])
        for i in (3, 6, 17, 19):
            params[i].data.mul_(2)
        train(optimizer, params, range(2, 4), without=[4, 17, 6])
        params[8].data.mul_(2)
        train(optimizer, params, range(4, 6))
    assert_near(ours, theirs)


@pytest.mark.parametrize("size", [50, 5000])
def test_what_is_written_as_it_was_is_not_sent(adam, size):
    params = parameters((size,), (size,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    before = incarnation(optimizer)
    with torch.no_grad():
        params[0].copy_(params[0].clone())
    params[1].data = params[1].data.clone()
    train(optimizer, params, [2])
    assert incarnation(optimizer) == before


@pytest.fixture
def reads(monkeypatch):
    """What was read by optimizers to look closer."""
    found = []
    read = adamant.Client.read

    def count(client, name, *args, **kwargs):
        found.append(name)
        return read(client, name, *args, **kwargs)

    monkeypatch.setattr(adamant.Client, "read", count)
    return found


@pytest.mark.parametrize("size", [50, 5000])
def test_what_is_written_into_a_parameter_without_a_gradient_is_sent_once(adam, reads, size):
    params = parameters((3,), (size,), (size,))
    optimizer = adam(params, lr=0.1)
    train(optimizer, params, range(2))
    params[1].data.mul_(2)
    with torch.no_grad():
        params[2].copy_(params[2].clone())
    train(optimizer, params, [2], without=[1, 2])
    once, looked = incarnation(optimizer), len(reads)
    train(optimizer, params, [3, 4], without=[1, 2])
    assert incarnation(optimizer) == once
    assert len(reads) == looked == (1 if size == 5000 else 0)
    assert (state_of(optimizer).parameters["1"] == params[1].detach().numpy()).all()


@pytest.mark.parametrize("size", [50, 5000])
def test_usually_nothing_has_to_be_looked_at(adam, reads, size):
    params = parameters((3,), (size,))
    optimizer = adam(params[:1])
    train(optimizer, params[:1], range(2))
    optimizer.add_param_group({"params": params[1:]})
    train(optimizer, params, range(2))
    optimizer.pull()
    train(optimizer, params, range(2))
    optimizer.push()
    train(optimizer, params, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, params, range(2))
    assert reads == []


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_here_is_an_error_where_that_is_wished(adam, write):
    params = parameters((50,))
    optimizer = adam(params, local_changes="raise")
    train(optimizer, params, range(2))
    WRITES[write](params[0])
    gradients(params, 2)
    with pytest.raises(RuntimeError, match="somebody has written into 1 of 1 parameters, '0' first"):
        optimizer.step()
    optimizer.push()
    optimizer.step()
    assert optimizer.last_result.step == 3


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_here_is_lost_where_that_is_wished(adam, write):
    ours, theirs = parameters((50,)), parameters((50,))
    mine, torchs = adam(ours, lr=0.1, local_changes="ignore"), torch.optim.Adam(theirs, lr=0.1)
    train(mine, ours, range(2))
    WRITES[write](ours[0])
    train(mine, ours, [2])
    train(torchs, theirs, range(3))
    assert_near(ours, theirs)


def test_of_16_bits_only_what_was_written_loses_its_other_half(adam):
    narrow = [nn.Parameter(parameters((50,))[0].detach().bfloat16())]
    optimizer = adam(narrow, lr=1e-4)
    train(optimizer, narrow, range(3))
    masters = torch.from_numpy(state_of(optimizer).parameters["0"])
    assert not torch.equal(masters.bfloat16().float(), masters)
    # Another one, of the same state, with nothing to lose.
    wide = [nn.Parameter(masters.clone())]
    other = adam(wide, lr=1e-4)
    other.load_state_dict(optimizer.state_dict())
    for params, each in ((narrow, optimizer), (wide, other)):
        params[0].data[7] = 2.0
        params[0].grad = torch.ones(50, dtype=params[0].dtype)
        each.step()
    assert torch.equal(torch.from_numpy(state_of(optimizer).parameters["0"]), wide[0])


def test_values_that_no_set_can_hold_are_refused(adam):
    params = parameters((3,))
    optimizer = adam(params)
    params[0].data[1] = float("nan")
    gradients(params, 0)
    with pytest.raises(adamant.ValueOutOfRangeError):
        optimizer.step()


# What is shown.


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_transfers_are_shown_on_a_terminal(adam, name, monkeypatch, is_terminal):
    pytest.importorskip("tqdm")
    screen = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = []

    def look():
        shown.append(sorted({line.split(":")[0].strip() for line in re.split("[\r\n]", screen.getvalue())} - {""}))
        screen.seek(0)
        screen.truncate()

    params = parameters((400_000,), (3,))
    optimizer = adam(params, name=name, progress=True)
    look()
    # That is a write, which nobody waits for as such.
    params[0].data.mul_(2)
    train(optimizer, params, range(2))
    look()
    optimizer.pull()
    look()
    optimizer.push()
    look()
    saved = optimizer.state_dict()
    look()
    train(optimizer, params, [2])
    optimizer.load_state_dict(saved)
    look()
    expected = [[f"attach {name} (read)", f"attach {name} (write)"], []]
    expected += [[f"pull {name} (read)"], [f"push {name} (write)"], [f"state_dict {name} (read)"]]
    expected.append([f"load_state_dict {name} (write)"])
    assert shown == (expected if is_terminal else [[]] * 6)


def test_nothing_is_shown_unless_it_is_asked_for(adam, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    optimizer = adam(parameters((400_000,)))
    optimizer.state_dict()
    assert screen.getvalue() == ""


def test_without_tqdm_there_is_no_progress(adam, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"progress: expected tqdm .* pip install 'adamant-client\[progress\]'"):
        adam(parameters((3,)), progress=True)


# Its end, and what it is not.


def test_its_own_set_ends_with_it(adam, client):
    params = parameters((3,))
    optimizer = adam(params)
    name = optimizer.set_name
    assert name.startswith("torch/")
    with optimizer:
        train(optimizer, params, range(2))
    with pytest.raises(adamant.SetNotFoundError):
        client.get(name)
    for use in (optimizer.step, optimizer.pull, optimizer.push, optimizer.state_dict):
        gradients(params, 0)
        with pytest.raises(RuntimeError, match="the optimizer is closed"):
            use()
    optimizer.close()


def test_its_own_set_ends_when_nobody_has_it_any_more(server, client):
    optimizer = remote.RemoteAdam(parameters((3,)), target=server.address)
    name = optimizer.set_name
    client.get(name)
    del optimizer
    gc.collect()
    with pytest.raises(adamant.SetNotFoundError):
        client.get(name)


def test_its_own_set_ends_with_the_program(server, client):
    program = (
        "import sys, torch, adamant.torch\n"
        "optimizer = adamant.torch.RemoteAdam([torch.zeros(3, requires_grad=True)], target=sys.argv[1])\n"
        "print(optimizer.set_name)\n"
        "raise SystemExit(0 if len(sys.argv) == 2 else 'failed')\n"
    )
    for more in ([], ["fail"]):
        made = subprocess.run([sys.executable, "-c", program, server.address, *more], capture_output=True, text=True)
        assert made.stdout.startswith("torch/")
        with pytest.raises(adamant.SetNotFoundError):
            client.get(made.stdout.strip())


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps, lambda optimizer: torch.save(optimizer, io.BytesIO())]
)
def test_a_copy_is_refused(adam, duplicate):
    with pytest.raises(TypeError, match="a RemoteAdam cannot be copied or pickled"):
        duplicate(adam(parameters((3,))))


def test_a_forked_child_is_refused_and_takes_nothing_with_it(adam, client):
    params = parameters((3,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            optimizer.step()
            message = "stepped"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        optimizer.close()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        message = file.read()
    assert os.waitpid(child, 0)[1] == 0
    assert message.startswith("RuntimeError: this adamant.Client belongs to the process that made it")
    train(optimizer, params, [2])
    assert client.get(optimizer.set_name).step == 3


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("size", [8, 2_000_000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_ctrl_c_leaves_the_parameters_of_one_step(adam, network, client, size, direction):
    params = parameters((size,))
    optimizer = adam(params, target=network.address)
    train(optimizer, params, range(2))
    before = params[0].detach().clone()
    release = None

    def interrupt_and_go_on():
        interrupt()
        release()

    gradients(params, 2)
    release = network.hold(direction, after=3_000_000 if size > 8 else 0, then=interrupt_and_go_on)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    described = client.get(optimizer.set_name)
    state = client.read(optimizer.set_name)
    assert (params[0].detach().numpy() == state.parameters["0"]).all()
    assert int(optimizer.state[params[0]]["step"]) == described.step
    assert torch.equal(before, params[0]) == (described.step == 2)
    assert optimizer.last_result.step == described.step
    train(optimizer, params, [3])
    assert optimizer.last_result.step == described.step + 1


@pytest.mark.parametrize("noticed_by", ["step", "pull", "push", "state_dict", "load_state_dict", "add_param_group"])
@pytest.mark.parametrize("named", [True, False])
@EVERY
def test_a_set_that_is_gone_is_made_again_of_a_checkpoint(make, client, name, cls, named, noticed_by):
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    options = {**KWARGS[cls], **({"name": name} if named else {})}
    mine, torchs = make(cls, ours, max_grad_norm=7.0, **options), PAIRS[cls](theirs, **KWARGS[cls])
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(3))
    model, saved = [p.detach().clone() for p in ours], copy.deepcopy(mine.state_dict())
    train(mine, ours, [8])
    before = client.get(mine.set_name)
    # As a server does that is started again.
    client.delete(mine.set_name)
    if noticed_by != "load_state_dict":
        gradients(ours, 9)
        arguments = [{"params": parameters((2,))}] if noticed_by == "add_param_group" else []
        with pytest.raises(adamant.SetNotFoundError, match=r"load_state_dict.* of a checkpoint makes it again"):
            getattr(mine, noticed_by)(*arguments)
        for use in (mine.step, mine.state_dict):
            with pytest.raises(RuntimeError, match=r"is gone: load_state_dict.* of a checkpoint makes it again"):
                use()
    for parameter, value in zip(ours, model):
        parameter.data.copy_(value)
    mine.load_state_dict(saved)
    assert mine.state_dict()["adamant"]["step"] == 3
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(3, 6))
    assert_near(ours, theirs)
    after = client.get(mine.set_name)
    assert (after.clipping, after.groups, after.labels) == (before.clipping, before.groups, before.labels)


def test_a_server_that_was_started_again_goes_on_from_a_checkpoint(adam, start_server):
    server = start_server()
    params = parameters((3,))
    optimizer = adam(params, target=server.address)
    train(optimizer, params, range(2))
    model, saved = params[0].detach().clone(), optimizer.state_dict()
    train(optimizer, params, [2])
    expected = params[0].detach().clone()
    server.stop()
    start_server(listen=server.address)
    with pytest.raises(adamant.SetNotFoundError):
        train(optimizer, params, [3])
    params[0].data.copy_(model)
    optimizer.load_state_dict(saved)
    train(optimizer, params, [2])
    assert torch.equal(params[0], expected)
    assert optimizer.last_result.step == 3


def test_a_server_that_is_gone_is_no_reason_not_to_end(adam, start_server):
    server = start_server()
    params = parameters((3,))
    optimizer = adam(params, target=server.address)
    train(optimizer, params, range(2))
    server.stop()
    optimizer.close()
    with pytest.raises(RuntimeError, match="the optimizer is closed"):
        train(optimizer, params, [2])


def test_sgd_without_momentum_has_no_buffer_to_save(sgd):
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    mine, torchs = sgd(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2))
    saved = mine.state_dict()
    assert saved["state"] == {0: {"step": 2.0}, 1: {"step": 2.0}}
    mine.load_state_dict(torchs.state_dict())
    torchs.load_state_dict(saved)
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, [2])
    assert_near(ours, theirs)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_momentum_begins_at_any_time(sgd, client, dampening):
    """With the gradient of that step, and in each group when it is set there."""
    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    mine, torchs = (
        make([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, dampening=dampening)
        for make, params in ((sgd, ours), (torch.optim.SGD, theirs))
    )
    names = [mine.set_name]
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2))
        for group in optimizer.param_groups:
            group["momentum"] = 0.9
            train(optimizer, params, range(2, 4), without=[1])
            train(optimizer, params, range(4, 6))
            names.append(mine.set_name)
    assert_near(ours, theirs)
    saved, expected = mine.state_dict(), torchs.state_dict()
    for i, entry in expected["state"].items():
        torch.testing.assert_close(saved["state"][i]["momentum_buffer"], entry["momentum_buffer"], rtol=1e-5, atol=1e-7)
    assert mine.last_result.step == 10
    client.get(names[-1])
    mine.close()
    for gone in names:
        with pytest.raises(adamant.SetNotFoundError):
            client.get(gone)


def test_momentum_that_is_loaded_begins(sgd):
    ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
    mine, torchs = sgd(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.5)
    train(torchs, theirs, range(2), without=[1])
    saved = torchs.state_dict()
    train(mine, ours, range(2), without=[1])
    for parameter, value in zip(ours, theirs):
        parameter.data.copy_(value.detach())
    broken = copy.deepcopy(saved)
    broken["state"][0]["momentum_buffer"] = torch.zeros(7)
    before = mine.set_name
    with pytest.raises(ValueError, match="momentum_buffer of parameter '0': expected shape"):
        mine.load_state_dict(broken)
    assert mine.set_name == before
    mine.load_state_dict(saved)
    for params, optimizer in ((ours, mine), (theirs, torchs)):
        train(optimizer, params, range(2, 5))
    assert_near(ours, theirs)


def test_momentum_does_not_begin_in_a_set_that_others_may_use(sgd, name):
    params = parameters((3,))
    optimizer = sgd(params, lr=0.1, name=name)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError, match=r"group '0': momentum cannot begin .*: expected 0, got 0\.9"):
        train(optimizer, params, [0])
    optimizer.param_groups[0]["momentum"] = 0
    train(optimizer, params, [0])
    assert optimizer.last_result.step == 1


def test_momentum_does_not_end(sgd):
    params = parameters((3,))
    optimizer = sgd(params, lr=0.1, momentum=0.9)
    train(optimizer, params, [0])
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(RuntimeError, match=r"momentum cannot end .*: expected more than 0, got 0\.0"):
        train(optimizer, params, [1])
    optimizer.param_groups[0]["momentum"] = 0.5
    train(optimizer, params, [1])
    assert optimizer.last_result.step == 2


@pytest.mark.parametrize("written", [True, False])
def test_ctrl_c_while_local_changes_are_sent(adam, monkeypatch, written):
    params = parameters((8,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    params[0].data.clamp_(-0.1, 0.1)
    clamped = params[0].detach().clone()
    write = optimizer.client.write

    def write_and_interrupt(*args, **kwargs):
        monkeypatch.undo()
        result = write(*args, **kwargs) if written else None
        interrupt()
        return result

    monkeypatch.setattr(optimizer.client, "write", write_and_interrupt)
    gradients(params, 2)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert torch.equal(params[0], clamped)
    assert (state_of(optimizer).parameters["0"] == clamped.numpy()).all()
    train(optimizer, params, [2])
    assert optimizer.last_result.step == 3


def test_ctrl_c_while_the_parameters_are_put_in_place(adam, monkeypatch):
    params = parameters((8,))
    optimizer = adam(params)
    train(optimizer, params, range(2))
    arrived = optimizer._session._arrived

    def interrupted(*args):
        monkeypatch.undo()
        interrupt()
        arrived(*args)

    monkeypatch.setattr(optimizer._session, "_arrived", interrupted)
    gradients(params, 2)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert optimizer.last_result.step == int(optimizer.state[params[0]]["step"]) == 3
    assert (state_of(optimizer).parameters["0"] == params[0].detach().numpy()).all()
    train(optimizer, params, [3])
    assert optimizer.last_result.step == 4
