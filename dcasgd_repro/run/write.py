"""A run directory: config, provenance, schedule, metrics, TensorBoard events and a summary.

config.yaml      the resolved configuration
provenance.json  argv, commit, versions, device, schedule and data identities, seeds
schedule.csv.gz  the message log that was replayed
metrics.csv      one row per logging interval, see COLUMNS
probe.csv        one row per probed push, with probe.every only; see taylor.py
checkpoint.pt    the whole state, see checkpoint.py; checkpoint.previous.pt the one before it
fingerprint.json the first pushes in float64, see fingerprint.py
summary.json     written last: a directory whose summary has the status "finished" is whole
tensorboard/     NAME: the same curves, the delay histogram and hparams. NAME.simulated_s: the
                 curves again, the wall time of each point its simulated second
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dcasgd_repro.cluster.place import processor
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.device import cuda_of
from dcasgd_repro.run.identity import differences, flat
from dcasgd_repro.run.read import (
    FINGERPRINT,
    begun,
    checkpoints,
    config_of,
    elsewhere,
    last_errors,
    origins,
    provenance_of,
)
from dcasgd_repro.schedule import Schedule
from dcasgd_repro.simulate import Step

COLUMNS = (
    "push",  # gradients the server has received
    "update",  # how often w has moved
    "epoch",  # pushes x batch / images
    "simulated_s",  # the server's clock, simulated seconds
    "wall_s",  # seconds since the first push, evaluations left out
    "lr",
    "train_loss",  # mean over the interval's mini-batches, weight decay's penalty included
    "train_error",  # in [0, 1], like test_error; evaluations only
    "test_error",  # of the images evaluated on: where summary.json says "evaluated_on":
    "test_loss",  # "validation", the validation images; else the test images
    "delay_mean",  # over the interval, in server updates
    "delay_max",
    "dc_ratio",  # mean over the interval of ||correction|| / ||g||
    "gap_norm",  # mean over the interval of ||w_t - w_bak(m)||
    "grad_norm",  # mean over the interval of ||g_m||
    "w_norm",  # ||w_t||
    "batch_error",  # in [0, 1], mini-batches' own as they train, mean since the last evaluation
)

SIMULATED = ".simulated_s"  # ends the name of the curves over simulated time
TENSORBOARD = {
    "error/train": "train_error",
    "error/test": "test_error",
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "delay/mean": "delay_mean",
    "delay/max": "delay_max",
    "dc/ratio": "dc_ratio",
    "dc/gap": "gap_norm",
    "error/batch": "batch_error",
    "norm/gradient": "grad_norm",
    "norm/weights": "w_norm",
    "time/simulated": "simulated_s",
    "lr": "lr",
}


def row(steps: Sequence[Step]) -> dict[str, Any]:
    """One row of metrics from an interval's Steps; their device scalars are fetched here, once."""
    last, delays = steps[-1], [step.delay for step in steps]
    scalars = [torch.stack([s.loss.double(), s.dc_ratio, s.gap_norm]) for s in steps]
    loss, dc_ratio, gap_norm = torch.stack(scalars).mean(0).tolist()
    return {
        "push": last.push,
        "update": last.update,
        "simulated_s": last.clock_s,
        "lr": last.lr,
        "train_loss": loss,
        "delay_mean": sum(delays) / len(delays),
        "delay_max": max(delays),
        "dc_ratio": dc_ratio,
        "gap_norm": gap_norm,
    }


