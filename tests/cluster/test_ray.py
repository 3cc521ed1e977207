"""Real runs on a Ray of this machine: recorded, replayed to the bit, and killed in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deadly
import numpy as np
import pytest
import torch

from dcasgd_repro.errors import BadInput
from dcasgd_repro.lr import Step as StepRate
from dcasgd_repro.rules import DCASGDa
from dcasgd_repro.run import experiment
from dcasgd_repro.run.plan import Length, Plan
from dcasgd_repro.run.read import provenance_of, rows_of, summary_of
from dcasgd_repro.run.replay import another_place, replay
from dcasgd_repro.run.verify import verify
from dcasgd_repro.run.write import weights_sha256
from dcasgd_repro.schedule import PULL, PUSH, Constant, Generated, Live, Schedule, delay_table
from dcasgd_repro.schedule.live import events_of

ray = pytest.importorskip("ray")
from dcasgd_repro.cluster.ray import Ray  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """One Ray for all runs of this process, whose workers find ``deadly``."""
    patched = pytest.MonkeyPatch()
    patched.setenv("PYTHONPATH", str(Path(__file__).parent))
    patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
    patched.undo()


def planned(path: Path, workers: int = 2, pushes: int = 60, **changes: Any) -> Plan:
    """A short run on Ray, of a quadratic with noise."""
    rule = changes.pop("rule", DCASGDa(lam0=0.5, momentum=0.5))
    task = changes.pop("task", deadly.Quadratic((1.0, 0.1, 0.3), noise=0.1, seed=1))
    engine = changes.pop("engine", Ray())
    return Plan(
        rule=rule,
        task=task,
        schedule=Live(workers, barrier=changes.pop("barrier", False)),
        rate=StepRate(base=0.05, milestones=[]),
        length=Length(images=20, batch=1, epochs=pushes / 20),
        workers=workers,
        engine=engine,
        log_every=5,
        run_dir=path,
        checkpoint_s=0,
        **changes,
    )


def made(plan: Plan, **keys: Any) -> tuple[Path, dict[str, Any]]:
    path = experiment.run(plan, say=lambda line: None, **keys)
    return path, summary_of(path)


def check_replay(path: Path, plan: Plan) -> Schedule:
    """The recorded log replays to the run's weights; returns it."""
    log = Schedule.load(path / "schedule.csv.gz")
    server = replay(plan, log)
    summary = summary_of(path)
    assert weights_sha256(server.w) == summary["weights_sha256"]
    assert (server.pushes, log.sha256()) == (summary["pushes"], summary["schedule_sha256"])
    return log


def test_a_run_is_recorded_stopped_and_replayed(here: None, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"noise": 0.1, "seconds": 0.01, "place": str(tmp_path)}
    task = deadly.DeadlyTask((1.0, 0.1), nan=(1, 4), **keys)
    plan = planned(tmp_path / "run", 3, 90, task=task, engine=Ray(slow={0: 4.0}))
    path, summary = made(plan, until=47)
    assert (summary["status"], summary["pushes"]) == ("interrupted", 47)
    before = check_replay(path, plan)
    assert sorted(before.worker[:3]) == [0, 1, 2]
    assert before.clock[0] < 1.0  # the clock begins when all are there

    path, summary = made(plan)
    assert (summary["status"], summary["pushes"], summary["updates"]) == ("finished", 90, 90)
    assert (summary["events"], summary["pushes_lost"]) == ({"refused: not finite": 1}, 0)
    assert [(event.worker, event.batch) for event in events_of(path)] == [(1, 4)]
    log = check_replay(path, plan)
    assert log[: len(before)].sha256() == before.sha256()
    assert np.all(np.diff(log.clock) >= 0)
    assert summary["simulated_s"] == log.clock[-1]
    table = delay_table(log).set_index("worker")
    assert table.loc[0, "pushes"] < table.loc[[1, 2], "pushes"].min()
    assert table.loc[0, "mean"] > table.loc[[1, 2], "mean"].max()
    assert rows_of(path)["push"].tolist() == list(range(5, 91, 5))

    said: list[str] = []
    experiment.run(plan, say=said.append)
    assert "finished already" in said[0]


def test_ssgd_is_a_barrier_whoever_dies(here: None, tmp_path: Path) -> None:
    """In rounds; so its weights are those of simulated rounds, but for the order of the sums."""
    keys: dict[str, Any] = {"momentum": 0.5, "place": str(tmp_path), "driver": os.getpid()}
    rule = deadly.DeadlySSGD(deaths=(11,), **keys)
    task = deadly.DeadlyTask((1.0, 0.1), noise=0.1, deaths=((1, 3),), place=str(tmp_path))
    plan = planned(tmp_path / "run", 2, 40, rule=rule, task=task, barrier=True)
    path, summary = made(plan)
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["server-11", "worker-1-3"]
    assert (summary["in_rounds"], summary["updates"], summary["delay_max"]) == (True, 20, 0)
    found = replay(plan, check_replay(path, plan))
    expected = replay(plan, Generated(2, 0, Constant(1.0), barrier=True).messages(40))
    torch.testing.assert_close(found.w, expected.w, rtol=1e-12, atol=0)


