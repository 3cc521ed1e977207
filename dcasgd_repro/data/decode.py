"""Image files to pixels, in this process or in others (no torch, so that those start at once).

``pixels`` is a pure function of the files and of the random numbers it is given, wherever it runs.
`Decoders` runs it in processes of their own. Each is a fresh interpreter that reads jobs from a
pipe and ends when that pipe does: with its owner, however that one dies. Signals do not stop it, so
that Ctrl-C lets the owner end its push.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dcasgd_repro.errors import BadInput

TRIES = 10  # windows drawn before the largest centred one is taken
DRAWS = 2 * TRIES + 3  # uniform numbers an augmented image needs
CLIPPED = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # by Pillow, as it makes RGB of them
AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)  # of a window: part of the image, width / height

Pixels = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """Files to decode to ``size`` x ``size`` pixels.

    ``draws``: uniform numbers [B, DRAWS] for a random window and flip of each; None for the centre
    of the image whose shorter side has been made ``resize``.
    """

    files: Sequence[str]
    size: int
    resize: int
    draws: Draws | None = None


def pixels(job: Job) -> Pixels:
    """The images, uint8 [B, size, size, 3]. Raises BadInput for a file that is no sound image."""
    draws = [None] * len(job.files) if job.draws is None else job.draws
    return np.stack([_read(file, job, u) for file, u in zip(job.files, draws, strict=True)])


def window(height: int, width: int, u: Draws) -> tuple[int, int, int, int]:
    """A random part of an image, as (top, left, height, width), from uniform numbers u [DRAWS].

    The first of ten draws that fits: its area 8 to 100 % of the image's, evenly; its ratio of width
    to height 3/4 to 4/3, evenly in the logarithm; its place anywhere. If none fits, the largest
    centred window with such a ratio. The usual crop of ImageNet training (Szegedy et al. 2015,
    section 6), as torchvision's ``RandomResizedCrop`` draws it.
    """
    low, high = (math.log(ratio) for ratio in RATIOS)
    area = height * width * (AREAS[0] + (AREAS[1] - AREAS[0]) * u[:TRIES])
    ratio = np.exp(low + (high - low) * u[TRIES : 2 * TRIES])
    heights, widths = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    if not fits.any():
        h = min(height, round(width / RATIOS[0]))
        w = min(width, round(height * RATIOS[1]))
        return (height - h) // 2, (width - w) // 2, h, w
    first = int(fits.argmax())
    h, w = int(heights[first]), int(widths[first])
    return int(u[-3] * (height - h + 1)), int(u[-2] * (width - w + 1)), h, w


def _read(file: str, job: Job, u: Draws | None) -> Pixels:
    try:
        with Image.open(file) as opened:
            if opened.mode in CLIPPED:
                raise ValueError(f"mode {opened.mode} has more than 8 bits, which would be clipped")
            image = opened.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises half a dozen kinds for damaged files
        problem = " ".join(str(error).replace(repr(file), "it").split())
        raise BadInput(file, "unreadable", f"{problem}; replace this image") from None
    if u is None:
        return _centre(image, job.size, job.resize)
    top, left, height, width = window(image.height, image.width, u)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((job.size, job.size), Image.Resampling.BILINEAR)
    if u[-1] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _centre(image: Image.Image, size: int, resize: int) -> Pixels:
    """The middle of the image whose shorter side is ``resize`` pixels; roundings: torchvision's."""
    short = min(image.size)
    width, height = (resize * side // short for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(image.crop((left, top, left + size, top + size)))


class Decoders:
    """``count`` processes that turn jobs into pixels, in the order they are given; 0: none.

    Results are futures; one that is cancelled before its turn is never decoded. The processes end
    when this object is collected, or its process ends in any way.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: queue.SimpleQueue[Any] | None = None
        if count:
            self._jobs = queue.SimpleQueue()
            for _ in range(count):
                threading.Thread(target=_feed, args=(self._jobs,), daemon=True).start()
            weakref.finalize(self, _stop, self._jobs, count)

    def __call__(self, job: Job) -> Future[Pixels]:
        future: Future[Pixels] = Future()
        if self._jobs is None:
            future.set_result(pixels(job))
        else:
            self._jobs.put((job, future))
        return future


def _stop(jobs: queue.SimpleQueue[Any], count: int) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            jobs.get_nowait()[1].cancel()
    for _ in range(count):
        jobs.put(None)


def _feed(jobs: queue.SimpleQueue[Any]) -> None:
    """Hands jobs to a process of this thread's own and its answers to the futures."""
    process: subprocess.Popen[bytes] | None = None
    while (item := jobs.get()) is not None:
        job, future = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            process = process or _start()
            future.set_result(_ask(process, job))
        except BaseException as error:
            future.set_exception(error)
    if process is not None:
        process.communicate()  # closes its pipe, and waits for it to end


def _start() -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parents[2])  # the very package that this process uses
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a terminal's Ctrl-C does not reach it
    )


def _ask(process: subprocess.Popen[bytes], job: Job) -> Pixels:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(job, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        code = process.wait()
        raise ChildProcessError(None, f"it ended with {code}", "a decoding process") from None
    if isinstance(answer, BadInput):
        raise answer
    found: Pixels = answer
    return found


def serve() -> None:
    """A decoding process: answers the jobs on its standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = pickle.load(jobs)
            answer: Pixels | BadInput
            try:
                answer = pixels(job)
            except BadInput as error:
                answer = error
            except MemoryError:
                sys.exit(1)  # which its owner tells
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
