"""What a parameter server does with each call, and that no order of calls applies a push twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from rules_under_test import RULES

from dcasgd_repro.cluster.protocol import (
    DUPLICATE,
    ENDED,
    FAULTS,
    INCARNATION,
    NOT_FINITE,
    PATIENCE,
    REASONS,
    REPLACED,
    SHAPE,
    WAIT,
    Followed,
    Line,
    ParameterServer,
    Patience,
    Sent,
    table,
    twin,
)
from dcasgd_repro.errors import Failure
from dcasgd_repro.rules import ASGD, SSGD, DCASGDa
from dcasgd_repro.rules.rule import Rule
from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Quadratic, QuadraticTask

TASK = Quadratic((1.0, 0.1, 0.3), noise=0.5, seed=1).on(torch.device("cpu"))
ZERO = torch.zeros((), dtype=torch.float64)


def lr(pushes: int) -> float:
    return 0.1 / (1 + pushes)


class Seconds:
    """A clock that goes on by one whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def made(workers: int = 2, rule: Rule | None = None, **keys: Any) -> ParameterServer:
    server = Server(rule or DCASGDa(), TASK.initial(0), workers)
    keys = {"pushes": 100, "timer": Seconds(), **keys}
    return ParameterServer(server, lr, incarnation=[1] * workers, **keys)


def computed(ps: ParameterServer, m: int, sent: Sent | str) -> str | None:
    assert isinstance(sent, Sent)
    return ps.push(m, sent.incarnation, sent.k, *TASK.gradient(sent.w, TASK.batch(m, sent.k)))


def kinds(ps: ParameterServer) -> list[tuple[str, int]]:
    return [(line.kind, line.worker) for line in ps.log]


def test_a_pull_says_what_to_compute() -> None:
    ps = made()
    first = ps.pull(1, 1)
    assert first == Sent(ps.server.w, k=0, version=0, incarnation=1)
    assert computed(ps, 1, first) is None
    second = ps.pull(1, 1)
    assert second == Sent(ps.server.w, k=1, version=1, incarnation=1)
    assert kinds(ps) == [("pull", 1), ("push", 1), ("pull", 1)]
    assert [line.clock_s for line in ps.log] == [1.0, 2.0, 3.0]


def test_a_pull_whose_answer_was_lost_is_answered_again_and_logged_once() -> None:
    ps = made()
    first = ps.pull(0, 1)
    computed(ps, 1, ps.pull(1, 1))  # w moves
    assert ps.pull(0, 1) == first
    assert kinds(ps).count(("pull", 0)) == 1


def test_a_restarted_worker_redoes_its_batch_at_a_new_vector() -> None:
    ps = made()
    lost = ps.pull(0, 1)
    computed(ps, 1, ps.pull(1, 1))
    again = ps.pull(0, 2)
    assert isinstance(again, Sent)
    assert (again.k, again.version, again.incarnation) == (0, 1, 2)
    before = ps.server.w
    assert computed(ps, 0, lost) == INCARNATION  # of the process that was replaced
    assert ps.pull(0, 1) == REPLACED
    assert ps.server.w is before
    assert computed(ps, 0, again) is None
    assert kinds(ps)[-3:] == [("pull", 0), (INCARNATION, 0), ("push", 0)]


def test_a_duplicate_changes_nothing() -> None:
    ps = made()
    sent = ps.pull(0, 1)
    assert computed(ps, 0, sent) is None
    w, state = ps.server.w, ps.server.state
    assert computed(ps, 0, sent) == DUPLICATE
    ps.pull(0, 1)
    assert computed(ps, 0, sent) == DUPLICATE  # though the worker computes again
    assert ps.server.w is w
    assert ps.server.state is state
    assert (ps.server.pushes, ps.server.batches) == (1, [1, 0])
    assert [line.k for line in ps.log if line.kind == DUPLICATE] == [0, 0]


def test_a_push_without_a_pull_is_refused() -> None:
    ps = made()
    g = torch.ones(3, dtype=torch.float64)
    assert ps.push(0, 2, 0, ZERO, g) == INCARNATION
    assert ps.push(0, 1, 0, ZERO, g) == DUPLICATE
    assert ps.server.pushes == 0


