"""A cluster of two nodes on this machine, one of which leaves while it computes, and returns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcasgd_repro.run.read import summary_of
from dcasgd_repro.run.verify import verify
from dcasgd_repro.schedule import PUSH, Schedule
from dcasgd_repro.schedule.live import events_of

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SOON = {f"health_check_{key}": n for key, n in (("period_ms", 1000), ("failure_threshold", 3))}
COMMAND = [sys.executable, "-m", "dcasgd_repro", "train", "task=synthetic", "model.width=1"]
COMMAND += ["engine=ray", "schedule=live", "workers=2", "images=64", "batch=2", "epochs=9999"]
COMMAND += ["checkpoint.every_s=0.2", "log_every=4", "eval_every=9999", "test_images=8"]
COMMAND += ["lr.base=0.001", "engine.slow={0: 20, 1: 20}"]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The driver's own node, with room for one worker."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    told = {**NODE, "include_dashboard": False, "_system_config": SOON}
    cluster = Cluster(initialize_head=True, head_node_args=told)
    yield cluster
    cluster.shutdown()


def test_a_worker_whose_node_left_joins_again_when_it_returns(
    head: Cluster, tmp_path: Path
) -> None:
    """The other one goes on meanwhile; the log shows all of it, and replays to the weights."""
    path = tmp_path / "run"
    node = head.add_node(**NODE)
    words = [f"engine.address={head.address}", f"run_dir={path}"]
    driver = subprocess.Popen([*COMMAND, *words], stdout=-1, stderr=-1, text=True)

    def until(happened: Callable[[], bool]) -> None:
        for _ in range(1500):
            if (path / "cluster.csv").exists() and happened():
                return
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        raise TimeoutError

    def pushes(worker: int) -> int:
        log = Schedule.load(path / "schedule.csv.gz")
        return int(np.count_nonzero(log.worker[log.kind == PUSH] == worker))

    until(lambda: min(pushes(0), pushes(1)) >= 5)
    head.remove_node(node, allow_graceful=False)
    until(lambda: [event.event for event in events_of(path)] == ["worker lost"])
    (away,) = (event.worker for event in events_of(path))
    assert away is not None
    before = [pushes(0), pushes(1)]
    until(lambda: pushes(1 - away) >= before[1 - away] + 20)
    assert pushes(away) == before[away]  # there is no room for it
    head.add_node(**NODE)
    until(lambda: pushes(away) >= before[away] + 5)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 143, err
    assert summary_of(path)["events"] == {"worker lost": 1}
    line, equal = verify(path)
    assert equal, line
