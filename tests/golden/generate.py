#!/usr/bin/env python3
"""Has PyTorch run optimizers and schedulers, and writes what comes of it: optimizers.textproto, schedules.textproto.

    generate.py          writes both files
    generate.py --check  compares what is in them with what PyTorch makes now; exits with 1 if it differs

Needs torch: requirements.txt has the version that made the files. Torch computes in float64 on one thread, but with
other instructions on other machines, so that the last bits differ: --check passes numbers that agree to 1e-9.
golden.proto says what the files hold. Inputs come from integers alone, so that inputs.cc makes them with the same bits.
"""

import dataclasses
import functools
import math
import pathlib
import re
import sys
import textwrap
import warnings

import torch
from torch.optim import lr_scheduler

torch.set_num_threads(1)

# What inputs.cc has, too.

SIZES = (13, 1, 18)
STEPS = 1000
MASK = 2**64 - 1


def mixed(*numbers):
    """64 random bits, the same for the same numbers: each goes through splitmix64's finalizer."""
    z = 0
    for number in numbers:
        z = (z + number + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z


def make_float(bits, lowest, highest):
    """A float of either sign whose exponent is in [lowest, highest], each as likely."""
    exponent = lowest + (bits >> 32) % (highest - lowest + 1)
    magnitude = math.ldexp(1 + (bits & 0x7FFFFF) * 2**-23, exponent)
    return -magnitude if bits >> 23 & 1 else magnitude


def first_parameter(tensor, element):
    return make_float(mixed(1, tensor, element), -6, 0)


def gradient(kinds, tensor, element, step):
    bits = mixed(2, tensor, element, step)
    kind = element % kinds
    if kind == 0:  # of either sign
        return make_float(bits, -6, 0)
    if kind == 1:  # always up
        return abs(make_float(bits, -1, 0))
    if kind == 2:  # one step in 16
        return make_float(bits, -6, 0) if bits >> 24 & 15 == 0 else 0.0
    if kind == 3:  # any
        return make_float(bits, -39, 38)
    if kind == 4:  # large
        return make_float(bits, 30, 38)
    return make_float(bits, -39, -30)  # small


def is_present(tensor, step):
    """Of partial steps most have the first tensor, few the second, and those of the second half the third."""
    if tensor == 2:
        return step > STEPS // 2
    return mixed(3, tensor, step) % 8 < (6, 1)[tensor]


# Optimizers

# How many kinds of gradients there are: all; those that are not small; those of some size.
ALL, NOT_SMALL, ORDINARY = 6, 5, 3


@dataclasses.dataclass
class Case:
    name: str
    optimizer: str
    learning_rate: float
    fields: dict  # the optimizer's
    gradient_kinds: int = ALL
    partial: bool = False
    clip_value: float = 0.0
    clip_norm: float = 0.0
    schedule: str = "constant"

    def but(self, **changes):
        return dataclasses.replace(self, **changes)


def adam(name, learning_rate=1e-3, **fields):
    return Case(name, "adam", learning_rate, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8} | fields)


def adamw(name, **fields):
    return adam(name, decoupled_weight_decay=True, **fields)


def sgd(name, learning_rate=0.05, **fields):
    return Case(name, "sgd", learning_rate, fields)