@pytest.mark.parametrize(
    "g", [torch.ones(4, dtype=torch.float64), torch.ones((3, 1)), torch.ones(3)]
)
def test_a_gradient_of_another_shape_or_type_is_refused(g: torch.Tensor) -> None:
    ps = made()
    ps.pull(0, 1)
    assert ps.push(0, 1, 0, ZERO, g) == SHAPE
    assert ps.server.pushes == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["loss", "g"])
def test_what_is_not_finite_is_refused_and_its_batch_redone(bad: float, where: str) -> None:
    ps = made()
    sent = ps.pull(0, 1)
    assert isinstance(sent, Sent)
    g = torch.ones(3, dtype=torch.float64)
    loss = ZERO
    if where == "loss":
        loss = loss + bad
    else:
        g[1] = bad
    assert ps.push(0, 1, sent.k, loss, g) == NOT_FINITE
    computed(ps, 1, ps.pull(1, 1))
    again = ps.pull(0, 1)
    assert isinstance(again, Sent)
    assert (again.k, again.version) == (0, 1)
    # One worker may send as many as it likes, while another one's are finite.
    assert ps.push(0, 1, again.k, loss, g) == NOT_FINITE
    assert kinds(ps)[-2:] == [("pull", 0), (NOT_FINITE, 0)]


@pytest.mark.parametrize("barrier", [False, True])
def test_where_all_are_not_finite_the_last_is_applied(barrier: bool) -> None:
    """So the run ends as diverged, as it would in the simulator."""
    ps = made(3, ASGD(), barrier=barrier)
    nan = torch.full((3,), np.nan, dtype=torch.float64)
    sent = [ps.pull(m, 1) for m in range(3)]
    assert [ps.push(m, 1, s.k, ZERO, nan) for m, s in enumerate(sent)] == [
        NOT_FINITE,
        NOT_FINITE,
        None,
    ]
    assert ps.server.w.isnan().all()


NAN = torch.full((3,), np.nan, dtype=torch.float64)


def test_a_divergence_ends_the_run_beside_a_worker_that_hangs() -> None:
    """Two of three workers answer, and never with a finite gradient; worker 2 never answers."""
    ps = made(3, ASGD())
    ps.pull(2, 1)
    answers = []
    for _ in range(PATIENCE):
        for m in (0, 1):
            sent = ps.pull(m, 1)
            assert isinstance(sent, Sent)
            answers.append(ps.push(m, 1, sent.k, ZERO, NAN))
    assert answers[: 2 * PATIENCE - 2] == [NOT_FINITE] * (2 * PATIENCE - 2)
    assert answers[2 * PATIENCE - 2] is None
    assert ps.server.w.isnan().all()
    assert answers[-1] is None  # and from then on at once: w itself is not finite


def test_a_single_worker_is_not_taken_for_a_divergence() -> None:
    ps = made(3, ASGD())
    for _ in range(3 * PATIENCE):
        assert ps.push(0, 1, ps.pull(0, 1).k, ZERO, NAN) == NOT_FINITE
    assert computed(ps, 1, ps.pull(1, 1)) is None


@pytest.mark.parametrize(("reason", "g"), [(SHAPE, torch.ones(4)), (NOT_FINITE, NAN)])
def test_a_worker_that_is_refused_over_and_over_ends_the_run_in_one_line(
    reason: str, g: torch.Tensor
) -> None:
    ps, patience = made(3, ASGD()), Patience()

    def follow() -> None:
        for line in ps.take(99):
            patience.note(line)

    for _ in range(FAULTS - 1):
        assert ps.push(0, 1, ps.pull(0, 1).k, ZERO, g) == reason
        computed(ps, 1, ps.pull(1, 1))  # others go on
    follow()
    computed(ps, 0, ps.pull(0, 1))  # and it was well after all
    for _ in range(FAULTS - 1):
        ps.push(0, 1, ps.pull(0, 1).k, ZERO, g)
        ps.push(0, 1, 0, ZERO, g)  # a duplicate is nobody's fault
    follow()
    ps.push(0, 1, ps.pull(0, 1).k, ZERO, g)
    with pytest.raises(Failure, match=f"^worker 0 sent {FAULTS} gradients in a row .* {reason}"):
        follow()


