"""Running a study: what is skipped, gone on with, kept, lost and told."""

import fcntl
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.study import display, launchers, pages, reproduce, request
from dcasgd_repro.study.grid import study

QUADRATIC = "task=quadratic rule=asgd schedule=gamma lr.base=0.1"


def grid(folder: Path, cells: dict[str, str]) -> str:
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text(yaml.dump({"title": "Mine", "cells": cells}))
    return str(folder)


class Instantly:
    """A launcher whose runs end at once, as ``outcome`` says; it remembers what it was asked."""

    def __init__(self, outcome: dict[str, str]) -> None:
        self.outcome, self.asked, self.at_once, self.most = outcome, [], 0, 0
        self.commands: list[Sequence[str]] = []

    def start(self, command: Sequence[str], log: Path) -> "Instantly.Handle":
        run_dir = Path(next(w for w in command if w.startswith("run_dir="))[8:])
        self.asked.append(run_dir)
        self.commands.append(command)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        workers = next(w for w in command if w.startswith("workers="))
        status = self.outcome[workers]
        log.write_text(f"so far\n\r50 %\rthe last line of {workers}\n")
        rule = "dcasgd_repro.rules.DCASGDa"
        text = f"threads: 1\nrule: {{_target_: {rule}}}\n{workers.replace('=', ': ')}\n"
        (run_dir / "config.yaml").write_text(text + "exp: null\nscale: smoke\nseed: 0\n")
        (run_dir / "provenance.json").write_text("{}")
        rows = "push,test_loss\n50,\n200,\n250,\n300,1.5\n350,\n"
        (run_dir / "metrics.csv").write_text(rows)
        if status != "killed":
            (run_dir / "summary.json").write_text(json.dumps({"status": status}))
        return Instantly.Handle(self)

    class Handle:
        def __init__(self, launcher: "Instantly") -> None:
            self.launcher = launcher

        def ended(self) -> bool:
            self.launcher.at_once -= 1
            return True

        def stop(self, hard: bool) -> None: ...


CELLS = {f"m{m}": f"{QUADRATIC} workers={m}" for m in (1, 2, 3, 4)}
OUTCOMES = {"workers=1": "finished", "workers=2": "diverged", "workers=3": "failed"}
OUTCOMES |= {"workers=4": "killed"}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[reproduce.Job]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "POLL_S", 0.0)
    return reproduce.jobs_of(study(grid(tmp_path / "mine", CELLS)), "smoke", 1)


def test_what_ended_is_left_alone_and_the_rest_is_run(jobs: list[reproduce.Job]) -> None:
    launcher = Instantly(OUTCOMES)
    assert [job.status for job in jobs] == ["missing"] * 4
    failed = reproduce.run(jobs, 2, launcher, display.display(jobs, "mine"))
    assert [job.name for job in failed] == ["m3-seed0", "m4-seed0"]
    assert [job.status for job in jobs] == ["finished", "diverged", "failed", "partial"]
    assert launcher.asked == [job.path for job in jobs]
    assert launcher.most == 2
    again = Instantly({**OUTCOMES, "workers=3": "finished"})
    failed = reproduce.run(jobs, 3, again, display.display(jobs, "mine"))
    assert again.asked == [jobs[2].path, jobs[3].path]
    assert [job.name for job in failed] == ["m4-seed0"]
    assert failed[0].last_line() == "the last line of workers=4"


