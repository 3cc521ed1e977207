"""What stops a run from outside: signals, full disks, lost permissions, exhausted memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dcasgd_repro.errors import Failure


@contextlib.contextmanager
def machine_faults(path: Path) -> Iterator[None]:
    """Turns a full disk, a lost permission or exhausted memory into a Failure, in one line."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, OSError):
            what = f"{error.strerror or text} ({error.filename or 'a file of the run'})"
        elif isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in text:
            what = f"out of memory ({text})"  # the host's allocator raises a bare RuntimeError
        else:
            raise
        good = "the last checkpoint is good; " if any(path.glob("checkpoint*.pt")) else ""
        advice = f"{good}mend this and give the same command again"
        raise Failure(f"run_dir={path}: {what}; {advice}") from error


class Stop:
    """Notes the first SIGINT or SIGTERM, so that the current push can end; a second one kills."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
