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

GO_ON = "the last checkpoint is good: mend this and give the same command again"


@contextlib.contextmanager
def machine_faults(path: Path) -> Iterator[None]:
    """Turns a full disk, a lost permission or exhausted memory into a Failure, in one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename or 'a file of the run'})"
        raise Failure(f"run_dir={path}: {what}; {GO_ON}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        what = str(error).splitlines()[0] if str(error) else "no memory left"
        raise Failure(f"run_dir={path}: out of memory ({what}); {GO_ON}") from error


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
