"""The composition root: a plan's objects, a loop over them, and their run directory."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from dcasgd_repro.errors import BadInput, is_ours
from dcasgd_repro.fast.fused import fuse
from dcasgd_repro.fast.graphs import check_device
from dcasgd_repro.reactive import Followed, Reactive, may_stop
from dcasgd_repro.rules import Arrival, Rule
from dcasgd_repro.run import checkpoint, taylor, write
from dcasgd_repro.run.check import (
    LEAF,
    TASK,
    Watched,
    check_loss,
    check_measured,
    check_methods,
    check_start,
)
from dcasgd_repro.run.device import set_device
from dcasgd_repro.run.faults import Stop, machine_faults, own_faults
from dcasgd_repro.run.fingerprint import fingerprint
from dcasgd_repro.run.identity import (
    differences,
    evaluated_on,
    flat,
    misplaced,
    precision,
    task_name,
)
from dcasgd_repro.run.plan import Plan
from dcasgd_repro.run.probe import Probe, probe_of
from dcasgd_repro.run.read import (
    DIVERGED,
    ENDED,
    FAILED,
    FINGERPRINT,
    FINISHED,
    INTERRUPTED,
    STOPPED,
    begun,
    config_of,
    pushes_of,
    status_of,
    summary_of,
    threads_per_gradient,
)
from dcasgd_repro.schedule import PUSH, Recording, Schedule, repeats
from dcasgd_repro.schedule.live import Event, going_on, recorded
from dcasgd_repro.simulate import Server, Step, norm, simulate

if TYPE_CHECKING:  # a plan's task is Any: here mypy holds our tasks to what the engines ask of one
    from dcasgd_repro.local import LocalSteps
    from dcasgd_repro.simulate import Task
    from dcasgd_repro.tasks import Classifier, QuadraticTask

    TASKS: tuple[type[Task], ...] = (Classifier, QuadraticTask, LocalSteps)


def run(
    plan: Plan,
    argv: Sequence[str] = (),
    say: Callable[[str], None] = print,
    until: int | None = None,
) -> Path:
    """Makes the run that ``plan`` describes, or goes on with it; returns the run directory.

    Its summary tells the status. It stops after push ``until``, as if interrupted. Raises BadInput,
    before anything is written, for a plan that cannot be run and for a directory that holds another
    run; Failure where the machine gives out.
    """
    device = set_device(*plan.means())
    check_device(precision(plan.config), device.type)
    path = plan.directory(time.strftime("%Y%m%d-%H%M%S"))
    plan = edited(plan, path)
    with own_faults(plan.parts), machine_faults(path):
        log = recorded(path, plan.log()) if plan.live else plan.log()
        if ended(plan, path, log, say):
            return path
        check_methods(plan.task, LEAF)
        try:
            task = plan.task.on(device)
        except BadInput as error:
            raise plan.named("task.data", error) from None
        check_methods(task, TASK)
        check_sizes(plan, task)
        w = task.initial(plan.initial_seed)
        check_start(task, w)
        check_state(plan.rule, w)
        server = Server(plan.rule, w, plan.workers, plan.backup)
        if plan.live:
            engine: Any = plan.engine
            engine.check(task, server)
        if plan.fused:
            fuse(server)
        elif not is_ours(plan.rule):
            server.rule = Watched(plan.rule, training=True)
        experiment = Experiment(plan, path, log, task, server, probe_of(plan, task, server), until)
        with write.locked(path):
            if ended(plan, path, log, say):  # by another process, meanwhile
                return path
            experiment.resume(device)
            say(describe(plan, len(server.w), device, path))
            for note in notes(plan, log):
                say(f"note      {note}")
            for key, hashes in plan.config.get("sources", {}).items():
                if "+" in hashes:
                    say(f"note      the files of {key} were edited: verify will refuse this run")
            if server.pushes:
                say(f"going on  after push {server.pushes:,} of {plan.length.pushes:,}")
            if plan.stop < plan.length.pushes:
                place = f"epoch {plan.stop_epoch:g}, push {plan.stop:,}"
                say(f"stopping  after {place}, to go on later")
            process = {"argv": list(argv), "engine": plan.config["engine"]["_target_"]}
            process |= write.environment(device)
            process["threads_per_gradient"] = threads_per_gradient(process)
            log, identity = experiment.log, experiment.identity
            if plan.live:
                del identity["schedule_sha256"]  # it is not made yet
            made = plan.config, path, log, process, identity, server.pushes
            if moved := write.note_origin(*made):
                say(f"note      goes on elsewhere, where float32 sums may differ: {moved}")
            experiment.drive()
    return path


def edited(plan: Plan, path: Path) -> Plan:
    """With resume=edited the plan under both hashes, was+now, of each file edited since ``path``.

    Such a run is no other's, and never again the one that its files alone would make.
    """
    if plan.resume != "edited" or not begun(path):
        return plan
    ended = status_of(path) in ENDED  # which no file can change
    was, both = config_of(path).get("sources") or {}, dict(plan.config.get("sources", {}))
    for key, now in both.items():
        known = str(was.get(key, now))
        if known.rpartition("+")[2] == now:
            both[key] = known
        elif not ended:
            both[key] = f"{known}+{now}"
    return replace(plan, config={**plan.config, "sources": both}) if both else plan


def check_state(rule: Rule, w: torch.Tensor) -> None:
    """Refuses a rule whose state, before or after an arrival, no checkpoint can hold: BadInput."""
    first = rule.init(w, 1)
    checkpoint.check_held(first, checkpoint.kinds(first))
    made = rule.direction(Arrival(w, w, w, 0, 0, 0.1), first)
    checkpoint.check_held(made.state, checkpoint.kinds(first))


def check_sizes(plan: Plan, task: Any) -> None:
    """Refuses data of another size than the run's length says, which a data set tells when loaded.

    Tries the network on two of its images too. Raises BadInput.
    """
    images = getattr(task, "images", None)
    message = (("images", "size", "images"), ("batch", "batch_size", "images a batch"))
    for key, name, what in message:
        ours, theirs = getattr(plan.length, key), getattr(images, name, None)
        if theirs is not None and theirs != ours:
            raise BadInput(key, ours, f"the data has {theirs:,} {what}; give {key}={theirs}")
    _ = getattr(task, "draws", None)


def ended(plan: Plan, path: Path, log: Schedule, say: Callable[[str], None]) -> bool:
    """Whether this very run stands there already, as far as the plan asks.

    Refuses a directory that holds another run, or that a study named for another one.
    """
    if misplaced(plan.config, path):
        remedy = "is named for another run; was a file edited since its study began? Run that again"
        raise BadInput("run_dir", path, remedy)
    status = status_of(path)
    if status is not None:
        write.refuse_other_run(plan.config, path)
    if status not in (*ENDED, STOPPED):
        return False
    summary = summary_of(path)
    if status == STOPPED and summary["pushes"] < plan.stop:
        return False
    made_with = summary.get("schedule_sha256")
    if made_with != log.sha256():
        raise BadInput("run_dir", path, f"was made with another schedule_sha256: {made_with}")
    asked = plan.probe_every or plan.batch_error_every
    note = "; what the probe asks for is measured as a run goes, not afterwards" if asked else ""
    say(f"run_dir {path} holds this very run, {status} already; nothing to do{note}")
    return True


@dataclass
class Experiment:
    """A run's objects, and the loop that drives them into its run directory."""

    plan: Plan
    path: Path
    log: Schedule
    task: Any
    server: Server
    probe: Probe
    until: int | None = None  # the push to be interrupted after; None: none
    progress: write.Progress = field(default_factory=write.Progress)
    recording: Recording | None = None  # of a live run
    kept: int = 0  # pushes before the last checkpoint

    def __post_init__(self) -> None:
        self.kinds = checkpoint.kinds(self.server.state)
        rule, reactive = self.plan.rule, isinstance(self.plan.schedule, Reactive)
        self.followed = Followed(rule, self.log) if reactive and may_stop(rule) else None

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it, beside its config."""
        md5 = getattr(self.task, "md5", {})  # a task of a user's own may have no files
        return {"schedule_sha256": self.log.sha256(), "data_md5": md5}

    def resume(self, device: torch.device) -> None:
        """Takes over the newest checkpoint, if there is one."""
        saved = checkpoint.load(self.path, device)
        if self.plan.live:
            self._record(saved["server"]["pushes"] if saved else 0)
        if saved is None:
            return
        if other := differences(flat(saved.get("config", {})), flat(self.plan.config)):
            raise BadInput("run_dir", self.path, f"holds a checkpoint of a run with {other}")
        for name, value in self.identity.items():
            if (found := saved.get(name)) != value:
                raise BadInput("run_dir", self.path, f"was made with another {name}: {found}")
        checkpoint.unpack(self.server, saved["server"])
        self.progress = write.Progress.unpacked(saved["progress"], device)
        self.kept = self.server.pushes
        self.probe.unpack(saved.get("probe", {}))

    def _record(self, at: int) -> None:
        """Goes on with a live run's log after push ``at``; what came later is lost, and noted."""
        plan = self.plan
        self.recording = going_on(self.path, self.log, plan.schedule, plan.stop, at)
        self.log = self.recording.log
        if status_of(self.path) in ("unfinished", FAILED) and begun(self.path):
            lost = max(0, pushes_of(self.path) - at)
            event = Event(self.recording.clock_s, "driver lost", pushes=lost)
            self.recording.events.append(event)

    def drive(self) -> None:
        """Runs to the end, a divergence or a signal; leaves a checkpoint and a summary."""
        (self.path / "summary.json").unlink(missing_ok=True)
        if not self.server.pushes:  # what is there is of a run that was lost
            (self.path / FINGERPRINT).unlink(missing_ok=True)
        probe, on = self.probe, evaluated_on(self.plan.config)
        probed = (probe.rows, taylor.COLUMNS) if probe.every or probe.rows else None
        logs = write.Logs(
            self.path, hparams(self.plan), self.progress, on, probed, self.plan.called
        )
        outcome: dict[str, Any] = {"status": FAILED}
        try:
            with own_faults(self.plan.parts):
                reached = self._loop(logs)
            if self.server.pushes:  # a live run may be stopped before its first
                self._keep(logs)
            if reached["status"] in (*ENDED, STOPPED) and not (self.path / FINGERPRINT).exists():
                made = fingerprint(self.plan, self.log, self.task)
                write.write_fingerprint(self.path, made)
            outcome = reached  # only once all of it is on the disk
        except BadInput as error:
            raise BadInput(error.key, error.value, f"{error.remedy}; {self._left()}") from error
        finally:
            logs.close(outcome["status"] == FINISHED)
            write.write_json(self.path / "summary.json", self._summary(outcome))

    def _left(self) -> str:
        """What there is of a run that was refused on its way."""
        words = f"after push {self.server.pushes:,}"
        if self.followed:  # which ends at once when it goes on
            return words
        if not self.kept:
            return f"{words}, and before a checkpoint"
        words += f"; the same command goes on after push {self.kept:,}"
        if self.plan.config.get("sources"):
            again = f"run_dir={self.path} resume=edited"
            return f"{words}, or, where the file is edited, which makes another run, with {again}"
        return words

    def _steps(self) -> Generator[Step, None, None]:
        """The Steps still to come."""
        received = self.server.pushes
        if received >= self.plan.stop:
            return
        done = int(np.flatnonzero(self.log.kind == PUSH)[received - 1]) + 1 if received else 0
        engine = self.plan.engine or simulate
        messages: Any = self.recording or self.log[done:]
        yield from engine(self.task, self.server, messages, self.plan.lr(self.server))

    def _loop(self, logs: write.Logs) -> dict[str, Any]:
        """Follows the Steps; returns the status, and what stopped it or where it diverged."""
        plan, progress, every_s = self.plan, self.progress, self.plan.checkpoint_s
        on = evaluated_on(plan.config)
        clock = Stopwatch(progress.wall_s)
        kept = time.perf_counter()
        often = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a log file wants few lines
        bar = tqdm(
            total=min(plan.stop, self.until or plan.stop),
            initial=self.server.pushes,
            unit="push",
            dynamic_ncols=True,
            mininterval=often,
        )
        # Closed before anything else is done: an engine may hold processes.
        with bar, Stop() as stop, contextlib.closing(self._steps()) as steps:
            self._follow(logs)
            if self.recording:  # its gradients may take long
                self.recording.stopping = lambda: stop.signal is not None
            for step in steps:
                check_loss(self.task, step.loss)
                progress.interval.append(step)
                progress.wall_s = clock.seconds()
                bar.update()
                self._follow(logs)
                if self.probe.rows and self.probe.rows[-1]["push"] == step.push:
                    logs.probe(self.probe.rows[-1])
                evaluate = plan.length.ends(step.push, plan.eval_every)
                if evaluate or step.push % plan.log_every == 0:
                    diverged = first_divergence(progress.interval, self.server.w)
                    with clock.paused():
                        row = self._row(logs, evaluate and diverged is None)
                    bar.set_postfix(display(row, progress.rows, on), refresh=False)
                    if not math.isfinite(row.get("test_loss", 0.0)):
                        diverged = step.push
                    if diverged is not None:
                        return {"status": DIVERGED, "diverged_at_push": diverged}
                if step.push == plan.stop:
                    if progress.interval:  # since the last row
                        diverged = first_divergence(progress.interval, self.server.w)
                        if diverged is not None:
                            return {"status": DIVERGED, "diverged_at_push": diverged}
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
            if self.recording and stop.signal is not None and self.server.pushes < plan.stop:
                self.recording.end_at_push()  # it stopped between two Steps
                return {"status": INTERRUPTED, "stopped_by": stop.signal}
        return {"status": self._whole()}

    def _follow(self, logs: write.Logs) -> None:
        """Ends a reactive run whose rule would stop others than its log does, with a checkpoint.

        A run that goes on from there ends at once. Raises BadInput.
        """
        if self.followed is None or not 0 < self.server.pushes < self.plan.length.pushes:
            return
        try:
            self.followed.check(self.server)
        except BadInput:
            self._keep(logs)
            raise

    def _whole(self) -> str:
        """The status of a run that has come as far as it was asked to."""
        return FINISHED if self.server.pushes == self.plan.length.pushes else STOPPED

    def _row(self, logs: write.Logs, evaluate: bool) -> dict[str, Any]:
        """Closes the interval with a row, an evaluation's if it is time for one."""
        progress, push = self.progress, self.server.pushes
        row = {"epoch": self.plan.length.epoch(push), "wall_s": progress.wall_s}
        row |= write.row(progress.interval)
        row["grad_norm"] = torch.stack(self.probe.grad_norms).mean().item()
        row["w_norm"] = norm(self.server.w).item()
        self.probe.grad_norms = []
        progress.delays += [step.delay for step in progress.interval]
        progress.interval = []
        if evaluate:
            measured = self.task.evaluate(self.server.w, self.server.sent)
            check_measured(self.task, measured)
            row |= measured
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

    def _keep(self, logs: write.Logs) -> None:
        """Writes a checkpoint; the rows it counts on are on the disk before it."""
        began = time.perf_counter()
        logs.sync()
        checkpoint.check_held(self.server.state, self.kinds)
        if self.recording:
            self.log = self.recording.save(self.path)
        content = {
            "config": flat(self.plan.config),
            "server": checkpoint.pack(self.server),
            "progress": self.progress.packed(),
            "probe": self.probe.packed(),
        }
        checkpoint.save(self.path, {**self.identity, **content})
        self.kept = self.server.pushes
        self.progress.last_checkpoint_s = time.perf_counter() - began
        self.progress.checkpoint_s += self.progress.last_checkpoint_s

    def _summary(self, outcome: dict[str, Any]) -> dict[str, Any]:
        plan, server = self.plan, self.server
        label = vars(type(plan.rule)).get("label")  # a subclass is another rule
        return {
            **outcome,
            "evaluated_on": evaluated_on(plan.config),
            "exp": plan.name,
            "name": plan.called,
            "tags": list(plan.tags),
            "scale": plan.scale,
            "task": task_name(plan.config),
            "rule": plan.rule.name,
            **({"rule_label": label} if label else {}),
            "workers": plan.workers,
            "seed": plan.config["seed"],
            "pushes": server.pushes,
            "updates": server.t,
            "epochs": plan.length.epoch(server.pushes),
            **write.totals(self.progress.rows, flat(plan.config)),
            "checkpoint_s": self.progress.checkpoint_s,
            **(self.recording.totals() if self.recording else {}),
            "in_rounds": self.log.in_rounds,
            "schedule_sha256": self.identity["schedule_sha256"],
            "weights_sha256": write.weights_sha256(server.w),
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


def describe(plan: Plan, parameters: int, device: torch.device, path: Path) -> str:
    """What the run resolved to, a line for each part."""
    length, model = plan.length, getattr(plan.task, "model", None)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    network = "" if model is None else f"{model}, "
    steps = length.local_steps
    local = "" if steps == 1 else f", {steps} local steps a push at lr {plan.task.local_lr:g}"
    division = getattr(plan.task, "division", None)
    local += f", split by {division}" if division and plan.workers > 1 else ""
    lines = {
        "name": plan.called,
        "rule": plan.rule,
        "workers": f"{plan.workers}, backup at {plan.backup}",
        "schedule": plan.schedule,
        "task": f"{task_name(plan.config)}, {network}{parameters:,} parameters{local}",
        "length": f"{length.epochs:g} epochs of {length.images:,} images in batches of "
        f"{length.batch}: {length.pushes:,} pushes",
        "lr": plan.rate,
        "device": gpu or f"cpu, {torch.get_num_threads()} threads",
        "seed": plan.config["seed"],
        "run_dir": path,
    }
    return "\n".join(f"{key:9} {value}" for key, value in lines.items())


def notes(plan: Plan, log: Schedule) -> Iterator[str]:
    """What a reader of the plan may not expect of it."""
    if evaluated_on(plan.config) == "validation":
        images = f"the {plan.config['validation']:,} validation images"
        yield f"errors are of {images}; no test image is looked at"
    if plan.rule.for_rounds and not log.in_rounds:
        name = plan.rule.name
        yield f"no barrier: {name} averages gradients as they come (schedule.barrier=true)"
    if said := repeats(plan.schedule, log.pushes):
        yield said
    if getattr(plan.schedule, "virtual", None):
        yield "every push has its own delay, whatever the workers do: they are virtual"
    if log.stopped and not plan.live:
        causes = ["the rule stops a worker"] if hasattr(plan.schedule, "rule") else []
        times = getattr(plan.schedule, "times", plan.schedule)
        causes += ["a worker fails"] if getattr(times, "failures", None) else []
        what = " or ".join(causes or ["a worker begins anew"])  # that of a file
        yield f"{what} {log.stopped:,} times; what it was computing is lost"
    if plan.backup != "pull" and not pulls_later(log):
        first = " but for each worker's first push" if plan.backup == "push_from_zero" else ""
        same = f"so backup={plan.backup} is backup=pull{first}"
        yield f"every pull rides on a push here, {same}: see request_share"


def pulls_later(schedule: Schedule) -> bool:
    """Whether another worker's push ever comes between a worker's push and its next pull."""
    sender, reads = schedule.worker[schedule.kind == PUSH], schedule.reads()
    order = np.argsort(sender, kind="stable")
    same = sender[order][1:] == sender[order][:-1]
    return bool(np.any(same & (reads[order][1:] != order[:-1] + 1)))


def hparams(plan: Plan) -> dict[str, Any]:
    """The columns of TensorBoard's hparams table: rule, workers, schedule, lr, seed, what differs.

    What differs is what was typed beside; the run's tags come last.
    """
    rate = getattr(plan.rate, "base", None)
    columns = {
        "rule": plan.rule.name,
        "workers": plan.workers,
        "schedule": plan.schedule_name or type(plan.schedule).__name__,
        "lr": str(plan.rate) if rate is None else rate,
        "seed": plan.config["seed"],
        **{key: value for key, value in plan.typed.items() if key not in ("lr.base", "schedule")},
        **({"tags": " ".join(plan.tags)} if plan.tags else {}),
    }
    return {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in columns.items()
    }
