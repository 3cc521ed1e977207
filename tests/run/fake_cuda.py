"""What a run does on CUDA, on fake tensors: no GPU is needed to see tensors of two devices meet.

Under torch's FakeTensorMode a tensor on "cuda" has a shape, a dtype and a device but no numbers,
and an operation over two devices raises. Gradients here have closed forms: autograd asks for a
driver.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from rules_under_test import RULES
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import BatchNorm2d
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from dcasgd_repro import models
from dcasgd_repro.data.images import Batch, Synthetic
from dcasgd_repro.fast import graphs
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Cell, Gradients, replicas
from dcasgd_repro.lr import Step as StepRate
from dcasgd_repro.models import Kernels, ResNet, ResNet50
from dcasgd_repro.optim import DCASGD, RuleOptimizer
from dcasgd_repro.rules import DCASGDa, Rule
from dcasgd_repro.run import check, checkpoint, experiment, read, write
from dcasgd_repro.run.plan import Length, Plan
from dcasgd_repro.schedule import Gamma, Generated
from dcasgd_repro.simulate import simulate
from dcasgd_repro.tasks import Classification, Classifier, Quadratic

CUDA = torch.device("cuda:0")
MACHINE = graphs.CUDA
WORKERS = 4


class Watch(TorchDispatchMode):
    """What FakeTensorMode leaves out: numbers for the host, and the devices of a list's members.

    A value that is fetched is True, 1 or 0.5. FakeTensorMode lets scalars on the CPU stand among
    tensors on CUDA in ``cat`` and ``stack``, where CUDA's own kernels refuse them.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype.is_floating_point * 0.5 or True
        if func in (torch.ops.aten.cat.default, torch.ops.aten.stack.default):
            devices = {str(member.device) for member in args[0]}
            if len(devices) > 1:
                raise RuntimeError(f"{func} over {sorted(devices)}")
        return func(*args, **(kwargs or {}))


