"""A cluster of two nodes on this machine, one of which leaves while it computes, and returns."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deadly
import numpy as np
import pytest

from dcasgd_repro.run.read import summary_of
from dcasgd_repro.schedule import PUSH, Schedule

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402
from test_ray import check_replay, made, planned  # noqa: E402

from dcasgd_repro.cluster.ray import Ray  # noqa: E402
from dcasgd_repro.schedule.live import events_of  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SOON = {f"health_check_{key}": n for key, n in (("period_ms", 500), ("failure_threshold", 2))}


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The driver's own node with room for one worker, and another with room for one."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {**NODE, "include_dashboard": False, "_system_config": SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_worker_whose_node_left_joins_again_when_it_returns(
    two_nodes: Cluster, tmp_path: Path
) -> None:
    """The other one goes on meanwhile; the log shows all of it, and replays to the weights."""
    path, seen = tmp_path / "run", {}

    def pushes(worker: int) -> int:
        if not (path / "cluster.csv").exists():
            return 0
        log = Schedule.load(path / "schedule.csv.gz")
        return int(np.count_nonzero(log.worker[log.kind == PUSH] == worker))

    def leave_and_return() -> None:
        try:
            node = two_nodes.add_node(**NODE)
            seen["joined"] = True
            until(lambda: min(pushes(0), pushes(1)) >= 5)
            two_nodes.remove_node(node, allow_graceful=False)
            until(lambda: [event.event for event in events_of(path)] == ["worker lost"])
            (away,) = (event.worker for event in events_of(path))
            before = [pushes(0), pushes(1)]
            until(lambda: pushes(1 - away) >= before[1 - away] + 20)
            assert pushes(away) == before[away]
            two_nodes.add_node(**NODE)
            until(lambda: pushes(away) >= before[away] + 5)
            seen["returned"] = True
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    task = deadly.DeadlyTask((1.0, 0.1), noise=0.1, seconds=0.05)
    engine = Ray(address=two_nodes.address)
    plan = planned(path, 2, 100_000, task=task, engine=engine)
    other = threading.Thread(target=leave_and_return)
    other.start()
    until(lambda: bool(seen))  # both nodes are there
    made(plan)
    other.join()
    assert seen == {"joined": True, "returned": True}
    summary = summary_of(path)
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", "SIGINT")
    assert summary["events"] == {"worker lost": 1}
    check_replay(path, plan)


def until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
