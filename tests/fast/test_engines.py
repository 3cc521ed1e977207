"""The contract of every engine: simulate's Steps, for any rule, schedule and task."""

import contextlib
import copy
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rules_under_test import KINDS, RULES
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dcasgd_repro.data.images import Synthetic
from dcasgd_repro.errors import BadInput
from dcasgd_repro.fast import graphs
from dcasgd_repro.fast.fused import fuse, moved
from dcasgd_repro.fast.threads import Threads
from dcasgd_repro.fast.waves import Cell, Waves, batched, replicas, stacked
from dcasgd_repro.lr import Step as Rate
from dcasgd_repro.models import ResNet
from dcasgd_repro.rules import ASGD, SSGD, Arrival, DCASGDa, DCASGDc, Direction, Rule
from dcasgd_repro.run import device
from dcasgd_repro.schedule import Constant, Exponential, Gamma, Generated, Message
from dcasgd_repro.simulate import Server, Step, apply, simulate
from dcasgd_repro.tasks import Classification, Quadratic

CPU = torch.device("cpu")
WORKERS = 4
RANDOM = torch.Generator().manual_seed(0)


class AheadAndSkipping(DCASGDc):
    """Sends another vector than w, and ignores every gradient that is more than 4 updates old."""

    def sends(self, w: torch.Tensor, state: object, worker: int) -> torch.Tensor:
        return w - 0.01 * (worker + 1)

    def direction(self, arrival: object, state: object) -> Direction:
        if arrival.delay > 4:
            return Direction(None, state)
        return super().direction(arrival, state)


EVERY = [*KINDS, AheadAndSkipping(lam=1.0)]


def generated(law: object, **keys: object) -> Callable[[], Sequence[Message]]:
    return lambda: Generated(workers=WORKERS, seed=3, compute=law, **keys).messages(60)


def irregular() -> list[Message]:
    """Pulls given twice, a push without a pull of its own, a worker that never pushes."""
    words = "0 1 2 3 >1 1 1 >0 >0 0 >1 >1 1 0 >0 0 >1 >0 1 2 >2 >1"
    return [
        Message(float(k), "push" if word[0] == ">" else "pull", int(word[-1]))
        for k, word in enumerate(words.split())
    ]


