"""A run directory: config, provenance, schedule, metrics, TensorBoard events and a summary.

config.yaml      the resolved configuration
provenance.json  argv, commit, versions, device, schedule and data identities, seeds
schedule.csv.gz  the message log that was replayed
metrics.csv      one row per logging interval, see COLUMNS
summary.json     written last: a directory whose summary has the status "finished" is whole
tensorboard/     the same curves, the delay histogram and hparams, in one run
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dcasgd_repro.errors import BadInput
from dcasgd_repro.schedule import Schedule
from dcasgd_repro.simulate import Step

COLUMNS = (
    "push",  # gradients the server has received
    "update",  # how often w has moved
    "epoch",  # pushes x batch / images
    "simulated_s",  # the server's clock, simulated seconds
    "wall_s",  # seconds since the first push, evaluations left out
    "lr",
    "train_loss",  # mean over the interval's mini-batches, each at the w its worker pulled
    "train_error",  # in [0, 1], like test_error; evaluations only
    "test_error",
    "test_loss",
    "delay_mean",  # over the interval, in server updates
    "delay_max",
    "dc_ratio",  # mean over the interval of ||correction|| / ||g||
    "gap_norm",  # mean over the interval of ||w_t - w_bak(m)||
)

TENSORBOARD = {
    "error/train": "train_error",
    "error/test": "test_error",
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "delay/mean": "delay_mean",
    "delay/max": "delay_max",
    "dc/ratio": "dc_ratio",
    "dc/gap": "gap_norm",
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


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's closing numbers, from its rows.

    Best, final and last-10 are three different numbers: over all evaluations, at the last one, and
    the mean of the last ten. The paper's Table 1 is the best.
    """
    test = [row["test_error"] for row in rows if "test_error" in row]
    train = [row["train_error"] for row in rows if "train_error" in row]
    loss = [row["test_loss"] for row in rows if "test_loss" in row]
    last = rows[-1] if rows else {}
    pushes = np.diff([0, *(row["push"] for row in rows)])

    def mean(key: str) -> float | None:
        return float(np.average([row[key] for row in rows], weights=pushes)) if rows else None

    return {
        "test_error_final": test[-1] if test else None,
        "test_error_best": min(test) if test else None,
        "test_error_last10": sum(test[-10:]) / len(test[-10:]) if test else None,
        "train_error_final": train[-1] if train else None,
        "test_loss_final": loss[-1] if loss else None,
        "simulated_s": last.get("simulated_s"),
        "wall_s": last.get("wall_s"),
        "delay_mean": mean("delay_mean"),
        "delay_max": max((row["delay_max"] for row in rows), default=None),
        "dc_ratio_mean": mean("dc_ratio"),
    }


class Run:
    """A run directory being written. Refuses a directory that already holds a run."""

    def __init__(self, path: Path, config: str, provenance: Mapping[str, Any]) -> None:
        refuse_used(path)
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(config)
        except OSError as error:
            raise BadInput("run_dir", path, f"cannot write there ({error.strerror})") from error
        write_json(path / "provenance.json", provenance)
        self._file = (path / "metrics.csv").open("w", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._csv.writeheader()
        self._board = SummaryWriter(str(path / "tensorboard"))
        self._delays: list[int] = []  # since the last histogram

    def schedule(self, schedule: Schedule) -> None:
        """Keeps the message log that is replayed."""
        schedule.save(self.path / "schedule.csv.gz")

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Opens the hparams session in this very run (``add_hparams`` would make a sub-run)."""
        experiment, start, self._end = hparams(dict(values), {"error/test": 0.0, "dc/ratio": 0.0})
        for part in (experiment, start):
            self._board.file_writer.add_summary(part)

    def log(self, row: Mapping[str, Any], delays: Sequence[int]) -> None:
        """Appends one row to metrics.csv and to TensorBoard, and at an evaluation a histogram."""
        self._csv.writerow({key: _number(row.get(key)) for key in COLUMNS})
        self._file.flush()
        for tag, key in TENSORBOARD.items():
            if row.get(key) is not None:
                self._board.add_scalar(tag, row[key], row["push"])
        self._delays.extend(delays)
        if "test_loss" in row:
            bins = np.arange(max(self._delays) + 2) - 0.5  # one bin for each whole delay
            counted = np.array(self._delays)
            self._board.add_histogram("delay/histogram", counted, row["push"], bins=bins)
            self._delays.clear()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the logs, then writes summary.json."""
        self._board.file_writer.add_summary(self._end)
        self._board.close()
        self._file.close()
        write_json(self.path / "summary.json", summary)


def refuse_used(path: Path) -> None:
    """Refuses a run directory that holds a run, finished or not, or that is no directory."""
    if path.exists() and not path.is_dir():
        raise BadInput("run_dir", path, "that is a file; name a directory")
    summary = path / "summary.json"
    if summary.exists() or (path / "config.yaml").exists():
        status = json.loads(summary.read_text())["status"] if summary.exists() else "unfinished"
        raise BadInput(
            "run_dir", path, f"already holds a run ({status}); name another directory or remove it"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; what is not finite becomes null."""
    text = json.dumps({k: _finite(v) for k, v in content.items()}, indent=2, allow_nan=False)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def weights_sha256(w: Tensor) -> str:
    """sha256 of the vector's little-endian bytes: equal if and only if every bit is."""
    values = w.detach().cpu().numpy()
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run was made: commit, versions, device."""
    packages = ("torch", "torchvision", "numpy", "hydra-core", "dcasgd-repro")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "device": device.type,
        "device_name": gpu or _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: Any) -> Any:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else value
