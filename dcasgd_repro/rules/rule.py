"""What a rule is: ``init`` makes its state, ``direction`` turns one arrival into a step.

Rules are element-wise and pure. They never write into a tensor they were given, so one rule serves
a flat vector [P], a batch of vectors [K, P] and a single parameter of any shape alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Arrival(NamedTuple):
    """One gradient reaching the server. All tensors have one shape, [P]."""

    grad: Tensor  # g_m, the gradient at the vector the worker computed at
    w: Tensor  # w_t, the server's vector now
    w_bak: Tensor  # w_bak(m), the server's backup for this worker
    worker: int  # m, from 0
    delay: int  # tau, in server updates since the worker's pull
    lr: float  # eta, the learning rate of this push

    @property
    def drift(self) -> Tensor:
        """``w_t - w_bak(m)``: how far the server has moved since the backup."""
        return self.w - self.w_bak


class Direction(NamedTuple):
    """What the server does with an arrival: ``w_{t+1} = w_t - eta * step``."""

    step: Tensor | None  # None: the gradient is kept or ignored, and w does not move
    state: Any  # the rule's next state
    correction: Tensor | None = None  # what compensation added to g; None: nothing was added


class Rule(ABC):
    """An update rule. ``state`` is whatever ``init`` returned; only the rule looks inside it."""

    name: ClassVar[str]  # as tables and the command line call it; the class's name unless given
    label: ClassVar[str] = ""  # in legends and tables of results; without one, the name
    for_rounds: ClassVar[bool] = False  # made for a barrier schedule; another thing without one

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(vars(cls).get("name"), str):
            cls.name = cls.__name__

    @abstractmethod
    def init(self, w: Tensor, workers: int) -> Any:
        """The state before the first arrival, for a server vector ``w`` [P] and M workers."""

    @abstractmethod
    def direction(self, arrival: Arrival, state: Any) -> Direction:
        """The step for one arrival, and the state after it."""

    def sends(self, w: Tensor, state: Any, worker: int) -> Tensor:
        """The vector a pulling worker receives: ``w``, unless a rule looks ahead."""
        return w


def heavy_ball(momentum: float, g: Tensor, velocity: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Heavy-ball momentum, ``v = mu v + g``, the step being v; without momentum the step is g.

    The operations and their order are those of ``torch.optim.SGD``, so the result equals its own
    to the bit. Returns (step, next velocity).
    """
    if velocity is None:
        return g, None
    velocity = torch.add(velocity * momentum, g)
    return velocity, velocity


def start_velocity(momentum: float, w: Tensor) -> Tensor | None:
    """``v_0 = 0``; no vector is kept where there is no momentum."""
    return torch.zeros_like(w) if momentum else None
