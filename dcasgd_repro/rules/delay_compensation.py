"""DC-ASGD, the paper's rule: a stale gradient plus a first-order estimate of what it missed.

A worker's gradient was taken at w_bak(m); the server has moved on to w_t. A Taylor expansion gives
``g(w_t) ~ g + H (w_t - w_bak)``, and the paper puts ``lambda g g`` for the Hessian's diagonal
(Algorithm 2). Two readings of what g is are on offer in both rules:

``gradient``  "mean" (default): g is the mini-batch mean, as a loss averaged over the batch gives.
              "sum": the formula is applied to the mini-batch sum G = B g, with the learning rate
              divided by B, so that the ASGD part of the step is the same. Written in g:
              ``G + lambda G G drift = B (g + (B lambda) g g drift)`` for a constant lambda, and
              ``lambda_0 / sqrt(MS(G) + eps) = (1/B) lambda_0 / sqrt(MS(g) + eps / B^2)`` for the
              adaptive one, in which B then cancels but for eps.
``batch``     B, the mini-batch size; read only by "sum".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    heavy_ball,
    start_velocity,
)


@dataclass(frozen=True)
class DCASGDc(Rule):
    """DC-ASGD-c, ``w_{t+1} = w_t - eta (g + lambda g g (w_t - w_bak(m)))`` (Algorithm 2).

    ``lam`` is lambda, constant: 0.04 in the paper's CIFAR-10 runs, and 0 gives ASGD to the bit
    (as long as g g does not overflow).
    With ``momentum`` mu: ``v = mu v + (g + correction)``, ``w -= eta v``.
    """

    name = "dcasgd_c"

    lam: float = 0.04
    momentum: float = 0.0
    gradient: str = "mean"
    batch: int = 1

    def __post_init__(self) -> None:
        check_number("lam", self.lam)
        check_number("momentum", self.momentum, 0, 1)
        check_gradient_scale(self.gradient, self.batch)

    def init(self, w: Tensor, workers: int) -> Tensor | None:
        return start_velocity(self.momentum, w)

    def direction(self, arrival: Arrival, state: Tensor | None) -> Direction:
        g = arrival.grad
        lam = self.lam * gradient_scale(self.gradient, self.batch)
        correction = lam * (g * g * arrival.drift)
        step, velocity = heavy_ball(self.momentum, g + correction, state)
        return Direction(step, velocity, correction)


class Adaptive(NamedTuple):
    """MeanSquare vectors (one, or one per worker), how often each was updated, and the velocity."""

    mean_square: tuple[Tensor, ...]
    updates: tuple[int, ...]
    velocity: Tensor | None


@dataclass(frozen=True)
class DCASGDa(Rule):
    """DC-ASGD-a, DC-ASGD-c with ``lambda_t = lambda_0 / sqrt(MeanSquare(t) + eps)`` (equation 14).

    ``MeanSquare(t) = m MeanSquare(t-1) + (1 - m) g g``, element-wise, from 0, updated with the
    arriving g before it is used; ``decay`` is that m. The paper's CIFAR-10 runs have lambda_0 = 2
    and m = 0.95, its ImageNet runs m = 0.

    Where the paper is silent:
    ``mean_square``      "shared" (default, the letter of equation 14: its MeanSquare has no worker
                         index) or "worker" (one per worker, as in the authors' released code).
    ``bias_correction``  false (default, as released) or true: MeanSquare / (1 - m^n) after n
                         updates, without which the first steps are compensated
                         1/sqrt(1 - m) times too much.
    ``momentum``         as in DCASGDc.
    """

    name = "dcasgd_a"

    lam0: float = 2.0
    decay: float = 0.95
    eps: float = 1e-7
    mean_square: str = "shared"
    bias_correction: bool = False
    momentum: float = 0.0
    gradient: str = "mean"
    batch: int = 1

    def __post_init__(self) -> None:
        check_number("lam0", self.lam0)
        check_number("decay", self.decay, 0, 1)
        check_number("eps", self.eps, ends="()")
        check_choice("mean_square", self.mean_square, ("shared", "worker"))
        check_choice("bias_correction", self.bias_correction, (True, False))
        check_number("momentum", self.momentum, 0, 1)
        check_gradient_scale(self.gradient, self.batch)

    def init(self, w: Tensor, workers: int) -> Adaptive:
        copies = workers if self.mean_square == "worker" else 1
        zero = torch.zeros_like(w)
        return Adaptive((zero,) * copies, (0,) * copies, start_velocity(self.momentum, w))

    def direction(self, arrival: Arrival, state: Adaptive) -> Direction:
        g = arrival.grad
        slot = arrival.worker if self.mean_square == "worker" else 0
        squares = g * g

        updates = state.updates[slot] + 1
        mean_square = self.decay * state.mean_square[slot] + (1 - self.decay) * squares
        seen = 1 - self.decay**updates if self.bias_correction else 1.0
        eps = self.eps / gradient_scale(self.gradient, self.batch) ** 2

        lam = self.lam0 / torch.sqrt(mean_square / seen + eps)
        correction = lam * squares * arrival.drift
        step, velocity = heavy_ball(self.momentum, g + correction, state.velocity)
        state = Adaptive(
            _replaced(state.mean_square, slot, mean_square),
            _replaced(state.updates, slot, updates),
            velocity,
        )
        return Direction(step, state, correction)


def gradient_scale(gradient: str, batch: int) -> int:
    """B where the formula is applied to a mini-batch sum, 1 where to its mean."""
    return batch if gradient == "sum" else 1


def check_gradient_scale(gradient: str, batch: int) -> None:
    """Refuses an unknown reading of g, and a batch that is no positive count."""
    check_choice("gradient", gradient, ("mean", "sum"))
    check_whole("batch", batch)


def _replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])
