"""Learning rates, as functions of epochs passed (an epoch is pushes x batch / images)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dcasgd_repro.errors import BadInput, check_number, check_whole


@dataclass(frozen=True)
class Step:
    """``base * factor^(milestones passed)``, after a linear warm-up from ``start * base``.

    The paper's CIFAR-10 runs: base 0.5, factor 0.1 at epochs 80 and 120, no warm-up. With
    ``warmup`` epochs the rate grows linearly from ``start * base`` (1/M is usual) to ``base``.
    """

    base: float
    milestones: Sequence[float] = field(default_factory=tuple)
    factor: float = 0.1
    warmup: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        check_number("base", self.base, 0, 1e30, "[]")  # a float32 must hold it
        check_number("factor", self.factor, 0, 10, "[]")
        check_number("warmup", self.warmup)
        check_number("start", self.start, 0, 10, "[]")
        if not isinstance(self.milestones, Sequence) or isinstance(self.milestones, str):
            raise BadInput("milestones", self.milestones, "give a list of epochs, as [80,120]")
        for value in self.milestones:
            check_number("milestones", value)

    def __str__(self) -> str:
        up = f"{self.warmup:g} epochs of warm-up to " if self.warmup else ""
        return f"{up}{self.base:g}, x{self.factor:g} after epochs {list(self.milestones)}"

    def __call__(self, epoch: float) -> float:
        rate = self.base * self.factor ** sum(epoch >= m for m in self.milestones)
        if epoch < self.warmup:
            rate *= self.start + (1 - self.start) * epoch / self.warmup
        return rate


@dataclass(frozen=True)
class Warmed:
    """``Step``, warmed up linearly from ``base / M`` to ``base`` over a share of the run.

    ``share`` (default 5 of 160 epochs) is a part of ``epochs``, the length of the run, so that a
    scaled-down run warms up for as large a part of it. Raises BadInput.
    """

    base: float
    milestones: Sequence[float]
    workers: int
    epochs: float
    share: float = 5 / 160
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_whole("workers", self.workers)
        check_number("epochs", self.epochs, ends="()")
        check_number("share", self.share, 0, 1, "[]")
        _ = self.step  # which checks the rest

    @cached_property
    def step(self) -> Step:
        """The same rate with its warm-up in epochs."""
        warmup = self.share * self.epochs
        return Step(self.base, self.milestones, self.factor, warmup, 1 / self.workers)

    def __str__(self) -> str:
        return str(self.step)

    def __call__(self, epoch: float) -> float:
        return self.step(epoch)