SCHEDULES: dict[str, Callable[[], Sequence[Message]]] = {
    "gamma": generated(Gamma(mean_s=1.0, cv=0.3)),
    "exponential": generated(Exponential(mean_s=1.0)),
    "equal": generated(Constant(mean_s=1.0)),
    "barrier": generated(Gamma(mean_s=1.0, cv=0.3), barrier=True),
    "late pulls": generated(
        Gamma(mean_s=1.0, cv=0.5), communication=Constant(mean_s=1.0), request_share=0.5
    ),
    "irregular": irregular,
}


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: notes the operations and repeats them on the same buffers.

    As a capture, it refuses whatever would make the host wait for the device; as a replay, it runs
    no Python of the captured code. An operation whose result is new memory overwrites the memory
    that its capture made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[object, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{func} would wait for the device inside a capture")
        made = func(*args, **kwargs)
        self.notes.append(tree_map_only(torch.Tensor, memory, (func, args, kwargs, made)))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.notes:
            again = func(*args, **kwargs)
            if isinstance(made, torch.Tensor):
                made, again = (made,), (again,)
            for old, new in zip(made, again, strict=True):
                if old is not None and old.data_ptr() != new.data_ptr():  # not a view, nor written
                    old.copy_(new)


def memory(x: torch.Tensor) -> torch.Tensor:
    """The same memory, without the history that autograd keeps of it."""
    return torch.empty(0, dtype=x.dtype).set_(
        x.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )


class StandIn:
    """A ``graphs.Machine`` on the CPU."""

    def __init__(self) -> None:
        self.captures = 0

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        yield

    def warm(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        tape = Tape()
        with tape:
            work()
        return tape.replay

    def fork(self, works: Sequence[Callable[[], None]]) -> None:
        for work in works:
            work()


def captured(task, server, messages, lr):
    compute = graphs.Captured(StandIn())
    return (step for _, step in replicas([Cell(task, server, messages, lr)], compute))


ENGINES = {
    "waves": Waves(),
    "threads": Threads(),
    "two threads": Threads(slots=2),
    "captured": captured,
}


def quadratic() -> object:
    return Quadratic(curvature=(1.0, 0.5, 0.1), noise=0.2, seed=5).on(CPU)


def network(norm: str = "batch", dtype: torch.dtype = torch.float64) -> object:
    data = Synthetic(workers=WORKERS, batch=4, seed=2, augment=True, train_images=64, test_images=8)
    return Classification(ResNet(8, 2, norm=norm), data, weight_decay=0.01).on(CPU, dtype)


def lr(pushes: int) -> float:
    return 0.05 / (1 + pushes // 20)


def played(
    engine: Callable,
    task: object,
    rule: Rule,
    log: Sequence[Message],
    pushes: int = 60,
    backup: str = "pull",
):
    server = Server(rule, task.initial(1), WORKERS, backup)
    steps = []
    for step in engine(task, server, log, lr):
        steps.append(step)
        if len(steps) == pushes:
            break
    return steps, server


def agree(found: tuple, expected: tuple, tolerance: float) -> None:
    steps, server = found
    wanted, reference = expected
    assert len(steps) == len(wanted)
    for step, other in zip(steps, wanted, strict=True):
        assert step[:6] == other[:6]  # push, update, clock, worker, delay, lr
        for value, right in zip(step[6:], other[6:], strict=True):
            torch.testing.assert_close(value, right, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(server.w, reference.w, rtol=tolerance, atol=tolerance)
    assert (server.t, server.pushes, server.batches) == (
        reference.t, reference.pushes, reference.batches,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_engine_gives_the_plain_loops_steps(engine: str, schedule: str, rule: Rule) -> None:
    log, task = SCHEDULES[schedule](), quadratic()
    agree(played(ENGINES[engine], task, rule, log), played(simulate, task, rule, log), 1e-12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in KINDS], ids=repr)
def test_every_engine_gives_the_plain_loops_steps_for_every_rule(rule: Rule) -> None:
    """An engine sees of a rule only what the kinds above differ in, so one schedule will do."""
    log, task = SCHEDULES["late pulls"](), quadratic()
    expected = played(simulate, task, rule, log, 30)
    for engine in ENGINES.values():
        agree(played(engine, task, rule, log, 30), expected, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", ["late pulls", "irregular"])
@pytest.mark.parametrize("backup", ["push", "push_from_zero"])
def test_engine_with_backups_after_the_push(engine: str, schedule: str, backup: str) -> None:
    log, task, rule = SCHEDULES[schedule](), quadratic(), DCASGDc(lam=2.0)
    found = played(ENGINES[engine], task, rule, log, backup=backup)
    expected = played(simulate, task, rule, log, backup=backup)
    agree(found, expected, 1e-12)
    assert expected[1].w.tolist() != played(simulate, task, rule, log)[1].w.tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_engine_on_a_network(engine: str, norm: str) -> None:
    log, task, rule = SCHEDULES["gamma"](), network(norm), DCASGDa()
    found = played(ENGINES[engine], task, rule, log, 20)
    agree(found, played(simulate, task, rule, log, 20), 1e-12)


@pytest.mark.parametrize("engine", ["threads", "two threads", "captured"])
def test_engine_equals_the_plain_loop_to_the_bit_in_float32(engine: str) -> None:
    """Each gradient is the plain path's own, so nothing is rounded otherwise."""
    log, task, rule = SCHEDULES["exponential"](), network(dtype=torch.float32), DCASGDa()
    (steps, server), (wanted, reference) = (
        played(one, task, rule, log, 20) for one in (ENGINES[engine], simulate)
    )
    assert steps == wanted
    assert torch.equal(server.w, reference.w)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_wave_in_float32_is_as_near_to_float64_as_stated(norm: str) -> None:
    task, exact = network(norm, torch.float32), network(norm)
    vectors = [task.initial(seed) for seed in range(4)]
    batches = [task.batch(m, 0) for m in range(4)]
    found = batched(task, vectors, batches)
    for m, ((loss, g), w) in enumerate(zip(found, vectors, strict=True)):
        expected, right = exact.gradient(w.double(), exact.batch(m, 0))
        assert (g - right).norm() <= 1e-2 * right.norm()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batches_that_are_plain_tuples_are_stacked() -> None:
    x, y = stacked([(torch.ones(2), torch.zeros(1)), (torch.zeros(2), torch.ones(1))])
    assert x.tolist() == [[1, 1], [0, 0]]
    assert y.tolist() == [[0], [1]]


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_left_at_any_step_and_taken_up_again(engine: str) -> None:
    """The server is whole after each Step, so a checkpoint taken there resumes."""
    log, task, rule = SCHEDULES["exponential"](), quadratic(), DCASGDa()
    whole, reference = played(simulate, task, rule, log)
    pushes = [k for k, message in enumerate(log) if message.kind == "push"]
    for leave_at in (1, 2, 17, 59):
        first, server = played(ENGINES[engine], task, rule, log, leave_at)
        server = copy.deepcopy(server)
        rest = list(log)[pushes[leave_at - 1] + 1 :]
        steps = [*first, *ENGINES[engine](task, server, rest, lr)]
        agree((steps, server), (whole, reference), 1e-12)


@pytest.mark.parametrize("schedule", ["gamma", "equal", "exponential"])
def test_a_wave_is_as_wide_as_the_schedule_allows(schedule: str) -> None:
    """Against another count: greedy cuts of the log wherever a push reads what a wave made."""
    log, widths = SCHEDULES[schedule](), []

    def compute(task: object, vectors: Sequence, batches: Sequence) -> object:
        widths.append(len(vectors))
        return batched(task, vectors, batches)

    server = Server(ASGD(), torch.ones(3, dtype=torch.float64), WORKERS)
    for _ in replicas([Cell(quadratic(), server, log, lr)], compute):
        pass
    reads, cut, sizes = log.reads(), 0, [0]
    for push, read in enumerate(reads):
        if read > cut:  # its vector did not exist when the wave began
            cut = push
            sizes.append(0)
        sizes[-1] += 1
    assert len(widths) == len(sizes)
    assert sum(widths) - sum(sizes) < WORKERS  # computed in the last wave, pushed by none
    if schedule == "equal":
        assert set(widths) == {WORKERS}


def test_replicas_share_waves_and_keep_their_own_numbers() -> None:
    rules = [ASGD(), DCASGDa(), SSGD()]
    logs = [SCHEDULES[name]() for name in ("gamma", "exponential", "barrier")]
    expected = [played(simulate, quadratic(), r, log) for r, log in zip(rules, logs, strict=True)]
    widths = []

    def compute(task: object, vectors: Sequence, batches: Sequence) -> object:
        widths.append(len(vectors))
        return batched(task, vectors, batches)

    task = quadratic()
    servers = [Server(rule, task.initial(1), WORKERS) for rule in rules]
    cells = [Cell(quadratic(), s, log, lr) for s, log in zip(servers, logs, strict=True)]
    steps: list[list[Step]] = [[], [], []]
    for index, step in replicas(cells, compute):
        steps[index].append(step)
    for found, server, reference in zip(steps, servers, expected, strict=True):
        agree((found, server), reference, 1e-12)
    assert max(widths) == 3 * WORKERS


@pytest.mark.parametrize("compute", [batched, "captured"])
def test_replicas_of_different_losses_do_not_share_waves(compute: object) -> None:
    tasks = [network(), network()]
    tasks[1].conf = replace(tasks[1].conf, weight_decay=0.5)
    log, rule = SCHEDULES["equal"](), ASGD()
    expected = [played(simulate, task, rule, log, 12) for task in tasks]
    servers = [Server(rule, task.initial(1), WORKERS) for task in tasks]
    cells = [Cell(task, server, log[:28], lr) for task, server in zip(tasks, servers, strict=True)]
    steps: list[list[Step]] = [[], []]
    compute = graphs.Captured(StandIn()) if compute == "captured" else compute
    for index, step in replicas(cells, compute):
        steps[index].append(step)
        if len(steps[index]) == 12:
            assert torch.allclose(servers[index].w, expected[index][1].w, rtol=1e-12, atol=1e-12)
    assert min(map(len, steps)) >= 12
    assert not torch.equal(expected[0][1].w, expected[1][1].w)


def test_a_graph_is_captured_once_for_each_width() -> None:
    machine, log = StandIn(), SCHEDULES["exponential"]()
    compute = graphs.Captured(machine)
    server = Server(ASGD(), torch.ones(3, dtype=torch.float64), WORKERS)
    for _ in replicas([Cell(quadratic(), server, log, lr)], compute):
        pass
    assert machine.captures == len(compute.graphs) <= WORKERS


def test_graphs_wider_than_eight_are_filled_up() -> None:
    assert [graphs.width(k) for k in (1, 7, 8, 9, 16, 17, 128)] == [1, 7, 8, 16, 16, 24, 128]
    task = quadratic()
    vectors = [torch.full((3,), float(k), dtype=torch.float64) for k in range(11)]
    batches = [task.batch(m, 0) for m in range(11)]
    found = graphs.Captured(StandIn())(task, vectors, batches)
    assert len(found) == 11
    for (loss, g), w, batch in zip(found, vectors, batches, strict=True):
        expected, right = task.gradient(w, batch)
        assert torch.equal(g, right)
        assert loss == expected


class Recording:
    """A task that notes where in its memory each vector begins, and can fail inside a capture."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.begins = fails, []

    def gradient(self, w: torch.Tensor, batch: torch.Tensor) -> tuple:
        self.begins.append(w.storage_offset())
        if self.fails and torch.utils._python_dispatch._get_current_dispatch_mode():
            raise self.fails
        return (w * batch).sum(), w + batch


@pytest.mark.parametrize("length", [1, 62, 64, 66])
def test_every_slot_of_a_graph_is_aligned_as_a_vector_by_itself(length: int) -> None:
    """ResNet-20 has 269,722 parameters, 2 mod 4: rows next to each other are not."""
    task = Recording()
    vectors = [torch.full((length,), float(k)) for k in range(3)]
    batches = [torch.arange(length) + float(k) for k in range(3)]
    found = graphs.Captured(StandIn())(task, vectors, batches)
    assert len(set(task.begins)) == 3
    assert {begin % graphs.ROW for begin in task.begins} == {0}
    for (loss, g), w, batch in zip(found, vectors, batches, strict=True):
        assert torch.equal(g, w + batch)
        assert loss == (w * batch).sum()
        assert g.storage_offset() % graphs.ROW == 0
        assert g.is_contiguous()


class Ending(StandIn):
    """As CUDA's own capture, which raises at its end what comes of an error inside."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            return super().capture(work)
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            "out of memory (CUDA out of memory. Tried)",
        ),
        (
            RuntimeError("operation not permitted when stream is capturing\nmore"),
            "an operation that a graph cannot hold "
            "(operation not permitted when stream is capturing)",
        ),
        (RuntimeError("CUDA error: no driver\nmore"), "CUDA error: no driver"),
    ],
)
@pytest.mark.parametrize("machine", [StandIn, Ending])
def test_a_capture_that_fails_says_why_once_and_the_plain_loop_goes_on(
    machine: type, fails: Exception, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    compute, task, one = graphs.Captured(machine()), Recording(fails), torch.ones(2)
    for _ in range(2):
        ((loss, g),) = compute(task, [one], [one])
        assert (loss.item(), g.tolist()) == (2.0, [2.0, 2.0])
    line = f"note      engine=graphs cannot capture 1 gradients: {told}; plain loop\n"
    assert capfd.readouterr().err == line


def test_the_plain_loop_after_a_failed_capture_has_the_declared_precision() -> None:
    class Declared(StandIn):
        inside = False

        @contextlib.contextmanager
        def precise(self) -> Iterator[None]:
            self.inside = True
            yield
            self.inside = False

    class Asking(Recording):
        def gradient(self, w: torch.Tensor, batch: torch.Tensor) -> tuple:
            assert machine.inside
            return super().gradient(w, batch)

    machine, one = Declared(), torch.ones(2)
    compute = graphs.Captured(machine)
    compute(Asking(RuntimeError("no")), [one], [one])
    assert compute.failed


def test_the_stand_in_refuses_a_wait_for_the_device(capfd: pytest.CaptureFixture[str]) -> None:
    class Waiting:
        def gradient(self, w: torch.Tensor, batch: torch.Tensor) -> tuple:
            return w.sum() * w.sum().item(), w

    graphs.Captured(StandIn())(Waiting(), [torch.ones(2)], [torch.ones(2)])
    assert "would wait for the device inside a capture" in capfd.readouterr().err


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_the_plain_path_never_waits_for_the_device(rule: Rule) -> None:
    """Drawing a batch, its gradient and the server's update copy nothing back to the host."""
    task = network()
    server = Server(rule, task.initial(1), WORKERS)
    task.gradient(server.w, task.batch(0, 0))
    with Tape() as tape:
        steps = list(zip(range(8), simulate(task, server, SCHEDULES["gamma"](), lr), strict=False))
    assert len(steps) == 8
    assert len(tape.notes) > 800  # it was watching


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_no_rule_waits_for_the_device(rule: Rule) -> None:
    server = Server(rule, torch.ones(3, dtype=torch.float64), WORKERS)
    gradients = list(torch.ones(24, 3, dtype=torch.float64))
    with Tape() as tape:
        for k, g in enumerate(gradients):
            server.receive_gradient(k % WORKERS, g, 0.1)
            server.receive_pull(k % WORKERS)
    assert len(tape.notes) >= 2 * 24  # it was watching


def test_graphs_without_cuda_say_so_and_run_plain(capfd: pytest.CaptureFixture[str]) -> None:
    log, task = SCHEDULES["gamma"](), quadratic()
    found = played(graphs.Graphs(), task, DCASGDa(), log)
    agree(found, played(simulate, task, DCASGDa(), log), 0.0)
    assert capfd.readouterr().err == "note      engine=graphs needs CUDA, this is cpu: plain loop\n"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (partial(Threads, slots=0), "slots=0: give a whole number"),
        (partial(graphs.Graphs, precision="float16"), "precision=float16: choose"),
    ],
)
def test_bad_options_are_refused(make: Callable, text: str) -> None:
    with pytest.raises(BadInput, match=re.escape(text)):
        make()


def test_each_slot_has_one_thread_and_torch_gets_its_own_back() -> None:
    seen = []

    class Noting:
        def __init__(self) -> None:
            self.inner = quadratic()
            self.batch = self.inner.batch

        def gradient(self, w: torch.Tensor, batch: torch.Tensor) -> tuple:
            seen.append((threading.get_ident(), torch.get_num_threads()))
            time.sleep(0.005)  # so that every slot gets one
            return self.inner.gradient(w, batch)

    def probe() -> int:
        """The number of threads that a new thread has."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        server = Server(ASGD(), torch.ones(3, dtype=torch.float64), WORKERS)
        steps = Threads()(Noting(), server, SCHEDULES["equal"](), lr)
        for _ in range(20):
            next(steps)
        steps.close()
        assert {threads for _, threads in seen} == {1}
        assert len({ident for ident, _ in seen}) == WORKERS
        assert torch.get_num_threads() == probe() == 4
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_slot_comes_out_at_its_push() -> None:
    class Failing:
        def __init__(self) -> None:
            self.batch = quadratic().batch

        def gradient(self, w: torch.Tensor, batch: torch.Tensor) -> tuple:
            raise ArithmeticError("no gradient")

    server = Server(ASGD(), torch.ones(3, dtype=torch.float64), WORKERS)
    with pytest.raises(ArithmeticError, match="no gradient"):
        next(Threads()(Failing(), server, SCHEDULES["equal"](), lr))


def test_an_epoch_is_drawn_once_whichever_thread_asks_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, drawn = network().images, []
    draw = images._draw

    def slowly(number: int) -> object:
        drawn.append(number)
        time.sleep(0.05)
        return draw(number)

    monkeypatch.setattr(images, "_draw", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.batch, range(4), [0] * 4))
    assert drawn == [0]


def test_a_copy_of_a_task_is_another_threads_and_deep_copies_are_whole() -> None:
    task = network()
    w, batch = task.initial(0), task.batch(0, 0)
    _, right = task.gradient(w, batch)
    twin, deep = copy.copy(task), copy.deepcopy(task)
    assert twin.module is not task.module
    assert twin.images is task.images
    for other in (twin, deep, pickle.loads(pickle.dumps(task))):
        other.gradient(torch.zeros_like(w), batch)
        assert torch.equal(other.gradient(w, batch)[1], right)


class Counting:
    """A backend of torch.compile that runs what was traced as it is, and counts the runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, traced: Callable, inputs: object) -> Callable:
        def run(*arguments: object) -> object:
            self.runs += 1
            return traced(*arguments)

        return run


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_a_fused_update_traces_every_branch_of_a_rule(rule: Rule) -> None:
    """What torch.compile makes of a rule, run without its code generator, is the rule."""
    log, task = SCHEDULES["gamma"](), quadratic()
    torch._dynamo.reset()
    server = Server(rule, task.initial(1), WORKERS)
    backend = Counting()
    fuse(server, backend)
    steps = list(simulate(task, server, log, lr))
    agree((steps, server), played(simulate, task, rule, log), 0.0)
    assert backend.runs >= len(steps)