def test_the_last_push_ends_it() -> None:
    ps = made(pushes=1)
    first, second = ps.pull(0, 1), ps.pull(1, 1)
    assert computed(ps, 0, first) is None
    assert computed(ps, 1, second) == ENDED
    assert ps.pull(0, 1) == ENDED
    assert (ps.server.pushes, len(ps.log)) == (1, 3)


def test_nobody_is_answered_before_all_have_come() -> None:
    ps = made(3, gather=True, clock_s=70.0)
    assert [ps.pull(m, 1) for m in (0, 1, 0)] == [WAIT] * 3
    assert not ps.log
    ps.timer.now = 100.0
    last = ps.pull(2, 1)  # then all are sent their vectors, whenever they fetch them
    assert [(x.clock_s, x.kind, x.worker) for x in ps.log] == [
        (71.0, "pull", 0),
        (72.0, "pull", 1),
        (73.0, "pull", 2),
    ]
    assert computed(ps, 2, last) is None
    assert [ps.pull(m, 1).version for m in (0, 1)] == [0, 0]
    assert len(ps.log) == 4


def test_a_log_that_nobody_takes_stops_the_pulls() -> None:
    ps = made(ahead=2)
    for _ in range(2):
        computed(ps, 0, ps.pull(0, 1))
    assert ps.pull(0, 1) == WAIT
    assert [line.kind for line in ps.take(1)] == ["pull", "push"]
    assert isinstance(ps.pull(0, 1), Sent)
    assert [line.kind for line in ps.take(5)] == ["pull", "push", "pull"]


def test_a_barrier_sends_one_vector_to_all() -> None:
    ps = made(3, SSGD(), barrier=True)
    for _ in range(2):
        sent = [ps.pull(m, 1) for m in (2, 0, 1)]
        assert len({id(s.w) for s in sent}) == 1
        assert [computed(ps, m, s) for m, s in zip((2, 0), sent, strict=False)] == [None, None]
        assert ps.pull(0, 1) == WAIT
        again = ps.pull(1, 2)  # restarted: the round has one vector
        assert again.w is sent[0].w
        assert computed(ps, 1, sent[2]) == INCARNATION
        assert computed(ps, 1, again) is None
        ps.incarnation[1] = 1
    log = [word for word in kinds(ps) if word[0] not in REASONS]
    assert log == [("pull", 0), ("pull", 1), ("pull", 2), ("push", 2), ("push", 0), ("push", 1)] * 2
    assert ps.server.t == 2


