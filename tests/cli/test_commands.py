"""The command line as a person uses it: what it prints, where it writes, how it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.cli import help as texts
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.groups import choices, groups
from dcasgd_repro.schedule import Schedule

TINY = ["task=synthetic", "images=256", "batch=8", "test_images=32", "workers=4"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dcasgd-repro", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def summary_in(folder: str) -> dict:
    return json.loads((Path(folder) / "summary.json").read_text())


def test_help(call) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        assert all(name in out for name in ("train", "schedule", "data", "report"))
    for command, word in (
        ("train", "cifar_dc"),
        ("schedule", "paper_cluster"),
        ("data", "verify"),
        ("report", "--out"),
        ("completion", "completion bash"),
    ):
        code, out, _ = call(command, "--help")
        assert code == 0
        assert word in out


def test_the_help_of_train_lists_every_group(call) -> None:
    _, out, _ = call("train", "--help")
    for group in groups():
        assert f"{'+exp' if group == 'exp' else group}=" in out
        assert all(name in out for name in choices(group))
    assert "task=my_task:Line" in out


def test_a_run_prints_its_resolution_and_its_result(call) -> None:
    code, out, err = call("train", *TINY, "rule=dcasgd_c", "run_dir=X")
    assert code == 0
    assert "DCASGDc(lam=0.04" in out
    assert "nothing here is about CIFAR-10" in out
    summary = summary_in("X")
    best = f"{100 * summary['test_error_best']:.2f}%"
    assert re.search(rf"best over epochs.*{re.escape(best)}", out)
    assert summary["weights_sha256"] in out
    assert "64/64" in err  # the progress bar
    assert Path("X/curves.png").stat().st_size > 10_000
    before = {p: p.stat().st_mtime_ns for p in Path("X").rglob("*")}
    code, again, _ = call("train", *TINY, "rule=dcasgd_c", "run_dir=X")
    assert code == 0
    assert "nothing to do" in again
    assert {p: p.stat().st_mtime_ns for p in Path("X").rglob("*")} == before


def test_the_default_run_directory(call) -> None:
    code, _, _ = call("train", *TINY, "+exp=cifar_dc", "workers=4")
    assert code == 0
    (run,) = Path("outputs/cifar_dc").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", run.name)
    assert sorted(p.name for p in Path().iterdir()) == ["outputs"]


def test_lambda_zero_gives_the_weights_of_asgd(call) -> None:
    hashes = set()
    for k, rule in enumerate((["asgd"], ["dcasgd_c", "rule.lam=0"], ["dcasgd_a", "rule.lam0=0"])):
        assert call("train", *TINY, f"rule={rule[0]}", *rule[1:], f"run_dir={k}")[0] == 0
        hashes.add(summary_in(str(k))["weights_sha256"])
    assert len(hashes) == 1
    assert call("train", *TINY, "rule=dcasgd_a", "run_dir=on")[0] == 0
    assert summary_in("on")["weights_sha256"] not in hashes


def test_two_processes_give_the_same_weights(tmp_path: Path) -> None:
    hashes = set()
    for k in range(2):
        command = [sys.executable, "-m", "dcasgd_repro", "train", *TINY, f"run_dir={k}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        hashes.add(summary_in(str(tmp_path / str(k)))["weights_sha256"])
    assert len(hashes) == 1


def test_a_closed_output_stops_no_run(tmp_path: Path) -> None:
    words = "train task=quadratic images=64 batch=4 workers=2 run_dir=A"
    shell = ["bash", "-c", f"{sys.executable} -m dcasgd_repro {words} >&- 2>&-"]
    assert subprocess.run(shell, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert summary_in(str(tmp_path / "A"))["status"] == "finished"


def test_a_sweep_goes_on_after_a_refused_point(call) -> None:
    code, out, err = call("train", *TINY, "-m", "epochs=0.25", "seed=0,1", "rule.lam0=1,nan")
    assert code == 2
    assert len(list(Path("outputs/synthetic_dcasgda").iterdir())) == 2
    assert err.count("rule.lam0=nan: ") == 2
    assert out.count("finished after 8 pushes") == 2


def test_schedule_prints_saves_and_replays(call) -> None:
    size = ["images=1000", "batch=10", "epochs=5", "workers=8"]
    code, out, _ = call("schedule", "schedule=gamma", *size, "run_dir=S")
    assert code == 0
    log = Schedule.load("S/schedule.csv.gz")
    assert log.sha256() in out
    assert log.pushes == 500
    table = pd.read_csv("S/delays.csv")
    assert table["mean"].iloc[-1] == pytest.approx(log.delays().mean())
    assert f"{log.delays().mean():.2f}" in out
    assert Path("S/delays.png").stat().st_size > 5_000

    replay = ["schedule=file", "schedule.path=S/schedule.csv.gz", *size]
    code, out, _ = call("schedule", *replay, "run_dir=T")
    assert code == 0
    assert log.sha256() in out
    assert Path("T/schedule.csv.gz").read_bytes() == Path("S/schedule.csv.gz").read_bytes()

    train = ["task=synthetic", "images=256", "batch=8", "test_images=32", "workers=8"]
    assert call("train", *train, "schedule=gamma", "run_dir=A")[0] == 0
    assert call("train", *train, *replay[:2], "run_dir=B")[0] == 0
    a, b = summary_in("A"), summary_in("B")
    assert a["weights_sha256"] == b["weights_sha256"]
    assert a["schedule_sha256"] == b["schedule_sha256"]


def test_schedule_fits_a_run_and_asks_what_more_workers_would_do(call) -> None:
    size = ["images=4000", "batch=10", "epochs=5"]
    words = ["schedule.straggler=3", "workers=4", "run_dir=S"]
    assert call("schedule", "schedule=straggler", *size, *words)[0] == 0
    fitted = ["schedule=from_run", "schedule.run=S", "workers=32", "run_dir=T"]
    code, out, _ = call("schedule", *size, *fitted)
    assert code == 0
    table = pd.read_csv("T/fit.csv")
    assert table["worker"].tolist() == [0, 1, 2, 3]
    assert table["mean_s"].to_numpy() == pytest.approx([3, 1, 1, 1], rel=0.03)
    assert table["cv"].to_numpy() == pytest.approx([0.14] * 4, rel=0.15)
    assert Schedule.load("T/schedule.csv.gz").workers == 32
    recorded, common = Schedule.load("S/schedule.csv.gz").delays(), r"(\d+)% of the two histograms"
    assert f"delays of its 4 workers: recorded {recorded.mean():.2f} ± {recorded.std():.2f}" in out
    assert int(re.search(common, out)[1]) >= 90
    assert Path("T/delays.png").stat().st_size > 5_000


def test_where_nothing_can_be_written(call) -> None:
    Path("file").touch()
    code, _, err = call("schedule", "images=100", "epochs=1", "batch=1", "run_dir=file/x")
    assert code == 4
    assert err.startswith("dcasgd-repro: file/x: ")
    assert err.count("\n") == 1


def test_report_groups_seeds(call) -> None:
    assert call("train", "-m", *TINY, "epochs=0.5", "seed=0,1,2")[0] == 0
    code, out, _ = call("report", "outputs", "--out", "R")
    assert code == 0
    runs = [json.loads(p.read_text()) for p in Path("outputs").rglob("summary.json")]
    finals = pd.Series([100 * run["test_error_final"] for run in runs])
    assert f"{finals.mean():.2f} ± {finals.std():.2f}" in out
    assert sorted(p.name for p in Path("R").iterdir()) == [
        "curves.png", "curves.svg", "runs", "table.csv", "table.md",
    ]  # fmt: skip
    assert len(list(Path("R/runs").iterdir())) == 3
    kept = {p.name: p.read_bytes() for p in Path("R").iterdir() if p.is_file()}
    assert call("report", "outputs", "--out", "R")[0] == 0
    assert {p.name: p.read_bytes() for p in Path("R").iterdir() if p.is_file()} == kept
    # The committed copies give the same table.
    assert call("report", "R/runs")[1] == out


def test_report_tells_configurations_apart(call) -> None:
    assert call("train", "-m", *TINY, "epochs=0.25", "rule.lam0=0.5,3.0")[0] == 0
    code, out, _ = call("report", "outputs")
    assert code == 0
    rows = [line.split("|")[1].strip() for line in out.splitlines()[2:]]
    assert rows == [f"DC-ASGD-a, M = 4, synthetic data, rule.lam0={lam}" for lam in (0.5, 3.0)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "trian: no such command; choose train, schedule, check, reproduce, tune,"),
        (["bench", "nope"], "argument PART: invalid choice: 'nope' (choose from"),
        (["bench", "--nope"], "unrecognized arguments: --nope; `dcasgd-repro bench --help` says"),
        (["completion", "zsh"], "argument shell: invalid choice: 'zsh' (choose from"),
        (["data", "fly"], "argument action: invalid choice: 'fly'"),
        (["bench", "--device", "cuda"], "device=cuda: torch sees no CUDA device here"),
        (["train", "fo=1"], "fo=1: no such key"),
        (["train", "rule.lam=1"], "rule.lam=1: no such key; did you mean rule.lam0"),
        (["train", "rule=nope"], "rule=nope: no such rule, choose adadelay, asap, asgd, clipped, "),
        (["train", "+exp=nope"], "exp=nope: no such exp, choose cifar_asgd, cifar_dc"),
        (["train", "lr=0.1"], "lr=0.1: no such lr, choose step, warmup; a key inside it is"),
        (["train", "seed=0,1,2"], "seed=0,1,2: a sweep needs -m; a list is written [0,1,2]"),
        (["train", "M=4"], "M=4: no such key; did you mean workers? "),
        (["train", "eta=0.1"], "eta=0.1: no such key; did you mean lr.base? "),
        (["train", "rule=DCASGDa"], "rule=DCASGDa: no such rule; did you mean dcasgd_a?"),
        (
            ["train", "rule=scaled.py:Scaled"],
            "rule=scaled.py:Scaled: give the module, not its file: rule=scaled:Scaled",
        ),
        (
            ["train", "task=at/my.py:Line"],
            "task=at/my.py:Line: give the module, not its file: task=my:Line, and stand in at",
        ),
        (["check", "scaled:Scaled"], "scaled:Scaled: write rule=scaled:Scaled"),
        (["check", "dcasgd_a"], "dcasgd_a: write rule=dcasgd_a"),
        (["verify", "nope"], "run=nope: there is no such folder; give a run's, as outputs/"),
        (["diagnose", "nope"], "run=nope: there is no such folder; give a run's, as outputs/"),
        (["train", "+workerz=3"], "workerz=3: no such key, and none can be added here"),
        (["train", "++checkpoint.every=3"], "checkpoint.every=3: no such key, and none can"),
        (["train", "exp=cifar_dc"], "exp=cifar_dc: an experiment is added: write +exp=cifar_dc"),
        (["train", "--foo"], "--foo: no such option; "),
        (["train", "--hydra-help"], "--hydra-help: no such option; of Hydra's there are -m, "),
        (["train", "--cfg", "jub"], "argument --cfg/-c: invalid choice: 'jub' (choose from "),
        (["train", "hydra.verbose=true"], "hydra.verbose=true: nothing here writes a log; --info"),
        (["train", "checkpoint=5"], "checkpoint=5: this is a group of keys; set one inside it"),
        (["train", "lr=[]"], "lr=[]: choose one; a file of your own can build on several"),
        (["train", "scale=[]"], "scale=[]: choose one; a file of your own can build on several"),
        (["train", "rule.decay=$(x)"], "rule.decay=$(x): not understood; write KEY=VALUE"),
        (["train", "seed=${seed}"], "seed=${seed}: this interpolation leads nowhere"),
        (["train", "eval_every=1e-310"], "eval_every=1e-310: "),
        (["train", "task=quadratic", "task.curvature=5"], "task.curvature=5: give a list"),
        (["train", "task.model=5"], "task.model=5: this is a group of keys"),
        (["train", "+workers=3"], "workers=3: this key exists; leave out the +"),
        (["train", "workers=0"], "workers=0: give a whole number >= 1"),
        (["train", "workers=-1"], "workers=-1: give a whole number >= 1"),
        (["train", "lr.base=abc"], "lr.base=abc: give a finite number >= 0"),
        (["train", "rule=dcasgd_c", "rule.lam=nan"], "rule.lam=nan: give a finite number >= 0"),
        (["train", "batch=2000"], "batch=2000: give at most 128: 1024 images / 8 workers"),
        (["train", "schedule=file"], "schedule.path=None: schedule=file needs schedule.path=FILE"),
        (["train", "schedule=file", "schedule.path=empty.csv"], "schedule.path=empty.csv:1: "),
        (["train", "schedule=file", "schedule.path=bad.csv"], "schedule.path=bad.csv:3: "),
        (["train", "schedule=file", "schedule.path=gone.csv"], "schedule.path=gone.csv: "),
        (["train", "lr=warmup", "lr.share=2"], "lr.share=2: give a finite number >= 0 and <= 1"),
        (["train", "lr=warmup", "lr.workers=2"], "lr.workers=2: set workers=2 instead"),
        (["train", "schedule=delays"], "schedule.path=None: schedule=delays needs schedule.path="),
        (["train", "schedule=delays", "schedule.path=empty.csv"], "schedule.path=empty.csv:1: "),
        (["train", "schedule=delays", "schedule.path=bad.csv"], "schedule.path=bad.csv:2: "),
        (["train", "schedule=sequential"], "workers=8: "),
        (["train", "run_dir=used"], "run_dir=used: no readable config.yaml there"),
        (["train", "run_dir=empty.csv"], "run_dir=empty.csv: that is a file"),
        (["train", "device=cuda"], "device=cuda: torch sees no CUDA device here; use device=cpu"),
        (["train", "task=quadratic", "model.depth=20"], "model.depth=20: "),
        (["schedule", "workers=0"], "workers=0: give a whole number >= 1"),
        (["report", "nowhere"], "study=nowhere: no such study; choose dana_table"),
        (["data", "path", "root=x"], "root=x: "),
        (["data", "verify", "data.root=nowhere"], "root=nowhere: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, arguments: list[str], line: str) -> None:
    Path("empty.csv").touch()
    Path("bad.csv").write_text("clock_s,kind,worker\n0.0,pull,0\n0.0,push,1\n")
    Path("used").mkdir()
    Path("used/summary.json").write_text('{"status": "finished"}')
    before = sorted(Path().rglob("*"))
    if arguments[0] == "train":
        arguments = ["train", "task=synthetic", *arguments[1:]]
    code, out, err = call(*arguments)
    assert code == 2
    assert err.startswith(f"dcasgd-repro: {line}")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(Path().rglob("*")) == before


def test_ctrl_c_leaves_a_readable_directory_and_exits_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcasgd_repro", "train", *TINY, "epochs=1000"]
    process = subprocess.Popen(
        [*command, "run_dir=X"], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    metrics = tmp_path / "X" / "metrics.csv"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("dcasgd-repro: SIGINT after push ")
    summary = summary_in(str(tmp_path / "X"))
    assert summary["status"] == "interrupted"
    rows = pd.read_csv(metrics)
    assert 0 <= summary["pushes"] - rows["push"].iloc[-1] < 50


def test_a_reader_that_leaves_early_is_told_nothing(tmp_path: Path) -> None:
    command = f"{sys.executable} -m dcasgd_repro check rule=asgd; echo $? >&2"
    shell = ["bash", "-c", f"({command}) | head -1"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "ASGD(momentum=0.0)\n"
    assert done.stderr == "141\n"


def test_a_diverged_run_exits_3(call) -> None:
    code, out, _ = call("train", "task=quadratic", "lr.base=1e30", "run_dir=X")
    assert code == 3
    assert "diverged" in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dcasgd-repro tra", ["train"]),
        ("dcasgd-repro train rule=dcasgd_", ["dcasgd_a", "dcasgd_c", "dcasgd_n"]),
        ("dcasgd-repro train +exp=cifar_s", ["cifar_sgd", "cifar_ssgd"]),
        ("dcasgd-repro reproduce table1", ["table1_cifar10"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    script = texts.completion(["table1_cifar10", "fig5_lambda"])
    index = len(line.split()) - 1
    call = f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_CWORD={index}; _dcasgd_repro; "
    command = f'{script}\n{call} echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_a_sweep_has_headings_and_closes_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "task=quadratic", "rule=asgd,dcasgd_a", "workers=2,0", "schedule=gamma"]
    assert cli.dispatch("train", words) == 2
    out = capsys.readouterr().out
    assert out.count("\n== ") == 4
    *_, first, refused, third, last = out.rstrip().splitlines()
    assert first.startswith("rule=asgd workers=2      finished  outputs/quadratic_asgd/")
    assert refused == "rule=asgd workers=0      refused: workers=0: give a whole number >= 1"
    assert third.startswith("rule=dcasgd_a workers=2  finished  outputs/quadratic_dcasgda/")
    assert last == "rule=dcasgd_a workers=0  refused: workers=0: give a whole number >= 1"


def test_a_key_of_another_rule_is_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch("train", ["task=quadratic", "rule=asgd", "rule.lam0=3"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("dcasgd-repro: rule.lam0=3: no such key; did you mean rule.momentum")
    assert "rule.lam0 or" not in line


@pytest.mark.parametrize(
    ("name", "text", "scale"),
    [
        ("builds", "defaults: [mine, _self_]", "smoke"),
        ("other", "defaults: [{override /task: imagenet}]", "imagenet"),
        ("says", "defaults: [{override /task: quadratic}, {override /scale: laptop}]", "laptop"),
        ("file", "defaults: [{override /task: quadratic.yaml}]", "smoke"),
        ("own", "defaults: [{override /task: cifar10}]", "paper"),
    ],
)
def test_an_experiment_of_ones_own_has_the_scale_of_its_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, scale: str
) -> None:
    (tmp_path / "exp").mkdir()
    for file, lines in {"mine": "defaults: [{override /task: quadratic}]", name: text}.items():
        (tmp_path / "exp" / f"{file}.yaml").write_text(f"# @package _global_\n{lines}\n")
    words = ["-cd", str(tmp_path), f"+exp={name}", "--cfg", "job", "-p", "scale"]
    assert cli.dispatch("schedule", words) == 0
    assert capsys.readouterr().out == f"{scale}\n"


def test_a_sweep_over_tasks_without_a_common_scale_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        BadInput, match=r"^scale=None: choose one; cifar10, imagenet have no common"
    ):
        cli.dispatch("schedule", ["-m", "+exp=imagenet_dc,cifar_dc"])
    assert cli.dispatch("schedule", ["-m", "task=quadratic,synthetic", "workers=0,0"]) == 2
    assert capsys.readouterr().out.count("== scale=smoke ") == 4


def test_info_needs_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Hydra's parser takes the word after it, a scale, for its value."""
    monkeypatch.setattr(
        sys, "argv", ["dcasgd-repro"]
    )  # with_hydra leaves there what it gave to Hydra
    assert cli.dispatch("schedule", ["--info"]) == 0
    assert sys.argv[1:] == ["--info=all", "scale=paper"]
    assert cli.dispatch("schedule", ["task=quadratic", "-i", "defaults"]) == 0
    assert sys.argv[1:] == ["-i", "defaults", "scale=smoke", "task=quadratic"]


def test_a_folder_of_ones_own_has_its_names_listed_and_its_task_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "rule/stale.yaml": "_target_: dcasgd_repro.rules.ASGD\n",
        "exp/mine.yaml": "# @package _global_\ndefaults:\n  - override /task: quadratic\n"
        "  - override /rule: stale\nexp: mine\nworkers: 2\n",
    }.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    own = ["-cd", str(tmp_path / "mine")]
    assert cli.dispatch("train", ["task=quadratic", "rule=stal", *own]) == 2
    assert ", ssgd, stale, staleness_aware, throttle; a key inside" in capsys.readouterr().err
    assert cli.dispatch("train", ["+exp=mine", "run_dir=out", *own]) == 0
    assert "\nscale: smoke\n" in (tmp_path / "out" / "config.yaml").read_text()