def test_a_rule_with_a_vector_for_each_of_many_workers_stays_fused() -> None:
    """torch.compile gives up after eight versions unless told otherwise."""
    task, rule = quadratic(), DCASGDa(mean_square="worker")
    log = Generated(workers=16, seed=3, compute=Constant(mean_s=1.0)).messages(48)
    torch._dynamo.reset()
    server, backend = Server(rule, task.initial(1), 16), Counting()
    fuse(server, backend)
    assert len(list(simulate(task, server, log, lr))) == backend.runs == 48


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11's own, as it compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_compiled_has_the_bits_of_the_plain_update(dtype: torch.dtype) -> None:
    """The learning rate as a scalar tensor rounds nothing otherwise, in vector lanes and tails."""
    g, w, w_bak = (torch.randn(1003, dtype=dtype, generator=RANDOM) for _ in range(3))
    for rule in (ASGD(), DCASGDa(momentum=0.9)):
        for lr in (0.05, 1 / 3):
            arrival, state = Arrival(g, w, w_bak, 0, 3, lr), rule.init(w, 1)
            plain = apply(rule, arrival, state)[0]
            assert torch.equal(
                moved(rule, arrival, state, torch.tensor(-lr, dtype=dtype))[0], plain
            )


@pytest.mark.parametrize(("rule", "compilations"), [(DCASGDc(lam=2.0), 1), (DCASGDa(), 2)])
def test_a_fused_update_compiled_for_this_processor(rule: Rule, compilations: int) -> None:
    """Once, though every push has its own learning rate; the counter of DC-ASGD-a costs another."""
    log, task = SCHEDULES["gamma"](), network(dtype=torch.float32)
    warmup = Rate(base=0.05, warmup=12.0, start=0.25)
    torch._dynamo.reset()
    counters.clear()
    ended = []
    for fused in (True, False):
        server = Server(rule, task.initial(1), WORKERS)
        if fused:
            fuse(server)
        steps = [s for _, s in zip(range(12), simulate(task, server, log, warmup), strict=False)]
        ended.append((steps, server))
    assert len({step.lr for step in steps}) == 12
    assert counters["stats"]["unique_graphs"] == compilations
    agree(*ended, 1e-5)


