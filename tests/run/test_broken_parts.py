"""Broken tasks, networks and rules of a user's own: one line names the class and the method."""

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.lr import Step as Rate
from dcasgd_repro.models import Network
from dcasgd_repro.rules import ASGD, Arrival, Direction, Rule
from dcasgd_repro.run import experiment, plan, read
from dcasgd_repro.run.faults import machine_faults
from dcasgd_repro.schedule import Constant, Generated
from dcasgd_repro.tasks import Classification, Quadratic

HERE = re.escape(__file__)


def made(path: Path, **changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "rule": ASGD(),
        "task": Quadratic((1.0, 0.5, 0.1)),
        "schedule": Generated(workers=2, seed=0, compute=Constant(1.0)),
        "rate": Rate(0.1),
        "length": plan.Length(images=40, batch=1, epochs=1),
        "workers": 2,
        "log_every": 7,
        "run_dir": path,
    }
    return read.summary_of(experiment.run(plan.Plan(**(parts | changes)), say=lambda line: None))


# Tasks.


class Sound:
    """A quadratic with the four methods and nothing else."""

    def initial(self, seed: int) -> Any:
        return torch.ones(3)

    def batch(self, worker: int, k: int) -> Any:
        return torch.zeros(3)

    def gradient(self, w: Tensor, batch: Tensor) -> Any:
        return 0.5 * torch.sum(w * w), w

    def evaluate(self, w: Tensor, sent: Any) -> Any:
        return {"test_loss": float(torch.sum(w * w))}


def broken(method: str, found: Any) -> type[Sound]:
    return type("Broken", (Sound,), {method: found})


def gradient(of: Callable[[Tensor], Any]) -> type[Sound]:
    return broken("gradient", lambda self, w, batch: of(w))


def raising(self: object, *given: Any) -> None:
    raise KeyError("nothing")


@dataclasses.dataclass(frozen=True)
class Leaf:
    kind: str = "sound"

    def on(self, device: torch.device) -> Any:
        return TASKS[self.kind][0]()


@dataclasses.dataclass(frozen=True)
class NoLeaf:
    pass


