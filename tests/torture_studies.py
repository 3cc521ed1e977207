"""Studies under fire: kills, full disks, damaged files, odd terminals; prints what held.

``make torture`` runs it after tests/torture.py. A study of three tiny cells is forked from a
process that has torch loaded, and its runs are too, so a kill costs a second or two; what can
only happen to a fresh process, as a signal during its imports, is tried on one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # loaded before any fork
import pandas as pd
import torch
import yaml
from torture import differences
from tqdm import tqdm

from dcasgd_repro.cli import commands
from dcasgd_repro.run import checkpoint, experiment, write
from dcasgd_repro.study import diagnose, launchers, pages, reproduce, request
from dcasgd_repro.tasks import Quadratic, QuadraticTask

LOADED = (matplotlib.pyplot, experiment, diagnose, pages, request)
KINDS = ("lost", "different", "hangs", "tracebacks")
SMALL = "task=quadratic schedule=gamma task.noise=0.1 lr.base=0.1 epochs=4 log_every=20 threads=1"
CELLS = {
    "asgd": f"{SMALL} rule=asgd workers=2",
    "dc": f"{SMALL} rule=dcasgd_a workers=4",
    "ssgd": f"{SMALL} rule=ssgd schedule.barrier=true workers=4",
}
STUDY = ["reproduce", "mine", "scale=smoke", "seeds=1", "jobs=2", "checkpoint.every_s=0"]
TRAIN = ["train", "scale=smoke", *CELLS["dc"].split(), "checkpoint.every_s=0", "run_dir=A"]
RUNS = Path("results/mine/smoke/runs")
LIMIT_S = 180  # longer is a hang
tqdm.monitor_interval = 0  # its thread could hold tqdm's lock at a fork


@dataclass
class Tally:
    """What was tried, how often, and what did not hold."""

    what: str
    unit: str = "tries"
    times: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)  # (one of KINDS, what)

    def add(self, kind: str, what: str) -> None:
        self.wrong.append((kind, what))


# Processes.


class Forked:
    """A launcher whose runs are forks; their numbers go to a file, to be killed by."""

    def start(self, command: Sequence[str], log: Path) -> Forked.Handle:
        log.open("ab").close()  # as Local does, before it forks
        child = fork(command[3:], Path.cwd(), log)
        with open("pids", "a") as file:
            file.write(f"{child}\n")
        return Forked.Handle(child)

    class Handle:
        def __init__(self, child: int) -> None:
            self.child, self.over = child, False

        def ended(self) -> bool:
            self.over = self.over or os.waitpid(self.child, os.WNOHANG)[0] != 0
            return self.over

        def stop(self, hard: bool) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL if hard else signal.SIGTERM)


def fork(
    words: Sequence[str], folder: Path, log: Path, before: Callable[[], object] = lambda: None
) -> int:
    """Forks a process that runs a command in a folder, its output going to a file."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code: Any = 70
    try:
        os.setsid()
        signal.alarm(LIMIT_S)
        with log.open("ab") as file, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        launchers.Local = Forked  # type: ignore[misc,assignment]
        reproduce.POLL_S = 0.05
        before()
        sys.argv = ["dcasgd-repro", *words]
        commands.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code or 0)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def done(
    tally: Tally,
    words: Sequence[str],
    folder: Path,
    codes: Sequence[int],
    name: str = "",
    before: Callable[[], object] = lambda: None,
) -> str:
    """Runs a command to its end, which must have one of the codes and, if it is not 0, say a name.

    Returns what it said.
    """
    log = folder / "said"
    log.unlink(missing_ok=True)
    code, tally.times = wait(fork(words, folder, log, before)), tally.times + 1
    text = said(log)
    check(tally, f"{' '.join(words[:2])}", code, text, codes)
    if code and name not in text:
        tally.add("different", f"{words[0]}: does not name {name}: {text.strip()[-300:]}")
    return text


