"""Optimizers and groups, as a specification names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from adamant import v1


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam: weight decay is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False
    schedule: v1.Schedule | None = None

    _decoupled = False

    def to_group(self, name: str = "") -> v1.ParameterGroup:
        """The group, of this name, that is updated so."""
        adam = v1.Adam(
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self._decoupled,
            amsgrad=self.amsgrad,
            maximize=self.maximize,
        )
        return v1.ParameterGroup(name=name, learning_rate=self.lr, adam=adam, schedule=self.schedule)


@dataclass(frozen=True)
class AdamW(Adam):
    """torch.optim.AdamW: weight decay is applied apart from the gradient."""

    weight_decay: float = 1e-2

    _decoupled = True


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD."""

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    schedule: v1.Schedule | None = None

    def to_group(self, name: str = "") -> v1.ParameterGroup:
        """The group, of this name, that is updated so."""
        sgd = v1.Sgd(
            momentum=self.momentum,
            dampening=self.dampening,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            maximize=self.maximize,
        )
        return v1.ParameterGroup(name=name, learning_rate=self.lr, sgd=sgd, schedule=self.schedule)


Optimizer = Union[Adam, SGD]


@dataclass(frozen=True)
class Group:
    """Tensors that are updated alike. In a set of several groups each tensor belongs to one."""

    name: str
    optimizer: Optimizer
    tensors: Sequence[str]
    frozen: bool = False

    def to_proto(self) -> v1.ParameterGroup:
        """As a specification has it."""
        group = self.optimizer.to_group(self.name)
        group.frozen = self.frozen
        return group
