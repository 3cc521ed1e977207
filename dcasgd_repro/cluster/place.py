"""What a process computes with, as far as the bits of its sums depend on it."""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path

import torch


def place() -> str:
    """This process's processor, instruction set and torch, in one line."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {capability}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()
