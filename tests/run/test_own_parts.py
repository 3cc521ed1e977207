"""Parts of a user's own: what a rule, a model, a data set or an edited file may do to a run."""

import copy
import dataclasses
import importlib
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcasgd_repro.data.images import Images, Synthetic
from dcasgd_repro.errors import BadInput
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Waves
from dcasgd_repro.lr import Step as Rate
from dcasgd_repro.models import Network
from dcasgd_repro.rules import ASGD, Arrival, Direction, Rule
from dcasgd_repro.run import checkpoint, experiment, identity, plan, read
from dcasgd_repro.run.sources import sources
from dcasgd_repro.schedule import Constant, Generated
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Classification, Classifier, Quadratic

CPU = torch.device("cpu")


def planned(**changes: Any) -> plan.Plan:
    parts: dict[str, Any] = {
        "rule": ASGD(),
        "task": Quadratic((1.0, 0.1)),
        "schedule": Generated(workers=2, seed=0, compute=Constant(1.0)),
        "rate": Rate(0.1),
        "length": plan.Length(images=8, batch=1, epochs=1),
        "workers": 2,
    }
    return plan.Plan(**(parts | changes))


def made(path: Path, **changes: Any) -> dict[str, Any]:
    return read.summary_of(experiment.run(planned(run_dir=path, **changes), say=lambda line: None))


# Rules.


class Held(NamedTuple):
    total: Tensor
    count: int


@dataclasses.dataclass
class Boxed:
    total: Tensor


@dataclasses.dataclass(frozen=True)
class Keeps(Rule):
    """SGD, with a state that it does not read."""

    state: str = "none"

    def init(self, w: Tensor, workers: int) -> Any:
        return STATES[self.state](w)

    def direction(self, arrival: Arrival, state: Any) -> Direction:
        return Direction(arrival.grad, state)


STATES: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda w: None,
    "nested": lambda w: ({"a": [w, 1.5, "x"], 3: (w, True)}, Held(w, 2), [], (None, Held(w, 3))),
    "a test_own_parts.Boxed": Boxed,
    "a numpy.ndarray": lambda w: (w.numpy(),),
    "a numpy.float64": lambda w: {"scale": np.float64(2)},
    "a collections.deque": lambda w: deque([w]),
    "a collections.defaultdict": lambda w: (defaultdict(list), w),
    "a collections.OrderedDict": lambda w: OrderedDict(a=w),
    "a named tuple in a list": lambda w: [Held(w, 1)],
    "a named tuple in a dict": lambda w: {0: Held(w, 1)},
}


@pytest.mark.parametrize("state", [name for name in STATES if " " in name])
def test_a_state_that_no_checkpoint_can_hold_is_refused_at_push_0(
    state: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=rf"^rule=a state with {state}: no checkpoint can hold it"):
        made(tmp_path / "run", rule=Keeps(state))
    assert not (tmp_path / "run").exists()


def test_a_state_of_plain_parts_goes_to_a_checkpoint_and_back(tmp_path: Path) -> None:
    server = Server(Keeps("nested"), torch.ones(3), 2)
    checkpoint.check_held(server.state, checkpoint.kinds(server.state))
    checkpoint.save(tmp_path, {"server": checkpoint.pack(server)})
    again, saved = Server(Keeps("nested"), torch.zeros(3), 2), checkpoint.load(tmp_path, CPU)
    assert saved is not None
    checkpoint.unpack(again, saved["server"])
    assert repr(again.state) == repr(server.state)


class Grows(Keeps):
    def direction(self, arrival: Arrival, state: Any) -> Direction:
        return Direction(arrival.grad, Held(arrival.grad, 1))


def test_a_state_that_becomes_another_class_is_refused(tmp_path: Path) -> None:
    """A checkpoint tells classes by those of the first state, None here."""
    with pytest.raises(BadInput, match="a named tuple where its first state has none"):
        made(tmp_path / "run", rule=Grows())


class Late(Keeps):
    """A class of state that only a late push has: no trial before training meets it."""

    calls: ClassVar[list[int]] = []

    def direction(self, arrival: Arrival, state: Any) -> Direction:
        self.calls.append(arrival.delay)
        return Direction(arrival.grad, Held(arrival.grad, 1) if len(self.calls) > 6 else None)


def test_a_run_that_its_last_checkpoint_refuses_has_failed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a named tuple where its first state has none"):
        made(tmp_path / "run", rule=Late())
    assert read.summary_of(tmp_path / "run")["status"] == "failed"


class Bare(Keeps):
    def direction(self, arrival: Arrival, state: Any) -> Any:
        return arrival.grad, state


@dataclasses.dataclass(frozen=True)
class NoRule:
    name = "mine"


def test_what_is_no_rule_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^rule=NoRule: is no rule; derive its class from"):
        planned(rule=NoRule())
    message = r"^rule=Bare: its direction\(\) must return Direction\(.*\), not a tuple$"
    with pytest.raises(BadInput, match=message):
        made(tmp_path / "run", rule=Bare())
    assert not (tmp_path / "run").exists()


