"""Kills runs with SIGKILL at random instants, lets each go on to its end, and compares the bits.

``make torture``: every rule, asynchronous and in rounds, at least 100 kills. A run is forked from
a process that has torch loaded, so a kill costs a second and not ten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from rules_under_test import RULES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from dcasgd_repro.rules import Rule
from dcasgd_repro.run import checkpoint, experiment, read
from dcasgd_repro.run.plan import plan_of


def words(rule: Rule) -> list[str]:
    """What one types for that rule."""
    defaults = {f.name: f.default for f in dataclasses.fields(rule)}
    given = {k: v for k, v in dataclasses.asdict(rule).items() if v != defaults[k] and k != "batch"}
    return [f"rule={rule.name}", *(f"rule.{k}={str(v).lower()}" for k, v in given.items())]


CELLS = [
    [*words(rule), f"schedule.barrier={barrier}"]
    for rule in RULES[:11]
    for barrier in (False, True)
]
tqdm.monitor_interval = 0  # its thread could hold tqdm's lock at a fork
# A push, an evaluation and a checkpoint take about as long as one another here.
SMALL = [
    "scale=smoke", "task=synthetic", "model.width=2", "images=64", "test_images=16", "batch=4",
    "workers=4", "epochs=4", "log_every=5", "task.stats_images=16", "task.train_images=16",
    "schedule=exponential", "lr.milestones=[2]", "checkpoint.every_s=0", "threads=1",
    "device=cpu",
]  # fmt: skip


@dataclass
class Tally:
    """What happened to the runs of one cell."""

    name: str
    kills: int = 0
    inside_a_write: int = 0
    resumes: int = 0
    mismatches: list[str] = field(default_factory=list)


def config(overrides: Sequence[str], run_dir: Path) -> DictConfig:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=[*SMALL, *overrides, f"run_dir={run_dir}"])


def start(cfg: DictConfig) -> int:
    """Forks a process that runs ``cfg``; gives its number."""
    child = os.fork()
    if child:
        return child
    signal.alarm(300)  # a hang is a failure too
    with open(os.devnull, "w") as nowhere:  # the child's own end of the fork
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        code = 1
        with contextlib.suppress(BaseException):
            experiment.run(plan_of(cfg), say=lambda line: None)
            code = 0
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def differences(run: Path, whole: Path) -> Iterator[str]:
    """In what a resumed run differs from the uninterrupted one, times aside."""
    a, b = (read.Run.read(path).summary for path in (run, whole))
    for key in a.keys() | b.keys():
        if a.get(key) != b.get(key) and key not in ("wall_s", "checkpoint_s"):
            yield f"summary {key}: {a.get(key)} != {b.get(key)}"
    rows = [(path / "metrics.csv").read_text() for path in (run, whole)]
    frames = [pd.read_csv(path / "metrics.csv", dtype=str) for path in (run, whole)]
    if not frames[0].drop(columns="wall_s").equals(frames[1].drop(columns="wall_s")):
        yield f"metrics.csv: {len(rows[0].splitlines())} and {len(rows[1].splitlines())} lines"
    probes = [path / "probe.csv" for path in (run, whole)]
    if len({path.read_bytes() if path.exists() else b"" for path in probes}) > 1:
        yield "probe.csv"
    names = [path / "tensorboard" / read.summary_of(path)["name"] for path in (run, whole)]
    boards = [EventAccumulator(str(name)).Reload() for name in names]
    events: list[dict[str, object]] = []
    for board in boards:
        tags = board.Tags()
        scalars = {t: [(e.step, e.value) for e in board.Scalars(t)] for t in tags["scalars"]}
        counts = {
            t: [(e.step, e.histogram_value.bucket) for e in board.Histograms(t)]
            for t in tags["histograms"]
        }
        events.append({**scalars, **counts})
    for tag in events[0].keys() | events[1].keys():
        if events[0].get(tag) != events[1].get(tag):
            yield f"tensorboard {tag}"


def torture(overrides: Sequence[str], kills: int, place: Path, rng: random.Random) -> Tally:
    """Kills runs of one cell until so many kills have struck; each run goes on to its end."""
    tally = Tally(" ".join(overrides).replace("rule.", "").replace("schedule.", ""))
    whole = place / "whole"
    began = time.perf_counter()
    if finish(start(config(overrides, whole))) != 0:
        tally.mismatches.append("the uninterrupted run failed")
        return tally
    length_s = time.perf_counter() - began
    attempt = 0
    while tally.kills < kills:
        attempt += 1
        run, left = place / f"run{attempt}", min(rng.randint(1, 5), kills - tally.kills)
        cfg = config(overrides, run)
        while True:
            child = start(cfg)
            if left and not (run / "summary.json").exists():
                time.sleep(rng.uniform(0.0, length_s))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            code = finish(child)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                tally.mismatches.append(f"{run.name}: exit code {code}")
                break
            left -= 1
            tally.kills += 1
            tally.resumes += (run / "config.yaml").exists()
            tally.inside_a_write += (run / (checkpoint.NEWEST + ".tmp")).exists()
        if code == 0:
            tally.mismatches += [f"{run.name}: {what}" for what in differences(run, whole)]
    return tally


def table(tallies: Sequence[Tally]) -> str:
    rows = [(t.name, t.kills, t.inside_a_write, t.resumes, len(t.mismatches)) for t in tallies]
    rows.append(("all", *(sum(row[k] for row in rows) for k in range(1, 5))))
    frame = pd.DataFrame(
        rows, columns=["cell", "kills", "of them inside a write", "resumes", "mismatches"]
    )
    return frame.to_string(index=False)


def main(kills_per_cell: int = 11) -> int:
    torch.set_num_threads(1)
    rng = random.Random(0)
    tallies = []
    with tempfile.TemporaryDirectory() as place:
        for k, cell in enumerate(tqdm(CELLS, unit="cell")):
            tallies.append(torture(cell, kills_per_cell, Path(place) / str(k), rng))
    print(table(tallies))
    for tally in tallies:
        for what in tally.mismatches:
            print(f"MISMATCH {tally.name}: {what}")
    return int(any(tally.mismatches for tally in tallies))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