@pytest.mark.parametrize(
    ("kind", "variable", "language"), [("cpu", "CXX", r"C\+\+"), ("cuda", "CC", "C")]
)
def test_a_fused_update_without_a_compiler_is_refused(
    kind: str, variable: str, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    told = f"^fused=True: torch.compile needs a {language} compiler, no-such-compiler here"
    there = SimpleNamespace(w=SimpleNamespace(device=torch.device(kind)))
    with pytest.raises(BadInput, match=told):
        fuse(there)


def test_freed_memory_is_kept_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    glibc = device.platform.libc_ver()[0] == "glibc"
    assert device.keep_freed_memory() is glibc
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert device.keep_freed_memory() is False


def test_what_is_asked_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are malloc.h's; what they save in page faults is for the bench to measure."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    asked = {}
    monkeypatch.setattr(device, "_mallopt", lambda option, value: not asked.update({option: value}))
    assert device.keep_freed_memory() is True
    assert asked == {-1: -1, -4: 0, -8: 1}  # no trimming, no mmap, one arena for all threads
    monkeypatch.setattr(device, "_mallopt", lambda option, value: option != -8)
    assert device.keep_freed_memory() is False  # one of them was refused


@pytest.mark.parametrize(
    ("precision", "tf32", "half"),
    [("float32", False, False), ("tf32", True, False), ("bfloat16", False, True)],
)
def test_the_declared_precision_is_set_and_put_back(
    precision: str, tf32: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def autocast(kind: str, dtype: torch.dtype, **keys: object) -> object:
        asked.append((kind, dtype, keys["enabled"]))
        return contextlib.nullcontext()

    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(torch, "autocast", autocast)
    before = flags()
    with graphs.CUDA(precision).precise():
        assert flags() == (tf32, tf32)
    assert flags() == before
    assert asked == [("cuda", torch.bfloat16, half)]
