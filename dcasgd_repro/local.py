"""Local steps: a worker trains by itself for a while and pushes the sum of its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from dcasgd_repro.errors import check_number, check_whole


@dataclass(frozen=True)
class LocalSteps:
    """A task whose gradient is ``(w_sent - w_local) / eta_local`` after H steps of SGD from w_sent.

    That pseudo-gradient is the sum of the H gradients, each taken at the worker's own vector
    ``x_{j+1} = x_j - eta_local g_j``, from ``x_0 = w_sent``; the loss is the mean of the H losses.
    Mini-batch k of a worker holds the task's mini-batches kH .. kH + H - 1, as a flat tuple of
    their tensors: all H are in memory at once. Everything else is the task's own.

    ``task``         a Task, or a leaf whose ``on`` gives one
    ``local_steps``  H; 1 is the task itself
    ``local_lr``     eta_local, constant over the run: a gradient does not know the epoch

    A rule's learning rate is that of the sum: eta = eta_local under ASGD adds the worker's whole
    move to w, and DiLoCo's outer rate of 0.7 is eta = 0.7 eta_local. Raises BadInput.
    """

    task: Any
    local_steps: int
    local_lr: float

    def __post_init__(self) -> None:
        check_whole("local_steps", self.local_steps)
        check_number("local_lr", self.local_lr, 0, 1e30, "(]")  # a float32 must hold it

    def __getattr__(self, name: str) -> Any:
        if "task" not in vars(self):  # as a copy or pickle of this is being made
            raise AttributeError(name)
        return getattr(self.task, name)

    def __copy__(self) -> LocalSteps:
        return replace(self, task=copy.copy(self.task))

    def on(self, device: torch.device, *dtype: torch.dtype) -> LocalSteps:
        """The task on a device, its data loaded."""
        return replace(self, task=self.task.on(device, *dtype))

    def double(self) -> LocalSteps:
        return replace(self, task=self.task.double())

    @property
    def same_loss(self) -> tuple[Any, ...]:
        return getattr(self.task, "same_loss", id(self.task)), self.local_steps, self.local_lr

    def batch(self, worker: int, k: int) -> tuple[Tensor, ...]:
        first = k * self.local_steps
        parts = [self.task.batch(worker, first + j) for j in range(self.local_steps)]
        return tuple(x for part in parts for x in (part if isinstance(part, tuple) else (part,)))

    def gradient(self, w: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The mean loss and the pseudo-gradient [P] at w [P]."""
        return self._sums(self.task.gradient, w, batch)

    def loss(self, w: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss, as a function of w [P] whose derivative is the pseudo-gradient."""

        def gradient(x: Tensor, part: Any) -> tuple[Tensor, Tensor]:
            g, loss = grad_and_value(self.task.loss)(x, part)
            return loss, g

        held = w.detach()
        loss, g = self._sums(gradient, held, batch)
        return loss + torch.dot(w - held, g)

    @property
    def batch_error(self) -> Callable[[Tensor, tuple[Tensor, ...]], float]:
        """Error rate on the mini-batches as they train; a task without one has none here either."""
        of_one = self.task.batch_error

        def error(w: Tensor, batch: tuple[Tensor, ...]) -> float:
            errors = [
                of_one(x, part) for x, part, _, _ in self._steps(self.task.gradient, w, batch)
            ]
            return float(sum(errors) / len(errors))

        return error

    def _sums(
        self, gradient: Callable[..., Any], w: Tensor, batch: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        (_, _, loss, total), *rest = self._steps(gradient, w, batch)
        for _, _, another, g in rest:
            loss, total = loss + another, total + g
        return loss / self.local_steps, total

    def _steps(
        self, gradient: Callable[..., Any], w: Tensor, batch: tuple[Tensor, ...]
    ) -> Iterator[tuple[Tensor, Any, Tensor, Tensor]]:
        """Each local step: its vector x_j, mini-batch, loss and gradient."""
        size, made = self._kind
        for j in range(self.local_steps):
            part = made(batch[j * size : (j + 1) * size])
            loss, g = gradient(w, part)
            yield w, part, loss, g
            w = torch.add(w, g, alpha=-self.local_lr)

    @cached_property
    def _kind(self) -> tuple[int, Callable[[tuple[Tensor, ...]], Any]]:
        """How many tensors a mini-batch of the task is, and what makes it of them."""
        one = self.task.batch(0, 0)
        if not isinstance(one, tuple):
            return 1, lambda tensors: tensors[0]
        return len(one), getattr(one, "_make", tuple)