def test_whoever_dies_nothing_is_applied_twice(here: None, tmp_path: Path) -> None:
    """Workers and servers are killed; the log gives the weights."""
    rule = deadly.DeadlyDCASGDa(
        lam0=0.5, momentum=0.5, deaths=(11, 30), place=str(tmp_path), driver=os.getpid()
    )
    task = deadly.DeadlyTask((1.0, 0.1), noise=0.1, deaths=((0, 3), (1, 20)), place=str(tmp_path))
    plan = planned(tmp_path / "run", 2, 80, rule=rule, task=task)
    path, summary = made(plan)
    names = ["server-11", "server-30", "worker-0-3", "worker-1-20"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == names
    assert (summary["status"], summary["pushes"]) == ("finished", 80)
    events = summary["events"]
    assert events.pop("pushes lost", 0) <= 4  # at most one line a worker and a dead server
    assert events == {"server lost": 2, "worker lost": 2}
    assert [e.worker for e in events_of(path) if e.event == "worker lost"] == [0, 1]
    log = check_replay(path, plan)
    again = np.count_nonzero(log.kind == PULL) - log.pushes
    # A pull more for each death, for both workers at a new server, and at the end.
    assert 0 < again <= 2 + 2 * 2 + 1


COMMAND = [sys.executable, "-m", "dcasgd_repro", "train", "task=synthetic", "model.width=1"]
COMMAND += ["engine=ray", "schedule=live", "workers=2", "images=64", "batch=2", "epochs=20"]
COMMAND += [
    "checkpoint.every_s=0.2",
    "log_every=4",
    "eval_every=20",
    "test_images=8",
    "lr.base=0.01",
]


def test_a_killed_driver_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """SIGTERM too, with a checkpoint of its last push; and the whole replays to the bit."""
    command, path = [*COMMAND, f"run_dir={tmp_path / 'run'}"], tmp_path / "run"
    first = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    wait_for(path / "metrics.csv", "\n40,", first)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 143, err
    assert "SIGTERM after push" in err
    for noise in ("raylet", "INFO", "Warning", "Traceback"):
        assert noise not in out + err
    stopped = summary_of(path)["pushes"]
    assert 40 <= stopped < 500

    second = subprocess.Popen(command, stdout=-3, stderr=-3)
    wait_for(path / "metrics.csv", f"\n{4 * (stopped // 4) + 80},", second)
    second.kill()
    second.wait()
    assert not (path / "summary.json").exists()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = summary_of(path)
    assert (summary["status"], summary["pushes"]) == ("finished", 640)
    assert summary["events"] == {"driver lost": 1}
    line, equal = verify(path)
    assert equal, line
    assert "640 recorded pushes of 2 workers replayed: the weights are equal to the last" in line
    another_log_is_found_out(path)


def another_log_is_found_out(path: Path) -> None:
    """verify says by how much the weights differ, and where they need not be equal."""
    origin = provenance_of(path)
    assert "schedule_sha256" not in origin  # the summary has that of what was recorded
    assert another_place(path, origin) == ""
    assert "device_name was x, is" in another_place(path, {**origin, "device_name": "x"})
    log = Schedule.load(path / "schedule.csv.gz")
    late = next(  # a pull, and the other worker's push: in the other order another vector is sent
        i for i in range(400, len(log)) if log.kind[i : i + 2].tolist() == [PULL, PUSH]
        and log.worker[i] != log.worker[i + 1]
    )  # fmt: skip
    order = np.arange(len(log))
    order[[late, late + 1]] = late + 1, late
    Schedule(log.clock, log.kind[order], log.worker[order], 2).save(path / "schedule.csv.gz")
    line, equal = verify(path)
    assert not equal
    assert "of their norm, though this is where they were made" in line
    Schedule(log.clock, log.kind, 1 - log.worker, 2).save(path / "schedule.csv.gz")
    line, equal = verify(path)
    assert not equal
    assert "this is another run. In float64 other than the run's: " in line
    log[: len(log) // 2].save(path / "schedule.csv.gz")
    with pytest.raises(BadInput, match="its summary says 640"):
        verify(path)


def wait_for(file: Path, text: str, process: subprocess.Popen) -> None:
    for _ in range(3000):
        if file.exists() and text in file.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise TimeoutError(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"engine": Ray(slow={2: 3.0})}, "engine.slow={2: 3.0}: workers=2 have the numbers 0 to 1"),
        ({"engine": Ray(gpus_per_worker=99)}, "workers=2: they need 198 GPUs, the cluster has"),
        ({"threads": 64}, "workers=2: they need 128 CPUs, the cluster has 4"),
    ],
)
def test_what_cannot_run_is_refused(
    here: None, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    threads = torch.get_num_threads()
    try:
        with pytest.raises(BadInput, match=text.replace("{", r"\{")):
            made(planned(tmp_path / "run", **changes))
    finally:
        torch.set_num_threads(threads)