def totals(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's closing numbers, from its rows and its flat config.

    Best, final and last-10 are three different numbers: over all evaluations, at the last one, and
    the mean of the last ten after the last drop of the learning rate. The paper's Table 1 is the
    best.
    """
    test = [row["test_error"] for row in rows if "test_error" in row]
    train = [row["train_error"] for row in rows if "train_error" in row]
    loss = [row["test_loss"] for row in rows if "test_loss" in row]
    last: np.ndarray | list[float]
    last = last_errors(pd.DataFrame(rows), config, "test_error") if test else []
    end = rows[-1] if rows else {}
    pushes = np.diff([0, *(row["push"] for row in rows)])

    def mean(key: str) -> float | None:
        return float(np.average([row[key] for row in rows], weights=pushes)) if rows else None

    return {
        "test_error_final": test[-1] if test else None,
        "test_error_best": min(test) if test else None,
        "test_error_last10": float(np.mean(last)) if len(last) else None,
        "train_error_final": train[-1] if train else None,
        "test_loss_final": loss[-1] if loss else None,
        "simulated_s": end.get("simulated_s"),
        "wall_s": end.get("wall_s"),
        "delay_mean": mean("delay_mean"),
        "delay_max": max((row["delay_max"] for row in rows), default=None),
        "dc_ratio_mean": mean("dc_ratio"),
    }


@dataclass
class Progress:
    """How far a run's records have come: what a checkpoint keeps of them, in plain containers."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.csv
    interval: list[Step] = field(default_factory=list)  # since the last row
    delays: list[int] = field(default_factory=list)  # since the last histogram
    histograms: list[tuple[int, list[int]]] = field(default_factory=list)  # push, counts by delay
    wall_s: float = 0.0  # seconds before this process took over, evaluations left out
    checkpoint_s: float = 0.0  # seconds spent on checkpoints in all,
    last_checkpoint_s: float = 0.0  # and on the last one

    def packed(self) -> dict[str, Any]:
        """In plain containers; the interval's scalars become floats, which hold them exactly."""
        interval = [[x.item() if isinstance(x, Tensor) else x for x in s] for s in self.interval]
        return {**vars(self), "interval": interval}

    @classmethod
    def unpacked(cls, content: Mapping[str, Any], device: torch.device) -> Progress:
        """The interval's scalars go back to the device, where the next Steps' will be."""
        interval = []
        for values in content["interval"]:
            step = Step(*values)
            scalars = torch.tensor([step.loss, step.dc_ratio, step.gap_norm], dtype=torch.float64)
            loss, dc_ratio, gap_norm = scalars.to(device).unbind()
            interval.append(step._replace(loss=loss, dc_ratio=dc_ratio, gap_norm=gap_norm))
        return cls(**{**content, "interval": interval})


class Table:
    """A CSV file written under a temporary name until ``show``, then added to in its own place."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("w", newline="")
        self._csv = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._csv.writeheader()

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; what it lacks is an empty cell."""
        self._csv.writerow({key: _number(row.get(key)) for key in self.columns})

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Waits until the disk has the rows."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def show(self) -> None:
        """Puts the file, whole, in the place of the one there was."""
        os.replace(self._temporary, self.path)

    def close(self) -> None:
        self._file.close()


class Logs:
    """The CSV files and TensorBoard of a run directory, begun with the rows there already are.

    They are written anew from those rows, so that a resumed run has each row once, whatever the
    process before it had written after its last checkpoint. ``on``: the images evaluated on.
    ``probed`` are the rows of probe.csv and their columns; None: there is no such file.
    ``name`` is the run's, as TensorBoard has it.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        progress: Progress,
        on: str = "test",
        probed: tuple[Sequence[Mapping[str, Any]], Sequence[str]] | None = None,
        name: str = "run",
    ) -> None:
        self._tags = {tag.replace("/test", f"/{on}"): key for tag, key in TENSORBOARD.items()}
        self._metrics = Table(path / "metrics.csv", COLUMNS)
        self._probe = Table(path / "probe.csv", probed[1]) if probed else None
        shutil.rmtree(path / "tensorboard", ignore_errors=True)
        self._board = SummaryWriter(str(path / "tensorboard" / name))
        self._simulated = SummaryWriter(str(path / "tensorboard" / f"{name}{SIMULATED}"))
        experiment, start, self._end = hparams(dict(settings), {f"error/{on}": 0, "dc/ratio": 0})
        for part in (experiment, start):
            self._events.add_summary(part)
        for row in progress.rows:
            self._append(row)
        for push, counts in progress.histograms:
            self._histogram(push, counts)
        for measured in probed[0] if probed else ():
            self._probed(measured)
        self.sync()
        for table in self._tables:
            table.show()

    @property
    def _events(self) -> Any:
        """TensorBoard's file; torch annotates it as None, which it is once closed."""
        return self._board.file_writer

    @property
    def _tables(self) -> list[Table]:
        return [table for table in (self._metrics, self._probe) if table]

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one row of metrics.csv."""
        self._append(row)
        self._metrics.flush()

    def probe(self, row: Mapping[str, Any]) -> None:
        """Appends one row of probe.csv."""
        self._probed(row).flush()

    def histogram(self, push: int, counts: Sequence[int]) -> None:
        """How often each delay from 0 on occurred since the last histogram."""
        self._histogram(push, counts)

    def sync(self) -> None:
        """Waits until the disk has the rows."""
        for table in self._tables:
            table.sync()

    def close(self, finished: bool) -> None:
        """Closes the files; a finished run's hparams session ends with it."""
        if finished:
            self._events.add_summary(self._end)
        self._board.close()
        self._simulated.close()
        for table in self._tables:
            table.close()

    def _append(self, row: Mapping[str, Any]) -> None:
        self._metrics.append(row)
        self._scalars(row, self._tags)
        for tag, key in self._tags.items():
            if row.get(key) is not None:
                self._simulated.add_scalar(tag, row[key], row["push"], row["simulated_s"])

    def _probed(self, row: Mapping[str, Any]) -> Table:
        assert self._probe is not None
        self._probe.append(row)
        # After push, epoch and worker: a curve for each column.
        self._scalars(row, {f"probe/{key}": key for key in self._probe.columns[3:]})
        return self._probe

    def _scalars(self, row: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        for tag, key in tags.items():
            if row.get(key) is not None:
                self._board.add_scalar(tag, row[key], row["push"])

    def _histogram(self, push: int, counts: Sequence[int]) -> None:
        delays = np.repeat(np.arange(len(counts)), counts)
        bins = np.arange(len(counts) + 1) - 0.5  # one for each whole delay
        self._board.add_histogram("delay/histogram", delays, push, bins=bins)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes the run directory and holds it: no other process can, until this one ends or dies."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise BadInput("run_dir", path, f"cannot write there ({error.strerror})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput("run_dir", path, "another process is writing this run") from None
        yield
    finally:
        os.close(handle)


def refuse_other_run(config: Mapping[str, Any], path: Path) -> None:
    """Refuses a directory whose run has another config, naming the differences.

    Without its config.yaml the checkpoint alone tells, see ``Experiment.resume``.
    """
    if not begun(path) and checkpoints(path):
        return
    theirs = flat(config_of(path, "run_dir"))
    if other := differences(theirs, flat(config)):
        raise BadInput("run_dir", path, f"holds a run with {other}; name another directory")


def note_origin(
    config: Mapping[str, Any],
    path: Path,
    schedule: Schedule,
    process: Mapping[str, Any],
    identity: Mapping[str, Any],
    pushes: int,
) -> str:
    """Writes schedule, provenance and config; where the run goes on, adds to its provenance.

    ``process`` tells of this process, ``identity`` of schedule and data. The config comes last: a
    directory that has one has the others. Returns in what this is another place than the one the
    run was last at; "" where in nothing.
    """
    moved = ""
    content = {**process, **identity, "seeds": config.get("seeds")}
    if "sources" in config:
        content["sources"] = config["sources"]
    if pushes:
        try:
            first = provenance_of(path)
            moved = elsewhere(origins(first)[-1], process)
            again = {"after_push": pushes, **process}
            if (now := content.get("sources")) != first.get("sources"):
                again["sources"] = now
            first["resumed"] = [*first.get("resumed", []), again]
            content = first
        except (BadInput, TypeError, KeyError):
            content["resumed"] = [{"after_push": pushes, "note": "earlier provenance was lost"}]
    schedule.save(path / "schedule.csv.gz")
    write_json(path / "provenance.json", content)
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    return moved


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; what is not finite becomes null."""
    text = json.dumps({k: _finite(v) for k, v in content.items()}, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_fingerprint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a run's fingerprint.json, a line for each push."""
    lines = {key: json.dumps(value) for key, value in content.items()}
    if "steps" in content:
        lines["steps"] = "[\n    " + ",\n    ".join(map(json.dumps, content["steps"])) + "\n  ]"
    inside = ",\n".join(f'  "{key}": {line}' for key, line in lines.items())
    write_text(path / FINGERPRINT, f"{{\n{inside}\n}}\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, and waits until the disk has it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def weights_sha256(w: Tensor) -> str:
    """sha256 of the vector's little-endian bytes: equal if and only if every bit is."""
    values = w.detach().cpu().numpy()
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run was made: commit, versions, device."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "dcasgd_repro", "conf", "pyproject.toml")
    packages = ("torch", "torchvision", "numpy", "hydra-core", "dcasgd-repro")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "git_commit": commit,
        "git_dirty": None if commit is None else bool(changed),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "device": device.type,
        "device_name": gpu or processor(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **cuda_of(device),
    }


def _version(package: str) -> str | None:
    """None where the package is not installed: ours can be run from its folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository around it would not be ours
        return None
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: Any) -> Any:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else value
