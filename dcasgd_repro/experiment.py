"""The composition root: a config becomes objects, the objects a loop, the loop a run directory."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dcasgd_repro import checkpoint, record, taylor
from dcasgd_repro.config import (
    Length,
    build,
    config_hash,
    differences,
    evaluated_on,
    flat,
    length_of,
    named,
    schedule_of,
    stop_push,
    task_name,
)
from dcasgd_repro.device import seconds_per_gradient, set_device
from dcasgd_repro.errors import BadInput, check_choice, check_number
from dcasgd_repro.fast.fused import fuse
from dcasgd_repro.faults import Stop, machine_faults
from dcasgd_repro.probe import Probe, probe_of
from dcasgd_repro.rules import Rule
from dcasgd_repro.schedule import PUSH, Schedule
from dcasgd_repro.simulate import Server, Step, norm

FINISHED, DIVERGED, INTERRUPTED, FAILED = "finished", "diverged", "interrupted", "failed"
STOPPED = "stopped"  # at stop_epoch, to go on later
ENDED = (FINISHED, DIVERGED)


def run(
    cfg: DictConfig,
    argv: Sequence[str] = (),
    say: Callable[[str], None] = print,
    until: int | None = None,
) -> Path:
    """Runs what ``cfg`` describes, or goes on with it; returns the run directory.

    Its summary tells the status. It stops after push ``until``, as if interrupted. Raises BadInput,
    before anything is written, for a config that cannot be run and for a directory that holds
    another run; Failure where the machine gives out.
    """
    length, device = length_of(cfg), set_device(cfg)
    stop = stop_push(cfg, length)
    rule, leaf, rate, engine = (build(cfg, key) for key in ("rule", "task", "lr", "engine"))
    check_number("checkpoint.every_s", cfg.checkpoint.every_s)
    check_choice("fused", cfg.fused, (True, False))
    path = run_dir(cfg)
    with machine_faults(path):
        schedule = schedule_of(cfg, length.pushes)
        if ended(cfg, path, schedule, stop, say):
            return path
        try:
            task = leaf.on(device)
        except BadInput as error:
            raise named(cfg, "task.data", error) from None
        server = Server(rule, task.initial(cfg.seeds.initial), cfg.workers, cfg.backup)
        if cfg.fused:
            fuse(server)
        parts = (task, server, probe_of(cfg, task, server), rate, engine)
        experiment = Experiment(cfg, path, length, schedule, *parts, stop, until)
        with record.locked(path):
            if ended(cfg, path, schedule, stop, say):  # by another process, meanwhile
                return path
            experiment.resume(device)
            say(describe(cfg, rule, leaf, length, len(server.w), device, path))
            for note in notes(cfg, rule, schedule):
                say(f"note      {note}")
            if server.pushes:
                say(f"going on  after push {server.pushes:,} of {length.pushes:,}")
            if stop < length.pushes:
                say(f"stopping  after epoch {cfg.stop_epoch:g}, push {stop:,}, to go on later")
            here = {"argv": list(argv), "engine": cfg.engine._target_}
            here |= record.environment(device)
            record.note_origin(cfg, path, schedule, here, experiment.identity, server.pushes)
            experiment.drive()
    return path


def ended(
    cfg: DictConfig, path: Path, schedule: Schedule, stop: int, say: Callable[[str], None]
) -> bool:
    """Whether this very run stands there already, as far as push ``stop`` if it was stopped.

    Refuses a directory that holds another run.
    """
    status = record.status_of(path)
    if status is not None:
        record.refuse_other_run(cfg, path)
    if status not in (*ENDED, STOPPED):
        return False
    summary = json.loads((path / "summary.json").read_text())
    if status == STOPPED and summary["pushes"] < stop:
        return False
    made_with = summary.get("schedule_sha256")
    if made_with != schedule.sha256():
        raise BadInput("run_dir", path, f"was made with another schedule_sha256: {made_with}")
    say(f"run_dir {path} holds this very run, {status} already; nothing to do")
    return True


@dataclass
class Experiment:
    """A run's objects, and the loop that drives them into its run directory."""

    cfg: DictConfig
    path: Path
    length: Length
    schedule: Schedule
    task: Any
    server: Server
    probe: Probe
    rate: Callable[[float], float]  # epochs passed -> learning rate
    engine: Callable[..., Iterator[Step]]  # simulate, or a faster one with its signature
    stop: int  # the push that the run ends with, or is left at to go on later
    until: int | None = None  # the push to be interrupted after; None: none
    progress: record.Progress = field(default_factory=record.Progress)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it, beside its config."""
        return {"schedule_sha256": self.schedule.sha256(), "data_md5": self.task.md5}

    def resume(self, device: torch.device) -> None:
        """Takes over the newest checkpoint, if there is one."""
        saved = checkpoint.load(self.path, device)
        if saved is None:
            return
        if told := differences(saved.get("config", {}), flat(self.cfg)):
            raise BadInput("run_dir", self.path, f"holds a checkpoint of a run with {told}")
        for name, value in self.identity.items():
            if (found := saved.get(name)) != value:
                raise BadInput("run_dir", self.path, f"was made with another {name}: {found}")
        checkpoint.unpack(self.server, saved["server"])
        self.progress = record.Progress.unpacked(saved["progress"])
        self.probe.unpack(saved.get("probe", {}))

    def drive(self) -> None:
        """Runs to the end, a divergence or a signal; leaves a checkpoint and a summary."""
        (self.path / "summary.json").unlink(missing_ok=True)
        probe, on = self.probe, evaluated_on(self.cfg)
        probed = (probe.rows, taylor.COLUMNS) if probe.every or probe.rows else None
        logs = record.Logs(self.path, hparams(self.cfg), self.progress, on, probed)
        outcome: dict[str, Any] = {"status": FAILED}
        try:
            outcome = self._loop(logs)
            self._keep(logs)
        finally:
            logs.close(outcome["status"] == FINISHED)
            record.write_json(self.path / "summary.json", self._summary(outcome))

    def _steps(self) -> Iterator[Step]:
        """The Steps still to come."""
        received = self.server.pushes
        done = int(np.flatnonzero(self.schedule.kind == PUSH)[received - 1]) + 1 if received else 0

        def lr(pushes: int) -> float:
            return self.rate(self.length.epoch(pushes))

        return self.engine(self.task, self.server, self.schedule[done:], lr)

    def _loop(self, logs: record.Logs) -> dict[str, Any]:
        """Follows the Steps; returns the status, and what stopped it or where it diverged."""
        progress, every_s = self.progress, self.cfg.checkpoint.every_s
        on = evaluated_on(self.cfg)
        clock = Stopwatch(progress.wall_s)
        kept = time.perf_counter()
        often = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a log file wants few lines
        bar = tqdm(
            total=self.stop,
            initial=self.server.pushes,
            unit="push",
            dynamic_ncols=True,
            mininterval=often,
        )
        steps = self._steps() if self.server.pushes < self.stop else ()
        with bar, Stop() as stop:
            for step in steps:
                progress.interval.append(step)
                progress.wall_s = clock.seconds()
                bar.update()
                if self.probe.rows and self.probe.rows[-1]["push"] == step.push:
                    logs.probe(self.probe.rows[-1])
                evaluate = self.length.ends(step.push, self.cfg.eval_every)
                if evaluate or step.push % self.cfg.log_every == 0:
                    diverged = first_divergence(progress.interval, self.server.w)
                    with clock.paused():
                        row = self._row(logs, evaluate and diverged is None)
                    bar.set_postfix(display(row, progress.rows, on), refresh=False)
                    if not math.isfinite(row.get("test_loss", 0.0)):
                        diverged = step.push
                    if diverged is not None:
                        return {"status": DIVERGED, "diverged_at_push": diverged}
                if step.push == self.stop:
                    break
                if step.push == self.until:
                    return {"status": INTERRUPTED, "stopped_by": "until"}
                if stop.signal is not None:
                    return {"status": INTERRUPTED, "stopped_by": stop.signal}
                # A slow disk never takes more than a hundredth of the time.
                waited = time.perf_counter() - kept
                if waited >= every_s and (
                    not every_s or waited >= 100 * progress.last_checkpoint_s
                ):
                    self._keep(logs)
                    kept = time.perf_counter()
        return {"status": self._whole()}

    def _whole(self) -> str:
        """The status of a run that has come as far as it was asked to."""
        return FINISHED if self.server.pushes == self.length.pushes else STOPPED

    def _row(self, logs: record.Logs, evaluate: bool) -> dict[str, Any]:
        """Closes the interval with a row, an evaluation's if it is time for one."""
        progress, push = self.progress, self.server.pushes
        row = {"epoch": self.length.epoch(push), "wall_s": progress.wall_s}
        row |= record.row(progress.interval)
        row["grad_norm"] = torch.stack(self.probe.grad_norms).mean().item()
        row["w_norm"] = norm(self.server.w).item()
        self.probe.grad_norms = []
        progress.delays += [step.delay for step in progress.interval]
        progress.interval = []
        if evaluate:
            row |= self.task.evaluate(self.server.w, self.server.sent)
            if errors := self.probe.batch_errors:
                row["batch_error"] = sum(errors) / len(errors)
                self.probe.batch_errors = []
            counts = np.bincount(progress.delays).tolist()
            progress.histograms.append((push, counts))
            progress.delays = []
            logs.histogram(push, counts)
        progress.rows.append(row)
        logs.log(row)
        return row

    def _keep(self, logs: record.Logs) -> None:
        """Writes a checkpoint; the rows it counts on are on the disk before it."""
        began = time.perf_counter()
        logs.sync()
        content = {
            "config": flat(self.cfg),
            "server": checkpoint.pack(self.server),
            "progress": self.progress.packed(),
            "probe": self.probe.packed(),
        }
        checkpoint.save(self.path, {**self.identity, **content})
        self.progress.last_checkpoint_s = time.perf_counter() - began
        self.progress.checkpoint_s += self.progress.last_checkpoint_s

    def _summary(self, outcome: dict[str, Any]) -> dict[str, Any]:
        cfg, server = self.cfg, self.server
        return {
            **outcome,
            "evaluated_on": evaluated_on(cfg),
            "exp": cfg.exp,
            "scale": cfg.scale,
            "task": task_name(cfg),
            "rule": server.rule.name,
            "workers": cfg.workers,
            "seed": cfg.seed,
            "pushes": server.pushes,
            "updates": server.t,
            "epochs": self.length.epoch(server.pushes),
            **record.totals(self.progress.rows, flat(cfg)),
            "checkpoint_s": self.progress.checkpoint_s,
            "in_rounds": self.schedule.in_rounds,
            "schedule_sha256": self.identity["schedule_sha256"],
            "weights_sha256": record.weights_sha256(server.w),
        }