def test_something_else_in_the_place_of_a_run_fails_that_run_alone(
    jobs: list[reproduce.Job], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs[0].path.parent.mkdir(parents=True)
    jobs[0].path.symlink_to(jobs[0].path.name)
    (jobs[1].path / "train.log").mkdir(parents=True)
    (jobs[3].path / ".lock").mkdir(parents=True)
    launcher = Instantly({**OUTCOMES, "workers=3": "finished", "workers=4": "finished"})
    failed = reproduce.run(jobs, 2, launcher, display.display(jobs, "mine"))
    assert failed == jobs[:2]
    assert [job.status for job in jobs[2:]] == ["finished", "finished"]
    said = capsys.readouterr().err
    for job in failed:
        assert f"failed    {job.name}: {job.path} is no directory that can hold its tr" in said


def test_a_run_that_another_process_is_at_is_waited_for(jobs: list[reproduce.Job]) -> None:
    path = jobs[0].path
    path.mkdir(parents=True)
    script = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    script += "print('locked', flush=True); time.sleep(float(sys.argv[2]))"
    command = [sys.executable, "-c", script, str(path / ".lock"), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        began, launcher = time.monotonic(), Instantly(OUTCOMES)
        assert reproduce.run(jobs[:1], 1, launcher, display.display(jobs, "mine")) == []
        assert time.monotonic() - began > 0.5
    assert launcher.asked == [path]  # it left the run unfinished, so it was gone on with


class Overtaken(Instantly):
    """Another process begins the run first: ours is refused, as train refuses a second writer."""

    def start(self, command: Sequence[str], log: Path) -> Instantly.Handle:
        handle = super().start(command, log)
        if len(self.asked) == 1:
            script = "import fcntl, sys, time; f = open(sys.argv[1], 'w');"
            script += "fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(1)"
            words = [sys.executable, "-c", script, str(self.asked[0] / ".lock")]
            self.other = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert self.other.stdout is not None
            assert self.other.stdout.readline() == b"locked\n"
            (self.asked[0] / "summary.json").unlink()
        return handle


def test_a_run_that_another_process_began_first_has_not_failed(jobs: list[reproduce.Job]) -> None:
    launcher = Overtaken(OUTCOMES)
    began = time.monotonic()
    assert reproduce.run(jobs[:1], 1, launcher, display.display(jobs, "mine")) == []
    assert time.monotonic() - began > 0.5
    assert launcher.asked == [jobs[0].path] * 2
    assert "threads=1" not in launcher.commands[0]
    assert "threads=1" in launcher.commands[1]  # as the other process had begun it
    launcher.other.communicate()


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with reproduce._stopping({}):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), reproduce._stopping({}):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_cells_of_one_configuration_are_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "POLL_S", 0.0)
    cells = {"a": f"{QUADRATIC} workers=1", "b": f"{QUADRATIC} workers=1 rule.momentum=0"}
    jobs = reproduce.jobs_of(study(grid(tmp_path / "twins", cells)), "smoke", 2)
    launcher = Instantly(OUTCOMES)
    assert reproduce.run(jobs, 1, launcher, display.display(jobs, "twins")) == []
    assert launcher.asked == [jobs[0].path, jobs[2].path]
    reproduce.keep(jobs, tmp_path / "kept")
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["a-seed0", "a-seed1", "b-seed0", "b-seed1"]


def test_kept_are_the_ended_and_the_failed_with_the_rows_that_figures_need(
    jobs: list[reproduce.Job], tmp_path: Path
) -> None:
    reproduce.run(jobs, 4, Instantly(OUTCOMES), display.display(jobs, "mine"))
    reproduce.keep(jobs, tmp_path / "kept")
    kept = {path.name: path for path in (tmp_path / "kept").iterdir()}
    assert sorted(kept) == ["m1-seed0", "m2-seed0", "m3-seed0"]
    reproduce.keep(jobs, tmp_path / "kept", failed=jobs[3:])
    killed = json.loads((tmp_path / "kept" / "m4-seed0" / "summary.json").read_text())
    assert killed["status"] == "failed"
    assert (killed["rule"], killed["workers"], killed["pushes"]) == ("dcasgd_a", 4, 350)
    assert killed["last_line"] == "the last line of workers=4"
    assert (kept["m3-seed0"] / "metrics.csv").read_text() == "push,test_loss\n50,\n200,\n300,1.5\n"
    assert sorted(p.name for p in kept["m1-seed0"].iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "provenance.json",
        "summary.json",
    ]


