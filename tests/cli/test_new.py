"""``dcasgd-repro new``: its skeletons pass their own tests, train, and overwrite nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.read import summary_of
from dcasgd_repro.study.grid import study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.delitem(sys.modules, "late_ones", raising=False)
    return tmp_path


def test_a_new_rule_passes_its_own_test_and_trains(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch("new", ["rule", "late_ones"]) == 0
    wrote, first, then = capsys.readouterr().out.splitlines()
    assert wrote == "wrote late_ones.py and test_late_ones.py"
    assert (first.split()[:2], then.split()[:2]) == (["next", "python"], ["then", "dcasgd-repro"])
    command = [sys.executable, *first.split()[2:], "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout
    words = [*then.split()[3:], "images=64", "batch=8", "test_images=8", "epochs=1", "run_dir=A"]
    assert cli.dispatch("train", [*words, "task.stats_images=8", "threads=1"]) == 0
    assert summary_of(Path("A"))["pushes"] == 8
    assert "CLASS" not in (here / "late_ones.py").read_text()
    assert "class LateOnes(Rule):" in (here / "late_ones.py").read_text()
    before = (here / "late_ones.py").read_bytes()
    with pytest.raises(BadInput, match=r"^NAME=late_ones.py: is there already, and is not over"):
        cli.new(["rule", "late_ones"])
    assert (here / "late_ones.py").read_bytes() == before
    (here / "late_ones.py").unlink()
    with pytest.raises(BadInput, match=r"^NAME=test_late_ones.py: is there already"):
        cli.new(["rule", "late_ones"])
    assert not (here / "late_ones.py").exists()


def test_a_new_study_is_one_that_can_be_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch("new", ["study", "mine"]) == 0
    command = capsys.readouterr().out.splitlines()[1].split()
    assert command[:3] == ["next", "dcasgd-repro", "reproduce"]
    assert [cell.name for cell in study("experiments/mine").cells] == ["asgd", "dcasgd_a"]
    assert str(study("experiments/mine").claims[0]) == "dcasgd_a < asgd"
    assert cli.dispatch("reproduce", command[3:]) == 0
    assert "6 runs" in capsys.readouterr().out
    assert (here / "experiments/mine/claim.md").read_text().startswith("# mine\n")
    with pytest.raises(BadInput, match=r"^NAME=experiments/mine: is there already"):
        cli.new(["study", "mine"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rule", "My-Rule"], "NAME=My-Rule: begin with a small letter; then small letters"),
        (["rule", "../mine"], "NAME=../mine: begin with a small letter"),
        (["rule", "class"], "NAME=class: begin with a small letter"),
        (["rule", "torch"], "NAME=torch: a module of that name is installed; choose another"),
        (["rule", "dcasgd_a"], "NAME=dcasgd_a: a rule here has that name; choose another"),
        (["study", "a b"], "NAME=a b: begin with a small letter"),
        (["study", "lr_cifar10"], "NAME=lr_cifar10: a study here has that name; choose another"),
        (["thing", "mine"], "argument kind: invalid choice: 'thing'"),
        (["rule"], "the following arguments are required: NAME;"),
    ],
)
def test_a_bad_name_is_one_line(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["dcasgd-repro", "new", *words])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dcasgd-repro: {message}")
    assert list(here.iterdir()) == []
