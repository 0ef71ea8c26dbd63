"""A remote optimizer's steps are torch's."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PAIRS
from torch import nn
from torch.optim import lr_scheduler

import adamant
import adamant.torch as remote
from adamant import v1

VARIANTS = [
    (remote.RemoteAdam, {}),
    (remote.RemoteAdam, {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
    (remote.RemoteAdam, {"amsgrad": True}),
    (remote.RemoteAdam, {"maximize": True}),
    (remote.RemoteAdam, {"lr": torch.tensor(0.01)}),
    (remote.RemoteAdam, {"fused": True}),
    (remote.RemoteAdam, {"foreach": True}),
    (remote.RemoteAdamW, {"weight_decay": 0.1}),
    (remote.RemoteAdamW, {"amsgrad": True}),
    (remote.RemoteSGD, {}),
    (remote.RemoteSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (remote.RemoteSGD, {"momentum": 0.9, "dampening": 0.5}),
    (remote.RemoteSGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
]


def parameters(*shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    real = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [nn.Parameter(each) for each in real]


def gradients(params, seed):
    """The same for the same seed, whoever asks."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def assert_near(ours, theirs):
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(("cls", "kwargs"), VARIANTS, ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_steps_with_the_same_gradients_are_those_of_torch(make, cls, kwargs):
    kwargs = {"lr": 1e-2, **kwargs}
    shapes = (), (5,), (3, 4), (0, 3), (200, 300)
    ours, theirs = parameters(*shapes), parameters(*shapes)
    mine, torchs = make(cls, ours, **kwargs), PAIRS[cls](theirs, **kwargs)
    for i in range(10):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            optimizer.step()
        assert mine.last_result.applied
        assert mine.last_result.step == i + 1
    assert_near(ours, theirs)
    assert any((a != b).any() for a, b in zip(ours, parameters(*shapes)))


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_a_parameter_without_a_gradient_is_left_out_and_counts_for_itself(make, cls):
    kwargs = {"momentum": 0.9, "dampening": 0.5} if cls is remote.RemoteSGD else {}
    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    mine, torchs = make(cls, ours, lr=0.1, **kwargs), PAIRS[cls](theirs, lr=0.1, **kwargs)
    left_out = [{1, 2}, {0}, set(), {1}]
    first = mine.client.get(mine.set_name).incarnation
    for i, without in enumerate(left_out):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            for index in without:
                params[index].grad = None
            optimizer.step()
    assert_near(ours, theirs)
    assert [int(mine.state[p]["step"]) for p in ours] == [3, 2, 3]
    # Nobody took what came back for a change of somebody else's.
    assert mine.last_result.incarnation == first


def test_without_any_gradient_nothing_is_sent(adam):
    params = parameters((3,))
    optimizer = adam(params)
    optimizer.step()
    assert optimizer.last_result is None
    assert optimizer.client.get(optimizer.set_name).step == 0


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned(adam):
    params = parameters((3,))
    optimizer = adam(params)

    def closure():
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    before = params[0].square().sum().item()
    assert optimizer.step(closure).item() == before
    assert optimizer.last_result.applied


def test_each_group_has_hyperparameters_of_its_own_that_may_change_at_any_time(make):
    for cls, torchs_cls in PAIRS.items():
        ours, theirs = parameters((3,), (4,)), parameters((3,), (4,))
        pairs = []
        for made, params in ((functools.partial(make, cls), ours), (torchs_cls, theirs)):
            groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "weight_decay": 0.2}]
            pairs.append((made(groups, lr=0.1), params))
        for optimizer, params in pairs:
            for i in range(6):
                gradients(params, i)
                optimizer.step()
                optimizer.param_groups[0]["lr"] *= 0.7
                optimizer.param_groups[1]["weight_decay"] += 0.1
                optimizer.param_groups[i % 2]["maximize"] = True
                if cls is not remote.RemoteSGD:
                    optimizer.param_groups[1]["betas"] = (0.5, 0.9)
                    optimizer.param_groups[0]["eps"] = 1e-3
        assert_near(ours, theirs)


