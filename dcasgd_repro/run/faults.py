"""What stops a run: signals, full disks, lost permissions, exhausted memory, a user's own parts."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcasgd_repro.errors import BadInput, Failure, in_words, is_ours, own_frames
from dcasgd_repro.rules import Rule

# What the machine is to blame for, whoever's code meets it.
MACHINES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
MACHINES |= {errno.ENOMEM, errno.EMFILE, errno.ENFILE}


@contextlib.contextmanager
def machine_faults(path: Path) -> Iterator[None]:
    """Turns a full disk, a lost permission or exhausted memory into a Failure, in one line."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if (what := _of_machine(error)) is None:
            raise
        good = "the last checkpoint is good; " if any(path.glob("checkpoint*.pt")) else ""
        advice = f"{good}mend this and give the same command again"
        raise Failure(f"run_dir={path}: {what}; {advice}") from error


def _of_machine(error: Exception) -> str | None:
    """What the machine lacks, in words; None for another kind of error."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError):
        if error.errno not in MACHINES and own_frames(error):
            return None
        return f"{error.strerror or text} ({error.filename or 'a file of the run'})"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory ({text})"
    if isinstance(error, RuntimeError) and "allocate" in text:  # the host's allocator
        return f"out of memory ({text})"
    return None


@contextlib.contextmanager
def own_faults(parts: Mapping[str, Any]) -> Iterator[None]:
    """Turns what a part of a user's own raises into BadInput: its class and method, and its line.

    ``parts``: {key: the object that was made of it}.
    """
    try:
        yield
    except (BadInput, Failure):
        raise
    except Exception as error:
        if _of_machine(error) or (found := _raiser(error, parts)) is None:
            raise
        raise BadInput(*found, f"raises {in_words(error)}") from error


def _raiser(error: Exception, parts: Mapping[str, Any]) -> tuple[str, str] | None:
    """The part and the method that an exception came out of; None for one of this package.

    A network made of torch's modules alone has no line of its user's.
    """
    if own := own_frames(error):
        code, owner = own[0][0].f_code, own[0][0].f_locals.get("self")
        method = code.co_qualname if owner is None else f"{type(owner).__name__}.{code.co_name}"
    else:
        selves = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        owner = next((one for one in selves if isinstance(one, nn.Module)), None)
        if owner is None or is_ours(owner):
            return None
        method = f"{type(owner).__name__}.forward"
    kinds = (("rule", Rule), ("model", nn.Module), ("task", object))
    kind = next(key for key, cls in kinds if isinstance(owner, cls))
    return next((key for key, part in parts.items() if part is owner), kind), method


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