def on_the_host(content: object) -> object:
    """Zeros on the CPU for the fake tensors in ``content``, which have nothing to write."""
    return tree_map_only(torch.Tensor, lambda x: torch.zeros(x.shape, dtype=x.dtype), content)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a CUDA device that computes nothing; checkpoints go through real files."""

    def with_zeros(function: Callable) -> Callable:
        def real(*arguments: object) -> object:
            with _disable_current_modes():
                return function(*on_the_host(arguments))

        return real

    monkeypatch.setattr(check, "check_contract", lambda rule, workers: None)  # it compares numbers
    monkeypatch.setattr(experiment, "set_device", lambda *_: CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"no {device}")
    monkeypatch.setattr(write, "cuda_of", lambda device: {"driver": "none"})
    monkeypatch.setattr(checkpoint, "HELD", (*checkpoint.HELD, FakeTensor))
    monkeypatch.setattr(checkpoint, "save", with_zeros(checkpoint.save))
    monkeypatch.setattr(write, "weights_sha256", with_zeros(write.weights_sha256))
    monkeypatch.setattr(graphs, "CUDA", Repeats)
    with FakeTensorMode(), Watch():
        yield


class Repeats:
    """A ``graphs.Machine`` whose replay is the captured work itself."""

    def __init__(self, precision: str) -> None:
        pass

    def precise(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def warm(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def fork(self, works: Sequence[Callable[[], None]]) -> None:
        for work in works:
            work()


class Forward(Classifier):
    """A network's batches, loss and evaluation; its gradient is w / 10."""

    draws = False  # which the generators' states would say

    def _network(self, seed: int) -> torch.nn.Module:
        with self.device:  # fake parameters cannot be moved there
            return self.conf.model.build()

    def gradient(self, w: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return self.loss(w, batch), w / 10


class Network(Classification):
    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Forward:
        return Forward(self, self.data.load(device, dtype), device, dtype)


def one_by_one(task, server, messages, lr) -> Iterator:
    """``waves`` without vmap, which takes gradients by autograd."""

    def compute(task, vectors, batches) -> Gradients:
        return [task.gradient(w, batch) for w, batch in zip(vectors, batches, strict=True)]

    return (step for _, step in replicas([Cell(task, server, messages, lr)], compute))


ENGINES = {
    "plain": simulate,
    "threads": Threads(),
    "waves": one_by_one,
    "graphs": graphs.Graphs(),
}


def plan(folder: Path, rule: Rule, task: object, engine: Callable = simulate, **keys) -> Plan:
    return Plan(
        rule=rule,
        task=task,
        schedule=Generated(workers=WORKERS, seed=0, compute=Gamma(1.0, cv=0.3)),
        rate=StepRate(base=0.1, milestones=[0.5]),
        length=Length(images=64, batch=4, epochs=1),
        workers=WORKERS,
        engine=engine,
        log_every=5,
        run_dir=folder,
        **keys,
    )


def finish(told: Plan, stops: Sequence[int]) -> list[int]:
    """Runs the plan with stops after those pushes; returns where it went on."""
    for until in (*stops, None):
        experiment.run(told, say=lambda line: None, until=until)
    summary = read.Run.read(Path(told.run_dir)).summary
    assert (summary["status"], summary["pushes"]) == ("finished", 16)
    here = read.provenance_of(Path(told.run_dir))
    assert [here[key] for key in ("device", "device_name", "driver")] == [
        "cuda",
        "no cuda:0",
        "none",
    ]
    return [one["after_push"] for one in here["resumed"]]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_run_on_cuda_goes_on_from_any_push(rule: Rule, cuda: None, tmp_path: Path) -> None:
    """Checkpoints in the middle of a row's interval, and of SSGD's round, and where a row ends."""
    told = plan(tmp_path / "run", rule, Quadratic((1.0, 0.5, 0.1), noise=0.2))
    assert finish(told, (3, 10)) == [3, 10]


@pytest.mark.parametrize(
    ("engine", "statistics"), [(name, None) for name in ENGINES] + [("plain", "workers")]
)
def test_a_network_on_cuda_with_every_measurement(
    engine: str, statistics: str | None, cuda: None, tmp_path: Path
) -> None:
    data = Synthetic(WORKERS, batch=4, seed=0, augment=True, train_images=64, test_images=8)
    task = Network(ResNet(8, 2), data, weight_decay=0.01, statistics=statistics)
    told = plan(
        tmp_path / "run", DCASGDa(momentum=0.9), task, ENGINES[engine], backup="push_from_zero",
        probe_every=3, batch_error_every=2,
    )  # fmt: skip
    assert finish(told, (8,)) == [8]
    rows = (tmp_path / "run" / "probe.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(3 * k) for k in range(1, 6)]


class Kinds(TorchDispatchMode):
    """Notes the batch norms that ran, and the memory of what the convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.norms, self.last = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.endswith("batch_norm"):
            self.norms.add(name)
        if name == "convolution":
            self.last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "forced", "last", "norm"),
    [
        ("float32", None, False, "native_batch_norm"),
        ("tf32", None, True, "native_batch_norm"),
        ("bfloat16", None, True, "native_batch_norm"),
        ("float32", Kernels(True, True), True, "cudnn_batch_norm"),
        ("bfloat16", Kernels(False, True), False, "native_batch_norm"),  # torch has no other
    ],
)
def test_a_gradients_kernels_follow_its_precision(
    precision: str,
    forced: Kernels | None,
    last: bool,
    norm: str,
    cuda: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "FORCED", forced)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as set_device does
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    data = Synthetic(WORKERS, batch=4, seed=0, augment=True, train_images=64, test_images=8)
    task = Network(ResNet(8, 2), data).on(CUDA)
    w, batch = task.initial(0), task.batch(0, 0)
    with MACHINE(precision).precise(), Kinds() as seen:
        task.gradient(w, batch)
    assert seen.last[0] is last  # FakeTensorMode is not sure of later layers in bfloat16
    assert seen.norms == {norm}
    if precision == "float32" and forced is None:  # as in a gradient
        with Kinds() as seen:
            task.evaluate(w, [])
        assert set(seen.last) == {last}
        assert seen.norms == {norm}
    assert torch.backends.cudnn.enabled


def test_every_batch_norm_is_one_that_can_choose() -> None:
    norms = [part for part in ResNet50(10).build().modules() if isinstance(part, BatchNorm2d)]
    assert len(norms) == 53
    assert {type(part) for part in norms} == {models.BatchNorm}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.elementwise], ids=repr)
def test_optimizers_on_cuda_take_over_a_state_from_the_cpu(rule: Rule, cuda: None) -> None:
    saved = {}
    for device in ("cpu", CUDA):
        w = torch.nn.Parameter(torch.ones(3, device=device))
        one = RuleOptimizer([w], rule, 0.1, WORKERS)
        one._check_arrival = lambda backup, worker: None  # fake tensors have no address
        if saved:
            one.load_state_dict(saved)
        for worker in range(WORKERS + 1):
            w.grad = torch.ones_like(w)
            one.step(one.pull(), worker % WORKERS)
        saved = one.state_dict()
    assert isinstance(w.data, FakeTensor)
    assert w.device == CUDA


def test_mxnets_optimizer_on_cuda(cuda: None) -> None:
    w = torch.nn.Parameter(torch.ones(3, device=CUDA))
    one = DCASGD([w], 0.1, momentum=0.9, weight_decay=0.1, clip_gradient=1.0)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        one.step()
    assert one.state[w]["momentum_buffer"].device == CUDA


def test_two_devices_in_one_list_are_seen(cuda: None) -> None:
    one = torch.ones((), device=CUDA)
    with pytest.raises(RuntimeError, match=r"over \['cpu', 'cuda:0'\]"):
        torch.stack([one, torch.ones(())])
    with pytest.raises(Exception, match="two devices"):
        torch.ones(3, device=CUDA) + torch.ones(3)