def test_a_rule_is_called_by_its_class_unless_it_says_otherwise(tmp_path: Path) -> None:
    class Mine(ASGD):
        pass

    assert (ASGD().name, Mine().name) == ("asgd", "Mine")
    assert made(tmp_path / "run", rule=Keeps())["rule"] == "Keeps"


# Models and data.


@dataclasses.dataclass(frozen=True)
class Flat:
    """Images -> 8 features -> what is under test -> classes."""

    inside: str

    def build(self) -> nn.Module:
        if self.inside == "instance":
            first = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
            return nn.Sequential(first, nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        middle = {"norm": nn.BatchNorm1d(8), "dropout": nn.Dropout(0.5), "both": nn.Sequential(
            nn.Dropout(0.5), nn.BatchNorm1d(8))}[self.inside]  # fmt: skip
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), middle, nn.Linear(8, 10))


DATA = Synthetic(2, 4, 0, True, train_images=64, test_images=16)


def task_of(inside: str, dtype: torch.dtype = torch.float32) -> Classifier:
    return Classification(Flat(inside), DATA).on(CPU, dtype)


@pytest.mark.parametrize("inside", ["norm", "instance", "dropout", "both"])
def test_an_evaluation_is_a_function_of_w(inside: str) -> None:
    task = task_of(inside)
    w, other = task.initial(0), task.initial(1)
    first = task.evaluate(w, [])
    assert task.evaluate(other, []) != first
    task.gradient(w, task.batch(0, 0))
    assert task.evaluate(w, []) == first


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.last = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Frozen(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.last.bias.requires_grad_(False)


def small(network: type[nn.Module]) -> Classification:
    data = Synthetic(2, batch=8, seed=0, augment=False, train_images=64, test_images=16)
    return Classification(Network(network), data)


@pytest.mark.parametrize("copied", [False, True])
def test_tied_weights_have_the_networks_own_gradient(copied: bool) -> None:
    task, network = small(Tied).on(CPU, torch.float64), Tied().double()
    w, batch = task.initial(1), task.batch(0, 0)
    task = copy.copy(task) if copied else task
    nn.utils.vector_to_parameters(w, network.parameters())
    loss = nn.functional.cross_entropy(network(batch.images), batch.labels)
    right = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*network.parameters()])])
    found, g = task.gradient(w, batch)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(g, right, rtol=1e-12, atol=1e-15)


def test_a_frozen_parameter_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"^model=last.bias: is frozen"):
        small(Frozen).on(CPU)


def test_the_numbers_of_a_gradient_belong_to_its_mini_batch() -> None:
    task, again = task_of("dropout"), task_of("dropout")
    assert task.draws
    assert not task_of("norm").draws
    w = task.initial(0)
    state = torch.get_rng_state()
    losses = {(m, k): task.gradient(w, task.batch(m, k))[0].item() for m in (0, 1) for k in (0, 1)}
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    backwards = {key: again.gradient(w, again.batch(*key))[0].item() for key in [*losses][::-1]}
    assert backwards == losses
    batch = task.batch(0, 0)
    other = batch._replace(seed=batch.seed + 1)  # type: ignore[call-arg]
    assert task.gradient(w, other)[0].item() != losses[0, 0]


@pytest.mark.parametrize("engine", [Threads(slots=2), Waves()], ids=["threads", "waves"])
def test_every_engine_draws_the_same_numbers(engine: Any) -> None:
    log = DELAYED.messages(24)

    def steps(run: Any) -> list[float]:
        task = task_of("dropout", torch.float64)
        server = Server(ASGD(), task.initial(0), 2)
        return [step.loss.item() for step in run(task, server, log, lambda t: 0.1)]

    plain = steps(simulate)
    assert steps(engine) == pytest.approx(plain, rel=1e-12)
    assert len(set(plain)) == 24


DELAYED = Generated(workers=2, seed=0, compute=Constant(1.0))