def check(tally: Tally, what: str, code: int, text: str, codes: Sequence[int]) -> None:
    if "Traceback" in text:
        tally.add("tracebacks", f"{what}: {text.strip()[-700:]}")
    elif code == -signal.SIGALRM:
        tally.add("hangs", what)
    elif code not in codes:
        tally.add("different", f"{what}: exit code {code}: {text.strip()[-300:]}")


# Studies.


def study(folder: Path, cells: dict[str, str] = CELLS) -> Path:
    """A folder with a study in it."""
    (folder / "mine").mkdir(parents=True)
    content = {"title": "Mine", "cells": cells, "claims": [{"lower": "dc", "higher": "asgd"}]}
    if "dc" not in cells:
        del content["claims"]
    (folder / "mine" / "grid.yaml").write_text(yaml.dump(content))
    return folder


def compare(tally: Tally, folder: Path, whole: Path, cells: Sequence[str] = tuple(CELLS)) -> None:
    """What is not in a folder as in that of the uninterrupted study, times aside."""
    jobs = {path.name for path in (whole / "outputs/cells").iterdir()}
    made = {path.name for path in (folder / "outputs/cells").iterdir()}
    for extra in made - jobs:
        tally.add("different", f"outputs/cells/{extra}: another run")
    for path in sorted((whole / RUNS).iterdir()):
        if path.name.rpartition("-seed")[0] not in cells:
            continue
        ours = folder / RUNS / path.name
        if not all((ours / file.name).is_file() for file in path.iterdir()):
            tally.add("lost", f"{ours.name}: not kept whole")
            continue
        a, b = (json.loads((place / "summary.json").read_text()) for place in (ours, path))
        keys = [k for k in a.keys() | b.keys() if k not in ("wall_s", "checkpoint_s")]
        odd = [key for key in keys if a.get(key) != b.get(key)]
        rows = [pd.read_csv(p / "metrics.csv", dtype=str) for p in (ours, path)]
        if odd or not rows[0].drop(columns="wall_s").equals(rows[1].drop(columns="wall_s")):
            tally.add("different", f"{ours.name}: {odd or 'metrics.csv'}")
        if (ours / "fingerprint.json").read_bytes() != (path / "fingerprint.json").read_bytes():
            tally.add("different", f"{ours.name}: fingerprint.json")
    for name in jobs & made:
        if (whole / "outputs/cells" / name / "summary.json").exists():
            places = (folder / "outputs/cells" / name, whole / "outputs/cells" / name)
            for what in differences(*places):
                tally.add("different", f"{name}: {what}")
    if odd_names := {p.name for p in (folder / RUNS).iterdir()} ^ {
        p.name for p in (whole / RUNS).iterdir() if p.name.rpartition("-seed")[0] in cells
    }:
        tally.add("different", f"{RUNS}: {sorted(odd_names)}")
    for log in (folder / "outputs/cells").glob("*/train.log"):
        if "Traceback" in said(log):
            tally.add("tracebacks", f"{log.parent.name}: {said(log)[-700:]}")


