"""DC-ASGD, the paper's rules: a stale gradient plus a first-order estimate of what it missed.

A worker's gradient was taken at w_bak(m); the server has moved on to w_t. A Taylor expansion gives
``g(w_t) ~ g + H (w_t - w_bak)``, and the paper puts ``lambda g g`` for the Hessian's diagonal
(Algorithm 2). Two readings of what g is are on offer in DC-ASGD-c and DC-ASGD-a:

``gradient``  "mean" (default): g is the mini-batch mean, as a loss averaged over the batch gives.
              "sum": the formula is applied to the mini-batch sum G = B g, with the learning rate
              divided by B, so that the ASGD part of the step is the same. Written in g:
              ``G + lambda G G drift = B (g + (B lambda) g g drift)`` for a constant lambda, and
              ``lambda_0 / sqrt(MS(G) + eps) = (1/B) lambda_0 / sqrt(MS(g) + eps / B^2)`` for the
              adaptive one, in which B then cancels but for eps.
``batch``     B, the mini-batch size; read only by "sum".

The authors' own updater, released for Multiverso, changed over its history. All of its forms are
here: ``curvature`` "minus_abs" (first release, October 2016), "abs" (its main branch until June
2017), and g g as printed; DC-ASGD-a with ``mean_square="worker"`` and ``eps`` 1e-10, then 1e-7.
Each with ``Server(backup="push_from_zero")``, which writes a backup at the worker's own push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dcasgd_repro.errors import check_choice, check_number, check_whole
from dcasgd_repro.rules.rule import (
    Arrival,
    Direction,
    Rule,
    checked_blocks,
    heavy_ball,
    parts,
    replaced,
    start_velocity,
)


@dataclass(frozen=True)
class DCASGDc(Rule):
    """DC-ASGD-c, ``w_{t+1} = w_t - eta (g + lambda g g (w_t - w_bak(m)))`` (Algorithm 2).

    ``lam`` is lambda, constant: 0.04 in the paper's CIFAR-10 runs, and 0 gives ASGD to the bit
    (as long as g g does not overflow).
    With ``momentum`` mu: ``v = mu v + (g + correction)``, ``w -= eta v``.
    ``curvature``  None (default, the paper): g g; "abs": |g|, as the authors' updater had it until
                   June 2017; "minus_abs": -|g|, its first release.
    Source: Zheng et al., ICML 2017 (arXiv 1609.08326).
    """

    name = "dcasgd_c"

    lam: float = 0.04
    momentum: float = 0.0
    gradient: str = "mean"
    batch: int = 1
    curvature: str | None = None

    def __post_init__(self) -> None:
        check_number("lam", self.lam)
        check_number("momentum", self.momentum, 0, 1)
        check_gradient_scale(self.gradient, self.batch)
        if self.curvature is not None:
            check_choice("curvature", self.curvature, ("abs", "minus_abs"))

    def init(self, w: Tensor, workers: int) -> Tensor | None:
        return start_velocity(self.momentum, w)

    def direction(self, arrival: Arrival, state: Tensor | None) -> Direction:
        g = arrival.grad
        if self.curvature is None:
            lam = self.lam * gradient_scale(self.gradient, self.batch)
            correction = lam * (g * g * arrival.drift)
        else:  # of first order in g, so that a mini-batch sum gives the same step
            lam = self.lam if self.curvature == "abs" else -self.lam
            correction = lam * (g.abs() * arrival.drift)
        step, velocity = heavy_ball(self.momentum, g + correction, state)
        return Direction(step, velocity, correction)

    def keeps(self) -> tuple[int, int]:
        return int(self.momentum > 0), 0


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
    Source: Zheng et al., ICML 2017 (arXiv 1609.08326).
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
            replaced(state.mean_square, slot, mean_square),
            replaced(state.updates, slot, updates),
            velocity,
        )
        return Direction(step, state, correction)

    def keeps(self) -> tuple[int, int]:
        own = self.mean_square == "worker"
        return (self.momentum > 0) + (not own), int(own)


@dataclass(frozen=True)
class DCASGDn(Rule):
    """DC-ASGD with lambda by norms, ``g + lambda_0 ||g|| / (||g g drift|| + eps) g g drift``.

    The correction is lambda_0 times as long as the gradient by construction, so ``dc_ratio`` says
    nothing here. ``lam0`` is lambda_0 (default 0.2), ``momentum`` as in DCASGDc.
    ``blocks``  sizes of the consecutive parts of w that have norms of their own, a network's
                tensors say; () (default): w as a whole.
    Source: not the paper's; a variant in public code, which takes the norms per tensor.
    """

    name = "dcasgd_n"
    label = "DC-ASGD by norms"
    elementwise = False

    lam0: float = 0.2
    eps: float = 1e-8
    momentum: float = 0.0
    blocks: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_number("lam0", self.lam0)
        check_number("eps", self.eps, ends="()")
        check_number("momentum", self.momentum, 0, 1)
        object.__setattr__(self, "blocks", checked_blocks(self.blocks))

    def init(self, w: Tensor, workers: int) -> Tensor | None:
        parts(w, self.blocks)
        return start_velocity(self.momentum, w)

    def direction(self, arrival: Arrival, state: Tensor | None) -> Direction:
        g = arrival.grad
        pairs = zip(parts(g, self.blocks), parts(g * g * arrival.drift, self.blocks), strict=True)
        correction = torch.cat(
            [self.lam0 * length(a) / (length(b) + self.eps) * b for a, b in pairs], dim=-1
        )
        step, velocity = heavy_ball(self.momentum, g + correction, state)
        return Direction(step, velocity, correction)

    def keeps(self) -> tuple[int, int]:
        return int(self.momentum > 0), 0


class Round(NamedTuple):
    """The gradients of this round, in order of arrival, and how many there are."""

    here: int
    gradients: tuple[Tensor, ...]


@dataclass(frozen=True)
class DCSSGD(Rule):
    """DC-SSGD, SSGD's step unfolded: ``v -= (eta / M) (g + lambda g g (v - w_t))``, v from w_t.

    The M gradients of a round are taken in order of growing norm, so that v goes far from w_t
    last; ``w_{t+1}`` is the last v. ``lam`` is lambda (default 0.04); 0 is SSGD, within rounding.
    Source: Zheng et al., ICML 2017, supplement H; read at second hand, the order is our reading.
    """

    name = "dcssgd"
    label = "DC-SSGD"
    for_rounds = True
    elementwise = False

    lam: float = 0.04

    def __post_init__(self) -> None:
        check_number("lam", self.lam)

    def init(self, w: Tensor, workers: int) -> Round:
        return Round(0, (torch.zeros_like(w),) * workers)

    def direction(self, arrival: Arrival, state: Round) -> Direction:
        workers = len(state.gradients)
        # A copy: the caller's gradient may be overwritten before the round ends.
        gradients = replaced(state.gradients, state.here, arrival.grad.clone())
        if state.here + 1 < workers:
            return Direction(None, Round(state.here + 1, gradients))
        stack = torch.stack(gradients)
        by_norm = torch.argsort(length(stack), dim=0, stable=True)
        moved = torch.zeros_like(arrival.w)  # (w_t - v) / eta
        plain = moved
        for g in torch.take_along_dim(stack, by_norm, dim=0):
            plain = plain + g / workers
            moved = moved + (g - self.lam * arrival.lr * (g * g * moved)) / workers
        return Direction(moved, Round(0, (torch.zeros_like(plain),) * workers), moved - plain)

    def keeps(self) -> tuple[int, int]:
        return 0, 1


def length(x: Tensor) -> Tensor:
    """The norm over the last axis, which stays as one of size 1."""
    size: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size


def gradient_scale(gradient: str, batch: int) -> int:
    """B where the formula is applied to a mini-batch sum, 1 where to its mean."""
    return batch if gradient == "sum" else 1


def check_gradient_scale(gradient: str, batch: int) -> None:
    """Refuses an unknown reading of g, and a batch that is no positive count."""
    check_choice("gradient", gradient, ("mean", "sum"))
    check_whole("batch", batch)