def test_what_a_set_cannot_change_is_refused(adam):
    params = parameters((3,))
    optimizer = adam(params)
    gradients(params, 0)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(RuntimeError, match=r"amsgrad cannot change .* expected False, got True"):
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_groups_are_added_at_any_time(make, momentum):
    for cls, torchs_cls in PAIRS.items():
        kwargs = {"momentum": momentum} if cls is remote.RemoteSGD else {}
        ours, theirs = parameters((3,), (4,), (2, 2)), parameters((3,), (4,), (2, 2))
        mine, torchs = make(cls, ours[:1], lr=0.1, **kwargs), torchs_cls(theirs[:1], lr=0.1, **kwargs)
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            for i in range(3):
                gradients(params, i)
                optimizer.step()
            optimizer.add_param_group({"params": params[1:], "lr": 0.3})
            for i in range(3):
                gradients(params, i)
                optimizer.step()
        assert_near(ours, theirs)
        assert [int(mine.state[p]["step"]) for p in ours] == [6, 3, 3]


def test_a_group_that_cannot_be_added_leaves_the_optimizer_as_it_was(adam):
    params = parameters((3,), (4,))
    optimizer = adam(params[:1])
    with pytest.raises(TypeError, match=r"expected float32, bfloat16, float16 or complex64, got torch\.float64"):
        optimizer.add_param_group({"params": parameters((2,), dtype=torch.float64)})
    with pytest.raises(adamant.InvalidFieldError, match="got one that takes SLOT_MAX_EXP_AVG_SQ"):
        optimizer.add_param_group({"params": params[1:], "amsgrad": True})
    assert len(optimizer.param_groups) == 1
    gradients(params, 0)
    optimizer.step()
    assert optimizer.last_result.applied


def noncontiguous():
    whole = parameters((6, 4))[0].detach()
    return [
        nn.Parameter(whole.t()),
        nn.Parameter(parameters((2, 3, 4, 4))[0].detach().to(memory_format=torch.channels_last)),
    ]


def test_parameters_that_do_not_lie_in_order(adam):
    ours, theirs = noncontiguous(), noncontiguous()
    assert not any(parameter.is_contiguous() for parameter in ours)
    mine, torchs = adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for i in range(3):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            params[0].grad = params[0].grad.t().contiguous().t()
            optimizer.step()
    assert_near(ours, theirs)
    assert mine.client.get(mine.set_name).incarnation == mine.last_result.incarnation


def test_complex_parameters_are_pairs(adam):
    ours, theirs = (parameters((3, 2), (), dtype=torch.complex64) for _ in range(2))
    mine, torchs = adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for i in range(3):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            # Conjugated when it is looked at.
            params[0].grad = params[0].grad.conj() if optimizer is mine else params[0].grad.conj().resolve_conj()
            optimizer.step()
    assert_near(ours, theirs)
    torchs.load_state_dict(mine.state_dict())
    assert torchs.state[theirs[0]]["exp_avg"].dtype == torch.complex64
    mine.load_state_dict(torchs.state_dict())
    gradients(ours, 4)
    mine.step()
    assert mine.last_result.applied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_server_keeps_the_bits_for_which_16_have_no_room(adam, dtype):
    ours = [nn.Parameter(p.detach().to(dtype)) for p in parameters((300,), ())]
    wide = [nn.Parameter(p.detach().float()) for p in ours]
    mine, torchs = adam(ours, lr=1e-5), torch.optim.Adam(wide, lr=1e-5)
    start = [p.detach().clone() for p in ours]
    for i in range(200):
        gradients(ours, i % 2)
        for a, b in zip(ours, wide):
            b.grad = a.grad.float()
        mine.step()
        torchs.step()
    for a, b, first in zip(ours, wide, start):
        assert a.dtype == dtype
        # To an element or so that is near the middle between two.
        assert (a.detach() != b.detach().to(dtype)).sum() <= 3
        assert a.dim() == 0 or (a != first).any()
    masters = mine.state_dict()["state"][0]["master_param"]
    torch.testing.assert_close(masters, wide[0].detach(), rtol=1e-6, atol=1e-7)
    assert mine.last_result.step == 200