def alive(folder: Path) -> list[int]:
    """The study's runs that are under way."""
    found = []
    for number in map(int, said(folder / "pids").split()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(number)
    return found


def killed(
    kinds: Sequence[str],
    at_once: int,
    kills: int,
    place: Path,
    whole: Path,
    length_s: float,
    rng: random.Random,
) -> Tally:
    """Kills what ``kinds`` say of studies at random instants; each then goes on to its end."""
    what = f"SIGKILL of {', '.join(kinds)}" + (", two reproduce on one study" * (at_once > 1))
    tally, attempt = Tally(what, "kills"), 0
    while tally.times < kills:
        attempt += 1
        folder = study(place / f"study{attempt}")
        left = min(rng.randint(3, 7), kills - tally.times)
        while True:
            logs = [folder / f"said{k}" for k in range(at_once)]
            children = [fork(STUDY, folder, log) for log in logs]
            if left:
                time.sleep(rng.uniform(0.0, length_s))
                kind, runs = rng.choice(kinds), alive(folder)
                victims = [rng.choice(children)] if kind != "a run" else []
                victims += (
                    runs if kind == "both" else rng.sample(runs, kind == "a run" and bool(runs))
                )
                for victim in victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                tally.times += bool(victims)
                left -= bool(victims)
            codes = [wait(child) for child in children]
            for code, log in zip(codes, logs, strict=True):
                check(tally, folder.name, code, said(log), (0, 1, -signal.SIGKILL))
            if not left and not any(codes):
                break
            if not left and tally.wrong:
                break
        compare(tally, folder, whole)
    return tally


def interrupted(tries: int, place: Path, whole: Path, length_s: float, rng: random.Random) -> Tally:
    tally = Tally("SIGINT or SIGTERM to reproduce, at random instants")
    for k in range(tries):
        folder = study(place / f"stopped{k}")
        child = fork(STUDY, folder, folder / "said")
        time.sleep(rng.uniform(0.05, length_s))
        os.kill(child, rng.choice([signal.SIGINT, signal.SIGTERM]))
        code, tally.times = wait(child), tally.times + 1
        check(tally, folder.name, code, said(folder / "said"), (0, 130, -signal.SIGTERM))
        if runs := alive(folder):
            tally.add("different", f"{folder.name}: {len(runs)} runs were left behind")
        done(tally, STUDY, folder, [0])
        compare(tally, folder, whole)
    return tally


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs in place of a folder; whether that is permitted here."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    ok = shutil.which("mount") is not None and not subprocess.run(
        command, stderr=-3, check=False
    ).returncode  # fmt: skip
    try:
        yield ok
    finally:
        if ok:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(sizes_kb: Sequence[int], place: Path, whole: Path) -> Tally:
    tally = Tally("a disk that fills, then has room again")
    for size in sizes_kb:
        folder = place / f"full{size}"
        with mounted(folder, f"size={size}k") as tmpfs:
            study(folder)
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE)
            before = (lambda: None) if tmpfs else functools.partial(limit, (size * 200,) * 2)
            log = place / f"full{size}.said"
            code, tally.times = wait(fork(STUDY, folder, log, before)), tally.times + 1
            check(tally, f"{size} kB", code, said(log), (0, 1, 4))
            if tmpfs:
                again = ["mount", "-o", "remount,size=100m", str(folder)]
                subprocess.run(again, check=True)
            done(tally, STUDY, folder, [0])
            compare(tally, folder, whole)
    return tally


def read_only(place: Path, whole: Path) -> Tally:
    """Results in a folder that cannot be written, as in one of another user."""
    tally, folder = Tally("read-only results/"), study(place / "read_only")
    with mounted(folder / "results", "ro") as tmpfs:
        if not tmpfs:
            (folder / "results").chmod(0o555)
        text = done(tally, STUDY, folder, [4], "results")
        if text.count("dcasgd-repro: ") != 1:
            tally.add("different", f"more than a line: {text[-300:]}")
        for words in (["report", "mine"], ["report"]):
            done(tally, words, folder, [0, 2, 4])
    (folder / "results").chmod(0o755)
    done(tally, STUDY, folder, [0])
    compare(tally, folder, whole)
    return tally


OWN = """\
from dcasgd_repro.rules import ASGD


class Hungry(ASGD):
    def init(self, w, workers):
        return 0

    def direction(self, arrival, state):
        if state > 60:
            raise MemoryError("not enough of it")
        return super().direction(arrival, None)._replace(state=state + 1)
"""


