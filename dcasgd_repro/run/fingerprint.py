"""A run's fingerprint: its first pushes in float64, which any machine can make again.

In float32 the first digits of a run depend on the processor's instruction set, on torch and on the
number of threads. In float64 what these change is still below 1e-9 after so few pushes, so two
fingerprints that agree tell of one rule, schedule, data, augmentation, model and configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcasgd_repro.run.plan import Plan
from dcasgd_repro.schedule import PUSH, Schedule
from dcasgd_repro.simulate import Server, Step, simulate

PUSHES, BEYOND = 16, 8
TOLERANCE = 1e-9  # relative
DIGITS = 12
HASHES = {"schedule_sha256": "the schedule's order", "batches_sha256": "the mini-batches"}
COLUMNS = ("clock_s", "lr", "loss", "dc_ratio", "gap_norm")  # of a Step


def fingerprint(plan: Plan, log: Schedule, task: Any) -> dict[str, Any]:
    """The run's first pushes, replayed by the plain loop in float64.

    16 pushes, or 8 more than there are workers: by then gradients have been computed at vectors
    that the rule has moved, a barrier's too. ``schedule_sha256`` is of those messages' kinds and
    workers, ``batches_sha256`` of the mini-batches, ``steps`` has a row of COLUMNS for each push.
    Where there can be none, ``missing`` says why.

    The first weights are drawn in float64 too: float32 draws differ between instruction sets.
    """
    if not hasattr(task, "double"):
        return {"missing": "its task has no double(), which gives the task in float64"}
    pushes = min(plan.length.pushes, max(PUSHES, plan.workers + BEYOND))
    if log.pushes < pushes:  # a recording that stopped early: the run that goes on writes its own
        return {"missing": f"its log has {log.pushes} pushes so far, and {pushes} are needed"}
    first = log[: int(np.flatnonzero(log.kind == PUSH)[pushes - 1]) + 1]
    try:
        with _drawn_in_float64():
            seen = _Seen(task.double())
            server = Server(
                plan.rule, seen.task.initial(plan.initial_seed), plan.workers, plan.backup
            )
            steps = simulate(seen, server, first, plan.lr(server))
            rows = [_row(step) for step in steps]
    except Exception as error:  # a user's parts may not know float64, which takes twice the memory
        return {"missing": (str(error).splitlines() or ["out of memory"])[0]}
    hashes = (order_sha256(first), seen.digest.hexdigest())
    return {**dict(zip(HASHES, hashes, strict=True)), "columns": COLUMNS, "steps": rows}


def order_sha256(log: Schedule) -> str:
    """Hash of the messages' kinds and workers; their clocks are compared as numbers."""
    digest = hashlib.sha256()
    for column, dtype in ((log.kind, "u1"), (log.worker, "<i4")):
        digest.update(np.ascontiguousarray(column, dtype).data)
    return digest.hexdigest()


def disagreement(kept: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two fingerprints are not equal, for a reader; "" where they are, within TOLERANCE."""
    if lacks := here.get("missing"):
        return f"there is none to compare: {lacks}"
    others = [words for key, words in HASHES.items() if kept[key] != here[key]]
    message = [f"other than the run's: {' and '.join(others)}"] if others else []
    if len(kept["steps"]) != len(here["steps"]):
        return "; ".join(
            [*message, f"{len(kept['steps'])} pushes there, {len(here['steps'])} here"]
        )
    for push, (was, now) in enumerate(zip(kept["steps"], here["steps"], strict=True), 1):
        apart = {
            name: _apart(a, b)
            for name, a, b in zip(COLUMNS, was, now, strict=True)
            if not _apart(a, b) <= TOLERANCE  # NaN agrees with nothing
        }
        if apart:
            by = ", ".join(f"{name} by {value:.1e}" for name, value in apart.items())
            return "; ".join([*message, f"from push {push} on, of the value: {by}"])
    return "; ".join(message)


def _row(step: Step) -> list[float | None]:
    """A Step's COLUMNS to 12 digits; None for what is not finite."""
    values = [float(getattr(step, name)) for name in COLUMNS]
    return [float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None for x in values]


def _apart(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    return abs(a - b) / (max(abs(a), abs(b)) or 1.0)


class _Seen:
    """A task that hashes the mini-batches it hands out."""

    def __init__(self, task: Any) -> None:
        self.task, self.digest = task, hashlib.sha256()

    def batch(self, worker: int, k: int) -> Any:
        batch = self.task.batch(worker, k)
        for part in batch if isinstance(batch, tuple) else (batch,):
            self.digest.update(part.cpu().contiguous().numpy().data)
        return batch

    def gradient(self, w: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        loss, g = self.task.gradient(w, batch)
        return loss, g


@contextlib.contextmanager
def _drawn_in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