def test_what_has_no_room_in_16_bits_is_counted(adam):
    params = [nn.Parameter(torch.tensor([65504.0, 1.0], dtype=torch.float16))]
    optimizer = adam(params, lr=100.0)
    params[0].grad = torch.tensor([-1.0, -1.0], dtype=torch.float16)
    optimizer.step()
    # It came as float16.
    assert optimizer.last_result.overflowed == 1
    assert params[0].tolist() == [float("inf"), 101.0]
    assert optimizer.client.read(optimizer.set_name).parameters["0"].tolist() == [65604.0, 101.0]
    params[0].grad = torch.tensor([1.0, 0.0], dtype=torch.float16)
    for _ in range(3):
        optimizer.step()
    assert optimizer.last_result.incarnation == optimizer.client.get(optimizer.set_name).incarnation


def test_parameters_of_several_types(adam):
    wide, narrow = parameters((40,), (50,))
    half = nn.Parameter(narrow.detach().half())
    optimizer = adam([wide, half], lr=0.1)
    twin = [nn.Parameter(wide.detach().clone()), nn.Parameter(half.detach().float())]
    torchs = torch.optim.Adam(twin, lr=0.1)
    gradients([wide, half], 1)
    twin[0].grad, twin[1].grad = wide.grad.clone(), half.grad.float()
    optimizer.step()
    torchs.step()
    assert_near([wide, half.float()], [twin[0], twin[1].detach().half().float()])


def test_wire_dtype_is_how_they_travel_and_not_what_is_kept(adam):
    (params,) = (parameters((3000,)),)
    optimizer = adam(params, lr=1e-3, wire_dtype="bfloat16")
    for i in range(3):
        gradients(params, i)
        optimizer.step()
    assert torch.equal(params[0].bfloat16().float(), params[0])
    kept = torch.from_numpy(optimizer.client.read(optimizer.set_name).parameters["0"])
    assert not torch.equal(kept.bfloat16().float(), kept)
    assert torch.equal(kept.bfloat16().float(), params[0].detach())


def test_wire_dtype_is_how_gradients_travel(sgd):
    params = [nn.Parameter(torch.zeros(2))]
    optimizer = sgd(params, lr=1.0, wire_dtype="bfloat16")
    # The second has more bits than there is room for.
    params[0].grad = torch.tensor([-1.5, -1.0 - 2.0**-10])
    optimizer.step()
    assert optimizer.client.read(optimizer.set_name).parameters["0"].tolist() == [1.5, 1.0]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), "expected float32, bfloat16, float16 or complex64, got torch.float64"),
        (torch.zeros(2, device="meta"), "expected a dense tensor with memory"),
    ],
)
def test_parameters_that_cannot_be_are_refused_and_leave_no_set(adam, client, parameter, message):
    before = [described.name for described in client.list("torch/")]
    with pytest.raises(TypeError, match=message):
        adam([nn.Parameter(parameter)])
    assert [described.name for described in client.list("torch/")] == before


def test_a_parameter_that_is_there_twice_is_refused(adam):
    (parameter,) = parameters((2,))
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match="is there twice"):
        adam([parameter, parameter])