def test_a_failed_run_does_not_replace_one_that_ended_before(
    jobs: list[reproduce.Job], tmp_path: Path
) -> None:
    before = tmp_path / "kept" / "m3-seed0" / "summary.json"
    before.parent.mkdir(parents=True)
    before.write_text('{"status": "finished", "weights_sha256": "f00d"}')
    rule = "rule: {_target_: dcasgd_repro.rules.DCASGDa}"
    config = f"threads: 9\n{rule}\nworkers: 3\nexp: null\nscale: smoke\nseed: 0\n"
    (before.parent / "config.yaml").write_text(config)  # the same but for the means
    failed = reproduce.run(jobs[2:], 2, Instantly(OUTCOMES), display.display(jobs, "mine"))
    reproduce.keep(jobs, tmp_path / "kept", failed)
    assert json.loads(before.read_text())["weights_sha256"] == "f00d"
    (before.parent / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    reproduce.keep(jobs, tmp_path / "kept", failed)  # it was a run of other numbers
    assert json.loads(before.read_text())["status"] == "failed"
    ended = Instantly({**OUTCOMES, "workers=3": "diverged"})
    reproduce.run(jobs[2:3], 1, ended, display.display(jobs, "mine"))
    reproduce.keep(jobs, tmp_path / "kept")
    assert json.loads(before.read_text()) == {"status": "diverged"}


def test_a_begun_run_keeps_its_means(jobs: list[reproduce.Job]) -> None:
    job = jobs[0]
    assert job.command[-1] == f"run_dir={job.path}"
    job.path.mkdir(parents=True)
    means = "threads: 7\ndevice: cpu\nfused: false\nlog_every: 9\ndeterministic: null\n"
    means += "engine: {_target_: dcasgd_repro.fast.threads.Threads, slots: null}\n"
    (job.path / "config.yaml").write_text(means)
    kept = {"threads=7", "device=cpu", "fused=False", "log_every=9", "deterministic=null"}
    given = vars_of(job)
    given["overrides"] = (*job.overrides, "engine=waves", "engine.size=4", "threads=1")
    command = reproduce.Job(**given).command
    assert set(command[-8:-1]) == kept | {"engine=threads", "engine.slots=null"}
    assert command[-1] == f"run_dir={job.path}"
    assert not {"engine=waves", "engine.size=4", "threads=1"} & set(command)


def test_a_run_begun_with_another_engine_is_gone_on_with(tmp_path: Path) -> None:
    name = grid(tmp_path / "mine", {"a": f"{QUADRATIC} workers=2 epochs=100"})
    command = [sys.executable, "-m", "dcasgd_repro", "reproduce", name, "scale=smoke"]
    command += ["seeds=1", "jobs=1"]
    first = subprocess.Popen([*command, "engine=threads"], cwd=tmp_path, stdout=-3, stderr=-3)
    job = reproduce.jobs_of(study(name), "smoke", 1)[0]
    there = reproduce.Job(**{**vars_of(job), "path": tmp_path / job.path})
    deadline = time.monotonic() + 60
    while there.done() < 100:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert there.status == "interrupted"
    again = subprocess.run([*command, "engine=plain"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0
    line = "dcasgd-repro: begun with other means than engine=plain, which they keep: a-seed0"
    assert line in again.stderr
    assert there.status == "finished"
    config = yaml.safe_load((there.path / "config.yaml").read_text())
    assert config["engine"]["_target_"] == "dcasgd_repro.fast.threads.Threads"


def vars_of(job: reproduce.Job) -> dict[str, object]:
    return {key: getattr(job, key) for key in job.__dataclass_fields__}


def test_the_time_left_does_not_count_what_a_divergence_saved_as_work(
    jobs: list[reproduce.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    lines = display.Lines(jobs, "mine")
    for job, pushes in zip(jobs, (64, 2), strict=False):
        job.path.mkdir(parents=True)
        (job.path / "metrics.csv").write_text(f"push,test_loss\n{pushes},\n")
    (jobs[1].path / "summary.json").write_text('{"status": "diverged"}')
    now[0] = 100.0  # 66 pushes made; 64 + 128 + 128 of 4 x 128 to do: 484.8 s
    assert lines.title() == "mine: 1 of 4 runs, 38%, 0:08:05 left"
    (jobs[0].path / "metrics.csv").unlink()  # begun anew
    lines.begun_with = 3
    assert lines.title() == "mine: 1 of 4 runs, 25%, no push yet"


def test_a_plan_tells_states_pushes_and_hours(jobs: list[reproduce.Job]) -> None:
    reproduce.run(jobs[:1], 1, Instantly(OUTCOMES), display.display(jobs[:1], "mine"))
    text = reproduce.plan(jobs, 2, lambda: 3600.0)
    assert re.search(r"^m1-seed0 +finished +128 pushes  outputs/cells/", text, re.M)
    assert re.search(r"^m4-seed0 +missing +128 pushes", text, re.M)
    assert "4 runs, 3 to do: 384 pushes" in text
    assert text.endswith("about 192.0 h, 2 at a time, at 3600000 ms a push (median of the runs "
                         "there are; evaluations not counted)")  # fmt: skip
    assert "is not known" in reproduce.plan(jobs, 2, lambda: None)


def test_the_rate_is_the_median_of_that_scales_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce.seconds_per_push("laptop") is None
    for k, (scale, wall_s) in enumerate(
        [("laptop", 1), ("laptop", 3), ("laptop", 8), ("paper", 99)]
    ):
        folder = tmp_path / "outputs" / "cells" / str(k)
        folder.mkdir(parents=True)
        summary = {"scale": scale, "wall_s": wall_s, "pushes": 10}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert reproduce.seconds_per_push("laptop") == 0.3


def test_the_live_table_shows_every_cell(
    jobs: list[reproduce.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    reproduce.run(jobs, 4, Instantly(OUTCOMES), display.display(jobs, "mine"))
    summary = jobs[0].path / "summary.json"
    summary.write_text(json.dumps({"status": "finished", "test_error_final": 0.1234}))
    shown = display.LiveTable(jobs, "mine")
    shown.running = [jobs[3]]
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(shown.table())
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0][:7] == ["mine:", "2", "of", "4", "runs,", "100%,", "no"]
    assert lines[1:6] == [
        ["cell", "seed", "0"],
        ["m1", "12.34%"],
        ["m2", "diverged"],
        ["m3", "failed"],
        ["m4", "273%"],  # of 128 pushes: this log was made up
    ]
    assert display.clock(3725.4) == "1:02:05"


BROKEN = {
    "inherited": ("+exp=imagenet_dc rule=asgd", "rule.decay=0.0: ASGD has no such key"),
    "gone": (f"{QUADRATIC} schedule=file schedule.path=none.csv", "schedule.path=none.csv: not a "),
    "unread": (f"{QUADRATIC} augment=false", "augment=false: task quadratic reads no augment;"),
    "adds": (f"{QUADRATIC} +workerz=3", "workerz=3: no such key, and none can be added here"),
    "wrong": (f"{QUADRATIC} rule.momentum=2", "rule.momentum=2: give a finite number >= 0 and <"),
}


def test_a_dry_run_says_which_study_it_is_and_refuses_cells_of_which_no_run_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {name: words for name, (words, _) in BROKEN.items()}
    name = grid(tmp_path / "mine", {"fine": f"{QUADRATIC} workers=2", **cells})
    assert cli.reproduce([name, "scale=smoke", "seeds=2", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"mine, scale=smoke, of {tmp_path / 'mine'}"
    assert "12 runs, 12 to do" in out
    lines = err.splitlines()
    assert len(lines) == len(BROKEN)
    for cell, (_, message) in BROKEN.items():
        assert any(line.startswith(f"dcasgd-repro: cell {cell}: {message}") for line in lines)
    assert not (tmp_path / "outputs").exists()


def test_a_cell_whose_class_cannot_be_had_is_refused_by_name(tmp_path: Path) -> None:
    name = grid(tmp_path / "mine", {"a": "task=quadratic rule=my_rulez:MyRule"})
    with pytest.raises(BadInput, match=r"^cell a: rule=my_rulez:MyRule: there is no module my_ru"):
        reproduce.jobs_of(study(name), "smoke", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lr=0.1", "lr=0.1: no such lr, choose step, warmup; a key inside it is set as lr.base=VA"),
        ("sed=3", "sed=3: no such key; did you mean seed"),
        ("rule=asgd,ssgd", "rule=asgd,ssgd: a sweep needs -m"),
        ("rule=DCASGDa", "rule=DCASGDa: no such rule; did you mean dcasgd_a?"),
    ],
)
def test_a_cell_is_refused_in_the_words_of_train(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "mine").mkdir()
    text = f"title: t\ncells: {{a: 'task=quadratic {words}'}}\n"
    (tmp_path / "mine" / "grid.yaml").write_text(text)
    with pytest.raises(BadInput, match=f"^cell a: {re.escape(message)}"):
        reproduce.jobs_of(study(str(tmp_path / "mine")), "smoke", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "seeds=0"], "seeds=0: give a whole number >= 1"),
        (["table1", "jobs=x"], "jobs=x: give a whole number >= 1"),
        (["table1", "scale=huge"], "scale=huge: no such scale, choose"),
        (["tabel"], "study=tabel: no such study; choose"),
        (["table1", "scale=smoke", "epochs=2"], "epochs=2: would make it another study"),
        (["table1", "scale=smoke", "launcher=k8s"], "launcher=k8s: choose local, slurm or ray"),
        (["table1", "scale=smoke", "launcher=slurm"], "jobs=None: how many runs may slurm have"),
        (["table1", "scale=smoke", "launcher=ray"], "jobs=None: how many runs may ray have at a"),
        (
            ["table1", "scale=smoke", "ray.num_gpus=1"],
            "ray.num_gpus=1: goes with launcher=ray, and",
        ),
    ],
)
def test_reproduce_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        cli.reproduce(arguments)
    assert str(refused.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--dryrun"], "option=--dryrun: no such option"),
        (["table1", "fig2"], "study=table1 fig2: name one; there are"),
        (["scale=smoke"], "study=: name one; there are"),
    ],
)
def test_reproduce_refuses_odd_options(arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        cli.reproduce(arguments)
    assert str(refused.value).startswith(message)


def test_a_study_killed_and_run_again_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: Ctrl-C in the middle, then to the end; one cell cannot run at all."""
    cells = {
        "fine": f"{QUADRATIC} workers=2 task.noise=0.1 epochs=100",
        "lost": f"{QUADRATIC} workers=2 schedule=file schedule.path=none.csv",
    }
    name = grid(tmp_path / "mine", cells)
    command = [sys.executable, "-m", "dcasgd_repro", "reproduce", name, "scale=smoke"]
    command += ["seeds=1", "jobs=2"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    first = subprocess.Popen(command, cwd=stopped, stdout=-3, stderr=subprocess.PIPE, text=True)
    monkeypatch.chdir(stopped)
    job = reproduce.jobs_of(study(name), "smoke", 1)[0]
    deadline = time.monotonic() + 60
    while job.done() < 100:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, message = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "interrupted; every run goes on from its checkpoint with: dcasgd-repro rep" in message
    assert job.status == "interrupted"
    whole = [subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
             for folder in (stopped, straight)]  # fmt: skip
    for done in whole:
        assert done.returncode == 1
        line = "dcasgd-repro: schedule.path=none.csv: not a readable .csv"
        assert f"failed    lost-seed0: {line}" in done.stderr
    a, b = (
        json.loads((f / "results/mine/smoke/runs/fine-seed0/summary.json").read_text())
        for f in (stopped, straight)
    )
    assert a["status"] == "finished"
    assert a["pushes"] == 6400
    assert a["weights_sha256"] == b["weights_sha256"]
    assert (stopped / "results/mine/smoke/README.md").exists()


def test_a_rule_edited_while_its_study_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "from dcasgd_repro.rules import ASGD\nclass Mine(ASGD): ...\n"
    (tmp_path / "edited_meanwhile.py").write_text(source)
    cells = {"mine": f"{QUADRATIC} rule=edited_meanwhile:Mine epochs=1"}
    (job,) = reproduce.jobs_of(study(grid(tmp_path / "mine", cells)), "smoke", 1)
    (tmp_path / "edited_meanwhile.py").write_text(source + "# edited\n")
    done = subprocess.run(job.command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"run_dir={job.path}: is named for another run; was a file edited" in done.stderr
    assert not job.path.exists()
    (tmp_path / "edited_meanwhile.py").write_text(source)
    assert subprocess.run(job.command, check=False).returncode == 0
    assert job.ended


def test_slurm_jobs_run_the_command_and_say_when_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's own executor for this machine stands in for a cluster."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    slurm = launchers.Slurm({}, cluster="local")
    script = "print('it ran'); open('made', 'w').close()"
    job = slurm.start([sys.executable, "-c", script], tmp_path / "log")
    endless = slurm.start([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log2")
    deadline = time.monotonic() + 60
    while not job.ended():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "log").read_text() == "it ran\n"
    assert (tmp_path / "made").exists()
    assert not endless.ended()
    endless.stop(hard=False)
    while not endless.ended():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_slurm_wants_a_cluster_and_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"^launcher=slurm: there is no sbatch here"):
        launchers.launcher("slurm", {"time": "60"})
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(BadInput, match=r"^slurm.time=None: give the minutes of a job"):
        launchers.launcher("slurm", {})


def test_slurm_takes_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    for name in ("sbatch", "srun"):
        (tmp_path / name).chmod(0o755)
    lines = '[module load cuda, "export A=1,2"]'
    slurm = launchers.launcher("slurm", {"time": "60", "setup": lines, "partition": "long"})
    file = slurm.executor._executor._make_submission_file_text("run", "1")
    assert "\nmodule load cuda\nexport A=1,2\n" in file
    assert "#SBATCH --partition=long\n" in file
    assert "#SBATCH --time=60\n" in file
    with pytest.raises(BadInput, match=r"^slurm.setup=\[1\]: write a list as"):
        launchers.launcher("slurm", {"time": "60", "setup": "[1]"})


def test_a_launcher_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"^launcher=slurm: needs submitit: pip install"):
        launchers.launcher("slurm", {})
    with pytest.raises(BadInput, match=r"^launcher=ray: needs Ray: pip install"):
        launchers.launcher("ray", {})


def test_a_dry_run_refuses_a_rule_whose_state_no_checkpoint_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from dcasgd_repro.rules import ASGD\nclass Mine(ASGD):\n"
    source += "    def init(self, w, workers):\n        return {1}\n"
    source += "    def direction(self, arrival, state):\n"
    source += "        return super().direction(arrival, None)._replace(state=state)\n"
    (tmp_path / "own_unheld.py").write_text(source)
    cells = {"mine": f"{QUADRATIC} rule=own_unheld:Mine"}
    (job,) = reproduce.jobs_of(study(grid(tmp_path / "mine", cells)), "smoke", 1)
    line = "cell mine: rule=a state with a builtins.set: no checkpoint can hold it; make it of"
    assert str(reproduce.refusal(job)).startswith(line)


def test_two_reproduce_of_one_study_keep_runs_and_write_pages_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done: list[str] = []

    def alone(name: str) -> str:
        with (tmp_path / "outputs/.keeping").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done.append(name)
        return name

    def run(asked: object, jobs: list[reproduce.Job], ended: Callable[..., None]) -> list[object]:
        ended(jobs[0])
        return []

    monkeypatch.setattr(reproduce, "keep", lambda *given: alone("keep"))
    monkeypatch.setattr(pages, "write", lambda *given: alone("write"))
    monkeypatch.setattr(pages, "overview", lambda *given: alone("overview"))
    monkeypatch.setattr(request.Request, "run", run)
    name = grid(tmp_path / "mine", {"a": f"{QUADRATIC} workers=2"})
    assert cli.reproduce([name, "scale=smoke", "seeds=1"]) == 0
    assert done == ["keep", "keep", "write", "overview"]
