"""Runs the cells that a study lacks, several at a time, each in a process of its own.

A run lives under ``outputs/cells/<identity>``, so studies that share a configuration share its run.
A run that fails takes no other with it; one that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import yaml
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.compose import added, all_keys, composed, hydra_words, refuse_unread
from dcasgd_repro.run.identity import CELLS, FULL, MEANS, evaluated_on, identity
from dcasgd_repro.run.plan import length_of, log_of, plain_config, plan_of
from dcasgd_repro.run.read import (
    ENDED,
    FAILED,
    FINGERPRINT,
    STOPPED,
    VERIFIED,
    begun,
    config_of,
    pushes_of,
    summary_of,
)
from dcasgd_repro.run.refusals import in_plain_words
from dcasgd_repro.schedule import DrawnDelays
from dcasgd_repro.study.grid import Cell, Study
from dcasgd_repro.study.launchers import Handle, Launcher

POLL_S = 0.5
PYTHON = (sys.executable, "-m", "dcasgd_repro")


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    pushes: int  # that its study needs of it
    path: Path
    folders: tuple[Path, ...] = ()  # with YAML files of one's own

    @property
    def name(self) -> str:
        return f"{self.cell.name}-seed{self.seed}"

    @property
    def summary(self) -> dict[str, Any]:
        return summary_of(self.path)

    @property
    def status(self) -> str:
        """Its summary's; else "partial" where it was begun, else "missing"."""
        return str(self.summary.get("status", "partial" if begun(self.path) else "missing"))

    @property
    def ended(self) -> bool:
        """Whether it has come as far as its study asks."""
        status = self.status
        stopped = status == STOPPED and self.summary["pushes"] >= self.pushes
        return status in ENDED or stopped

    def done(self) -> int:
        """Pushes that its metrics show."""
        return pushes_of(self.path)

    @property
    def command(self) -> list[str]:
        """What one would type; a run that was begun keeps its engine, device, threads and so on."""
        kept: dict[str, Any] = {}
        with contextlib.suppress(BadInput):  # whatever is wrong with that file, train will say
            config = config_of(self.path)
            kept = {key: config[key] for key in MEANS if key in config}
            kept = kept | (engine(kept.pop("engine")) if "engine" in kept else {})
        groups = {key.split(".")[0] for key in kept}
        words = [w for w in self.overrides if w.partition("=")[0].split(".")[0] not in groups]
        words += [f"{key}={'null' if value is None else value}" for key, value in kept.items()]
        own = [word for folder in self.folders for word in ("-cd", str(folder))]
        return [*PYTHON, "train", *own, *words, f"run_dir={self.path}"]

    def last_line(self) -> str:
        """What its process said last."""
        with contextlib.suppress(OSError):
            text = (self.path / "train.log").read_text(errors="replace").replace("\r", "\n")
            if lines := [line for line in text.splitlines() if line.strip()]:
                return lines[-1].strip()
        odd = os.path.lexists(self.path) and not self.path.is_dir()
        if odd or (self.path / "train.log").is_dir():
            return f"{self.path} is no directory that can hold its train.log; move it away"
        return "it said nothing"


def engine(config: Mapping[str, Any]) -> dict[str, Any]:
    """What chooses that engine: its name, and its own keys."""
    for file in (files("dcasgd_repro.conf") / "engine").iterdir():
        if yaml.safe_load(file.read_text())["_target_"] == config["_target_"]:
            own = {f"engine.{key}": value for key, value in config.items() if str(key)[0] != "_"}
            return {"engine": file.name.removesuffix(".yaml"), **own}
    return {}


class Display(Protocol):
    """What shows how the runs go, see display.py."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> Any: ...
    def begun(self, job: Job) -> None: ...
    def ended(self, job: Job) -> None: ...
    def show(self, running: Sequence[Job]) -> None: ...


def jobs_of(
    study: Study,
    scale: str,
    seeds: int,
    extra: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> list[Job]:
    """All runs of a study, seed after seed: the first of every cell, ..., then ``extra_seeds``.

    Its cells may name what stands in ``folders``, beside conf/.

    ``extra`` may only say with what means to compute (engine, threads, device, ...): anything else,
    a lower precision too, would be another study's numbers. Raises BadInput.
    """
    for word in extra:
        key, _, value = word.partition("=")
        numbers = key == "engine.precision" and value != FULL
        means = key == "data.root" or key.split(".")[0] in (*MEANS, "checkpoint")
        if numbers or not means:
            remedy = (
                "would make it another study: copy its folder under another name, change the grid"
            )
            raise BadInput(key, value, remedy)
    study, jobs = study.at(scale), []
    if study.stop_epoch is not None:
        extra = (*extra, f"stop_epoch={study.stop_epoch:g}")
    configs = {cell.name: _composed(cell, scale, extra, folders) for cell in study.cells}
    for k in range(seeds + max(study.extra_seeds.values(), default=0)):
        seed = study.first_seed + k
        for cell in study.cells:
            if k >= seeds + study.extra_seeds.get(cell.name, 0):
                continue
            words, cfg, pushes = configs[cell.name]
            cfg.seed = seed
            path = CELLS / identity(plain_config(cfg))[:16]
            job = Job(cell, seed, (*words, f"seed={seed}"), pushes, path, tuple(folders))
            jobs.append(job)
    return jobs


def _composed(
    cell: Cell, scale: str, extra: Sequence[str], folders: Sequence[Path]
) -> tuple[tuple[str, ...], DictConfig, int]:
    words = (f"scale={scale}", *cell.overrides, *extra)
    cfg = config_at(cell.name, words, folders)
    return words, cfg, length_of(cfg).stop(cfg.stop_epoch)


def config_at(cell: str, words: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """The config that a cell's words describe. Raises BadInput, which names the cell."""
    try:
        return composed(words, folders)
    except BadInput as error:
        refused = error
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        refused = in_plain_words(error, words, folders)
    raise BadInput(f"cell {cell}: {refused.key}", refused.value, refused.remedy)