class Network:
    """Workers, a server and its follower, with every call late, twice or lost, as luck has it.

    A call's answer may be lost too; then the worker asks again, as a pull. Processes die: a worker
    comes back with a later incarnation, the server in its follower's state.
    """

    PUSHES = 60

    def __init__(self, rng: random.Random, rule: Rule, workers: int, barrier: bool) -> None:
        self.rng, self.barrier, self.workers = rng, barrier, workers
        self.follower = Server(rule, TASK.initial(0), workers)
        self.kept: list[Line] = []
        self.log: list[Message] = []
        self.incarnation = [1] * workers
        self.travelling: list[tuple[Any, ...]] = []
        self.refused = self.lost = 0
        self.serve(gather=True)

    def serve(self, gather: bool = False) -> None:
        state = twin(self.follower)
        rates = [lr(n) for n in range(state.pushes, self.PUSHES)]
        computing = set()
        for line in self.kept:
            if line.kind == "pull":
                computing.add(line.worker)
            elif line.kind == "push":
                computing.discard(line.worker)
        self.ps = ParameterServer(
            state,
            table(rates, state.pushes),
            self.PUSHES,
            self.incarnation,
            barrier=self.barrier,
            computing=computing if self.barrier else (),
            gather=gather,
            ahead=7,
        )

    def run(self) -> None:
        while len([line for line in self.kept if line.kind == "push"]) < self.PUSHES:
            self.step()
        self.follow(1000)

    def step(self) -> None:
        luck = self.rng.random()
        if luck < 0.02:  # the server dies; what its follower had not taken is lost with it
            self.lost += sum(line.kind == "push" for line in self.ps.log)
            self.incarnation = [i + 1 for i in self.incarnation]
            self.serve()
        elif luck < 0.06:
            self.incarnation[self.rng.randrange(self.workers)] += 1
        elif luck < 0.3:
            self.follow(self.rng.randrange(4))
        elif luck < 0.5 or not self.travelling:
            m = self.rng.randrange(self.workers)
            self.travelling.append((m, self.incarnation[m]))
        else:
            call = self.travelling.pop(self.rng.randrange(len(self.travelling)))
            luck = self.rng.random()
            if luck < 0.1:
                return  # lost
            if luck < 0.3:
                self.travelling.append(call)  # and comes again
            self.deliver(call)

    def deliver(self, call: tuple[Any, ...]) -> None:
        m = call[0]
        if len(call) > 2:
            self.refused += self.ps.push(*call) in REASONS
        reply = self.ps.pull(*call[:2])
        if isinstance(reply, Sent) and self.rng.random() < 0.9:
            g = TASK.gradient(reply.w, TASK.batch(m, reply.k))
            self.travelling.append((m, reply.incarnation, reply.k, *g))

    def follow(self, pushes: int) -> None:
        lines = self.ps.take(pushes)
        self.kept += lines
        list(Followed(lines).steps(self.follower, lr, self.log.append))


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_network_does_the_log_replays_to_the_same_bits(
    seed: int, barrier: bool
) -> None:
    rng = random.Random(seed)
    rule = SSGD(momentum=0.5) if barrier else rng.choice(RULES)
    network = Network(rng, rule, 3, barrier)
    network.run()
    pushed = [(line.worker, line.k) for line in network.kept if line.kind == "push"]
    assert len(pushed) == len(set(pushed)) == network.PUSHES  # none twice
    for m in range(3):
        batches = [k for worker, k in pushed if worker == m]
        assert batches == list(range(len(batches)))  # in order, none left out
    assert network.refused > 0

    replayed = Server(rule, TASK.initial(0), 3)
    steps = list(simulate(TASK, replayed, network.log, lr))
    for server in (network.follower, network.ps.server):
        assert server.w.numpy().tobytes() == replayed.w.numpy().tobytes()
        assert (server.t, server.batches) == (replayed.t, replayed.batches)
    losses = [line.loss for line in network.kept if line.kind == "push"]
    assert [step.loss for step in steps] == losses


def test_the_networks_of_these_seeds_lose_pushes_with_their_servers() -> None:
    lost = []
    for seed in range(10):
        network = Network(random.Random(seed), ASGD(), 3, False)
        network.run()
        lost.append(network.lost)
    assert sum(count > 0 for count in lost) >= 5


def test_a_follower_that_computes_otherwise_is_found_out() -> None:
    ps = made(2, ASGD())
    first, second = ps.pull(1, 1), ps.pull(0, 1)
    computed(ps, 1, first)
    computed(ps, 0, second)
    steps = Followed(ps.take(9)).steps(
        Server(ASGD(), TASK.initial(0), 2), lambda pushes: lr(pushes) * (1 + 1e-15), lambda _: None
    )
    assert next(steps).push == 1  # computed at the first weights, which are equal
    with pytest.raises(RuntimeError, match="push 2 of worker 0: delay, dc_ratio and gap_norm"):
        next(steps)


def test_a_twin_goes_its_own_way() -> None:
    def play(server: Server) -> Iterator[Any]:
        return simulate(TASK, server, [Message(0.0, "pull", 0), Message(1.0, "push", 0)], lr)

    assert isinstance(TASK, QuadraticTask)
    server = Server(DCASGDa(), TASK.initial(0), 2)
    server.apply = None  # a probe, say, which stays with the first
    other = twin(server)
    list(play(other))
    assert (server.t, server.batches, other.t, other.batches) == (0, [0, 0], 1, [1, 0])
    assert server.w is server.sent[0]
