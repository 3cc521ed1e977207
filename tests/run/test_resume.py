"""Stopping and going on: kills, signals, damaged files, full disks, two processes."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torture
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.rules import DCASGDa
from dcasgd_repro.run import checkpoint, experiment, read
from dcasgd_repro.run import write as record
from dcasgd_repro.run.identity import identity
from dcasgd_repro.run.plan import plan_of
from dcasgd_repro.schedule import Constant, Gamma, Generated, Schedule
from dcasgd_repro.simulate import Server
from dcasgd_repro.study.pages import made_with

CELL = ["rule=dcasgd_a", "rule.mean_square=worker", "rule.momentum=0.9"]


def quiet(cfg: DictConfig) -> Path:
    return experiment.run(plan_of(cfg), say=lambda line: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(torture.config(CELL, tmp_path_factory.mktemp("whole") / "run"))


def stop_at(push: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Sends this process a signal as the given push ends."""
    receive = Server.receive_gradient

    def signalled(server: Server, *arguments: object) -> object:
        result = receive(server, *arguments)
        if server.pushes == push:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Server, "receive_gradient", signalled)


def test_ten_kills(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())
    cells = torture.CELLS[-1], torture.CELLS[4]
    tallies = [torture.torture(cell, 5, tmp_path / str(k), rng) for k, cell in enumerate(cells)]
    assert [t.kills for t in tallies] == [5, 5]
    assert [t.mismatches for t in tallies] == [[], []]