OPTIMIZERS = [
    adam("adam"),
    adam("adam_other_betas", learning_rate=0.02, beta1=0.6, beta2=0.93, eps=0.003),
    adam("adam_no_momentum", beta1=0.0, beta2=0.99),
    adam("adam_smallest_eps", eps=1e-16),
    adam("adam_maximize", maximize=True),
    adam("adam_l2", weight_decay=0.02).but(gradient_kinds=NOT_SMALL),
    adam("adam_l2_maximize", weight_decay=0.3, maximize=True).but(gradient_kinds=NOT_SMALL),
    adam("adam_amsgrad", beta2=0.95, amsgrad=True),
    adam("adam_l2_amsgrad", beta2=0.95, weight_decay=0.02, amsgrad=True).but(gradient_kinds=NOT_SMALL),
    adamw("adamw", weight_decay=0.01),
    adamw("adamw_strong", learning_rate=0.02, weight_decay=0.7),
    adamw("adamw_fine_tuning", learning_rate=1e-5, weight_decay=0.1),
    adamw("adamw_amsgrad_maximize", beta2=0.95, weight_decay=0.3, amsgrad=True, maximize=True),
    sgd("sgd"),
    sgd("sgd_maximize", maximize=True),
    sgd("sgd_l2", weight_decay=0.003),
    sgd("sgd_momentum", momentum=0.9),
    sgd("sgd_momentum_dampening", momentum=0.9, dampening=0.3),
    sgd("sgd_momentum_l2_maximize", momentum=0.95, dampening=0.9, weight_decay=0.003, maximize=True),
    sgd("sgd_nesterov", momentum=0.9, nesterov=True),
    sgd("sgd_nesterov_l2", momentum=0.9, nesterov=True, weight_decay=0.003),
    adam("adam_clip_value").but(clip_value=0.3),
    sgd("sgd_momentum_clip_value", momentum=0.9).but(clip_value=0.3),
    adamw("adamw_clip_norm", weight_decay=0.01).but(gradient_kinds=ORDINARY, clip_norm=4.0),
    adam("adam_l2_clip_norm_maximize", weight_decay=0.02, maximize=True).but(gradient_kinds=ORDINARY, clip_norm=4.0),
    adam("adam_clip_norm_of_extremes").but(clip_norm=1.0),
    sgd("sgd_nesterov_clip_norm", momentum=0.9, nesterov=True).but(gradient_kinds=ORDINARY, clip_norm=4.0),
    adam("adam_partial").but(partial=True),
    adamw("adamw_amsgrad_partial", beta2=0.95, weight_decay=0.3, amsgrad=True).but(partial=True),
    adam("adam_partial_clip_norm").but(gradient_kinds=ORDINARY, partial=True, clip_norm=2.0),
    sgd("sgd_momentum_dampening_partial", momentum=0.9, dampening=0.3).but(partial=True),
    sgd("sgd_nesterov_l2_partial", momentum=0.9, nesterov=True, weight_decay=0.003).but(partial=True),
    adamw("adamw_schedule_partial", weight_decay=0.1).but(schedule="warmup_then_cosine", partial=True),
    sgd("sgd_momentum_schedule", momentum=0.9).but(schedule="step"),
]
CHECKPOINTS = (1, 30, STEPS)
SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def make_optimizer(case, parameters):
    fields = dict(case.fields)
    # The loops over several tensors and the fused kernels of torch are other arithmetic.
    options = {"lr": case.learning_rate, "foreach": False, "maximize": fields.pop("maximize", False)}
    options["weight_decay"] = fields.pop("weight_decay", 0.0)
    if case.optimizer == "sgd":
        return torch.optim.SGD(parameters, **options, **fields)
    make = torch.optim.AdamW if fields.pop("decoupled_weight_decay", False) else torch.optim.Adam
    options["betas"] = (fields.pop("beta1"), fields.pop("beta2"))
    return make(parameters, **options, **fields)


@functools.cache
def gradients_of(kinds, tensor, step):
    return torch.tensor([gradient(kinds, tensor, i, step) for i in range(SIZES[tensor])], dtype=torch.float64)


def set_gradients(case, parameters, step):
    for tensor, parameter in enumerate(parameters):
        has_gradient = not case.partial or is_present(tensor, step)
        parameter.grad = gradients_of(case.gradient_kinds, tensor, step).clone() if has_gradient else None
    if case.clip_value:
        torch.nn.utils.clip_grad_value_(parameters, case.clip_value)
    if case.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters, case.clip_norm)


def run_optimizer(case):
    """The lines of the case's checkpoints."""
    parameters = [
        torch.nn.Parameter(torch.tensor([first_parameter(t, i) for i in range(size)], dtype=torch.float64))
        for t, size in enumerate(SIZES)
    ]
    optimizer = make_optimizer(case, parameters)
    learning_rates = chained(optimizer, SCHEDULES[case.schedule])
    update_counts = [0] * len(SIZES)
    for step in range(1, STEPS + 1):
        next(learning_rates)
        set_gradients(case, parameters, step)
        update_counts = [n + (p.grad is not None) for n, p in zip(update_counts, parameters)]
        optimizer.step()
        if step not in CHECKPOINTS:
            continue
        yield f"  checkpoints {{\n    step: {step}"
        for parameter, update_count in zip(parameters, update_counts):
            yield f"    tensors {{\n      update_count: {update_count}"
            yield numbers("      parameter", parameter.tolist())
            state = optimizer.state[parameter]
            if step == STEPS:
                slots = {slot: state[slot] for slot in SLOTS if state.get(slot) is not None}
                yield from (numbers(f"      {slot}", values.tolist()) for slot, values in slots.items())
            yield "    }"
        yield "  }"


