"""Makes the first pushes of a kept run again, and compares what was logged of them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import experiment, write
from dcasgd_repro.run.device import set_device
from dcasgd_repro.run.plan import Plan, plan_of
from dcasgd_repro.run.read import VERIFIED, config_of, provenance_of, rows_of, summary_of
from dcasgd_repro.run.replay import is_recorded, replayed

COMPARED: tuple[str, ...] = ("push", "update", "simulated_s", "lr", "train_loss")
COMPARED += ("delay_mean", "delay_max", "dc_ratio", "gap_norm")
HERE = ("torch", "device", "device_name", "threads")  # what bits may depend on


def verify(path: Path) -> tuple[str, bool]:
    """What a fresh run of the first 200 pushes gives, in words, and whether the rows are equal.

    Equal means every digit that metrics.csv has. Where they are not, the words name the first push
    that differs, by how much, and what is different here: another torch, device or number of
    threads sums in another order. Raises BadInput where there is no kept run with such rows.
    """
    if is_recorded(path):
        return replayed(path)
    plan, theirs = _kept(path)
    last = int(theirs["push"].iloc[-1])
    with tempfile.TemporaryDirectory() as folder:
        again = replace(plan, run_dir=folder, checkpoint_s=1e9)
        experiment.run(again, say=lambda line: None, until=last)
        summary = summary_of(Path(folder))
        if summary.get("stopped_by", "until") != "until":
            raise KeyboardInterrupt
        ours = rows_of(Path(folder), text=True)
        here = write.environment(set_device(plan.device, plan.threads, plan.deterministic))
    theirs, ours = theirs[list(COMPARED)], ours[list(COMPARED)].head(len(theirs))
    where = f"{path}: {last} pushes, {len(theirs)} rows of {len(COMPARED)} numbers"
    if theirs.reset_index(drop=True).equals(ours.reset_index(drop=True)):
        return f"{where}: all equal, digit for digit", True
    if len(ours) < len(theirs):
        return f"{where}: this one {summary['status']} after push {summary['pushes']}", False
    differs = next(k for k in range(len(theirs)) if not theirs.iloc[k].equals(ours.iloc[k]))
    was, now = theirs.iloc[differs], ours.iloc[differs]
    keys = [key for key in COMPARED if was[key] != now[key]]
    difference = max(abs(float(was[k]) - float(now[k])) / (abs(float(was[k])) or 1.0) for k in keys)
    lines = [
        f"{where}: they differ from push {was['push']} on",
        f"there by at most {difference:.1e} of the value, in {', '.join(keys)}",
        elsewhere(path, here) or "versions, device and threads are the run's own",
    ]
    return "; ".join(lines), False


def elsewhere(path: Path, here: dict[str, Any]) -> str:
    """In what this machine differs from the run's, as far as bits may depend on it."""
    was, now = ({**o, "torch": o["versions"]["torch"]} for o in (provenance_of(path), here))
    return ", ".join(f"{k} was {was[k]}, is {now[k]}" for k in HERE if was[k] != now[k])


def _kept(path: Path) -> tuple[Plan, pd.DataFrame]:
    """The run's plan, and its rows up to push 200 as text."""
    config, rows = config_of(path), rows_of(path, text=True)
    if "model" not in config:  # a key of conf/config.yaml that no Plan spells out
        raise BadInput("run", path, "it was made without a config, so it cannot be composed again")
    provenance_of(path)  # refused here, not after the run
    early = rows[rows["push"].astype(int) <= VERIFIED]
    if early.empty:
        raise BadInput("run", path, f"its metrics.csv has no row up to push {VERIFIED}")
    return plan_of(OmegaConf.create(config)), early