def refusal(job: Job) -> str | None:
    """Why ``train`` would refuse a job's run, if it would: its objects are made, and let go.

    Of its schedule a recorded log is read whole, and delays that are drawn are drawn all; of
    workers' times only the beginning.
    """
    try:
        cfg = composed(job.overrides, job.folders)
        words = hydra_words(job.overrides)
        refuse_unread(cfg, words, all_keys(words, job.folders) if added(words) else [])
        typed = {key: value for key, _, value in (word.partition("=") for word in job.overrides)}
        made = plan_of(cfg, typed.get("schedule"), typed)
        check_rule_is_held(made.rule)
        whole = hasattr(made.schedule, "path") or isinstance(made.schedule, DrawnDelays)
        log_of(cfg, job.pushes if whole else 1)
    except BadInput as error:
        return f"cell {job.cell.name}: {error}"
    return None


def check_rule_is_held(rule: Any) -> None:
    """Refuses a rule whose state no checkpoint can hold, tried on a small vector: BadInput."""
    import torch  # which the objects of a plan have loaded

    from dcasgd_repro.rules.rule import size_of
    from dcasgd_repro.run.experiment import check_state

    check_state(rule, torch.zeros(size_of(rule, 4)))


def first_of_each_cell(jobs: Sequence[Job]) -> list[Job]:
    """One job for each cell: its runs differ in the seed alone."""
    return list({job.cell.name: job for job in reversed(jobs)}.values())[::-1]


def unique(jobs: Sequence[Job]) -> list[Job]:
    """One job for each run: cells of one configuration share it."""
    return list({job.path: job for job in jobs}.values())