def optimizer_cases():
    for case in OPTIMIZERS:
        yield f"cases {{\n  name: \"{case.name}\"\n  group {{\n    learning_rate: {case.learning_rate!r}"
        yield f"    {case.optimizer} {{ {spelled(case.fields)} }}"
        if case.schedule != "constant":
            yield f"    schedule {{ {SCHEDULES[case.schedule].text()} }}"
        yield "  }"
        rest = ("gradient_kinds", "partial", "clip_value", "clip_norm")
        yield f"  {spelled({name: getattr(case, name) for name in rest if getattr(case, name)})}"
        yield from run_optimizer(case)
        yield "}"


# Schedules


@dataclasses.dataclass
class Schedule:
    decay: str
    fields: dict  # the decay's
    warmup_steps: int = 0
    warmup_start_factor: float = 0.0
    floor: float = 0.0

    def text(self):
        names = ("warmup_steps", "warmup_start_factor", "floor")
        rest = spelled({name: getattr(self, name) for name in names if getattr(self, name)})
        return f"{rest} {self.decay} {{ {spelled(self.fields)} }}" if self.decay else rest


def schedule(decay="", warmup_steps=0, warmup_start_factor=0.0, floor=0.0, **fields):
    return Schedule(decay, fields, warmup_steps, warmup_start_factor, floor)


SCHEDULES = {
    "constant": schedule(),
    "warmup": schedule(warmup_steps=100, warmup_start_factor=0.1),
    "warmup_from_zero": schedule(warmup_steps=300),
    "linear": schedule("linear", steps=800, end_factor=0.07),
    "linear_to_zero": schedule("linear", steps=997),
    "linear_to_next_to_nothing": schedule("linear", steps=700, end_factor=1e-6),
    "linear_to_a_floor": schedule("linear", steps=900, floor=1e-4),
    "warmup_then_linear": schedule("linear", warmup_steps=130, warmup_start_factor=1 / 3, steps=600, end_factor=0.1),
    "cosine": schedule("cosine", steps=1000),
    "cosine_to_a_floor": schedule("cosine", steps=777, floor=3e-5),
    "warmup_then_cosine": schedule("cosine", warmup_steps=50, warmup_start_factor=0.01, steps=900, floor=1e-5),
    "exponential": schedule("exponential", gamma=0.99),
    "warmup_then_exponential_to_a_floor": schedule(
        "exponential", warmup_steps=40, warmup_start_factor=0.5, gamma=0.997, floor=1e-4
    ),
    "step": schedule("step", steps=90, gamma=0.3),
    "warmup_then_step": schedule("step", warmup_steps=77, warmup_start_factor=0.2, steps=100, gamma=0.5),
    "multi_step": schedule("multi_step", milestones=[30, 80, 81, 600], gamma=0.1),
    "warmup_then_multi_step": schedule(
        "multi_step", warmup_steps=200, warmup_start_factor=0.2, milestones=[1, 300], gamma=0.7
    ),
    "polynomial": schedule("polynomial", steps=950, power=2.5),
    "polynomial_of_a_root": schedule("polynomial", steps=600, power=0.5),
    "warmup_then_polynomial_to_a_floor": schedule(
        "polynomial", warmup_steps=60, warmup_start_factor=0.05, steps=800, power=0.9, floor=2e-5
    ),
}
STRIDE = 7


def make_decay(optimizer, schedule):
    fields = schedule.fields
    match schedule.decay:
        case "linear":
            end_factor = fields.get("end_factor", 0.0)
            return lr_scheduler.LinearLR(optimizer, 1.0, end_factor, total_iters=fields["steps"])
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, fields["steps"], eta_min=schedule.floor)
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, fields["gamma"])
        case "step":
            return lr_scheduler.StepLR(optimizer, fields["steps"], fields["gamma"])
        case "multi_step":
            return lr_scheduler.MultiStepLR(optimizer, fields["milestones"], fields["gamma"])
        case "polynomial":
            return lr_scheduler.PolynomialLR(optimizer, fields["steps"], fields["power"])
    return lr_scheduler.LambdaLR(optimizer, lambda k: 1.0)


