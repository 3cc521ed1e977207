"""What one watches while a study runs: a live table of its cells, or lines where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from dcasgd_repro.study.reproduce import Display, Job

FEW = 8  # seeds that have a column each
EVERY_S = 60.0  # between lines of progress in a file


class _Watched:
    """The jobs, and how long the rest of them should take at the rate seen so far."""

    def __init__(self, jobs: Sequence[Job], study: str) -> None:
        self.jobs, self.study = jobs, study
        self.runs = list({job.path: job for job in jobs}.values())
        self.running: list[Job] = []
        self.began_s = time.monotonic()
        self.begun_with = self.made()

    def made(self) -> int:
        """Pushes that were made: of a run that diverged, those up to there."""
        return sum(job.done() for job in self.runs)

    def title(self) -> str:
        total = sum(job.pushes for job in self.runs)
        to_do = total - sum(done(job) for job in self.runs)
        whole = sum(job.ended for job in self.runs)
        rate = (self.made() - self.begun_with) / max(time.monotonic() - self.began_s, 1e-9)
        left = f"{clock(to_do / rate)} left" if rate > 0 else "no push yet"
        return f"{self.study}: {whole} of {len(self.runs)} runs, {1 - to_do / total:.0%}, {left}"


class Lines(_Watched):
    """A line when a run begins and ends, and one of progress a minute, to stderr."""

    def __enter__(self) -> Lines:
        self.shown_s = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        say(self.title())

    def begun(self, job: Job) -> None:
        say(f"begun     {job.name}")

    def ended(self, job: Job) -> None:
        word = job.status if job.ended else "failed"
        say(f"{word:9} {job.name}: {outcome(job)}")

    def show(self, running: Sequence[Job]) -> None:
        if time.monotonic() - self.shown_s >= EVERY_S:
            self.shown_s = time.monotonic()
            say(self.title())


class LiveTable(_Watched):
    """A row for each cell, a column for each seed, renewed in place."""

    def __enter__(self) -> LiveTable:
        self.shown_s = time.monotonic()
        self.live = Live(self.table(), console=Console(stderr=True), auto_refresh=False)
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.update(self.table(), refresh=True)
        self.live.__exit__(None, None, None)

    def begun(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass

    def show(self, running: Sequence[Job]) -> None:
        self.running = list(running)
        if time.monotonic() - self.shown_s < 2.0:  # reading every run's files takes its time
            return
        self.shown_s = time.monotonic()
        self.live.update(self.table(), refresh=True)

    def table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        seeds = sorted({job.seed for job in self.jobs})
        table.add_column("cell")
        for head in [f"seed {seed}" for seed in seeds] if len(seeds) <= FEW else ["ended"]:
            table.add_column(head, justify="right", min_width=9)
        at = {(job.cell.name, job.seed): job for job in self.jobs}
        under_way = {job.path for job in self.running}
        for name in dict.fromkeys(job.cell.name for job in self.jobs):
            if len(seeds) > FEW:
                mine = [job for (cell, _), job in at.items() if cell == name]
                table.add_row(name, f"{sum(job.ended for job in mine)} of {len(mine)}")
                continue
            row = [at.get((name, seed)) for seed in seeds]
            table.add_row(name, *(short(job, job.path in under_way) if job else "" for job in row))
        return Group(self.title(), table)


def display(jobs: Sequence[Job], study: str) -> Display:
    """The live table on a terminal, lines elsewhere."""
    return (LiveTable if sys.stderr.isatty() else Lines)(jobs, study)


def done(job: Job) -> int:
    """Pushes that need not be made any more."""
    return job.pushes if job.ended else min(job.done(), job.pushes)


def short(job: Job, under_way: bool) -> str:
    """A job in a few characters: its test error, its progress, or why there is none."""
    status = job.status
    if job.ended and status != "diverged":
        return outcome(job)
    if under_way:
        return f"[cyan]{job.done() / job.pushes:.0%}[/]"
    if status in ("diverged", "failed"):
        return f"[red]{status}[/]"
    return f"[dim]{job.done() / job.pushes:.0%}[/]" if status != "missing" else "[dim]-[/]"


def outcome(job: Job) -> str:
    """Its final test error, else what it said last."""
    error = job.summary.get("test_error_final")
    if job.ended and job.status != "diverged":
        return "done" if error is None else f"{error:.2%}"
    return job.last_line()


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