@pytest.mark.parametrize("push", [1, 7, 16, 33, 63])
def test_every_stop_goes_on_to_the_same_bits(
    push: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = torture.config(CELL, tmp_path / "run")
    with monkeypatch.context() as patched:
        stop_at(push, patched, signal.SIGTERM if push % 2 else signal.SIGINT)
        run = quiet(cfg)
    summary = read.Run.read(run).summary
    assert (summary["status"], summary["pushes"]) == ("interrupted", push)
    assert summary["stopped_by"] == ("SIGTERM" if push % 2 else "SIGINT")
    assert list(torture.differences(run, whole))  # it is not whole yet
    quiet(cfg)
    assert list(torture.differences(run, whole)) == []
    resumed = json.loads((run / "provenance.json").read_text())["resumed"]
    assert [r["after_push"] for r in resumed] == [push]


def test_a_run_that_goes_on_elsewhere_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, in its provenance, and in the caption of a page."""
    plan = plan_of(torture.config(CELL, tmp_path / "run"))

    def message(until: int | None = None) -> list[str]:
        lines: list[str] = []
        experiment.run(plan, say=lambda line: lines.append(line), until=until)
        return [line for line in lines if line.startswith("note      goes on elsewhere")]

    assert message(until=5) == message(until=10) == []
    run = read.Run.read(tmp_path / "run")
    assert "elsewhere" not in made_with([run])
    here = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    (line,) = message()
    assert line.endswith(f"float32 sums may differ: cpu_capability was {here}, is SVE256")
    run = read.Run.read(tmp_path / "run")
    places = [origin["cpu_capability"] for origin in read.origins(run.provenance)]
    assert places == [here, here, "SVE256"]
    assert made_with([run, run]).endswith("Of these runs, 2 went on elsewhere: bits may differ.")


def test_the_workers_statistics_are_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation sees the vectors that the workers hold, pulled before the stop."""
    keys = [*CELL, "task.statistics=workers"]
    expected = quiet(torture.config(keys, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        stop_at(15, patched)  # the next push ends an epoch
        quiet(torture.config(keys, tmp_path / "run"))
    assert list(torture.differences(quiet(torture.config(keys, tmp_path / "run")), expected)) == []


@pytest.mark.parametrize("push", [1, 5])
def test_backups_still_at_zero_survive_a_stop(
    push: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cell(name: str) -> DictConfig:
        keys = ["backup=push_from_zero", "schedule=paper_cluster", "schedule.request_share=0.5"]
        return torture.config([*CELL, *keys, "rule.lam0=0.2"], tmp_path / name)

    expected = quiet(cell("whole"))
    with monkeypatch.context() as patched:
        stop_at(push, patched)
        quiet(cell("run"))
    assert list(torture.differences(quiet(cell("run")), expected)) == []


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.rglob("*") if p.is_file()}
    said: list[str] = []
    cfg = OmegaConf.merge(torture.config(CELL, whole), {"resume": "never"})
    assert experiment.run(plan_of(cfg), say=said.append) == whole
    assert "finished already" in said[0]
    assert before == {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.rglob("*") if p.is_file()
    }


def test_without_run_dir_the_unfinished_run_of_this_config_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = torture.config(CELL, Path("x"))
    cfg.run_dir = None
    with monkeypatch.context() as patched:
        stop_at(9, patched)
        first = quiet(cfg)
    other = OmegaConf.merge(cfg, {"seed": 5})
    assert quiet(other) != first
    assert quiet(OmegaConf.merge(cfg, {"resume": "never", "log_every": 6})) != first
    assert quiet(cfg) == first
    assert read.Run.read(first).summary["status"] == "finished"
    assert quiet(cfg) == first  # finished: left alone
    time.sleep(1.1)  # names carry the second
    assert quiet(OmegaConf.merge(cfg, {"resume": "never"})) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed=0 (now 3)"),
        ({"workers": 2}, "workers=4 (now 2)"),
        ({"rule": {"lam0": 1.5}}, "rule.lam0=2.0 (now 1.5)"),
        ({"log_every": 7}, "log_every=5 (now 7)"),
    ],
)
def test_another_config_is_refused_by_its_difference(
    change: dict, message: str, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as refused:
        quiet(OmegaConf.merge(torture.config(CELL, whole), change))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"run_dir={whole}: holds a run with ")


def test_keys_that_change_no_number_may_differ(whole: Path) -> None:
    cfg = OmegaConf.merge(torture.config(CELL, whole), {"checkpoint": {"every_s": 9}, "exp": "x"})
    assert quiet(cfg) == whole


def test_a_key_that_came_later_and_is_null_leaves_a_run_what_it_was(
    whole: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(whole, older)
    lines = (older / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip() != "statistics: null"]
    assert len(kept) == len(lines) - 1
    (older / "config.yaml").write_text("".join(kept))
    assert quiet(torture.config(CELL, older)) == older
    with pytest.raises(BadInput, match=r"task\.statistics=None \(now workers\)"):
        quiet(torture.config([*CELL, "task.statistics=workers"], older))


def interrupted(place: Path, monkeypatch: pytest.MonkeyPatch, push: int = 20) -> DictConfig:
    cfg = torture.config(CELL, place / "run")
    with monkeypatch.context() as patched:
        stop_at(push, patched)
        quiet(cfg)
    return cfg


def test_a_damaged_checkpoint_falls_back_to_the_previous(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = interrupted(tmp_path, monkeypatch)
    newest = tmp_path / "run" / checkpoint.NEWEST
    content = newest.read_bytes()
    newest.write_bytes(content[:-100])  # truncated
    assert list(torture.differences(quiet(cfg), whole)) == []


def test_two_damaged_checkpoints_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = interrupted(tmp_path, monkeypatch)
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        path = tmp_path / "run" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"^checkpoint=.*sha256 differs"):
        quiet(cfg)


def test_a_newer_format_and_another_schedule_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = interrupted(tmp_path, monkeypatch)
    newest = tmp_path / "run" / checkpoint.NEWEST
    kept = newest.read_bytes()
    newest.write_bytes(kept.replace(b"checkpoint 1 ", b"checkpoint 2 ", 1))
    with pytest.raises(BadInput, match="its format 2 is newer than this program's 1"):
        quiet(cfg)
    newest.write_bytes(kept)
    saved = checkpoint.read(newest, torch.device("cpu"))
    checkpoint.save(tmp_path / "run", {**saved, "schedule_sha256": "f" * 64})
    with pytest.raises(BadInput, match="another schedule_sha256: ffff"):
        quiet(cfg)


def test_a_checkpoint_of_another_config_is_never_taken_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied into another run, or left behind without its config.yaml."""
    cfg = interrupted(tmp_path, monkeypatch)
    other = OmegaConf.merge(cfg, {"lr": {"base": 0.3}, "run_dir": str(tmp_path / "other")})
    with monkeypatch.context() as patched:
        stop_at(5, patched)
        quiet(other)
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (tmp_path / "other" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    with pytest.raises(BadInput, match=r"a checkpoint of a run with lr.base=0.1 \(now 0.3\)"):
        quiet(other)
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(BadInput, match=r"a checkpoint of a run with lr.base=0.1 \(now 0.3\)"):
        quiet(OmegaConf.merge(other, {"run_dir": cfg.run_dir}))
    assert list(torture.differences(quiet(cfg), whole)) == []


@pytest.mark.parametrize(
    "name", ["provenance.json", "schedule.csv.gz", "summary.json", "metrics.csv"]
)
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"\xff\x00{"])
def test_a_damaged_side_file_does_not_stop_a_run(
    name: str, content: bytes | None, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = interrupted(tmp_path, monkeypatch)
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert list(torture.differences(quiet(cfg), whole)) == []
    sha = read.Run.read(whole).summary["schedule_sha256"]
    assert Schedule.load(tmp_path / "run" / "schedule.csv.gz").sha256() == sha
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["resumed"]


def test_a_changed_schedule_file_is_refused_even_when_the_run_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    Generated(4, 0, Constant(1.0)).messages(64).save(log)
    keys = ["schedule=file", f"schedule.path={log}"]
    cfg = torture.config([*CELL, *keys], tmp_path / "run")
    quiet(cfg)
    assert quiet(cfg) == tmp_path / "run"
    Generated(4, 0, Constant(2.0)).messages(64).save(log)
    with pytest.raises(BadInput, match="was made with another schedule_sha256"):
        quiet(cfg)


def test_workers_fitted_to_a_run_go_on_wherever_that_lies_and_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fitted is in the config: the numbers tell the run from others, not the path."""

    def words(place: str) -> list[str]:
        return [*CELL, "schedule=from_run", f"schedule.run={tmp_path / place}"]

    (tmp_path / "a").mkdir()
    Generated(2, 0, Gamma(1.0, 0.3)).messages(200).save(tmp_path / "a" / "schedule.csv.gz")
    never_stopped = quiet(torture.config(words("a"), tmp_path / "whole"))
    with monkeypatch.context() as patched:
        stop_at(33, patched)
        quiet(torture.config(words("a"), tmp_path / "run"))
    (tmp_path / "a").rename(tmp_path / "b")
    run = quiet(torture.config(words("b"), tmp_path / "run"))
    assert list(torture.differences(run, never_stopped)) == []

    kept, there = read.config_of(never_stopped), read.config_of(run)
    assert identity(kept) == identity(there)
    assert kept["schedule"]["busy"][0][:2] == pytest.approx([1.0, 0.3], rel=0.1)
    log = Schedule.load(run / "schedule.csv.gz")
    (run / "schedule.csv.gz").unlink()  # as in a kept run
    again = read.log_of(run, log.sha256())
    assert again is not None
    assert again.sha256() == log.sha256()

    Generated(2, 1, Gamma(1.0, 0.3)).messages(200).save(tmp_path / "b" / "schedule.csv.gz")
    other = torture.config(words("b"), tmp_path / "run")
    assert identity(plan_of(other).config) != identity(kept)
    with pytest.raises(BadInput, match=r"holds a run with schedule.busy="):
        quiet(other)


def test_a_run_made_meanwhile_by_another_process_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another config finishes in the directory while this one loads its data."""
    ours = torture.config(CELL, tmp_path / "run")
    load, others = Synthetic.load, []

    def meanwhile(leaf: Synthetic, *arguments: object) -> object:
        if not others:
            others.append(True)
            quiet(OmegaConf.merge(ours, {"seed": 7}))
        return load(leaf, *arguments)

    monkeypatch.setattr(Synthetic, "load", meanwhile)
    with pytest.raises(BadInput, match=r"holds a run with .*seed=7 \(now 0\)"):
        quiet(ours)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    checkpoint.save(tmp_path, {"server": Evil()})
    with pytest.raises(BadInput, match=r"^checkpoint="):
        checkpoint.load(tmp_path, torch.device("cpu"))
    assert not (tmp_path / "owned").exists()


def test_each_distinct_vector_is_stored_once(tmp_path: Path) -> None:
    w = torch.arange(100_000, dtype=torch.float64)
    server = Server(DCASGDa(), w, workers=64)
    for m in range(64):
        server.receive_pull(m)
    checkpoint.save(tmp_path, checkpoint.pack(server))
    size = (tmp_path / checkpoint.NEWEST).stat().st_size
    assert size < 2.1 * w.numel() * 8  # w and MeanSquare, though 64 workers hold w twice
    twin = Server(DCASGDa(), torch.zeros_like(w), workers=64)
    checkpoint.unpack(twin, checkpoint.load(tmp_path, torch.device("cpu")))
    assert torch.equal(twin.w_bak[5], w)
    assert len({v.data_ptr() for v in (twin.w, *twin.w_bak, *twin.sent)}) == 1
    assert type(twin.state) is type(server.state)


WRITES = ["checkpoint.pt.tmp", "metrics.csv.tmp", "summary.json.tmp", "provenance.json.tmp"]


@pytest.mark.parametrize("name", [*WRITES, "config.yaml.tmp", "schedule.csv.gz"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_disk_is_one_line_and_the_run_goes_on_later(
    name: str, error: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, or a later, attempt to open the file for writing fails."""
    cfg = torture.config(CELL, tmp_path / "run")
    opened = 0
    real = Path.open

    def failing(path: Path, mode: str = "r", *rest: object, **keys: object) -> object:
        nonlocal opened
        if path.name.startswith(name) and "r" not in mode:
            opened += 1
            if opened == (30 if name == WRITES[0] else 1):
                raise OSError(error, os.strerror(error), str(path))
        return real(path, mode, *rest, **keys)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        if name == "schedule.csv.gz":
            patched.setattr("dcasgd_repro.schedule.Schedule.save", _raiser(error))
        with pytest.raises(Failure) as failed:
            quiet(cfg)
    assert os.strerror(error) in str(failed.value)
    assert "\n" not in str(failed.value)
    assert list(torture.differences(quiet(cfg), whole)) == []


@pytest.mark.parametrize("limit", [0, 60, 500, 1500, 4000, 9000, 20_000, 40_000, 80_000])
def test_short_writes_anywhere(limit: int, whole: Path, tmp_path: Path) -> None:
    """No file can grow past a limit: the write that would is cut short by the system."""
    cfg = torture.config(CELL, tmp_path / "run")
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.close(2)
        try:
            quiet(cfg)
        except Failure as failure:
            os._exit(4 if os.strerror(errno.EFBIG) in str(failure) else 5)
        except BaseException:
            os._exit(6)
        os._exit(0)
    assert torture.finish(child) == (4 if limit < 80_000 else 0)
    assert list(torture.differences(quiet(cfg), whole)) == []


def _raiser(error: int) -> object:
    def fails(*arguments: object) -> None:
        raise OSError(error, os.strerror(error), "schedule.csv.gz")

    return fails


@pytest.mark.parametrize("at", range(24))
def test_a_kill_at_each_step_of_a_checkpoint(at: int, whole: Path, tmp_path: Path) -> None:
    """The process dies just before its n-th rename, fsync or write of the run's files."""
    cfg = torture.config(CELL, tmp_path / "run")
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(real: object) -> object:
            def call(*arguments: object, **keys: object) -> object:
                nonlocal calls
                calls += 1
                if calls > at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **keys)

            return call

        for name in ("replace", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        os.close(2)
        quiet(cfg)
        os._exit(0)
    assert torture.finish(child) == -signal.SIGKILL
    assert list(torture.differences(quiet(cfg), whole)) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused = pytest.raises(BadInput, match="another process is writing this run")
    with record.locked(run), refused:
        quiet(torture.config(CELL, run))
    assert not (run / "config.yaml").exists()
    child = os.fork()
    if child == 0:
        held = record.locked(run)
        held.__enter__()
        (run / "held").touch()
        time.sleep(60)
    while not (run / "held").exists():
        time.sleep(0.01)
    with pytest.raises(BadInput, match="another process"), record.locked(run):
        pass
    os.kill(child, signal.SIGKILL)
    torture.finish(child)
    with record.locked(run):  # the lock died with its owner
        pass


def test_out_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(server: Server, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    cfg = torture.config(CELL, tmp_path / "run")
    monkeypatch.setattr(Server, "receive_gradient", starved)
    with pytest.raises(Failure, match=r"out of memory \(CUDA out of memory.*2 GiB\); mend this"):
        quiet(cfg)
    assert read.Run.read(tmp_path / "run").summary["status"] == "failed"


def test_divergence_names_the_push(tmp_path: Path) -> None:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        overrides = ["scale=smoke", "task=quadratic", "rule=asgd", "workers=1", "batch=1"]
        overrides += ["lr.base=1e30", "task.curvature=[1.0]", f"run_dir={tmp_path / 'run'}"]
        cfg = compose("config", overrides=overrides)
    summary = read.Run.read(quiet(cfg)).summary
    # w goes 1, -1e30, 1e60, ...: the loss w^2 / 2 is infinite when w is 1e180, at push 7.
    assert (summary["status"], summary["diverged_at_push"]) == ("diverged", 7)
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert quiet(cfg) == tmp_path / "run"  # it has ended: left alone
    assert (tmp_path / "run" / "metrics.csv").read_text() == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_the_command_line(number: int, tmp_path: Path) -> None:
    """The exit code is the signal's, the last line says how to go on, and it does."""
    command = [
        sys.executable, "-m", "dcasgd_repro", "train", *torture.SMALL, *CELL, "epochs=300",
        "run_dir=X", "checkpoint.every_s=60",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = tmp_path / "X" / "metrics.csv"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    assert err.splitlines()[-1].startswith(f"dcasgd-repro: {name} after push ")
    assert "to go on: the same command" in err
    assert "Traceback" not in err


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with experiment.Stop():
            os.kill(os.getpid(), signal.SIGTERM)
            (tmp_path / "first").touch()
            os.kill(os.getpid(), signal.SIGINT)
            (tmp_path / "second").touch()
        os._exit(0)
    assert torture.finish(child) == 130
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