def bad_cells(place: Path, whole: Path) -> Tally:
    tally = Tally("cells that fail, diverge or run out of memory beside good ones")
    cells = {
        **CELLS,
        "diverges": f"{SMALL} rule=asgd workers=3 lr.base=1000",
        "fails": f"{SMALL} rule=asgd workers=2 schedule=file schedule.path=none.csv",
        "hungry": f"{SMALL} rule=own_hungry:Hungry workers=2",
    }
    folder = study(place / "bad_cells", cells)
    (folder / "own_hungry.py").write_text(OWN)
    for _ in range(2):
        text = done(
            tally, STUDY, folder, [1], "failed    fails-seed0: ", lambda: sys.path.append("")
        )
        if "failed    hungry-seed0: dcasgd-repro: run_dir=" not in text:
            tally.add("different", f"hungry: {text[-500:]}")
    status = {
        path.name: json.loads((path / "summary.json").read_text())["status"]
        for path in (folder / RUNS).iterdir()
    }
    good = dict.fromkeys((f"{cell}-seed0" for cell in CELLS), "finished")
    if status != {**good, "diverges-seed0": "diverged", "hungry-seed0": "failed"}:
        tally.add("different", f"{status}")
    for name in good:
        if (folder / RUNS / name / "metrics.csv").read_text().count("\n") < 10:
            tally.add("lost", name)
    return tally


def replaced(place: Path, whole: Path) -> Tally:
    """One run's directory is something else; the other runs come to their ends."""
    tally = Tally("a run directory that is a file, a link or another run's")
    cells = sorted((whole / "outputs/cells").iterdir())
    job, other = cells[0].name, cells[1].name
    kinds: dict[str, Callable[[Path], object]] = {
        "file": lambda at: at.write_text("text"),
        "link to nowhere": lambda at: at.symlink_to("nowhere"),
        "link to itself": lambda at: at.symlink_to(at.name),
        "link to a file": lambda at: at.symlink_to("/etc/hostname"),
        "link to another run": lambda at: at.symlink_to(other),
        "another run": lambda at: shutil.copytree(whole / "outputs/cells" / other, at),
        "a checkpoint that is a folder": lambda at: (at / "checkpoint.pt").mkdir(parents=True),
        "a config that is a folder": lambda at: (at / "config.yaml").mkdir(parents=True),
        "a log that is a folder": lambda at: (at / "train.log").mkdir(parents=True),
        "a lock that is a folder": lambda at: (at / ".lock").mkdir(parents=True),
        "a summary that is text": lambda at: [at.mkdir(), (at / "summary.json").write_text("{")],
    }  # fmt: skip
    for kind, make in kinds.items():
        folder = study(place / kind.replace(" ", "_"))
        at = folder / "outputs/cells" / job
        at.parent.mkdir(parents=True)
        make(at)
        for words in ([*STUDY, "--dry-run"], STUDY):
            text = done(tally, words, folder, [0, 1, 2, 4], job)
        others = {
            f"{cell}-seed0" for cell in CELLS if f"{cell}-seed0" not in text.partition("failed ")[2]
        }
        if missing := [n for n in others if not (folder / RUNS / n / "summary.json").exists()]:
            tally.add("lost", f"{kind}: {missing}: {text[-400:]}")
        if at.is_symlink() or at.is_file():
            at.unlink()
        else:
            shutil.rmtree(at, ignore_errors=True)
        done(tally, STUDY, folder, [0])
        compare(tally, folder, whole)
    return tally


