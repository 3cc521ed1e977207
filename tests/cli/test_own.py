"""What is a user's own: a rule or network in the current folder, files under -cd, as one word."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.compose import composed, own_folders
from dcasgd_repro.run.groups import CONF
from dcasgd_repro.run.plan import log_of, plan_of
from dcasgd_repro.run.read import summary_of
from dcasgd_repro.study import reproduce
from dcasgd_repro.study.grid import study

EXAMPLE, DATA, LAW, TASK = re.findall(
    r"```python\n(.*?)```", (CONF / "README.md").read_text(), flags=re.DOTALL
)
NET = """\
from torch import nn


def tiny(hidden: int = 3, depth: int = 1, **kwargs: int) -> nn.Module:
    layers = [nn.Linear(3 * 32 * 32, hidden), *(nn.Linear(hidden, hidden) for _ in range(depth))]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(hidden, kwargs.get("classes", 10)))


class NoNet:
    pass


class Leaf:
    def __init__(self, width: int = 9) -> None: ...
    def build(self) -> nn.Module: ...
"""
SMALL = "images=64 batch=8 test_images=8 workers=2 epochs=1 threads=1"
SYNTHETIC = f"task=synthetic {SMALL} task.stats_images=8 task.train_images=8"
OWN = (("my_rule", EXAMPLE), ("my_net", NET), ("my_task", TASK), ("my_data", DATA), ("my_law", LAW))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a rule and a network; modules of their names are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    for name, text in OWN:
        (tmp_path / f"{name}.py").write_text(text)
    for name in (*dict(OWN), "flat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_task_of_ones_own_trains_with_every_engine_and_local_steps(here: Path) -> None:
    words = "scale=smoke task=my_task:Line task.size=4 images=256 batch=8 workers=2 threads=1"
    hashes = []
    for k, more in enumerate(("", "engine=threads", "engine=waves", "task.local_steps=3")):
        assert cli.dispatch("train", [*words.split(), *more.split(), f"run_dir={k}"]) == 0
        summary = summary_of(Path(str(k)))
        assert summary["task"] == "line"
        assert summary["test_loss_final"] < 0.01  # of 2 at w_0
        assert "missing" not in (Path(str(k)) / "fingerprint.json").read_text()
        hashes.append(summary["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[3]
    assert cli.verify(["0"]) == 0
    with pytest.raises(BadInput, match=r"^task.batch=3: set batch=3 instead"):
        plan_of(composed([*words.split(), "task.batch=3"]))


def test_data_of_ones_own_trains_outside_the_package(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "data=my_data:Blobs data.brighter=30 images=256 test_images=64 batch=16 workers=2"
    words += " epochs=1 threads=1 lr.milestones=[] run_dir=A"
    assert cli.dispatch("train", words.split()) == 0
    assert "task      blobs, ResNet-8 width 4," in capsys.readouterr().out
    made = config("A")
    task: dict[str, Any] = made["task"]
    assert task["data"]["make"] == {"_target_": "my_data.Blobs", "size": 320, "brighter": 30}
    assert list(made["sources"]) == ["task_data_make"]
    assert summary_of(Path("A"))["test_error_final"] < 0.4  # guessing: 0.67
    (here / "my_data.py").write_text(DATA + "# edited")
    del sys.modules["my_data"]
    assert cli.dispatch("train", words.split()) == 2
    said = r"holds a run with sources.task_data_make=\w{16} .now \w{16}.; name another"
    assert re.search(said, capsys.readouterr().err)


def test_a_cell_and_a_sweep_take_data_of_ones_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "images=32 test_images=8 batch=8 workers=2 epochs=1 threads=1 model=my_net:tiny"
    cells = {"mine": f"data=my_data:Blobs {small}", "theirs": f"data=synthetic {small}"}
    (here / "both").mkdir()
    (here / "both" / "grid.yaml").write_text(yaml.dump({"title": "Both", "cells": cells}))
    mine, theirs = reproduce.jobs_of(study("both"), "smoke", 1)
    assert reproduce.refusal(mine) is reproduce.refusal(theirs) is None
    assert mine.path != theirs.path
    with pytest.raises(BadInput, match=r"^data.size=9: would make it another study"):
        reproduce.jobs_of(study("both"), "smoke", 1, ["data.size=9"])
    words = f"-m {small} data=my_data:Blobs,synthetic"
    assert cli.dispatch("train", words.split()) == 0
    first, second = capsys.readouterr().out.rstrip().splitlines()[-2:]
    assert "data=my_data:Blobs  finished" in first
    assert "data=synthetic      finished" in second


FLAT = """\
import numpy as np
import torch
from torch import nn