def run(
    jobs: Sequence[Job],
    at_a_time: int,
    launcher: Launcher,
    display: Display,
    ended: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Runs what has not ended yet; returns the jobs that failed, and how they went to ``display``.

    ``ended`` is called with each job that has come as far as its study asks, as it does.

    SIGINT, SIGTERM and SIGHUP end it with KeyboardInterrupt, once the runs have written their
    checkpoints; a second one kills them. A run that another process is at is waited for.
    """
    waiting = [job for job in unique(jobs) if not job.ended]
    running: dict[Path, tuple[Job, Handle]] = {}
    failed: list[Job] = []
    with _stopping(running), display:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.pop(0)
                try:
                    job.path.mkdir(parents=True, exist_ok=True)
                    handle: Handle = Elsewhere(job.path)
                    if handle.ended():
                        handle = launcher.start(job.command, job.path / "train.log")
                except (FileExistsError, IsADirectoryError, NotADirectoryError):
                    failed.append(job)  # something else stands there; the other runs go on
                    display.ended(job)
                    continue
                running[job.path] = job, handle
                display.begun(job)
            time.sleep(POLL_S)
            for path, (job, handle) in list(running.items()):
                if handle.ended():
                    del running[path]
                    elsewhere = isinstance(handle, Elsewhere) or not Elsewhere(path).ended()
                    if not job.ended and elsewhere:
                        # It was left unfinished there, or another process was first: wait, go on.
                        waiting.insert(0, job)
                        continue
                    if job.ended:
                        ended(job)
                    else:
                        failed.append(job)
                    display.ended(job)
            display.show([job for job, _ in running.values()])
    return failed


class Elsewhere:
    """A run that another process is at: left by a reproduce that was killed, or someone else's."""

    def __init__(self, path: Path) -> None:
        self.lock, self.let_go = path / ".lock", False

    def ended(self) -> bool:
        if self.let_go or not self.lock.is_file():  # a run says itself that it can lock no other
            return True
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def stop(self, hard: bool) -> None:
        self.let_go = True  # it is not ours to stop


@contextlib.contextmanager
def _stopping(running: dict[Path, tuple[Job, Handle]]) -> Iterator[None]:
    """Stops the runs when this is stopped: politely, and hard when it is asked for once more."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    stops = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup wants it to go on
        stops.append(signal.SIGHUP)
    before = [(number, signal.signal(number, stop)) for number in stops]
    try:
        yield
    except BaseException:
        for hard in (False, True):
            with contextlib.suppress(KeyboardInterrupt):
                for _, handle in running.values():
                    handle.stop(hard)
                while not all(handle.ended() for _, handle in running.values()):
                    time.sleep(0.1)
                break
        raise
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Holds off whoever else would write kept runs or pages from here; ends with its process."""
    lock = CELLS.parent / ".keeping"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(jobs: Sequence[Job], folder: Path, failed: Sequence[Job] = ()) -> None:
    """Copies the runs that ended or failed to ``folder/<cell>-seed<k>``: small text files.

    Of metrics.csv the rows of evaluations and of the first 200 pushes; of probe.csv, where there is
    one, all rows, to six digits. A run that was killed says so in a summary of its own; one that
    could not even begin leaves nothing.
    """
    lost = {job.path for job in failed}
    for job in jobs:
        if not begun(job.path):
            continue
        if not job.ended and job.status != FAILED and job.path not in lost:
            continue
        target = folder / job.name
        if not job.ended and _ended_before(target, job):
            continue  # not to be lost to one that failed
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("config.yaml", "provenance.json"):
            shutil.copyfile(job.path / name, target / name)
        if (job.path / FINGERPRINT).exists():
            shutil.copyfile(job.path / FINGERPRINT, target / FINGERPRINT)
        summary = job.summary if job.ended or job.status == FAILED else _killed(job)
        (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if (rows := _thinned(job.path / "metrics.csv")) is not None:
            (target / "metrics.csv").write_text(rows)
        if (job.path / "probe.csv").exists():
            probes = pd.read_csv(job.path / "probe.csv")
            probes.to_csv(
                target / "probe.csv", index=False, float_format="%.6g", lineterminator="\n"
            )


def _ended_before(target: Path, job: Job) -> bool:
    """Whether a run of the same numbers was kept there that ended."""
    kept = summary_of(target)
    stopped = kept.get("status") == STOPPED and kept["pushes"] >= job.pushes
    if kept.get("status") not in ENDED and not stopped:
        return False
    with contextlib.suppress(BadInput):  # an unreadable config is not the same
        return identity(config_of(target)) == identity(config_of(job.path))
    return False


def _killed(job: Job) -> dict[str, Any]:
    """A summary of a run that left none."""
    config = config_of(job.path)
    stub: dict[str, Any] = {"status": FAILED, "last_line": job.last_line()}
    stub |= {key: config[key] for key in ("exp", "scale", "workers", "seed")}
    rule: Any = get_class(config["rule"]["_target_"])
    stub |= {"task": None, "rule": rule.name}
    stub |= {"evaluated_on": evaluated_on(config)}
    return {**stub, "pushes": job.done(), "wall_s": None, "weights_sha256": None}


def _thinned(metrics: Path) -> str | None:
    if not metrics.exists():
        return None
    head, *lines = metrics.read_text().splitlines()
    column = head.split(",").index("test_loss")
    rows = [line.split(",") for line in lines if line.count(",") == head.count(",")]
    kept = [row for row in rows if row[column] or int(row[0]) <= VERIFIED]
    return "\n".join([head, *(",".join(row) for row in kept), ""])


def plan(jobs: Sequence[Job], at_a_time: int, seconds: Callable[[], float | None]) -> str:
    """The table for --dry-run, with the time that the runs left should take here."""
    lines = [f"{job.name:32} {job.status:9} {job.pushes:11,} pushes  {job.path}" for job in jobs]
    left = [job for job in unique(jobs) if not job.ended]
    pushes = sum(job.pushes - job.done() for job in left)
    lines.append(f"{len(unique(jobs))} runs, {len(left)} to do: {pushes:,} pushes")
    if left:
        rate, at_a_time = seconds(), min(at_a_time, len(left))
        lines.append(
            "how long a push takes here is not known before a run of this scale has ended"
            if rate is None
            else f"about {pushes * rate / at_a_time / 3600:.1f} h, {at_a_time} at a time, at "
            f"{1000 * rate:.0f} ms a push (median of the runs there are; evaluations not counted)"
        )
    return "\n".join(lines)


def seconds_per_push(scale: str) -> float | None:
    """Median wall seconds a push, evaluations left out, of the runs of that scale in outputs/."""
    found = [summary_of(path) for path in CELLS.glob("*")]
    made = [summary for summary in found if summary.get("scale") == scale and summary.get("wall_s")]
    rates = [summary["wall_s"] / summary["pushes"] for summary in made]
    return float(pd.Series(rates).median()) if rates else None