class Stopwatch:
    """Seconds of training: from ``before`` on, pauses left out."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


def first_divergence(interval: Sequence[Step], w: torch.Tensor) -> int | None:
    """The first push of the interval whose loss is not finite; its last if only w is not."""
    finite = torch.isfinite(torch.stack([step.loss for step in interval])).tolist()
    if not all(finite):
        return interval[finite.index(False)].push
    return None if bool(torch.isfinite(w).all()) else interval[-1].push


def display(row: dict[str, Any], rows: Sequence[dict[str, Any]], on: str) -> dict[str, str]:
    """What the progress bar shows of a row, and of the last evaluation, on those images."""
    shown = {
        "epoch": f"{row['epoch']:.2f}",
        "sim": f"{row['simulated_s']:.0f}s",
        "loss": f"{row['train_loss']:.3f}",
        "delay": f"{row['delay_mean']:.2f}",
        "dc_ratio": f"{row['dc_ratio']:.1e}",
    }
    test = next((r["test_error"] for r in reversed(rows) if "test_error" in r), None)
    return shown if test is None else {**shown, f"{on}_error": f"{test:.2%}"}


def run_dir(cfg: DictConfig) -> Path:
    """``run_dir``; else, with resume=auto, this config's last run; else a new directory.

    New ones are outputs/<exp>/<time>-<hash of the config>.
    """
    check_choice("resume", cfg.resume, ("auto", "never"))
    if cfg.run_dir is not None:
        if not str(cfg.run_dir).strip():
            raise BadInput("run_dir", cfg.run_dir, "name a directory")
        return Path(str(cfg.run_dir))
    name = cfg.exp or f"{task_name(cfg)}_{cfg.rule._target_.rsplit('.', 1)[-1].lower()}"
    place, mark = Path("outputs") / name, config_hash(cfg)[:8]
    found = sorted(place.glob(f"*-{mark}")) if cfg.resume == "auto" else []
    runs = [(record.status_of(p) not in ENDED, p) for p in found if record.status_of(p)]
    if runs:
        return max(runs)[1]  # an unfinished one before a finished one, then the latest
    return place / f"{time.strftime('%Y%m%d-%H%M%S')}-{mark}"


def describe(
    cfg: DictConfig,
    rule: Any,
    leaf: Any,
    length: Length,
    parameters: int,
    device: torch.device,
    path: Path,
) -> str:
    """What the run resolved to, a line for each part."""
    schedule = str(build(cfg, "schedule"))
    model = f"{leaf.model}, " if hasattr(leaf, "model") else ""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    lines = {
        "rule": rule,
        "workers": f"{cfg.workers}, backup at {cfg.backup}",
        "schedule": schedule,
        "task": f"{task_name(cfg)}, {model}{parameters:,} parameters",
        "length": f"{length.epochs:g} epochs of {length.images:,} images in batches of "
        f"{length.batch}: {length.pushes:,} pushes",
        "lr": f"{cfg.lr.base:g}, x{cfg.lr.factor:g} after epochs {list(cfg.lr.milestones)}",
        "device": gpu or f"cpu, {torch.get_num_threads()} threads",
        "seed": cfg.seed,
        "run_dir": path,
    }
    return "\n".join(f"{key:9} {value}" for key, value in lines.items())


def scale_line(cfg: DictConfig) -> str:
    """Says which scale was chosen for want of one, and what the paper's run would take here."""
    device = set_device(cfg)
    seconds = seconds_per_gradient(device)
    hours = seconds * 160 * 50_000 / 128 / 3600
    found = "a CUDA device" if device.type == "cuda" else "no CUDA device"
    return (
        f"no scale given and {found}: scale={cfg.scale}. The paper's run (scale=paper) would take "
        f"about {hours:.1f} h here ({1000 * seconds:.0f} ms a ResNet-20 gradient, just measured)"
    )


def notes(cfg: DictConfig, rule: Rule, schedule: Schedule) -> Iterator[str]:
    """What a reader of the config may not expect of it."""
    if evaluated_on(cfg) == "validation":
        yield f"errors are of the {cfg.validation:,} validation images; no test image is looked at"
    if rule.for_rounds and not schedule.in_rounds:
        yield f"no barrier: {rule.name} averages gradients as they come (schedule.barrier=true)"
    if cfg.backup != "pull" and not pulls_later(schedule):
        first = " but for each worker's first push" if cfg.backup == "push_from_zero" else ""
        same = f"so backup={cfg.backup} is backup=pull{first}"
        yield f"every pull rides on a push here, {same}: see request_share"


def pulls_later(schedule: Schedule) -> bool:
    """Whether another worker's push ever comes between a worker's push and its next pull."""
    sender, reads = schedule.worker[schedule.kind == PUSH], schedule.reads()
    order = np.argsort(sender, kind="stable")
    same = sender[order][1:] == sender[order][:-1]
    return bool(np.any(same & (reads[order][1:] != order[:-1] + 1)))


def hparams(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as TensorBoard's hparams table takes it: scalars, lists as text."""
    return {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in flat(cfg).items()
    }
