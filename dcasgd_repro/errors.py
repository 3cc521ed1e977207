"""Refusing input: one exception that names key, value and remedy, and the usual checks."""

from __future__ import annotations

import contextlib
import linecache
import math
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

LIBRARIES = ("site-packages", "dist-packages", "<frozen", str(Path(__file__).parent))


class BadInput(ValueError):
    """Input refused: ``key=value: remedy``, in one line.

    The command line prints it without a traceback and exits with code 2. ``key`` is the name the
    reader typed or can type (``lam0``, ``workers``, a file's path); ``remedy`` says what would be
    accepted.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key}={value!s}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, object, str]]:
        # Exceptions are pickled by their message alone, which is not what __init__ takes.
        return BadInput, (self.key, self.value, self.remedy)


class Failure(Exception):
    """The machine gave out (disk, memory, permission): one line, and exit code 4."""


def check_number(
    key: str, value: Any, low: float = 0.0, high: float = math.inf, ends: str = "[)"
) -> None:
    """Refuses anything but a finite real number between low and high; ``ends`` is [), (), []."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if real and isinstance(value, int) and abs(value) >= 2**63:  # torch takes no such integer
        raise BadInput(key, value, f"write so large a number with an exponent: {value:.3g}")
    inside = real and low <= value <= high and math.isfinite(value)
    if not inside or (ends[0] == "(" and value == low) or (ends[1] == ")" and value == high):
        limits = [f"{'>' if ends[0] == '(' else '>='} {low:g}"] if low > -math.inf else []
        limits += [f"{'<' if ends[1] == ')' else '<='} {high:g}"] if high < math.inf else []
        raise BadInput(key, value, f"give a finite number {' and '.join(limits)}".rstrip())


def check_whole(key: str, value: Any, low: int = 1, high: float = math.inf) -> None:
    """Refuses anything but a whole number from low to high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        most = f" and <= {high:,}" if high < math.inf else ""
        raise BadInput(key, value, f"give a whole number >= {low}{most}")


def check_choice(key: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuses anything that is not one of ``choices``, of the same type."""
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        names = [str(choice).lower() if isinstance(choice, bool) else choice for choice in choices]
        raise BadInput(key, value, f"choose {', '.join(names[:-1])} or {names[-1]}")


@contextlib.contextmanager
def told_as(key: str, value: str) -> Iterator[None]:
    """Turns what a reader's own code raises into BadInput, in one line with the line of theirs."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # whatever their code raises
        raise BadInput(key, value, f"raises {in_words(error)}") from None


def in_words(error: Exception) -> str:
    """What went wrong in a reader's own code, and at which line of it, in one line."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{said.partition(' (')[0]} ({error.filename}, line {error.lineno})"
    own = own_frames(error)
    if not own:
        return said
    frame, line = own[-1]
    file = frame.f_code.co_filename
    return f"{said} ({file}, line {line}: {linecache.getline(file, line).strip()})"


def is_ours(part: object) -> bool:
    """Whether its class is one of this package."""
    return type(part).__module__.partition(".")[0] == "dcasgd_repro"


def own_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Where an exception passed through a reader's own code: frames and lines, outermost first."""
    installed = (*LIBRARIES, sysconfig.get_path("stdlib"))
    return [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not any(part in frame.f_code.co_filename for part in installed)
    ]
