"""What a command asks of a study: which runs, how many at a time, where, and with what means."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.compose import own_folders
from dcasgd_repro.study import launchers, pages, tune
from dcasgd_repro.study import reproduce as runner
from dcasgd_repro.study.display import display
from dcasgd_repro.study.grid import Study, names, study
from dcasgd_repro.study.reproduce import Job


def request(
    command: str, arguments: Sequence[str], scales: Callable[[Sequence[Path]], Sequence[str]]
) -> Request | None:
    """Read from a command's arguments; None where they ask for help. Raises BadInput.

    One run a core at a time, each on one thread; with CUDA one run; on a cluster ``jobs`` of them.
    The scale is the paper's own with CUDA, and for a study that is about no other; else laptop.
    ``scales`` gives the names there are, with those in folders of one's own.
    """
    if not arguments or set(arguments) & {"-h", "--help"}:
        return None
    rest, folders = own_folders(arguments)
    words = [a for a in rest if "=" in a]
    for a in rest:
        if a not in words and a.startswith("-") and a != "--dry-run":
            raise BadInput(
                "option", a, f"no such option; `dcasgd-repro {command} --help` says more"
            )
    named = [a for a in rest if a not in words and not a.startswith("-")]
    if len(named) != 1:
        raise BadInput("study", " ".join(named), f"name one; there are {', '.join(names())}")
    given = dict(word.split("=", 1) for word in words)

    import torch

    chosen, cuda = study(named[0]), torch.cuda.is_available()
    own = chosen.paper_scale
    scale = given.pop("scale", own if cuda or own != "paper" else "laptop")
    if scale not in (known := scales(folders)):
        raise BadInput("scale", scale, f"no such scale, choose {', '.join(known)}")
    seeds = whole("seeds", given.pop("seeds", "3"))
    launcher = given.pop("launcher", "local")
    if "jobs" not in given and launcher in ("slurm", "ray"):
        raise BadInput("jobs", None, f"how many runs may {launcher} have at a time? As in jobs=16")
    at_a_time = whole("jobs", given.pop("jobs", str(1 if cuda else os.cpu_count() or 1)))
    begins = f"{launcher}."
    options = {k.partition(".")[2]: given.pop(k) for k in list(given) if k.startswith(begins)}
    for key, value in given.items():
        if (other := key.partition(".")[0]) in ("slurm", "ray"):
            remedy = f"goes with launcher={other}, and launcher={launcher} is chosen"
            raise BadInput(key, value, remedy)
    extra = [f"{key}={value}" for key, value in given.items()]
    if launcher == "local" and at_a_time > 1 and "threads" not in given and not cuda:
        extra.append("threads=1")  # side by side, each is fastest on a core of its own
    means = (seeds, at_a_time, launcher, options, extra, "--dry-run" in rest)
    return Request(command, arguments, chosen, scale, folders, *means)


def whole(key: str, text: str) -> int:
    """A count >= 1 as it was typed."""
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(key, text, "give a whole number >= 1")
    return int(text)


@dataclass(frozen=True)
class Request:
    """A command about a study, read. ``reproduce`` and ``tune`` do it and return an exit code."""

    command: str
    arguments: Sequence[str]
    study: Study
    scale: str
    folders: Sequence[Path]  # with YAML files of one's own
    seeds: int
    at_a_time: int
    launcher: str
    options: Mapping[str, str]  # of the launcher
    extra: Sequence[str]  # words that say with what means to compute
    dry_run: bool
    show: Callable[[str], None] = print

    def reproduce(self, results: Path) -> int:
        """Runs what the study lacks; keeps the runs and writes its page, and those sharing runs."""
        chosen, scale = self.study, self.scale
        if chosen.tune is not None:
            raise BadInput("study", chosen.name, f"it has a grid to tune: {chosen.again(scale)}")
        jobs = runner.jobs_of(chosen, scale, self.seeds, self.extra, self.folders)
        if self.dry_run:
            return self.show_plan(jobs)
        self.show(self.head)
        kept = results / chosen.runs_of / scale / "runs"

        # As they end, since a study may take days and its process be killed.
        def ended(job: Job) -> None:
            with runner.keeping():
                runner.keep(alike(jobs, job), kept)

        failed = self.run(jobs, ended)
        if failed is None:
            return 130
        with runner.keeping():
            runner.keep(jobs, kept, failed)
            self.show(pages.write(chosen, scale, results))
            for other in map(study, names()):  # which look at the same runs
                if other.runs_of == chosen.runs_of and other.name != chosen.name:
                    pages.write(other, scale, results)
            pages.overview(results)
        return int(bool(failed))

    def tune(self, results: Path) -> int:
        """Runs the study's trials, round after round; writes what was chosen, and its page."""
        chosen, scale = self.study, self.scale
        if chosen.tune is None:
            remedy = f"has no `tune` in its grid.yaml; did you mean {chosen.again(scale)}?"
            raise BadInput("study", chosen.name, remedy)
        rounds = tune.rounds(chosen, scale, self.seeds, self.extra, self.folders)
        if self.dry_run:
            *_, (_, jobs) = rounds  # as far as they have been run
            note = "while a best value lies at an end of its grid, all grids are extended"
            return self.show_plan(jobs, f"\n{note} and run again")
        self.show(self.head)
        first: list[Job] = []
        failed: list[Job] | None = []
        for of_round in rounds:
            grid, jobs = of_round
            first = first or jobs
            failed = self.run(jobs)
            if failed is None:
                return 130
        if failed:  # an extension that is not whole is not kept: the page is that of the first grid
            jobs = first
        else:
            self.show(f"{tune.write(chosen, scale, grid, jobs)}\n")
        with runner.keeping():
            runner.keep(jobs, results / chosen.name / scale / "runs", failed or ())
            self.show(pages.write(chosen, scale, results))
            pages.overview(results)
        return int(bool(failed))

    @property
    def head(self) -> str:
        """Which study it is, and of which folder."""
        return f"{self.study.name}, scale={self.scale}, of {self.study.folder}"

    def show_plan(self, jobs: Sequence[Job], note: str = "") -> int:
        """Shows the runs, their state and their time; refuses cells that no run can be made of."""
        rate = runner.seconds_per_push(self.scale)
        self.show(f"{self.head}\n{runner.plan(jobs, self.at_a_time, lambda: rate)}{note}")
        refused = [line for line in map(runner.refusal, runner.first_of_each_cell(jobs)) if line]
        for line in refused:
            tell(line)
        return 2 if refused else 0

    def run(
        self, jobs: Sequence[Job], ended: Callable[[Job], None] = lambda job: None
    ) -> list[Job] | None:
        """Runs what has not ended; returns what failed, each told, or None if it was stopped."""
        launcher = launchers.launcher(self.launcher, self.options)
        words = {word.lower() for word in self.extra}
        left = [job for job in runner.unique(jobs) if not job.ended]
        if other := [job for job in left if not words <= {word.lower() for word in job.command}]:
            begun = ", ".join(job.name for job in other)
            tell(f"begun with other means than {' '.join(self.extra)}, which they keep: {begun}")
        try:
            shown = display(jobs, f"{self.study.name}, scale={self.scale}")
            failed = runner.run(jobs, self.at_a_time, launcher, shown, ended)
        except KeyboardInterrupt:
            again = " ".join([f"dcasgd-repro {self.command}", *self.arguments])
            tell(f"interrupted; every run goes on from its checkpoint with: {again}")
            return None
        for job in failed:
            print(f"failed    {job.name}: {job.last_line()}", file=sys.stderr)
        return failed


def alike(jobs: Sequence[Job], job: Job) -> list[Job]:
    """The jobs that share a job's run."""
    return [other for other in jobs if other.path == job.path]


def tell(line: str) -> None:
    print(f"dcasgd-repro: {line}", file=sys.stderr)
