"""ASGD and SSGD: plain gradients, one at a time or M together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    heavy_ball,
    start_velocity,
)


@dataclass(frozen=True)
class ASGD(Rule):
    """Asynchronous SGD, ``w_{t+1} = w_t - eta g_m``; with one worker it is SGD.

    ``momentum`` (mu, default 0): ``v = mu v + g``, ``w -= eta v``, with one v on the server.
    Source: Dean et al., NIPS 2012; the baseline of Zheng et al., ICML 2017.
    """

    name = "asgd"

    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)

    def init(self, w: Tensor, workers: int) -> Tensor | None:
        return start_velocity(self.momentum, w)

    def direction(self, arrival: Arrival, state: Tensor | None) -> Direction:
        return Direction(*heavy_ball(self.momentum, arrival.grad, state))

    def keeps(self) -> tuple[int, int]:
        return int(self.momentum > 0), 0


class Gathered(NamedTuple):
    """The gradients received since the last step."""

    workers: int  # M, how many make a step
    here: int  # how many have come
    total: Tensor  # their sum [P]
    velocity: Tensor | None


@dataclass(frozen=True)
class SSGD(Rule):
    """Synchronous SGD, ``w_{t+1} = w_t - eta (1/M) sum_m g_m(w_t)``: M pushes make one step.

    On a barrier schedule this is SSGD; on an asynchronous one it is buffered ASGD.
    The learning rate is not scaled with M; ``reduction="sum"`` is the variant that is (a step M
    times larger). ``momentum`` as in ASGD, on the averaged gradient.
    Source: the baseline of Zheng et al., ICML 2017.
    """

    name = "ssgd"
    for_rounds = True

    momentum: float = 0.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, 0, 1)
        check_choice("reduction", self.reduction, ("mean", "sum"))

    def init(self, w: Tensor, workers: int) -> Gathered:
        return Gathered(workers, 0, torch.zeros_like(w), start_velocity(self.momentum, w))

    def direction(self, arrival: Arrival, state: Gathered) -> Direction:
        workers, here, total, velocity = state
        total = total + arrival.grad
        if here + 1 < workers:
            return Direction(None, Gathered(workers, here + 1, total, velocity))
        g = total / workers if self.reduction == "mean" else total
        step, velocity = heavy_ball(self.momentum, g, velocity)
        return Direction(step, Gathered(workers, 0, torch.zeros_like(g), velocity))

    def keeps(self) -> tuple[int, int]:
        return 1 + (self.momentum > 0), 0