VECTOR = "make it a vector [P] of floats, P >= 1"
KNOWN = "make it a dict with numbers as test_error, test_loss, train_error"
TASKS: dict[str, tuple[Any, str, str]] = {
    "sound": (Sound, "", ""),
    "lacks": (broken("batch", None), "batch", "there is no such method; it is called as batch"),
    "signature": (
        broken("evaluate", lambda self, w: {}), "evaluate", "is called as evaluate(w, sent): too m"
    ),
    "list": (broken("initial", lambda *_: [1.0]), "initial", "returns a list; make it a tensor"),
    "2d": (broken("initial", lambda *_: torch.ones(3, 2)), "initial", "returns shape (3, 2), tor"),
    "empty": (broken("initial", lambda *_: torch.ones(0)), "initial", "returns shape (0,), torch."),
    "whole": (
        broken("initial", lambda *_: torch.ones(3, dtype=torch.int64)), "initial",
        f"returns shape (3,), torch.int64, on cpu; {VECTOR}",
    ),
    "meta": (
        broken("initial", lambda *_: torch.ones(3, device="meta")), "initial",
        f"returns shape (3,), torch.float32, on meta; {VECTOR}",
    ),
    "none": (gradient(lambda w: None), "gradient", "returns a NoneType; make it (loss, gradient)"),
    "number": (gradient(lambda w: (1.0, w)), "gradient", "returns a loss that is a float; make it"),
    "vector": (gradient(lambda w: (w, w)), "gradient", "returns a loss that is torch.float32 (3,)"),
    "short": (
        gradient(lambda w: (w.sum(), w[:1])), "gradient",
        "returns a gradient of shape (1,) where w has (3,)",
    ),
    "half": (
        gradient(lambda w: (w.sum(), w.half())), "gradient",
        "returns a gradient of dtype torch.float16 where w has torch.float32",
    ),
    "raises": (broken("gradient", raising), "raising", f"raises KeyError: 'nothing' ({__file__}, "),
    "unmeasured": (broken("evaluate", lambda *_: None), "evaluate", "returns a NoneType, None; "),
    "accuracy": (
        broken("evaluate", lambda *_: {"accuracy": 1.0}), "evaluate",
        f"returns accuracy, which no column has; {KNOWN}",
    ),
    "tensor": (
        broken("evaluate", lambda *_: {"test_loss": torch.ones(())}), "evaluate",
        "returns a Tensor as test_loss; make it a float, as tensor.item()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "sound"])
def test_a_broken_task_is_refused_by_class_and_method(kind: str, tmp_path: Path) -> None:
    _, method, message = TASKS[kind]
    with pytest.raises(BadInput, match=rf"^task=Broken.{method}: {re.escape(message)}"):
        made(tmp_path / "run", task=Leaf(kind))


def test_a_task_with_the_four_methods_alone_runs(tmp_path: Path) -> None:
    assert made(tmp_path / "run", task=Leaf())["status"] == "finished"
    with pytest.raises(BadInput, match=r"^task=NoLeaf.on: there is no such method; .* on\(device"):
        made(tmp_path / "other", task=NoLeaf())


# Networks.


class Net(nn.Module):
    def __init__(self, kind: str = "sound") -> None:
        super().__init__()
        self.kind = kind
        if kind == "meta":
            self.linear = nn.Linear(3 * 32 * 32, 10, device="meta")
        elif kind != "empty":
            self.linear = nn.Linear(3 * 32 * 32, 4 if kind == "few" else 10)

    def forward(self, images: Tensor) -> Any:
        if self.kind == "raises" or (self.kind == "raises later" and not self.training):
            raise KeyError("nothing")
        logits = self.linear(images.flatten(1))
        return {
            "turned": logits.T,
            "flat": logits.mean(1),
            "tuple": (logits,),
            "nan": logits * torch.nan,
            "detached": logits.detach(),
        }.get(self.kind, logits)


def lazy(kind: str) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def plain(kind: str) -> nn.Module:
    """Torch's modules alone: its user has no line in what they raise."""
    return nn.Sequential(nn.Linear(7, 10))


LOGITS = "make it logits [2, 10]"  # of the two images that it is tried on
NETS: dict[str, tuple[Any, str]] = {
    "raises": (Net, rf"Net.forward: raises KeyError: 'nothing' \({HERE}, line \d+: raise KeyError"),
    "raises later": (Net, r"Net.forward: raises KeyError: .*; after push 10, and before a check"),
    "turned": (Net, re.escape(f"Net.forward: returns shape (10, 2); {LOGITS}")),
    "few": (Net, re.escape(f"Net.forward: returns shape (2, 4); {LOGITS}")),
    "flat": (Net, re.escape(f"Net.forward: returns shape (2,); {LOGITS}")),
    "tuple": (Net, re.escape(f"Net.forward: returns a tuple; {LOGITS}")),
    "detached": (Net, "Net.forward: returns what does not depend on the parameters"),
    "meta": (Net, "Net.linear.weight: has no values yet"),
    "lazy": (lazy, "Sequential.1.weight: has no values yet"),
    "empty": (Net, "Net: has no parameters to train"),
    "plain": (plain, "Sequential.forward: raises RuntimeError: .*mat1 and mat2"),
}
DATA = Synthetic(2, 4, 0, False, train_images=40, test_images=8)
LENGTH = plan.Length(images=40, batch=4, epochs=1)


def network(kind: str) -> Classification:
    maker = NETS[kind][0] if kind in NETS else Net
    return Classification(Network(partial(maker, kind=kind)), DATA, 0.0, 8, 8)


@pytest.mark.parametrize("kind", NETS)
def test_a_broken_network_is_refused_by_class_and_method(kind: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"^model={NETS[kind][1]}"):
        made(tmp_path / "run", task=network(kind), length=LENGTH)


def test_a_loss_that_is_nan_from_the_start_is_a_divergence(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", task=network("nan"), length=LENGTH)
    assert (summary["status"], summary["diverged_at_push"]) == ("diverged", 1)


# Rules that fail on their way.


@dataclasses.dataclass(frozen=True)
class Late(Rule):
    """ASGD up to push 29."""

    kind: str = "sound"

    def init(self, w: Tensor, workers: int) -> int:
        return 0

    def direction(self, arrival: Arrival, state: int) -> Any:
        g, state = arrival.grad, state + 1
        if state < 30:
            return Direction(g, state)
        if self.kind == "writes":
            arrival.w.add_(1.0)
        if self.kind == "raises":
            raise KeyError("nothing")
        found: dict[str, Any] = {
            "nan": Direction(g * torch.nan, state),
            "scalar": Direction(g.mean(), state),
            "column": Direction(g[:, None], state),
            "half": Direction(g.half(), state),
            "correction": Direction(g, state, g[:1]),
            "tuple": (g, state),
        }
        return found.get(self.kind, Direction(g, state))

    def sends(self, w: Tensor, state: int, worker: int) -> Tensor:
        return w[:1] if self.kind == "sends" and state >= 30 else w


LATE = {
    "raises": rf"direction: raises KeyError: 'nothing' \({HERE}, line \d+: raise KeyError\(",
    "scalar": r"direction: returns a step of shape \(\) where w has \(3,\)",
    "column": r"direction: returns a step of shape \(3, 1\) where w has \(3,\)",
    "half": r"direction: returns a step of dtype torch.float16 where w has torch.float64",
    "correction": r"direction: returns a correction of shape \(1,\) where w has \(3,\)",
    "writes": r"direction: writes into a tensor that it was given",
    "sends": r"sends: returns a vector of shape \(1,\) where w has \(3,\)",
}


@pytest.mark.parametrize("kind", LATE)
def test_a_rule_that_fails_at_push_30_is_refused_there(kind: str, tmp_path: Path) -> None:
    pushes = 30 if kind == "sends" else 29
    with pytest.raises(BadInput, match=f"^rule=Late.{LATE[kind]}.*; after push {pushes}, and bef"):
        made(tmp_path / "run", rule=Late(kind))
    summary = read.summary_of(tmp_path / "run")
    assert (summary["status"], summary["pushes"]) == ("failed", pushes)
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["push"].tolist() == [7, 14, 21, 28]


def test_a_rule_that_makes_nan_at_push_30_diverges_there(tmp_path: Path) -> None:
    summary = made(tmp_path / "run", rule=Late("nan"), log_every=1)
    assert (summary["status"], summary["diverged_at_push"]) == ("diverged", 30)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_stops_a_process_stops_it_from_a_gradients_thread_too(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, *given: Any) -> None:
        raise error

    monkeypatch.setitem(TASKS, "stops", (broken("batch", stop), "", ""))
    monkeypatch.setattr(experiment, "check_start", lambda task, w: None)
    for engine in (None, Threads(slots=2)):
        with pytest.raises(error):
            made(tmp_path / str(engine is None), task=Leaf("stops"), engine=engine)


@pytest.mark.parametrize("engine", [None, Threads(slots=2)], ids=["plain", "threads"])
def test_what_a_network_raises_in_a_gradients_thread_is_said_as_in_the_plain_loop(
    engine: Any, tmp_path: Path
) -> None:
    message = rf"^model=Failing.forward: raises KeyError: 'nothing' \({HERE}, line \d+: .*push 3, "
    task = Classification(Network(Failing), DATA, 0.0, 8, 8)
    with pytest.raises(BadInput, match=message):
        made(tmp_path / "run", task=task, length=LENGTH, engine=engine)


def test_ctrl_c_inside_a_gradients_thread_lets_the_run_go_on_to_the_same_bits(
    tmp_path: Path,
) -> None:
    parts: dict[str, Any] = {"length": LENGTH, "threads": 1}
    task = Classification(Network(Interrupting), DATA, 0.0, 8, 8)
    whole = made(tmp_path / "whole", task=network("sound"), **parts)
    parts["engine"] = Threads(slots=2)
    first = made(tmp_path / "run", task=task, **parts)
    assert (first["status"], first["stopped_by"]) == ("interrupted", "SIGINT")
    assert first["pushes"] < 10
    again = made(tmp_path / "run", task=task, **parts)
    assert again["status"] == "finished"
    assert again["weights_sha256"] == whole["weights_sha256"]


class Interrupting(Net):
    """Sends this process SIGINT once, from the fourth mini-batch."""

    sent: ClassVar[list[int]] = []

    def forward(self, images: Tensor) -> Any:
        if not self.sent and torch.equal(images, DATA.load().batch(1, 1)[0]):
            self.sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(images)


class Failing(Net):
    """Fails on the fourth mini-batch, by its content."""

    def forward(self, images: Tensor) -> Any:
        if torch.equal(images, DATA.load().batch(1, 1)[0]):
            raise KeyError("nothing")
        return super().forward(images)


def test_what_the_machine_lacks_is_no_fault_of_a_users_code(tmp_path: Path) -> None:
    for error in (OSError(28, "No space left on device"), MemoryError()):
        with pytest.raises(Failure), machine_faults(tmp_path):
            raise error
    with pytest.raises(ConnectionRefusedError), machine_faults(tmp_path):
        raise ConnectionRefusedError(111, "Connection refused")


# A file that is mended.

MINE = """
import dataclasses
from dcasgd_repro.rules import Direction, Rule

@dataclasses.dataclass(frozen=True)
class Mine(Rule):
    def init(self, w, workers):
        return 0

    def direction(self, arrival, state):
        if state == 6:
            {line}
        return Direction(arrival.grad, state + 1)
"""


def test_which_run_goes_on_with_an_edited_file_must_be_said() -> None:
    with pytest.raises(BadInput, match=r"^resume=edited: name the run that goes on, with run_dir"):
        plan.Plan(ASGD(), Quadratic(), Generated(2, 0, Constant(1.0)), Rate(0.1), LENGTH, 2,
                  resume="edited")  # fmt: skip


def test_a_mended_file_goes_on_where_it_is_asked_to_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    words = "task=quadratic rule=my_late:Mine workers=2 threads=1 images=20 batch=2 log_every=2"
    words += " scale=smoke checkpoint.every_s=0"

    def train(line: str, more: str) -> tuple[int, str]:
        monkeypatch.delitem(sys.modules, "my_late", raising=False)
        (tmp_path / "my_late.py").write_text(MINE.format(line=line))
        code = cli.dispatch("train", [*words.split(), *more.split()])
        return code, capsys.readouterr().err.rstrip()

    code, said = train("raise KeyError('nothing')", "run_dir=A")
    assert code == 2
    file = re.escape(str(tmp_path / "my_late.py"))
    message = rf"rule=Mine.direction: raises KeyError: 'nothing' \({file}, line 12: raise KeyError"
    assert re.search(message, said)
    assert said.endswith(
        "; after push 6; the same command goes on after push 6, or, where the file is edited, "
        "which makes another run, with run_dir=A resume=edited"
    )
    code, said = train("pass", "run_dir=A")
    assert code == 2
    assert "holds a run with sources.rule=" in said
    assert train("pass", "run_dir=A resume=edited")[0] == 0
    assert train("pass", "run_dir=B")[0] == 0
    mended, whole = (read.summary_of(Path(name)) for name in "AB")
    assert mended["weights_sha256"] == whole["weights_sha256"]
    was, now = read.config_of(Path("A"))["sources"]["rule"].split("+")
    assert read.config_of(Path("B"))["sources"]["rule"] == now != was
    provenance = read.provenance_of(Path("A"))
    assert provenance["sources"]["rule"] == was
    assert provenance["resumed"][-1]["sources"]["rule"] == f"{was}+{now}"
    assert cli.verify(["A"]) == 1
    assert train("pass", "run_dir=A resume=edited")[0] == 0  # finished already
