"""Threads: gradients in flight computed side by side, each on one CPU thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.errors import check_whole
from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, Step, Task, simulate


@dataclass(frozen=True)
class Threads:
    """``simulate``, a gradient begun when its worker pulls, on one of ``slots`` CPU threads.

    ``slots``: None for as many as torch has threads; never more than M. Each gradient is computed
    by the plain path on one thread, so the Steps equal those of the plain loop with ``threads=1``
    to the bit, on any number of cores. With one worker there is nothing to do side by side: that
    too takes one thread. ``copy.copy`` of the task must give one that another thread may use at
    the same time. While a caller looks at a Step, gradients go on: an evaluation's pause hides at
    most M of them from ``wall_s``. On another device than the CPU this is the plain loop. Raises
    BadInput.
    """

    slots: int | None = None

    def __post_init__(self) -> None:
        if self.slots is not None:
            check_whole("slots", self.slots, 1, 1024)

    def __call__(
        self, task: Task, server: Server, messages: Iterable[Message], lr: Callable[[int], float]
    ) -> Iterator[Step]:
        if server.w.device.type != "cpu":
            yield from simulate(task, server, messages, lr)
            return
        have = torch.get_num_threads()
        slots = min(self.slots or have, len(server.sent))
        twins = [copy.copy(task) for _ in range(slots)]  # a network cannot serve two threads
        own = threading.local()

        def prepare() -> None:
            torch.set_num_threads(1)
            own.task = twins.pop()

        def work(w: Tensor, m: int, k: int) -> tuple[Tensor, Tensor]:
            loss, g = own.task.gradient(w, own.task.batch(m, k))
            return loss, g

        pool = ThreadPoolExecutor(slots, "gradient", prepare)
        try:
            ahead = Ahead(lambda m: pool.submit(work, server.sent[m], m, server.batches[m]))
            yield from simulate(ahead, server, ahead.watched(messages), lr)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(have)  # what a thread sets is also every later thread's


class Ahead:
    """A Task to ``simulate`` whose gradients were begun at the pulls that it watched."""

    def __init__(self, begin: Callable[[int], Future[tuple[Tensor, Tensor]]]) -> None:
        self._begin = begin
        self._begun: dict[int, Future[tuple[Tensor, Tensor]]] = {}

    def watched(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            yield message
            if message.kind == "pull":  # by now the server has sent the vector
                if earlier := self._begun.pop(message.worker, None):
                    earlier.cancel()
                self._begun[message.worker] = self._begin(message.worker)

    def batch(self, worker: int, k: int) -> int:
        return worker

    def gradient(self, w: Tensor, worker: int) -> tuple[Tensor, Tensor]:
        begun: Any = self._begun.pop(worker, None) or self._begin(worker)
        loss, g = begun.result()
        return loss, g
