"""A run directory, read: the only place that parses its files. No torch."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dcasgd_repro import schedule
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import SEEDS, images_a_push, numbers, precision
from dcasgd_repro.schedule import Schedule
from dcasgd_repro.schedule.log import first

Types = Mapping[str, tuple[type, ...]]
FINISHED, DIVERGED, INTERRUPTED, FAILED = "finished", "diverged", "interrupted", "failed"
STOPPED = "stopped"  # at stop_epoch, to go on later
ENDED = (FINISHED, DIVERGED)  # has no push more to make
KEPT = ("config.yaml", "provenance.json", "metrics.csv", "summary.json")
FINGERPRINT = "fingerprint.json"  # kept too, where a run has one
# Types of what a kept run says: in its summary, of keys that a summary may lack, in its origins.
NUMBER, NONE = (int, float), type(None)
SUMMARY: Types = {
    "status": (str,),
    "rule": (str,),
    "workers": (int,),
    "seed": (int,),
    "pushes": (int,),
    "wall_s": (*NUMBER, NONE),
    "task": (str, NONE),
    "exp": (str, NONE),
    "scale": (str, NONE),
    "weights_sha256": (str, NONE),
}
MAY: Types = {
    "delay_mean": (*NUMBER, NONE),
    "diverged_at_push": (int,),
    "test_loss_final": (*NUMBER, NONE),
    "evaluated_on": (str,),
    "rule_label": (str,),
    "in_rounds": (bool, NONE),
    "updates": (int,),
}
ORIGIN: Types = {
    "versions": (dict,),
    "git_commit": (str, NONE),
    "git_dirty": (bool, NONE),
    "device": (str,),
    "device_name": (str, NONE),
    "threads": (int, NONE),
}
ROWS = {"push", "epoch", "simulated_s", "train_error", "test_error", "test_loss"}
VERIFIED = 200  # pushes whose rows are kept whole, so that a committed run can be verified


def mistyped(content: Any, must: Types, may: Types | None = None) -> str:
    """The first key that a kept file lacks or has of another type; "" if none."""
    if not isinstance(content, dict):
        return "content"
    wanted = {**must, **{key: types for key, types in (may or {}).items() if key in content}}
    for key, types in wanted.items():
        if key not in content or not isinstance(content[key], types):
            return key
    return ""


def summary_of(path: Path) -> dict[str, Any]:
    """A run's summary.json; empty where there is none to read."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((path / "summary.json").read_text())
        return content if isinstance(content, dict) else {}
    return {}


def check_there(key: str, path: Path) -> None:
    """Refuses a run's directory that is not there: BadInput, about ``key``."""
    if not path.exists():
        raise BadInput(key, path, "there is no such folder; give a run's, as outputs/cifar_dc/...")


def begun(path: Path) -> bool:
    """Whether a run was begun there: its config is what it writes first."""
    return (path / "config.yaml").exists()


def checkpoints(path: Path) -> bool:
    """Whether a directory has a checkpoint, whole or not."""
    return any(path.glob("checkpoint*.pt"))


