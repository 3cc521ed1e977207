"""A real run under random kills: 20 of workers, 2 of the server, 1 of the driver; then verify.

    python tests/cluster/kills.py [WORDS of dcasgd-repro train ...]

Starts the run, kills its processes and no other's, each by SIGKILL at a random moment after the
server has received further gradients; gives the same command again after the driver's death; prints
what was lost, the delays, and what the replay of the log gives.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dcasgd_repro.run.read import pushes_of, summary_of
from dcasgd_repro.run.verify import verify
from dcasgd_repro.schedule import Schedule, delay_table

WORKERS, SERVERS, DRIVERS = "Worker", "Keeper", "driver"
PLAN = [WORKERS] * 20 + [SERVERS] * 2 + [DRIVERS]


def family(driver: int) -> dict[int, str]:
    """The processes that Ray started for this driver, and their titles."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()[1:]]
    mine, grew = {driver}, True
    while grew:
        found = {int(pid) for pid, parent, *_ in rows if int(parent) in mine} - mine
        grew, mine = bool(found), mine | found
    return {int(pid): " ".join(title) for pid, _, *title in rows if int(pid) in mine}


def pids(driver: int, kind: str) -> list[int]:
    titles = family(driver)
    return [pid for pid, title in titles.items() if title.startswith(f"ray::{kind}.")]


def main(words: list[str]) -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    left, killed = list(PLAN), Counter[str]()
    rng.shuffle(left)
    path = Path(tempfile.mkdtemp()) / "run"
    command = [sys.executable, "-m", "dcasgd_repro", "train", *words, f"run_dir={path}"]
    process = subprocess.Popen(command)
    seen = 0
    while process.poll() is None:
        time.sleep(rng.uniform(1.0, 6.0))
        if not left or pushes_of(path) <= seen or not (path / "checkpoint.pt").exists():
            continue
        kind = left[-1]
        chosen = [process.pid] if kind == DRIVERS else pids(process.pid, kind)
        if not chosen:
            continue
        os.kill(rng.choice(chosen), signal.SIGKILL)
        killed[left.pop()] += 1
        seen = pushes_of(path) if kind != DRIVERS else 0
        print(f"\nkilled    {kind}; {len(left)} to go", flush=True)
        if kind == DRIVERS:
            process.wait()
            process = subprocess.Popen(command)
    summary = summary_of(path)
    print(f"seed {seed}: killed {dict(killed)}; {summary['status']}, {summary['pushes']} pushes")
    print(f"lost: {summary['events']}, {summary['pushes_lost']} pushes received")
    print(delay_table(Schedule.load(path / "schedule.csv.gz")).round(2).to_string(index=False))
    print(verify(path)[0])


if __name__ == "__main__":
    main(sys.argv[1:])