def test_a_network_that_knows_no_float64_has_no_fingerprint_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Single(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float()

    monkeypatch.setattr(nn, "Flatten", Single)
    length = plan.Length(images=64, batch=4, epochs=0.25)
    assert made(tmp_path, task=Classification(Flat("norm"), DATA), length=length)["pushes"] == 4
    kept = read.fingerprint_of(tmp_path)
    assert kept is not None
    assert "dtype" in kept["missing"]


def test_two_runs_of_a_model_with_dropout_have_one_hash(tmp_path: Path) -> None:
    length = plan.Length(images=64, batch=4, epochs=0.5)
    task = Classification(Flat("both"), DATA)
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        summary = made(tmp_path / str(seed), task=task, length=length)
        hashes.add(summary["weights_sha256"])
    assert len(hashes) == 1
    kept = read.fingerprint_of(tmp_path / "1")
    assert kept == read.fingerprint_of(tmp_path / "2")
    assert kept is not None
    assert "missing" not in kept


@dataclasses.dataclass(frozen=True)
class Own:
    """A data set that does not say how many images it has before they are loaded."""

    def load(self, device: torch.device, dtype: torch.dtype) -> Images:
        return dataclasses.replace(DATA, train_images=96).load(device, dtype)


@pytest.mark.parametrize(
    ("images", "batch", "message"),
    [
        (64, 4, "images=64: the data has 96 images; give images=96"),
        (96, 8, "batch=8: the data has 4 images a batch; give batch=4"),
    ],
)
def test_data_of_another_size_is_refused(
    images: int, batch: int, message: str, tmp_path: Path
) -> None:
    task, length = Classification(Flat("norm"), Own()), plan.Length(images, batch, 0.25)
    with pytest.raises(BadInput, match=f"^{message}$"):
        made(tmp_path / "run", task=task, length=length)


# Files.

RULE = """
import dataclasses
from dcasgd_repro.rules import Direction
from {base} import Base

@dataclasses.dataclass(frozen=True)
class Mine(Base):
    def direction(self, arrival, state):
        return Direction(arrival.grad * {factor}, state)
"""
BASE = """
from dcasgd_repro.rules import Rule

class Base(Rule):
    def init(self, w, workers):
        return {state}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rule]:
    monkeypatch.syspath_prepend(str(tmp_path))
    names = (f"own_{abs(hash(tmp_path))}", f"base_{abs(hash(tmp_path))}")

    def write(factor: float = 1.0, state: str = "None") -> Rule:
        (tmp_path / f"{names[0]}.py").write_text(RULE.format(base=names[1], factor=factor))
        (tmp_path / f"{names[1]}.py").write_text(BASE.format(state=state))
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        rule: Rule = importlib.import_module(names[0]).Mine()
        return rule

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return write


def test_an_edited_rule_is_another_run(files: Callable[..., Rule], tmp_path: Path) -> None:
    first = planned(rule=files(), run_dir=tmp_path / "run")
    experiment.run(first, say=lambda line: None)
    provenance = read.provenance_of(tmp_path / "run")
    assert provenance["sources"] == first.config["sources"]
    assert list(provenance["sources"]) == ["rule"]
    assert planned(rule=files()).config["sources"] == first.config["sources"]

    edited = [planned(rule=files(factor=2.0), run_dir=tmp_path / "run")]
    with pytest.raises(BadInput, match=r"holds a run with sources.rule=\w{16} \(now \w{16}\); na"):
        experiment.run(edited[0], say=lambda line: None)
    edited.append(planned(rule=files(state="()")))  # its base class's file
    known = {identity.identity(each.config) for each in (first, *edited)}
    assert len(known) == 3
    # A kept run's identity is that of the file it was made with.
    kept = identity.identity(read.config_of(tmp_path / "run"))
    assert kept == identity.identity({**first.config, "run_dir": "elsewhere"})


def test_an_edit_reaches_no_process_that_has_imported_the_file(
    files: Callable[..., Rule], tmp_path: Path
) -> None:
    """As in a sweep: what runs is what was imported, and so is what is said of it."""
    before = planned(rule=files()).config["sources"]
    file = Path(str(sys.modules[f"own_{abs(hash(tmp_path))}"].__file__))
    file.write_text(file.read_text() + "# edited")
    (other,) = sources({"rule": {"_target_": f"{file.stem}.Mine"}}).values()
    assert {"rule": other} == before


def test_a_partial_has_the_source_of_its_function_and_its_own(
    files: Callable[..., Rule], tmp_path: Path
) -> None:
    name, known = f"part_{abs(hash(tmp_path))}", set()
    for factor, extra in ((1.0, ""), (2.0, ""), (2.0, "# edited")):
        own = type(files(factor=factor)).__module__
        (tmp_path / f"{name}.py").write_text(
            f"import functools, {own}\nHalf = functools.partial({own}.Mine)\n{extra}"
        )
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        known.add(sources({"rule": {"_target_": f"{name}.Half"}})["rule"])
    assert len(known) == 3


def test_only_parts_of_ones_own_have_a_source() -> None:
    assert sources(planned().config) == {}
    said = {
        "lr": {"_target_": "nowhere.at.All"},
        "task": {
            "model": {"_target_": f"{__name__}.Flat"},
            "parts": [{"_target_": "builtins.int"}],
        },
    }
    assert list(sources(said)) == ["task_model"]
    engine = {"engine": {"_target_": f"{__name__}.planned"}, "sources": {"engine": "a"}}
    other = {**engine, "sources": {"engine": "b"}}
    assert list(sources(engine)) == ["engine"]
    assert identity.identity(engine) == identity.identity(other)
    assert identity.config_hash(engine) != identity.config_hash(other)