OVERLAPPING = {
    "one storage": (lambda b: [b, b.view(4, 6)], "parameter '1': .* got some that parameter '0' has"),
    "a part": (lambda b: [b[:10], b[9:]], "parameter '1': .* got some that parameter '0' has"),
    "a row and a column": (lambda b: [b.view(4, 6)[:, 2], b.view(4, 6)[3]], "parameter '1': .* parameter '0' has"),
    "apart in between": (lambda b: [b[:4], b[20:], b[10:21]], "parameter '1': .* parameter '2' has"),
    "another storage": (lambda b: [b, torch.from_numpy(b.numpy()[20:])], "parameter '1': .* parameter '0' has"),
    "two types": (lambda b: [b, b.view(torch.bfloat16)[46:]], "parameter '1': .* parameter '0' has"),
    "expanded": (lambda b: [b[:1].expand(5)], "parameter '0': expected memory for each of its elements"),
    "strided": (lambda b: [b.as_strided((4, 4), (2, 1))], "parameter '0': expected memory for each of its elements"),
}


@pytest.mark.parametrize("make_views", OVERLAPPING)
def test_parameters_that_overlap_in_memory_are_refused(adam, make_views):
    views, message = OVERLAPPING[make_views]
    params = [nn.Parameter(view) for view in views(torch.zeros(24))]
    with pytest.raises(ValueError, match=message):
        adam(params)
    if len(params) == 1:
        return
    optimizer = adam(params[:1])
    # Nor are they added.
    for added in params[1:-1]:
        optimizer.add_param_group({"params": added})
    with pytest.raises(ValueError, match="expected memory of its own"):
        optimizer.add_param_group({"params": params[-1:]})
    assert len(optimizer.param_groups) == len(params) - 1


def test_parameters_that_come_to_overlap_are_refused(adam):
    params = parameters((3,), (3,))
    optimizer = adam(params)
    gradients(params, 0)
    optimizer.step()
    apart = params[1].data
    params[1].data = params[0].data
    with pytest.raises(ValueError, match="parameter '1': expected memory of its own"):
        optimizer.step()
    params[1].data = apart
    optimizer.step()
    assert optimizer.last_result.step == 2


def test_parts_of_one_buffer_that_do_not_overlap_are_parameters(adam):
    def views():
        matrix = parameters((6, 6))[0].detach()
        whole = [matrix[:3, ::2], matrix[:3, 1::2], matrix[3], matrix[4:, 2:].t(), matrix[4:, :2], matrix[:0]]
        return [nn.Parameter(view) for view in whole]

    ours, theirs = views(), views()
    mine, torchs = adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for i in range(3):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            optimizer.step()
    assert_near(ours, theirs)


def test_sparse_gradients_are_those_of_torch(make):
    indices = torch.tensor([1, 3, 1])
    for cls, torchs_cls in PAIRS.items():
        ours, theirs = nn.Embedding(5, 2, sparse=True), nn.Embedding(5, 2, sparse=True)
        theirs.load_state_dict(ours.state_dict())
        mine, torchs = make(cls, ours.parameters(), lr=0.1), torchs_cls(theirs.parameters(), lr=0.1)
        for layer, optimizer in ((ours, mine), (theirs, torchs)):
            layer(indices).sum().backward()
            if cls is remote.RemoteSGD:
                optimizer.step()
            else:
                with pytest.raises(RuntimeError, match="does not support sparse gradients"):
                    optimizer.step()
        assert_near(ours.parameters(), theirs.parameters())