def make_warmup(optimizer, schedule):
    steps, start_factor = schedule.warmup_steps, schedule.warmup_start_factor
    if start_factor == 0:  # which LinearLR refuses
        return lr_scheduler.LambdaLR(optimizer, lambda s: s / steps)
    return lr_scheduler.LinearLR(optimizer, start_factor, 1.0, total_iters=steps)


def chained(optimizer, schedule):
    """Yields the learning rate of each step, when it is the optimizer's."""
    warmup_steps, floor = schedule.warmup_steps, schedule.floor
    if warmup_steps:
        parts = [make_warmup(optimizer, schedule), make_decay(optimizer, schedule)]
        scheduler = lr_scheduler.SequentialLR(optimizer, parts, [warmup_steps])
    else:
        scheduler = make_decay(optimizer, schedule)
    for s in range(STEPS):
        learning_rate = optimizer.param_groups[0]["lr"]
        yield max(learning_rate, floor) if s >= warmup_steps else learning_rate
        # After its last step torch's cosine goes up again.
        if schedule.decay != "cosine" or s - warmup_steps < schedule.fields["steps"]:
            scheduler.step()


def closed_form(learning_rate, schedule):
    """Yields the learning rate of each step, computed for that step alone."""
    warmup_steps, floor = schedule.warmup_steps, schedule.floor
    warmup = make_warmup(one_parameter(learning_rate), schedule) if warmup_steps else None
    decay = make_decay(one_parameter(learning_rate), schedule)
    for s in range(STEPS):
        if s < warmup_steps:
            warmup.step(s)
            yield warmup.get_last_lr()[0]
        else:
            k = s - warmup_steps
            decay.step(min(k, schedule.fields["steps"]) if schedule.decay == "cosine" else k)
            yield max(decay.get_last_lr()[0], floor)


def one_parameter(learning_rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)


def schedule_cases():
    for number, (name, schedule) in enumerate(SCHEDULES.items()):
        learning_rate = (1e-3, 0.3, 2.0**-10)[number % 3]
        yield f'cases {{\n  name: "{name}"\n  learning_rate: {learning_rate!r}'
        yield f"  schedule {{ {schedule.text()} }}\n  stride: {STRIDE}"
        yield numbers("  chained", list(chained(one_parameter(learning_rate), schedule))[::STRIDE])
        yield numbers("  closed_form", list(closed_form(learning_rate, schedule))[::STRIDE])
        yield "}"


# Files


def text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def spelled(values):
    return " ".join(f"{name}: {text(value)}" for name, value in values.items())


def numbers(name, values):
    line = f"{name}: [{', '.join(map(repr, values))}]"
    return textwrap.fill(line, 120, subsequent_indent=" " * (len(name) - len(name.lstrip()) + 2))


def tokens(content):
    return re.findall(r"[^\s,\[\]]+", content)


def agree(token, other):
    try:
        return token == other or math.isclose(float(token), float(other), rel_tol=1e-9)
    except ValueError:
        return False


def difference(name, content, wanted):
    """What is wrong with a file's content; None if nothing is."""
    found, made = tokens(content), tokens(wanted)
    case = ""
    for i, (token, other) in enumerate(zip(found, made)):
        if found[i - 1] == "name:":
            case = token
        if not agree(token, other):
            return f"{name}: {case}: token {i} is {token}, and torch {torch.__version__} makes {other} of it"
    return None if len(found) == len(made) else f"{name}: has {len(found)} tokens instead of {len(made)}"


def main():
    warnings.simplefilter("ignore")  # schedulers that step where no optimizer does, and to a given step
    folder = pathlib.Path(__file__).parent
    differences = []
    for name, message, cases in (
        ("optimizers.textproto", "OptimizerCases", optimizer_cases),
        ("schedules.textproto", "ScheduleCases", schedule_cases),
    ):
        header = f"# proto-file: tests/golden/golden.proto\n# proto-message: adamant.golden.{message}\n"
        content = header + "# Made by generate.py.\n" + "\n".join(cases()) + "\n"
        if sys.argv[1:] != ["--check"]:
            (folder / name).write_text(content)
        elif wrong := difference(name, (folder / name).read_text(), content):
            differences.append(wrong)
    print(f"{len(OPTIMIZERS)} optimizers and {len(SCHEDULES)} schedules of torch {torch.__version__}")
    for line in differences:
        print(line)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
