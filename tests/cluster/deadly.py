"""Parts of a run that end their own process once, wherever they are; a file says that they have."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcasgd_repro.rules import SSGD, DCASGDa
from dcasgd_repro.rules.rule import Arrival, Direction
from dcasgd_repro.tasks import Quadratic, QuadraticTask


def die_once(place: Path) -> None:
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DeadlyTask(Quadratic):
    """A worker dies as it first computes any of the mini-batches ``deaths``, (worker, k) each."""

    seconds: float = 0.0  # that a gradient takes
    deaths: tuple[tuple[int, int], ...] = ()
    place: str = ""
    nan: tuple[int, int] = (-1, -1)  # this one's gradient is not finite when it is first computed

    def on(self, device: torch.device, dtype: torch.dtype = torch.float64) -> QuadraticTask:
        return _Task(self, device, dtype)


class _Task(QuadraticTask):
    conf: DeadlyTask

    def batch(self, worker: int, k: int) -> Any:
        return super().batch(worker, k), (worker, k)

    def gradient(self, w: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        noise, which = batch
        if which in self.conf.deaths:
            die_once(Path(self.conf.place) / f"worker-{which[0]}-{which[1]}")
        time.sleep(self.conf.seconds)
        loss, g = super().gradient(w, noise)
        marker = Path(self.conf.place) / "nan"
        if which == self.conf.nan and not marker.exists():
            marker.touch()
            return loss, g * torch.nan
        return loss, g


class Deadly:
    """Its server dies as it first receives any of the pushes ``deaths``; the driver lives on."""

    def init(self, w: Tensor, workers: int) -> Any:
        return 0, super().init(w, workers)

    def direction(self, arrival: Arrival, state: Any) -> Direction:
        push = state[0] + 1
        if os.getpid() != self.driver and push in self.deaths:
            die_once(Path(self.place) / f"server-{push}")
        direction = super().direction(arrival, state[1])
        return direction._replace(state=(push, direction.state))


@dataclass(frozen=True)
class DeadlyDCASGDa(Deadly, DCASGDa):
    deaths: tuple[int, ...] = ()
    place: str = ""
    driver: int = 0


@dataclass(frozen=True)
class DeadlySSGD(Deadly, SSGD):
    deaths: tuple[int, ...] = ()
    place: str = ""
    driver: int = 0
