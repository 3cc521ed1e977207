"""The device a run computes on: its threads, determinism, precision and memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dcasgd_repro.errors import BadInput, check_choice, check_whole
from dcasgd_repro.models import ResNet, laid_out


def set_device(
    device: str = "auto", threads: int | None = None, deterministic: str | bool = "auto"
) -> torch.device:
    """Sets threads, determinism and precision; returns the device: auto is CUDA if torch sees one.

    float32 is float32: convolutions on CUDA use TF32 only where an engine is told to.
    """
    if threads is not None:
        check_whole("threads", threads, 1, 1024)
        torch.set_num_threads(threads)
    check_choice("device", device, ("auto", "cpu", "cuda"))
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise BadInput("device", device, "torch sees no CUDA device here; use device=cpu")
    chosen = torch.device("cuda" if found and device != "cpu" else "cpu")
    check_choice("deterministic", deterministic, ("auto", True, False))
    exact = chosen.type == "cpu" if deterministic == "auto" else bool(deterministic)
    if exact and chosen.type == "cuda":  # what cuBLAS asks for; read when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As use_deterministic_algorithms, which would also import the compiler: seconds of start-up.
    torch.set_deterministic_debug_mode("error" if exact else "default")
    # Filling costs time and changes no result. torch puts this property on the module at run time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if chosen.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    return chosen


DRIVER = Path("/proc/driver/nvidia/version")


def cuda_of(device: torch.device) -> dict[str, Any]:
    """What bits on a CUDA device depend on beside torch; nothing elsewhere. None: not known."""
    if device.type != "cuda":
        return {}
    told = DRIVER.read_text() if DRIVER.exists() else ""
    driver = re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", told)
    return {
        "driver": driver.group(1) if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
    }


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed for the next step; whether it could be told.

    By default glibc hands a step's activations back to the kernel and faults them in again at the
    next: thousands of page faults a step at ResNet-20 and batch 128. ``mallopt`` here forbids
    trimming, blocks mapped by themselves, and arenas of further threads, which are trimmed
    whatever one says. Where the user has set a MALLOC_ variable, and elsewhere than with glibc,
    nothing is done.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_ARENA_MAX: 1}
    return all(_mallopt(option, value) for option, value in options.items())


def return_freed_memory() -> bool:
    """Has glibc hand freed blocks back at once, so that resident memory is what is in use."""
    return _mallopt(M_MMAP_THRESHOLD, 65536) and _mallopt(M_TRIM_THRESHOLD, 0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # of malloc.h


def _mallopt(option: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(option, value))


def seconds_per_gradient(device: torch.device, repeats: int = 2) -> float:
    """Measured seconds of one ResNet-20 gradient on 128 images, the paper's unit of work."""
    model = ResNet(depth=20, width=16).build().to(device)
    pixels = torch.zeros(128, 3, 32, 32, device=device)
    images = laid_out(pixels.to(memory_format=torch.channels_last))
    labels = torch.zeros(128, dtype=torch.long, device=device)
    start = 0.0
    for repeat in range(repeats + 1):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        loss.item()  # waits for the device
        if repeat == 0:  # the first one warms up
            start = time.perf_counter()
    return (time.perf_counter() - start) / repeats
