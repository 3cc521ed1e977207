"""Makes the first pushes of a kept run again, and compares what was kept of them.

Its fingerprint must agree anywhere, and so must what its rows hold of the schedule and the learning
rate. Its float32 numbers must be equal to the last digit where the processor, torch and the threads
of a gradient are the run's own; elsewhere they may differ.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from omegaconf import OmegaConf

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import experiment, fingerprint, write
from dcasgd_repro.run.device import set_device
from dcasgd_repro.run.identity import differences
from dcasgd_repro.run.plan import Plan, plan_of
from dcasgd_repro.run.read import (
    FINGERPRINT,
    VERIFIED,
    config_of,
    elsewhere,
    fingerprint_of,
    provenance_of,
    rows_of,
    summary_of,
)
from dcasgd_repro.run.replay import is_recorded, recorded, replayed

TIMED = "wall_s"  # the one column that no two runs share
ANYWHERE = ("push", "epoch", "simulated_s", "lr")  # on any machine, as they hold no gradient
COUNTED = ("update", "delay_mean", "delay_max")  # likewise, as no rule of ours skips by a gradient
WRITTEN = 1e-8  # relative: metrics.csv has nine digits


def verify(path: Path) -> tuple[str, bool]:
    """What the run's first pushes give here, in words, and whether they are the run's.

    Where the fingerprint agrees and the float32 rows do not, the run is verified if this is not its
    own processor, torch or number of threads; the words say which differ, and by how much. Raises
    BadInput where there is no kept run, or one that cannot be compared here.
    """
    if is_recorded(path):
        return _live(path)
    plan, kept = _plan(path), fingerprint_of(path)
    if other := _edited(path, plan):
        return other, False
    rows = _again(path, plan, _early(path))
    # A run older than this entry of its provenance was made again where its fingerprint was.
    made = {"cpu_capability": (kept or {}).get("cpu_capability"), **provenance_of(path)}
    other = elsewhere(made, rows.origin)
    if kept is None:
        if other and rows.message:
            remedy = f"it has no {FINGERPRINT}, and its float32 rows belong to where they "
            raise BadInput("run", path, f"{remedy}were made ({other}); {rows.message}")
        return f"{path}: no fingerprint; {rows.words(other)}", not rows.message
    here = _fingerprint(plan)
    if lacks := kept.get("missing"):
        return f"{path}: no fingerprint ({lacks}); {rows.words(other)}", not rows.message
    if message := fingerprint.disagreement(kept, here):
        return f"{path}: this is another run. In float64 {message}; {rows.words(other)}", False
    count = f"{len(kept['steps'])} pushes in float64 equal within {fingerprint.TOLERANCE:g}"
    return f"{path}: {count}; {rows.words(other)}", not rows.message or bool(
        other and not rows.wrong
    )


def _live(path: Path) -> tuple[str, bool]:
    """As ``verify``, of a run that a cluster made: the fingerprint, and the whole log replayed."""
    plan, log = recorded(path)
    if other := _edited(path, plan):
        return other, False
    kept = fingerprint_of(path)
    message = ""
    if lacks := "it has none" if kept is None else kept.get("missing"):
        count = f"no fingerprint ({lacks})"
    else:
        assert kept is not None
        task = plan.task.on(set_device("cpu", plan.threads, plan.deterministic))
        message = fingerprint.disagreement(kept, fingerprint.fingerprint(plan, log, task))
        count = f"{len(kept['steps'])} pushes in float64 equal within {fingerprint.TOLERANCE:g}"
    if message:
        return f"{path}: this is another run. In float64 {message}", False
    words, equal, other = replayed(path, plan, log)
    return f"{words}; {count}", equal or bool(other and not lacks)


def _edited(path: Path, plan: Plan) -> str:
    """In which files of one's own this is another run than the one kept; "" in none."""
    files = (config.get("sources", {}) for config in (config_of(path), plan.config))
    other = differences(*files)
    return (
        f"{path}: this is another run, made with other files of your own: {other}" if other else ""
    )