def test_who_kept_a_parameter_for_backward_is_told_that_it_changed(adam):
    params = parameters((3,))
    optimizer = adam(params)
    loss = params[0].square().sum()
    gradients(params, 0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_step_is_not_traced(adam):
    params = parameters((3,))
    optimizer = adam(params)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(lambda: optimizer.step(), backend=backend)
    for i in range(2):
        gradients(params, i)
        step()
    assert optimizer.last_result.step == 2
    assert not graphs


def test_max_grad_norm_is_that_of_clip_grad_norm(adam):
    ours, theirs = parameters((30,), (4, 4)), parameters((30,), (4, 4))
    mine, torchs = adam(ours, lr=0.1, max_grad_norm=0.5), torch.optim.Adam(theirs, lr=0.1)
    for i in range(4):
        gradients(ours, i)
        mine.step()
        gradients(theirs, i)
        norm = nn.utils.clip_grad_norm_(theirs, 0.5)
        torchs.step()
        assert mine.last_result.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    assert_near(ours, theirs)


def test_a_gradient_that_is_not_finite_is_passed_over(adam):
    params = parameters((3,), (4,))
    optimizer = adam(params)
    before = [p.detach().clone() for p in params]
    gradients(params, 0)
    params[1].grad[2] = float("nan")
    optimizer.step()
    assert optimizer.last_result.outcome == adamant.StepOutcome.SKIPPED_NON_FINITE
    assert (optimizer.last_result.non_finite.tensor, optimizer.last_result.non_finite.offset) == ("1", 2)
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    assert int(optimizer.state[params[0]]["step"]) == 0
    gradients(params, 1)
    optimizer.step()
    assert optimizer.last_result.step == 1


def test_a_gradient_that_is_not_finite_is_an_error_where_that_is_wished(adam):
    params = parameters((3,))
    optimizer = adam(params, on_non_finite="reject")
    params[0].grad = torch.full((3,), float("inf"))
    with pytest.raises(adamant.NonFiniteGradientError):
        optimizer.step()
    gradients(params, 1)
    optimizer.step()
    assert optimizer.last_result.step == 1


def test_a_gradient_that_is_not_finite_ends_its_round_where_that_is_wished(make, client, name):
    client.create(name, {"0": (3,)}, adamant.Adam(), on_non_finite="reject", workers=v1.Workers(count=2))
    params = [parameters((3,)) for _ in range(2)]
    workers = [make(remote.RemoteAdam, each, name=name, workers=2, rank=rank) for rank, each in enumerate(params)]

    def step(rank):
        try:
            workers[rank].step()
        except adamant.NonFiniteGradientError as error:
            return error
        return workers[rank].last_result.step

    with ThreadPoolExecutor(2) as threads:
        gradients(params[0], 0)
        params[1][0].grad = torch.full((3,), float("inf"))
        assert all(isinstance(each, adamant.NonFiniteGradientError) for each in threads.map(step, range(2)))
        for each, optimizer in zip(params, workers):
            gradients(each, 1)
            with pytest.raises(RuntimeError, match=r"the last step failed .*: pull\(\)"):
                optimizer.step()
            optimizer.pull()
        assert list(threads.map(step, range(2))) == [1, 1]


REFUSED = {
    "lr": float("nan"),
    "weight_decay": -1.0,
    "betas": (0.9, 1.0),
    "eps": 0.0,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key", REFUSED)
def test_a_step_that_is_refused_changes_nothing(adam, key, dtype):
    params = parameters((3,), (300_000,), dtype=dtype)
    optimizer = adam(params, lr=0.1, weight_decay=0.1)
    group = optimizer.param_groups[0]
    good = group[key]
    for i in range(2):
        gradients(params, i)
        optimizer.step()
    before = [p.detach().clone() for p in params]
    group[key] = REFUSED[key]
    gradients(params, 2)
    with pytest.raises(adamant.InvalidFieldError):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    group[key] = good
    optimizer.step()
    assert optimizer.last_result.step == 3


def test_a_step_that_cannot_be_sent_changes_nothing(adam):
    params = parameters((3,))
    optimizer = adam(params)
    gradients(params, 0)
    before, params[0].grad = params[0].grad, None
    # Where a hook has put it, since torch checks what is assigned.
    params[0].grad = torch.zeros(3)
    params[0].grad.data = torch.zeros(4)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step()
    params[0].grad = before
    optimizer.step()
    assert optimizer.last_result.step == 1


class Scheduled:
    """An optimizer and its scheduler."""

    def __init__(self, optimizer, make_scheduler):
        self.optimizer = optimizer
        self.scheduler = make_scheduler(optimizer)

    def step(self, loss):
        self.optimizer.step()
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()


SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5], 0.3),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, total_iters=5),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.8),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], [3]
    ),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=3, base_momentum=0.8, max_momentum=0.95),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 8, 2.0),
}