def points(size: int = 64, **rest: object):
    x = torch.randn(size, 2, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    return (x, y), (x, y)


class Leaf:
    def __init__(self, workers: int, noise: float = 0.0) -> None: ...
    def load(self, device, dtype): ...


class Idle: ...


def line() -> nn.Module:
    return nn.Linear(2, 2)


def thin() -> nn.Module:
    return nn.Linear(2, 1)
"""


def test_floats_of_any_shape_reach_the_network_as_they_are(here: Path) -> None:
    (here / "flat.py").write_text(FLAT)
    words = "data=flat:points data.more=1 model=flat:line augment=false images=64 test_images=64"
    words += " batch=8 workers=2 epochs=4 threads=1 lr.milestones=[] run_dir=A"
    assert cli.dispatch("train", words.split()) == 0
    assert config("A")["task"]["data"]["make"]["more"] == 1
    assert summary_of(Path("A"))["test_error_final"] < 0.1
    assert cli.verify(["A"]) == 0
    leaf = composed(["scale=smoke", "data=flat:Leaf", "data.noise=2"]).task.data
    assert leaf == {"_target_": "flat.Leaf", "workers": 8, "noise": 2}


REFUSED = {
    "data=flat:points model=flat:line": "augment=True: crops and flips are for uint8 [N, C, H, W], "
    "and points gives float32; set augment=false",
    "data=flat:points augment=false": "model=ResNet-8 width 4: does not take images [2, 2]: ",
    "data=flat:points augment=false model=flat:thin": "model=Linear.forward: returns shape (2, 1); "
    "make it logits [2, 2]",
    "data=flat:Idle": "data=Idle: an object of it cannot be called; give it __call__(self)",
    "data=flat:gone": "data=flat:gone: ",
    "data=gone": "data=gone: no such data, choose cifar10, imagefolder, synthetic; a key",
    "data=my_data:Blobs images=300": "images=300: Blobs gives 256 training and 64 test images; set "
    "images=256 and test_images=64, or less",
    "data=my_data:Blobs data.sise=3": "data.sise=3: no such key; did you mean data.size",
    "data=my_data:Blobs data.root=x": "data.root=x: no such key; ",
    "data=my_data:Blobs data.size=x": "data=Blobs: raises ",
    "data=my_data:Blobs task=quadratic": "data=my_data:Blobs: task quadratic reads no data;",
}


@pytest.mark.parametrize("words", REFUSED)
def test_data_that_do_not_fit_are_refused_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    (here / "flat.py").write_text(FLAT)
    given = [] if "quadratic" in words else ["images=64", "test_images=64"]
    argv = ["dcasgd-repro", "train", *given, *words.split(), "run_dir=X", "batch=8"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dcasgd-repro: {REFUSED[words]}")
    assert not Path("X").exists()


def test_a_law_of_ones_own_trains_and_is_its_file(here: Path) -> None:
    law = "schedule=my_law:Pareto schedule.compute.shape=3 schedule.straggler=2 workers=4"
    cfg = composed(["scale=smoke", "task=quadratic", *law.split()])
    assert cfg.schedule == {
        "_target_": "dcasgd_repro.schedule.Generated", "workers": 4, "seed": 0,
        "compute": {"_target_": "my_law.Pareto", "mean_s": 1.0, "shape": 3},
        "communication": {"_target_": "dcasgd_repro.schedule.Constant", "mean_s": 0.0},
        "speeds": None, "ramp": 1.0, "straggler": 2, "request_share": 0.0, "barrier": False,
    }  # fmt: skip
    log = log_of(cfg, 4000)
    assert log.delays().mean() == pytest.approx(3, abs=0.05)
    assert log.duration_s == pytest.approx(4000 / 3.5, rel=0.05)  # 3 workers of 1 s, one of 2 s
    words = f"task=quadratic images=64 batch=4 {law} run_dir=A"
    assert cli.dispatch("train", words.split()) == 0
    assert list(config("A")["sources"]) == ["schedule_compute"]
    assert cli.verify(["A"]) == 0
    cells = {"mine": f"task=quadratic {law}", "theirs": "task=quadratic workers=4"}
    (here / "both").mkdir()
    (here / "both" / "grid.yaml").write_text(yaml.dump({"title": "Both", "cells": cells}))
    jobs = reproduce.jobs_of(study("both"), "smoke", 1)
    assert [reproduce.refusal(job) for job in jobs] == [None, None]


LAWS = {
    "-rng.exponential(1, n)": "returns the time -0.679932; times are finite, and not negative",
    "rng.exponential(1, n) * np.nan": "returns the time nan; times are finite",
    "rng.exponential(1, n) / 0": "returns the time inf; times are finite",
    "rng.exponential(1, n).tolist()": "returns a list; give an array, float64 [4096]",
    "rng.exponential(1, n + 1)": "returns float64 [4097] for n=4096; give float64 [4096]",
    "rng.integers(1, 3, n)": "returns int64 [4096] for n=4096; give float64 [4096]",
    "np.sort(rng.exponential(1, n))": "must give in two calls what one longer call gives, of rng",
    "np.zeros(n)": "has the mean 0, and mean_s is 1",
    "rng.exponental(1, n)": "raises AttributeError: 'numpy.random._generator.Generator' object",
}


@pytest.mark.parametrize("times", LAWS)
def test_a_law_that_gives_no_times_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], times: str
) -> None:
    text = LAW.replace("from dataclasses", "import numpy as np\nfrom dataclasses")
    before, found, _ = text.partition("return ")
    (here / "my_law.py").write_text(f"{before}{found}{times}\n")
    with np.errstate(divide="ignore"):
        words = ["task=quadratic", "schedule=my_law:Pareto", "run_dir=X"]
        assert cli.dispatch("train", words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dcasgd-repro: schedule=Pareto.sample: {LAWS[times]}")
    assert not Path("X").exists()


def test_what_is_no_schedule_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "flat.py").write_text(
        "class Idle: ...\n\nclass Listed:\n    def messages(self, pushes): return []\n"
    )
    for name, line in {
        "Idle": "schedule=Idle: derive it from dcasgd_repro.Law for a law of times, or give",
        "Listed": "schedule=Listed.messages: returns a list; give a Schedule",
    }.items():
        assert cli.dispatch("train", ["task=quadratic", f"schedule=flat:{name}", "run_dir=X"]) == 2
        assert capsys.readouterr().err.startswith(f"dcasgd-repro: {line}")


def config(folder: str) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = yaml.safe_load(
        (Path(folder) / "config.yaml").read_text()
    )
    return content


def test_the_example_trains_outside_the_package_with_nothing_inherited(here: Path) -> None:
    words = f"train {SYNTHETIC} rule=my_rule:MyRule rule.power=2 model=my_net:tiny run_dir=A"
    command = [sys.executable, "-m", "dcasgd_repro", *words.split()]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rule      MyRule(power=2)" in done.stdout
    assert "finished after 8 pushes" in done.stdout
    assert config("A")["rule"] == {"_target_": "my_rule.MyRule", "power": 2}


@pytest.mark.parametrize("word", ["rule=my_rule:MyRule", "rule._target_=my_rule.MyRule"])
def test_a_class_has_its_own_defaults_whatever_it_replaces(here: Path, word: str) -> None:
    for words in (["+exp=cifar_dc"], ["rule=dcasgd_c"] if "_target_" in word else []):
        cfg = composed(["scale=smoke", *words, word])
        assert cfg.rule == {"_target_": "my_rule.MyRule", "power": 1.0}
    assert str(plan_of(composed(["scale=smoke", word, "rule.power=3"])).rule) == "MyRule(power=3)"


def test_the_console_script_finds_it_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike ``python -m``, a script does not have the current folder on its path."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    words = ["train", "task=quadratic", "rule=my_rule:MyRule", "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", ["dcasgd-repro", *words])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "_target_: my_rule.MyRule" in capsys.readouterr().out


def test_a_sweep_takes_classes_and_files_alike(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "-m task=quadratic images=64 workers=2 rule=asgd,my_rule:MyRule"
    assert cli.dispatch("train", words.split()) == 0
    first, second = capsys.readouterr().out.rstrip().splitlines()[-2:]
    assert first.startswith("rule=asgd            finished  outputs/quadratic_asgd/")
    assert second.startswith("rule=my_rule:MyRule  finished  outputs/quadratic_myrule/")


def test_verify_wants_the_files_that_a_run_was_made_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "task=quadratic images=64 batch=4 workers=2 log_every=8 rule=my_rule:MyRule run_dir=A"
    assert cli.dispatch("train", words.split()) == 0
    assert cli.verify(["A"]) == 0
    del sys.modules["my_rule"]
    (here / "my_rule.py").write_text(EXAMPLE + "# edited")
    assert cli.verify(["A"]) == 1
    said = r"A: this is another run, made with other files of your own: rule=\w{16} .now \w{16}."
    assert re.search(said, capsys.readouterr().out)


def test_a_network_of_ones_own(here: Path) -> None:
    words = ["scale=smoke", "task=synthetic", "model=my_net:tiny", "model.depth=2"]
    cfg = composed([*words, "model.classes=4"])
    assert cfg.task.model == {
        "_target_": "my_net.tiny", "hidden": 3, "depth": 2, "_partial_": True, "classes": 4,
    }  # fmt: skip
    plan = plan_of(cfg)
    assert str(plan.task.model) == "tiny"
    sizes = [tuple(p.shape) for p in plan.task.model.build().parameters() if p.ndim == 2]
    assert sizes == [(3, 3072), (3, 3), (3, 3), (4, 3)]
    leaf = composed(["scale=smoke", "task=synthetic", "model._target_=my_net.Leaf"]).task.model
    assert leaf == {"_target_": "my_net.Leaf", "width": 9}  # it has build(); no width of the scale


def test_a_parameter_that_means_a_key_is_filled_in_from_there(here: Path) -> None:
    text = EXAMPLE.replace("    power: float = 1.0\n", "    power: float\n    batch: int = 1\n")
    (here / "my_other.py").write_text(text)
    cfg = composed(["scale=smoke", "rule=my_other:MyRule", "batch=7"])
    assert cfg.rule == {"_target_": "my_other.MyRule", "power": "???", "batch": 7}
    with pytest.raises(BadInput, match=r"^rule.power=\?\?\?: this key needs a value"):
        plan_of(cfg)
    del sys.modules["my_other"]


BROKEN = {
    "gone": None,
    "names_gone": "import nowhere_at_all\n",
    "raises": "\nx = 1 / 0\n",
    "unfinished": "def f(:\n",
    "idle": "class Other: pass\nMyRule = 3\n",
    "plain": "class MyRule:\n    name = 'plain'\n",
    "late": EXAMPLE.replace("arrival.grad *", "arrival.gradd *"),
    "bare": EXAMPLE.replace("def init", "def initial"),
}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("gone", "gone:MyRule: there is no module gone, in the current folder either"),
        (
            "names_gone",
            "names_gone:MyRule: ModuleNotFoundError: No module named 'nowhere_at_all' (",
        ),
        ("raises", "raises:MyRule: ZeroDivisionError: division by zero ("),
        ("unfinished", "unfinished:MyRule: SyntaxError: invalid syntax ("),
        ("idle", "has no class MyRule; it has Other"),
        ("plain", "rule=MyRule: is no rule; derive its class from dcasgd_repro.rules.Rule"),
        ("bare", "rule=bare:MyRule: the class lacks init; write it"),
        ("late", "rule=MyRule.direction: raises AttributeError: 'Arrival' object has no attribute"),
    ],
)
def test_a_class_that_cannot_be_had_is_refused_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    module: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.delitem(sys.modules, module, raising=False)
    if (text := BROKEN[module]) is not None:
        (here / f"{module}.py").write_text(text)
    monkeypatch.setattr(
        sys, "argv", ["dcasgd-repro", "train", "task=quadratic", f"rule={module}:MyRule"]
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("dcasgd-repro: rule=")
    assert message in line
    if module in ("names_gone", "raises", "unfinished", "late"):
        assert re.search(rf"{module}.py, line \d+", line)


def test_a_network_that_is_none_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, line in {
        "model=my_net:NoNet": "model=NoNet: makes a NoNet; give what makes an nn.Module",
        "model=my_net:tiny model.hidden=x": "model=tiny: TypeError: ",
        "model=resnet50 model.depth=8": "model.depth=8: task synthetic reads no model.depth; leave",
        "model=resnet50 model.norm=none": "model.norm=none: task synthetic reads no model.norm;",
        "model.depht=8": "model.depht=8: no such key; did you mean model.depth",
        "model=my_net:tiny task=quadratic": "model=my_net:tiny: task quadratic reads no model;",
    }.items():
        task = [] if "quadratic" in words else SYNTHETIC.split()
        assert cli.dispatch("train", [*task, *words.split(), "run_dir=X"]) == 2
        [said] = capsys.readouterr().err.splitlines()
        assert said.startswith(f"dcasgd-repro: {line}")
    assert not Path("X").exists()


@pytest.fixture
def own(here: Path) -> Path:
    """A folder with a rule, an experiment and a scale of one's own."""
    for name, text in {
        "rule/late.yaml": "_target_: my_rule.MyRule\npower: 0.5\n",
        "exp/mine.yaml": "# @package _global_\ndefaults:\n  - override /task: quadratic\n"
        "  - override /rule: late\nexp: mine\nworkers: 2\n",
        "scale/tiny.yaml": "# @package _global_\ndefaults: [smoke, _self_]\n"
        "scale: tiny\nepochs: 1\n",
    }.items():
        (here / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "own" / name).write_text(text)
    return here / "own"


@pytest.fixture
def mine(here: Path) -> str:
    cells = {"mine": "+exp=mine rule=my_rule:MyRule rule.power=2"}
    (here / "mine").mkdir()
    (here / "mine" / "grid.yaml").write_text(yaml.dump({"title": "Mine", "cells": cells}))
    return "mine"


def test_a_study_takes_cells_and_a_scale_from_a_folder_of_ones_own(own: Path, mine: str) -> None:
    assert cli.reproduce([mine, "-cd", "own", "scale=tiny", "seeds=1"]) == 0
    [kept] = Path("results/mine/tiny/runs").iterdir()
    made = config(str(kept))
    assert made["rule"] == {"_target_": "my_rule.MyRule", "power": 2}
    assert (made["scale"], made["exp"], made["workers"]) == ("tiny", "mine", 2)


def test_a_jobs_command_names_the_folder(own: Path, mine: str) -> None:
    [job] = reproduce.jobs_of(study(mine), "tiny", 1, folders=[own])
    assert job.pushes == 64
    assert job.command[3:6] == ["train", "-cd", str(own)]


@pytest.mark.parametrize("command", [cli.reproduce, cli.tune])
def test_a_wrong_scale_lists_ours_and_theirs(
    own: Path, mine: str, command: Callable[[list[str]], int]
) -> None:
    listed = "no such scale, choose imagenet, laptop, paper, smoke, tiny$"
    with pytest.raises(BadInput, match=rf"^scale=tinny: {listed}"):
        command([mine, "-cd", "own", "scale=tinny"])
    with pytest.raises(BadInput, match=r"^scale=tiny: no such scale, choose .*, smoke$"):
        command([mine, "scale=tiny"])


def test_a_cell_that_names_no_file_lists_ours_and_theirs(own: Path, mine: str) -> None:
    with pytest.raises(BadInput, match=r"^cell mine: exp=mine: no such exp, choose cifar_asgd, "):
        reproduce.jobs_of(study(mine), "smoke", 1)
    (Path(mine) / "grid.yaml").write_text("title: t\ncells: {a: +exp=mine rule=lat}\n")
    listed = "asgd, .*, dcasgd_c, .*, late, "
    with pytest.raises(BadInput, match=rf"^cell a: rule=lat: no such rule, choose .*{listed}"):
        reproduce.jobs_of(study(mine), "smoke", 1, folders=[own])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert own_folders(["a=1", "-cd", str(tmp_path), "b"]) == (["a=1", "b"], [tmp_path])
    assert own_folders([f"--config-dir={tmp_path}"]) == ([], [tmp_path])
    for words in (["-cd", "nowhere"], ["-cd"], ["--config-dir=nowhere"]):
        with pytest.raises(BadInput, match=r"^-(cd|-config-dir)=.*: name a folder, one with exp/"):
            own_folders(words)


def test_a_folder_may_have_odd_characters(here: Path, own: Path) -> None:
    odd = here / "it's, [mine]=1"
    own.rename(odd)
    assert composed(["scale=tiny", "+exp=mine"], [odd]).rule.power == 0.5
    assert cli.dispatch("train", ["-cd", str(odd), "+exp=mine", "scale=tiny", "run_dir=A"]) == 0
