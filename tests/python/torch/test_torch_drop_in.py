"""What torch tests its own optimizers with: their options, each with their schedulers, and constructors' errors.

They are in torch's wheel (torch.testing._internal.common_optimizers); which there are is a matter of torch's version.
The tables are printed (pytest -s).
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from conftest import PAIRS
from torch import nn
from torch.optim import lr_scheduler

common_optimizers = pytest.importorskip("torch.testing._internal.common_optimizers")

STEPS = 20


def info_of(torchs_cls):
    return next(info for info in common_optimizers.optim_db if info.optim_cls is torchs_cls)


def train(optimizer_of, schedulers, maximize):
    """Torch's own model for this: a matrix, a bias, and one input. Returns the parameters and whether it learned."""
    generator = torch.Generator().manual_seed(5)
    weight = nn.Parameter(torch.randn(10, 5, generator=generator))
    bias = nn.Parameter(torch.randn(10, generator=generator))
    inputs = torch.randn(5, generator=generator)
    optimizer = optimizer_of([weight, bias])
    made = [schedule(optimizer) for schedule in schedulers]
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (weight.mv(inputs) + bias).pow(2).sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        for scheduler in made:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(losses[-1])
            else:
                scheduler.step()
    return [weight.detach(), bias.detach()], (losses[-1] > losses[0] if maximize else losses[-1] < losses[0])


def of(cls, kwargs, **more):
    # A tensor would be shared.
    return lambda params: cls(params, **copy.deepcopy(kwargs), **more)


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_every_option_with_every_scheduler(make, cls):
    info = info_of(PAIRS[cls])
    rows = []
    for given in info.optim_inputs_func(device="cpu", dtype=torch.float32):
        maximize = given.kwargs.get("maximize", False)
        for number, schedulers in enumerate([[], *info.scheduler_inputs]):
            mine, learned = train(lambda params: make(cls, params, **copy.deepcopy(given.kwargs)), schedulers, maximize)  # noqa: B023
            loop, _ = train(of(PAIRS[cls], given.kwargs, foreach=False, fused=False), schedulers, maximize)
            fused, _ = train(of(PAIRS[cls], given.kwargs, fused=True), schedulers, maximize)
            difference = max((a - b).abs().max().item() for a, b in zip(mine, loop))
            between = max((a - b).abs().max().item() for a, b in zip(fused, loop))
            # Twice what torch's own differ by, or, where these have the same bits, one unit in the last place a step.
            unit = torch.finfo(torch.float32).eps * max(p.abs().max().item() for p in loop)
            near = difference <= max(2 * between, STEPS * unit)
            rows.append((given.desc, number, difference, between, learned and near))
    print(f"\n{cls.__name__}: option, schedulers, from torch's for-loop, which is from its fused")
    for desc, number, difference, between, passed in rows:
        print(f"  {desc:25} {number}  {difference:8.2g}  {between:8.2g}  {'ok' if passed else 'NO'}")
    passed = sum(row[-1] for row in rows)
    print(f"{cls.__name__}: {passed} of {len(rows)}")
    assert rows
    assert passed == len(rows)


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_every_implementations_flag_is_taken_or_refused(make, cls):
    info = info_of(PAIRS[cls])
    taken = refused = 0
    for given in common_optimizers._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info):
        params = [nn.Parameter(torch.ones(3, 2))]
        if given.kwargs.get("differentiable"):
            with pytest.raises(ValueError, match="differentiable: expected False"):
                make(cls, params, **copy.deepcopy(given.kwargs))
            refused += 1
            continue
        optimizer = make(cls, params, **copy.deepcopy(given.kwargs))
        params[0].grad = torch.ones(3, 2)
        optimizer.step()
        assert optimizer.last_result.applied
        taken += 1
    print(f"\n{cls.__name__}: {taken} taken, {refused} refused")
    assert taken > refused > 0


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_every_error_of_a_constructor(make, cls):
    found = info_of(PAIRS[cls]).optim_error_inputs_func(device="cpu", dtype=torch.float32)
    for error in found:
        given = error.optimizer_error_input
        params = given.params if given.params is not None else [nn.Parameter(torch.ones(1, 1))]
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                try:
                    make(cls, params, **given.kwargs)
                except ValueError as refused:
                    # What torch warns of, there is no set for.
                    assert "is there twice" in str(refused)
        else:
            with pytest.raises(error.error_type, match=error.error_regex), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(cls, params, **given.kwargs)
    print(f"\n{cls.__name__}: {len(found)} of {len(found)} constructor errors")
    assert found
