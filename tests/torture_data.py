"""Kills fetches and decoding processes at random instants; reads a log of a million lines.

``make torture``. The download is a small archive on this disk. A killed fetch must leave nothing
that a later one, or a run, takes for CIFAR-10; a run whose decoder was killed goes on to the bits
of the uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from torture import finish, start

from dcasgd_repro.data import fetch
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run import read
from dcasgd_repro.run.compose import composed
from dcasgd_repro.schedule import Gamma, Generated, Schedule

KILLS = {"one fetch": 30, "two fetches": 20, "decoders": 20}


def archive(place: Path) -> dict[str, str]:
    """Puts a small data set in the official one's place; returns what ``verify`` must say."""
    rng, sums = np.random.default_rng(0), {}
    fetch.RECORDS = 500
    with tarfile.open(place / fetch.BINARY_ARCHIVE, "w:gz", compresslevel=1) as tar:
        for name in fetch.BINARY_MD5:
            records = rng.integers(0, 256, (fetch.RECORDS, fetch.RECORD), np.uint8)
            records[:, 0] %= 10
            (place / name).write_bytes(records.tobytes())
            tar.add(place / name, f"{fetch.BINARY_FOLDER}/{name}")
            sums[name] = hashlib.md5(records.tobytes()).hexdigest()
    fetch.BINARY_MD5 = sums
    fetch.OFFICIAL_URL = (place / fetch.BINARY_ARCHIVE).as_uri()
    return sums


def fetching(root: Path) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(60)
    code = 1
    with open(os.devnull, "w") as nowhere, contextlib.suppress(BaseException):
        os.dup2(nowhere.fileno(), 2)
        fetch.fetch(root, say=len)
        code = 0
    os._exit(code)


def fetches(place: Path, kills: int, at_once: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kills one of ``at_once`` fetches so many times, in folders of three kills each.

    Returns how many kills left temporary files, and what did not hold.
    """
    sums, faults, inside = dict(fetch.BINARY_MD5), [], 0
    began = time.perf_counter()
    finish(fetching(place / "whole"))
    length_s = time.perf_counter() - began
    for k in range(kills):
        root = place / f"root{k // 3}"
        if (root / fetch.BINARY_FOLDER).exists():
            root = place / f"root{k}-anew"
        children = [fetching(root) for _ in range(at_once)]
        time.sleep(rng.uniform(0.0, length_s))
        os.kill(children[0], signal.SIGKILL)
        codes = [finish(child) for child in children]
        if any(codes[1:]):
            faults.append(f"kill {k}: the other fetch ended with {codes[1:]}")
        inside += any(root.glob(f"{fetch._TEMPORARY}*"))
        try:
            if fetch.verify(root) != sums:
                faults.append(f"kill {k}: other data")
        except BadInput as refused:
            if at_once > 1 or "holds no CIFAR-10" not in str(refused):
                faults.append(f"kill {k}: {refused}")
    for root in place.glob("root*"):
        if finish(fetching(root)) or fetch.verify(root) != sums:
            faults.append(f"{root.name}: the last fetch failed")
        if {path.name for path in root.iterdir()} - {".fetch.lock", fetch.BINARY_FOLDER}:
            faults.append(f"{root.name}: something was left")
    return inside, faults


def images(place: Path) -> DictConfig:
    rng = np.random.default_rng(0)
    for split, each in (("train", 16), ("val", 4)):
        for name in ("cat", "dog"):
            (place / split / name).mkdir(parents=True)
            for i in range(each):
                noise = rng.integers(0, 256, (300, 300, 3), np.uint8)
                Image.fromarray(noise).save(place / split / name / f"{i}.png")
    words = "+exp=imagenet_dc scale=smoke task.model._target_=dcasgd_repro.models.ResNet "
    words += "+task.model.depth=${model.depth} +task.model.width=${model.width} "
    words += "task.model.classes=2 task.data.size=32 task.data.resize=36 "
    words += "images=32 test_images=8 workers=2 batch=4 epochs=6 threads=1 "
    words += f"task.data.processes=2 checkpoint.every_s=0 data.root={place} device=cpu"
    return composed(words.split())


def decoders_of(run: int) -> list[int]:
    """The processes that a run has started."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{run}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return []


def decoders(place: Path, kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kills a decoder of a run so many times, each run up to three times.

    Returns how many runs there were, and what did not hold.
    """
    cfg, faults, runs, struck = images(place / "images"), [], 0, 0
    cfg.run_dir = str(place / "whole")
    began = time.perf_counter()
    if finish(start(cfg)):
        return 0, ["the uninterrupted run failed"]
    length_s = time.perf_counter() - began
    whole = read.summary_of(place / "whole")["weights_sha256"]
    while struck < kills:
        runs, left = runs + 1, 3
        cfg.run_dir = str(place / f"run{runs}")
        for _ in range(20):
            child = start(cfg)
            hit = False
            until = time.perf_counter() + rng.uniform(0.0, 0.7 * length_s)
            while left and time.perf_counter() < until + 0.3 * length_s:
                if time.perf_counter() > until and (found := decoders_of(child)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(found), signal.SIGKILL)
                        hit = True
                    break
                time.sleep(0.002)
            code = finish(child)
            struck, left = struck + hit, left - hit
            if code == -signal.SIGALRM:
                faults.append(f"run{runs}: hung")
            if code == 0:
                break
        if read.summary_of(place / f"run{runs}").get("weights_sha256") != whole:
            faults.append(f"run{runs}: other bits")
    return runs, faults


def million(place: Path) -> list[str]:
    log = Generated(workers=8, seed=0, compute=Gamma(1.0, cv=0.3)).messages(pushes=500_000)
    log.save(place / "log.csv")
    content = (place / "log.csv").read_bytes()
    (place / "other.csv").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    names = ("log.csv", "other.csv")
    return [name for name in names if Schedule.load(place / name).sha256() != log.sha256()]


def main() -> int:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        archive(place)
        faults = million(place)
        print(f"two logs of a million lines: {len(faults)} other than they were", flush=True)
        for words, at_once in (("one fetch", 1), ("two fetches", 2)):
            inside, found = fetches(place / words, KILLS[words], at_once, rng)
            print(f"{words}: {KILLS[words]} kills, {inside} left files; {len(found)} faults")
            faults += found
        runs, found = decoders(place / "decoders", KILLS["decoders"], rng)
        print(f"decoders: {KILLS['decoders']} kills or more in {runs} runs; {len(found)} faults")
    print(*faults, *found, sep="\n")
    return int(bool(faults or found))


if __name__ == "__main__":
    sys.exit(main())