def test_the_schedulers_are_all_that_torch_has():
    public = {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert public - {"LRScheduler"} == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_every_scheduler_just_works(make, cls, scheduler):
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if cls is remote.RemoteSGD else {})}
    ours, theirs = parameters((7,)), parameters((7,))
    mine = Scheduled(make(cls, ours, **kwargs), SCHEDULERS[scheduler])
    torchs = Scheduled(PAIRS[cls](theirs, **kwargs), SCHEDULERS[scheduler])
    rates = set()
    for i in range(10):
        for params, each in ((ours, mine), (theirs, torchs)):
            gradients(params, i)
            rates.add(each.optimizer.param_groups[0]["lr"])
            each.step(1.0)
        assert mine.optimizer.last_result.applied
    assert_near(ours, theirs)
    assert len(rates) > 1


def scaled(params, optimizer, scale, at_inf):
    """Steps with a scaler, of which one gradient overflows, and returns the scales."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    scales = []
    for i in range(10):
        gradients(params, i)
        with torch.no_grad():
            for parameter in params:
                parameter.grad *= scaler.get_scale() if not at_inf or i != 4 else float("inf")
            scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("at_inf", [False, True])
def test_a_scaled_gradient_is_unscaled_by_the_server(make, at_inf):
    for cls, torchs_cls in PAIRS.items():
        ours, theirs = parameters((30,)), parameters((30,))
        mine, torchs = make(cls, ours, lr=0.1), torchs_cls(theirs, lr=0.1)
        assert scaled(ours, mine, 2.0**16, at_inf) == scaled(theirs, torchs, 2.0**16, at_inf)
        assert_near(ours, theirs)
        # It was not unscaled here.
        assert ours[0].grad.abs().max() > 1e4
        assert mine.last_result.grad_norm < 100
        assert int(mine.state_dict()["state"][0]["step"]) == (9 if at_inf else 10)
        # What the scaler has found is not sent.
        assert mine.client.get(mine.set_name).statistics.non_finite == 0


def test_a_gradient_that_was_unscaled_before_is_not_unscaled_again(adam):
    params = parameters((30,))
    optimizer = adam(params, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    gradients(params, 0)
    norm = params[0].grad.norm().item()
    params[0].grad *= scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert optimizer.last_result.grad_norm == pytest.approx(norm, rel=1e-6)


def test_hooks_are_called_around_a_step(adam):
    params = parameters((3,))
    optimizer = adam(params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    gradients(params, 0)
    optimizer.step()
    assert seen == ["before", "after"]


def test_a_signature_names_torchs_arguments_and_ours():
    names = list(inspect.signature(remote.RemoteAdamW).parameters)
    assert names[:3] == ["params", "lr", "betas"]
    assert {"amsgrad", "fused", "target", "name", "local_changes", "wire_dtype"} <= set(names)


def test_parameters_that_were_exchanged_are_noticed(adam):
    params = parameters((3,))
    optimizer = adam(params)
    optimizer.param_groups[0]["params"] = parameters((3,))
    gradients(optimizer.param_groups[0]["params"], 0)
    with pytest.raises(RuntimeError, match="the optimizer's parameters are others"):
        optimizer.step()


def test_differentiable_is_refused(adam):
    with pytest.raises(ValueError, match="differentiable: expected False, got True"):
        adam(parameters((3,)), differentiable=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attach": "both"}, "attach: expected one of 'pull', 'push', 'error', got 'both'"),
        ({"local_changes": "keep"}, "local_changes: expected one of 'push', 'raise', 'ignore', got 'keep'"),
        ({"on_non_finite": "apply"}, "on_non_finite: expected one of 'skip', 'reject', None, got 'apply'"),
        ({"wire_dtype": "int8"}, "wire_dtype: expected one of .*, got 'int8'"),
        ({"workers": 2, "rank": 2}, "workers and rank: expected 1 to 64 and 0 to workers - 1, got 2 and 2"),
        ({"workers": 2}, "name: expected one that all workers know, got none"),
    ],
)
def test_arguments_that_cannot_be_are_refused(adam, kwargs, message):
    with pytest.raises(ValueError, match=message):
        adam(parameters((3,)), **kwargs)


def test_a_target_comes_from_the_environment(adam, server, monkeypatch):
    monkeypatch.setenv("ADAMANT_TARGET", server.address)
    params = parameters((3,))
    optimizer = adam(params, target=None)
    gradients(params, 0)
    optimizer.step()
    assert optimizer.last_result.step == 1


def test_workers_step_together(make, name):
    """Each has a gradient of its own, and all get the parameters of the step that their mean makes."""
    workers = [parameters((5,), seed=3) for _ in range(3)]
    theirs = parameters((5,), seed=3)
    optimizers = [
        make(remote.RemoteAdam, params, lr=0.1, name=name, workers=3, rank=rank) for rank, params in enumerate(workers)
    ]
    torchs = torch.optim.Adam(theirs, lr=0.1)
    for i in range(4):
        theirs[0].grad = torch.zeros(5)
        threads = []
        for rank, (params, optimizer) in enumerate(zip(workers, optimizers)):
            gradients(params, 10 * i + rank)
            theirs[0].grad += params[0].grad / 3
            threads.append(threading.Thread(target=optimizer.step))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torchs.step()
        assert [optimizer.last_result.contributions for optimizer in optimizers] == [3, 3, 3]
    assert torch.equal(workers[0][0], workers[1][0])
    assert torch.equal(workers[0][0], workers[2][0])
    assert_near(workers[0], theirs)


def test_who_comes_too_late_for_a_round_gets_its_parameters(make, client, name):
    workers = v1.Workers(count=2, quorum=1, round_timeout_seconds=0.05)
    client.create(name, {"0": (3,)}, adamant.Adam(), workers=workers)
    ours, late = parameters((3,)), parameters((3,))
    first, second = (
        make(remote.RemoteAdam, params, name=name, workers=2, rank=rank) for rank, params in enumerate((ours, late))
    )
    gradients(ours, 0)
    first.step()
    assert first.last_result.contributions == 1
    gradients(late, 1)
    second.step()
    assert second.last_result.outcome == adamant.StepOutcome.REFUSED_LATE
    assert torch.equal(late[0], ours[0])
    assert int(second.state[late[0]]["step"]) == 1
    second.step()
    assert second.last_result.step == 2


def test_a_model_learns_what_it_learns_with_torch(make):
    """Closed loop, where the gradients before a BatchNorm are next to nothing and Adam makes steps of them: as near as
    torch's own implementations are to each other, twice over."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(64, 8, generator=generator), torch.randn(64, 2, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 2))
    results = []
    for optimizer_of in (
        lambda params: make(remote.RemoteAdam, params, lr=1e-2),
        lambda params: torch.optim.Adam(params, lr=1e-2, foreach=False, fused=False),
        lambda params: torch.optim.Adam(params, lr=1e-2, fused=True),
    ):
        trained = copy.deepcopy(model)
        optimizer = optimizer_of(list(trained.parameters()))
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.mse_loss(trained(inputs), labels).backward()
            optimizer.step()
        results.append([p.detach() for p in trained.parameters()])
    for (name, _), ours, for_loop, fused in zip(model.named_parameters(), *results):
        difference, between = (ours - for_loop).abs().max().item(), (fused - for_loop).abs().max().item()
        print(f"{name}: {difference:.3g} from torch's for-loop, which is {between:.3g} from torch's fused one")
        # The second is what float32 cannot tell.
        assert difference <= 2 * between + 1e-6, name