def mutations(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to damage a kept file, by name."""
    good = path.read_bytes()
    yield "absent", path.unlink
    for name, content in {
        "empty": b"",
        "half": good[: len(good) // 2],
        "binary": bytes(range(256)) * 4,
        "list": b"[]\n",
        "null": b"null\n",
        "word": b"word",
        "deep": b"[" * 100_000,
        "crlf": good.replace(b"\n", b"\r\n"),
    }.items():
        yield name, functools.partial(path.write_bytes, content)
    yield "folder", lambda: (path.unlink(), path.mkdir())
    yield "link", lambda: (path.unlink(), path.symlink_to(path.name))
    if path.suffix == ".json":
        content = json.loads(good)
        for key in content:
            rest = {k: v for k, v in content.items() if k != key}
            for word, value in (("no", None), ("text", "<script>|"), ("list", [1]), ("null", None)):
                made = rest if word == "no" else {**rest, key: value}
                yield f"{word} {key}", functools.partial(path.write_text, json.dumps(made))
    if path.suffix == ".csv":
        head, *rows = good.decode().splitlines()
        names = head.split(",")
        yield "head alone", functools.partial(path.write_text, head + "\n")
        yield (
            "words",
            functools.partial(
                path.write_text, "\n".join([head, *(r.replace("1", "x") for r in rows), ""])
            ),
        )
        for k, name in enumerate(names):
            cut = [",".join(v for j, v in enumerate(r.split(",")) if j != k) for r in (head, *rows)]
            yield f"no {name}", functools.partial(path.write_text, "\n".join([*cut, ""]))
    if path.suffix == ".yaml":
        content = yaml.safe_load(good)
        for key in content:
            rest = {k: v for k, v in content.items() if k != key}
            for word, value in (("no", 0), ("text", "<script>|"), ("list", [1]), ("null", None)):
                made = rest if word == "no" else {**rest, key: value}
                yield f"{word} {key}", functools.partial(path.write_text, yaml.dump(made))


def damaged(every: int, place: Path, whole: Path) -> Tally:
    """Each file of a kept run in many ways; one in ``every`` is tried by every command."""
    tally = Tally("damaged kept runs: report, diagnose, verify, reproduce")
    name = "dc-seed0"
    base = place / "damaged"
    shutil.copytree(whole, base, symlinks=True)
    kept = base / RUNS / name
    commands_ = [["report", "mine"], ["report", str(RUNS)], ["diagnose", str(RUNS / name)],
                 ["verify", str(RUNS / name)]]  # fmt: skip
    turn = 0
    for file in sorted(p.name for p in kept.iterdir()):
        for what, damage in mutations(kept / file):
            turn += 1
            if turn % every and " " in what:
                continue
            good = {p.name: p.read_bytes() for p in kept.iterdir()}
            damage()
            for words in commands_:
                before = len(tally.wrong)
                text = done(tally, words, base, [0, 1, 2], name)
                if "<script>" in "".join(said(p) for p in (base / "results").rglob("*.md")):
                    tally.add("different", "<script> in a page")
                tally.wrong[before:] = [(k, f"{file} {what}: {w}") for k, w in tally.wrong[before:]]
                taken = what in ("binary", "word", "folder") and words == ["report", "mine"]
                if taken and file != "fingerprint.json" and name not in text:
                    tally.add("different", f"{file} {what}: {words} takes it: {text[-200:]}")
            if " " not in what:  # its run is there still: kept anew
                done(tally, STUDY, base, [0, 1, 2], name)
            for path in kept.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            for path, content in good.items():
                (kept / path).write_bytes(content)
    return tally


def at_instants(place: Path, whole: Path) -> Tally:
    """SIGINT as a run does this or that, to a fork; and as it imports, to a fresh process."""
    tally = Tally("SIGINT to train: import, data, evaluation, checkpoint, summary")
    reference = place / "instants"
    reference.mkdir()
    done(tally, TRAIN, reference, [0])

    def strike(owner: Any, name: str, after: bool, twice: bool) -> None:
        inner = getattr(owner, name)

        def struck(*args: Any, **kwargs: Any) -> Any:
            setattr(owner, name, inner)
            if not after:
                os.kill(os.getpid(), signal.SIGINT)
            found = inner(*args, **kwargs)
            if after:
                os.kill(os.getpid(), signal.SIGINT)
            if twice:
                os.kill(os.getpid(), signal.SIGINT)
            return found

        setattr(owner, name, struck)

    spots = [(Quadratic, "on"), (QuadraticTask, "initial"), (QuadraticTask, "evaluate")]
    spots += [(write, "locked"), (write, "note_origin"), (write, "Logs"), (checkpoint, "save")]
    spots += [(checkpoint, "write_through"), (experiment, "fingerprint"), (write, "write_json")]
    spots += [(write, "write_fingerprint"), (experiment, "describe"), (write, "weights_sha256")]
    for owner, name in spots:
        for after, twice in ((False, False), (True, False), (False, True)):
            folder = place / f"{name}{after}{twice}"
            folder.mkdir()
            before = functools.partial(strike, owner, name, after, twice)
            done(tally, TRAIN, folder, [0, 130], before=before)
            done(tally, TRAIN, folder, [0])
            for what in differences(folder / "A", reference / "A"):
                tally.add("different", f"SIGINT at {name}: {what}")
    for k in range(8):
        folder = place / f"import{k}"
        folder.mkdir()
        with (folder / "said").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "dcasgd_repro", *TRAIN], cwd=folder,
                                       stdout=log, stderr=log)  # fmt: skip
        time.sleep(0.1 + 0.3 * k)
        process.send_signal(signal.SIGINT)
        code, tally.times = process.wait(LIMIT_S), tally.times + 1
        check(tally, f"SIGINT after {0.1 + 0.3 * k:.1f} s", code, said(folder / "said"), (0, 130))
        done(tally, TRAIN, folder, [0])
        for what in differences(folder / "A", reference / "A"):
            tally.add("different", f"SIGINT at import: {what}")
    return tally


def terminals(place: Path, whole: Path) -> Tally:
    """Every command with a reader that left, closed output, no HOME, 20 columns, a terminal."""
    tally = Tally("SIGPIPE, closed stdout or stderr, no HOME, COLUMNS=20, a terminal")
    base = place / "terminals"
    shutil.copytree(whole, base)
    run = str(RUNS / "dc-seed0")
    each = [["--help"], ["train", "--help"], [*TRAIN], STUDY, ["report", "mine"], ["report", run],
            ["diagnose", run], ["verify", run], ["check", "rule=asgd"], [*STUDY, "--dry-run"],
            ["schedule", "schedule=gamma", "workers=4", "scale=smoke"], ["nonsense"]]  # fmt: skip

    def no_reader() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    def narrow() -> None:
        os.environ.update(COLUMNS="20", LINES="5", TERM="dumb")

    def no_home() -> None:
        for key in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
            os.environ.pop(key, None)

    def terminal() -> None:
        """Standard error is a terminal of 20 columns, which nobody reads from."""
        _, slave = os.openpty()
        os.dup2(slave, 2)
        narrow()

    ways: dict[str, Callable[[], object]] = {
        "no reader": no_reader,
        "stdout closed": lambda: (os.close(1), setattr(sys, "stdout", None)),
        "stderr closed": lambda: (os.close(2), setattr(sys, "stderr", None)),
        "COLUMNS=20": narrow,
        "no HOME": no_home,
        "a terminal": terminal,
    }
    for way, before in ways.items():
        for words in each:
            shutil.rmtree(base / "A", ignore_errors=True)
            start = len(tally.wrong)
            done(tally, words, base, [0, 2, 4, 141], before=before)
            tally.wrong[start:] = [(kind, f"{way}: {what}") for kind, what in tally.wrong[start:]]
    for way, text in {
        "no HOME": "env -u HOME {0} >/dev/null",
        "stdout closed": "{0} >&-",
        "stderr closed": "{0} >/dev/null 2>&-",
        "no reader": "{0} | true",
        "COLUMNS=20": "COLUMNS=20 {0}",
        "nohup": "nohup {0}",
    }.items():
        shutil.rmtree(base / "A", ignore_errors=True)
        command = text.format(" ".join([sys.executable, "-m", "dcasgd_repro", *TRAIN]))
        shell = ["bash", "-c", command]
        made = subprocess.run(shell, cwd=base, capture_output=True, text=True, check=False,
                              timeout=LIMIT_S)  # fmt: skip
        tally.times += 1
        check(tally, way, made.returncode, made.stdout + made.stderr, (0, 4))
    return tally


def other_means(place: Path, whole: Path) -> Tally:
    """A run is begun, stopped, and given other threads or another engine."""
    tally = Tally("resumed with other threads or another engine: said, never mixed")
    for word in ("threads=2", "engine=threads", "engine=waves", "fused=true"):
        folder = study(place / word)
        first = [*(w for w in TRAIN if w != "run_dir=A"), "run_dir=A"]

        def stop_early() -> None:
            inner, seen = checkpoint.save, []

            def save(*args: Any) -> None:
                inner(*args)
                seen.append(1)
                if len(seen) == 40:
                    os.kill(os.getpid(), signal.SIGTERM)

            checkpoint.save = save  # type: ignore[assignment]

        done(tally, first, folder, [143], "SIGTERM", before=stop_early)
        given = [w for w in first if not w.startswith(word.partition("=")[0] + "=")]
        text = done(tally, [*given, word], folder, [2], word.partition("=")[0])
        if text.count("\n") != 1:
            tally.add("different", f"{word}: {text}")
        child = fork(STUDY, folder, folder / "first", stop_early)
        check(tally, word, wait(child), said(folder / "first"), (0, 1))
        text = done(tally, [*STUDY, word], folder, [0])
        begun = "begun with other means than" in text
        if not begun and word.partition("=")[0] not in said(
            folder / RUNS / "dc-seed0/provenance.json"
        ):
            tally.add("different", f"reproduce {word}: {text}")
        compare(tally, folder, whole)
    return tally


def table(tallies: Sequence[Tally]) -> str:
    rows = [
        {"tried": t.what, "times": f"{t.times} {t.unit}"}
        | {kind: sum(k == kind for k, _ in t.wrong) for kind in KINDS}
        for t in tallies
    ]
    return pd.DataFrame(rows).to_string(index=False)


def main(kills: int = 60, only: str = "") -> int:
    torch.set_num_threads(1)
    rng, tallies = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tempfile.tempdir = name  # a fork leaves what it does not live to remove
        whole, first = study(place / "whole"), Tally("the study, uninterrupted")
        began = time.perf_counter()
        done(first, STUDY, whole, [0])
        length_s = time.perf_counter() - began
        compare(first, whole, whole)
        scenes: list[Callable[[], Tally]] = [
            lambda: killed(
                ("reproduce", "a run", "both"), 1, kills, place / "k1", whole, length_s, rng
            ),
            lambda: killed(
                ("reproduce", "both"), 2, max(1, kills // 3), place / "k2", whole, length_s, rng
            ),
            lambda: interrupted(max(2, kills // 6), place / "int", whole, length_s, rng),
            lambda: full_disk((60, 130, 200, 300, 400, 500), place, whole),
            lambda: read_only(place, whole),
            lambda: bad_cells(place, whole),
            lambda: replaced(place / "replaced", whole),
            lambda: damaged(max(1, 720 // kills), place, whole),
            lambda: at_instants(place, whole),
            lambda: terminals(place, whole),
            lambda: other_means(place, whole),
        ]
        tallies.append(first)
        for k, scene in enumerate(tqdm(scenes, unit="scene")):
            if not only or str(k) in only.split(","):
                tallies.append(scene())
    print(table(tallies))
    wrong = [item for tally in tallies for item in tally.wrong]
    for kind, what in wrong:
        print(f"{kind.upper()} {what}")
    counts = [f"{sum(k == kind for k, _ in wrong)} {kind}" for kind in KINDS]
    print(", ".join(counts))
    return int(bool(wrong))


if __name__ == "__main__":
    kills_, *only_ = sys.argv[1:] or ["60"]
    sys.exit(main(int(kills_), *only_))