def status_of(path: Path) -> str | None:
    """The status in a run directory's summary; "unfinished" without one; None: no run there."""
    if path.exists() and not path.is_dir():
        raise BadInput("run_dir", path, "that is a file; name a directory")
    summary = path / "summary.json"
    if summary.exists():
        try:
            return str(json.loads(summary.read_text())["status"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            if not checkpoints(path):
                remedy = f"its summary.json cannot be read ({error}); name another directory"
                raise BadInput("run_dir", path, remedy) from None
    return "unfinished" if begun(path) or checkpoints(path) else None


def pushes_of(path: Path) -> int:
    """Pushes that its metrics show; 0 where there are none to read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((path / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    return 0


def config_of(path: Path, key: str = "run") -> dict[str, Any]:
    """What the run's config says, in plain containers. Raises BadInput, about ``key``."""
    check_there(key, path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"), resolve=True)
        if not isinstance(content, dict):
            raise ValueError("it is no config")
        for part in ("rule", "schedule", "task", "lr", "engine"):
            if not isinstance(content.get(part, {}), dict):
                raise ValueError(f"its {part} is no group of keys")
        return {str(name): value for name, value in content.items()}
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        message = " ".join(str(error).split())
        raise BadInput(key, path, f"no readable config.yaml there ({message})") from None


def provenance_of(path: Path) -> dict[str, Any]:
    """Where the run was made, and where it went on. Raises BadInput."""
    try:
        content = json.loads((path / "provenance.json").read_text())
        for origin in (content, *content.get("resumed", [])):
            if odd := mistyped(origin, ORIGIN if "versions" in origin else {}):
                raise ValueError(f"its {odd} is absent or odd")
        content["versions"]["torch"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput("run", path, f"no readable provenance.json there ({error})") from None
    return dict(content)


# What the bits of a float32 run depend on beside its configuration, as a provenance names it.
PLACE = ("torch", "device", "device_name", "cpu_capability", "threads_per_gradient")


def elsewhere(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two origins differ, as far as bits may depend on it; "" where in nothing known."""
    pairs = [(key, _placed(was, key), _placed(now, key)) for key in PLACE]
    return ", ".join(
        f"{key} was {a}, is {b}" for key, a, b in pairs if a != b and None not in (a, b)
    )


def origins(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where a run was begun, and every place where it went on, as far as is known."""
    return [o for o in (provenance, *provenance.get("resumed", [])) if "versions" in o]


def _placed(origin: Mapping[str, Any], key: str) -> Any:
    if key == "torch":
        return origin["versions"]["torch"]
    if key == "threads_per_gradient":
        return threads_per_gradient(origin)
    return origin.get(key)


def threads_per_gradient(origin: Mapping[str, Any]) -> int | None:
    """CPU threads that compute one gradient: engine=threads gives each gradient one."""
    side_by_side = str(origin.get("engine")).endswith(".Threads")
    return 1 if side_by_side and origin.get("device") == "cpu" else origin.get("threads")


def fingerprint_of(path: Path) -> dict[str, Any] | None:
    """The run's fingerprint.json; None where it has none. Raises BadInput."""
    try:
        content = json.loads((path / FINGERPRINT).read_text(), parse_constant=_no_number)
        if "missing" not in content:
            _ = content["schedule_sha256"], content["batches_sha256"], len(content["steps"][0])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BadInput("run", path, f"no readable {FINGERPRINT} there ({error})") from None
    return dict(content)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of a fingerprint")


def rows_of(path: Path, text: bool = False) -> pd.DataFrame:
    """Its metrics.csv, every cell as it is written with ``text``. Raises BadInput."""
    try:
        table = pd.read_csv(path / "metrics.csv")
        as_written = pd.read_csv(path / "metrics.csv", dtype=str) if text else table
    except (OSError, ValueError) as error:
        raise BadInput("run", path, f"no readable metrics.csv there ({error})") from None
    if not set(table.columns) >= ROWS:
        raise BadInput("run", path, "its metrics.csv is not one of this program's")
    if table.empty:  # stopped before its first row
        return as_written.astype(str if text else float)
    for key in table:
        if not pd.api.types.is_numeric_dtype(table[key]):
            raise BadInput("run", path, f"its metrics.csv has words where {key} has numbers")
    return as_written


def log_of(path: Path, sha256: str | None) -> Schedule | None:
    """Its message log: its file, or made anew by its config where only that was kept.

    Only parts of ``dcasgd_repro.schedule`` are made, and the log must have that hash. None where
    there is no such log.
    """
    with contextlib.suppress(BadInput, OSError, TypeError, ValueError, KeyError):
        if (path / "schedule.csv.gz").exists():
            log = Schedule.load(path / "schedule.csv.gz")
        else:
            config = config_of(path)
            pushes = math.ceil(config["epochs"] * config["images"] / images_a_push(config) - 1e-9)
            steps = (config.get("task") or {}).get("local_steps") or 1
            log = schedule.stepping(_made(config["schedule"]), steps).messages(max(1, pushes))
        return log if log.sha256() == sha256 else None
    return None


def _made(node: Any) -> Any:
    """A schedule, or a part of one, as a config describes it."""
    if not isinstance(node, dict):
        return node
    module, _, name = str(node["_target_"]).rpartition(".")
    if module != schedule.__name__ or name not in schedule.__all__:
        raise ValueError(f"{node['_target_']} is no schedule of this package")
    parts = {key: _made(value) for key, value in node.items() if key != "_target_"}
    return getattr(schedule, name)(**parts)


@dataclass(frozen=True)
class Run:
    """A run directory that has a summary."""

    path: Path
    summary: Mapping[str, Any]
    until: float | None = None  # the epoch that it is read up to; None: its end

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises BadInput where there is no summary of ours."""
        check_there("run", path)
        try:
            summary = json.loads((path / "summary.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput("run", path, f"no readable summary.json there ({error})") from None
        odd = mistyped(summary, SUMMARY, MAY)
        if not odd and summary["status"] == FINISHED:
            odd = mistyped(summary, {"epochs": NUMBER, "simulated_s": NUMBER})
        if not odd and summary.get("evaluated_on", "test") not in ("test", "validation"):
            odd = "evaluated_on"
        if odd:
            remedy = f"its summary.json is not one of this program's: {odd} is absent or odd"
            raise BadInput("run", path, remedy)
        return cls(path, summary)

    @property
    def finished(self) -> bool:
        """Whether it came to its end, or to the epoch that it is read up to."""
        status = self.summary["status"]
        return bool(status == FINISHED or (status != FAILED and self._beyond))

    @property
    def diverged(self) -> bool:
        return bool(self.summary["status"] == DIVERGED and not self._beyond)

    @property
    def _beyond(self) -> bool:
        """Whether it came to the epoch that it is read up to, and was whole there."""
        if self.until is None:
            return False
        diverged = self.summary.get("diverged_at_push", math.inf)
        return bool(self.summary["pushes"] >= self._stop < diverged)

    @property
    def _stop(self) -> int:
        """The push that ends the epoch that it is read up to."""
        assert self.until is not None
        pushes: float = self.until * self.config["images"] / images_a_push(self.config)
        return math.ceil(pushes - 1e-9)

    @property
    def evaluated_on(self) -> str:
        """Whose errors its "test" errors are: "test" images, or "validation" images."""
        return str(self.summary.get("evaluated_on", "test"))

    @property
    def kind(self) -> str:
        """The rule's name; ASGD with one worker is sgd."""
        one = self.summary["rule"] == "asgd" and self.summary["workers"] == 1
        return "sgd" if one else str(self.summary["rule"])

    @property
    def setting(self) -> str:
        scale = self.summary["scale"]
        return str(self.summary["task"]) + (f", scale={scale}" if scale else "")

    @cached_property
    def precision(self) -> str:
        """What its gradients were computed in."""
        return precision(config_of(self.path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, flat, less what may differ between runs of one configuration."""
        said = config_of(self.path)
        sizes = [said.get("images"), said.get("batch")]
        if not all(isinstance(n, int) and n > 0 for n in sizes) or "rule" not in said:
            raise BadInput("run", self.path, "its config.yaml is not one of this program's")
        content = numbers(said)
        return {k: v for k, v in content.items() if not set(SEEDS) & set(k.split("."))}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return provenance_of(self.path)

    @cached_property
    def log(self) -> Schedule | None:
        """The message log that it replayed, as far as it came; None where it is not there."""
        log, pushes = log_of(self.path, self.summary.get("schedule_sha256")), self.summary["pushes"]
        return log if log is None or pushes >= log.pushes else first(pushes, log)

    @cached_property
    def probes(self) -> pd.DataFrame | None:
        """Its probe.csv, where it has one."""
        path = self.path / "probe.csv"
        try:
            return pd.read_csv(path) if path.exists() else None
        except (OSError, ValueError) as error:
            raise BadInput("run", self.path, f"no readable probe.csv there ({error})") from None

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Its rows, up to ``until``."""
        table = rows_of(self.path)
        if self.until is None:
            return table
        return table[table["push"] <= self._stop]

    @property
    def errors(self) -> dict[str, float]:
        """Best, final and last-10 test error and final training error, in [0, 1], or none."""
        test = self.metrics["test_error"].dropna()
        train = self.metrics["train_error"].dropna()
        if test.empty:
            return {}
        last = last_errors(self.metrics, self.config, "test_error")
        return {
            "test_error_best": float(test.min()),
            "test_error_final": float(test.iloc[-1]),
            "test_error_last10": float(last.mean()) if len(last) else math.nan,
            "train_error_final": float(train.iloc[-1]),
        }

    @property
    def delay(self) -> float:
        """Mean delay over its pushes; over its kept rows, where it is read up to an epoch."""
        if self.until is not None:
            delays = self.metrics.get("delay_mean")
            return math.nan if delays is None else float(delays.mean())
        value = self.summary.get("delay_mean")
        return math.nan if value is None else float(value)

    @property
    def dc_ratio(self) -> float:
        """Median of dc_ratio over the rows of evaluations, each the mean over some 50 pushes."""
        rows = self.metrics.dropna(subset=["test_loss"])
        return float(rows["dc_ratio"].median()) if "dc_ratio" in rows else math.nan


def last_errors(metrics: pd.DataFrame, config: Mapping[str, Any], column: str) -> np.ndarray:
    """The last ten evaluations after the last drop of the learning rate, in [0, 1].

    Where a drop lies among the last ten, those before it belong to another phase of training. An
    evaluation at the very epoch of a drop was trained before it.
    """
    rows = metrics[["epoch", column]].dropna()
    drops = [m for m in config.get("lr.milestones") or () if m < metrics["epoch"].max()]
    after = max(drops, default=0.0) + images_a_push(config) / config["images"] - 1e-9
    kept: np.ndarray = rows[rows["epoch"] >= after][column].to_numpy()[-10:]
    return kept