def mark(path: Path) -> str:
    """Gives a kept run, made before there were fingerprints, its own; returns what to print.

    Only where its first row is made again here digit for digit: else the fingerprint would be
    that of another run. Raises BadInput.
    """
    plan, early = _plan(path), _early(path).head(1)
    if fingerprint_of(path) is not None:
        return f"{path}: has a fingerprint"
    rows = _again(path, plan, early)
    if rows.message:
        other = elsewhere(provenance_of(path), rows.origin)
        remedy = "gets no fingerprint, as this machine does not make its first row again"
        raise BadInput("run", path, f"{remedy}: {rows.words(other)}")
    made = {"cpu_capability": rows.origin["cpu_capability"], **_fingerprint(plan)}
    write.write_fingerprint(path, made)
    lacks = made.get("missing")
    return f"{path}: " + (f"can have no fingerprint: {lacks}" if lacks else "fingerprint written")


class Rows(NamedTuple):
    """Rows of a kept run, made again."""

    what: str  # how many
    message: str  # in what they differ; "": equal, digit for digit
    origin: Mapping[str, Any]  # where they were made again
    wrong: str = ""  # columns among them that no machine makes other

    def words(self, other: str) -> str:
        """For a reader; ``other`` says in what this is not the run's own place."""
        if not self.message:
            return f"{self.what}: all equal, digit for digit"
        if self.wrong:
            return f"{self.what}: {self.message}; {self.wrong}, which is equal on any machine"
        place = f"as may be elsewhere: {other}" if other else "though this is the run's own place"
        return f"{self.what}: {self.message}, {place}"


def _again(path: Path, plan: Plan, theirs: pd.DataFrame) -> Rows:
    last = int(theirs["push"].iloc[-1])
    with tempfile.TemporaryDirectory() as folder:
        again = replace(plan, run_dir=folder, checkpoint_s=1e9)
        experiment.run(again, say=lambda line: None, until=last)
        summary = summary_of(Path(folder))
        if summary.get("stopped_by", "until") != "until":
            raise KeyboardInterrupt
        ours, origin = rows_of(Path(folder), text=True), provenance_of(Path(folder))
    columns = [name for name in theirs if name in ours and name != TIMED]
    theirs, ours = theirs[columns], ours[columns].head(len(theirs))
    what = f"{last} pushes in float32, {len(theirs)} rows of {len(columns)} numbers"
    if theirs.reset_index(drop=True).equals(ours.reset_index(drop=True)):
        return Rows(what, "", origin)
    if len(ours) < len(theirs):
        return Rows(what, f"this one {summary['status']} after push {summary['pushes']}", origin)
    was, now = (rows.apply(pd.to_numeric, errors="coerce") for rows in (theirs, ours))
    by = (was - now).abs() / was.abs().where(was != 0, 1)  # NaN where neither or one has a number
    by = by.where(was.isna() == now.isna(), math.inf).fillna(0.0)
    differs = by[(by > 0).any(axis=1)].iloc[0]
    push = theirs["push"].iloc[differs.name]
    message = (
        f"they differ from push {push} on, there by at most {differs.max():.1e} of the value, in "
        + ", ".join(differs[differs > 0].index)
    )
    ours_own = str(plan.config["rule"]["_target_"]).startswith("dcasgd_repro.")
    fixed = [name for name in ANYWHERE + COUNTED * ours_own if name in columns]
    wrong = ", ".join(name for name in fixed if by[name].max() > WRITTEN)
    return Rows(what, message, origin, wrong)


def _fingerprint(plan: Plan) -> dict[str, Any]:
    device = set_device(plan.device, plan.threads, plan.deterministic)
    return fingerprint.fingerprint(plan, plan.log(), plan.task.on(device))


def _plan(path: Path) -> Plan:
    """The run's plan, with its own device and number of threads where they are to be had."""
    config, origin = config_of(path), provenance_of(path)
    if "model" not in config:  # a key of conf/config.yaml that no Plan spells out
        raise BadInput("run", path, "it was made without a config, so it cannot be composed again")
    device = origin["device"] if origin["device"] == "cpu" or torch.cuda.is_available() else "auto"
    return replace(plan_of(OmegaConf.create(config)), device=device, threads=origin["threads"])


def _early(path: Path) -> pd.DataFrame:
    """Its rows up to push 200, as text."""
    rows = rows_of(path, text=True)
    early = rows[rows["push"].astype(int) <= VERIFIED]
    if early.empty:
        raise BadInput("run", path, f"its metrics.csv has no row up to push {VERIFIED}")
    return early
