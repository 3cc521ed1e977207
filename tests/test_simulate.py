"""Algorithms 1 and 2, against torch.optim, closed forms, a transcription and golden files."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import ASGD, SSGD, DCASGDa, DCASGDc, Direction, Rule
from dcasgd_repro.schedule import Constant, ConstantDelay, Gamma, Generated, Message
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Quadratic

CPU = torch.device("cpu")
COMPENSATING = [
    DCASGDc(lam=2.0),
    DCASGDc(lam=0.01, gradient="sum", batch=128),
    DCASGDa(),
    DCASGDa(mean_square="worker", bias_correction=True),
]


class Regression:
    """Least squares with a small two-layer network, float64: w is flat, shapes are (3,5), (5,1)."""

    def __init__(self, workers: int = 1, batch: int = 4) -> None:
        self.source, self.batch_size = workers, batch

    def batch(self, worker: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.Generator().manual_seed(1000 * worker + k)
        x = torch.randn(self.batch_size, 3, generator=draws, dtype=torch.float64)
        return x, torch.sin(x.sum(1, keepdim=True))

    @staticmethod
    def loss(parts: list[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return F.mse_loss(torch.tanh(x @ parts[0]) @ parts[1], y)

    @staticmethod
    def parts(w: torch.Tensor) -> list[torch.Tensor]:
        return [w[:15].view(3, 5), w[15:].view(5, 1)]

    def gradient(self, w: torch.Tensor, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        w = w.detach().requires_grad_()
        loss = self.loss(self.parts(w), batch)
        return loss.detach(), torch.autograd.grad(loss, w)[0]


def start(seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(20, generator=draws, dtype=torch.float64)


def gamma(workers: int, pushes: int, **keys: object) -> object:
    law = Gamma(mean_s=1.0, cv=0.3)
    return Generated(workers=workers, seed=0, compute=law, **keys).messages(pushes)


def last(steps: object, server: Server) -> torch.Tensor:
    for _ in steps:
        pass
    return server.w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", [ASGD(), *COMPENSATING], ids=repr)
def test_one_worker_is_torch_sgd_to_the_bit(rule: Rule, momentum: float) -> None:
    rule = type(rule)(**{**vars(rule), "momentum": momentum})
    task, w0 = Regression(), start()
    server = Server(rule, w0, workers=1)
    w = last(simulate(task, server, gamma(1, 50), lambda t: 0.1 / (1 + t // 20)), server)

    parts = [nn.Parameter(p.clone()) for p in task.parts(w0)]
    sgd = torch.optim.SGD(parts, lr=0.1, momentum=momentum)
    for k in range(50):
        sgd.param_groups[0]["lr"] = 0.1 / (1 + k // 20)
        sgd.zero_grad()
        task.loss(parts, task.batch(0, k)).backward()
        sgd.step()
    assert torch.equal(w, torch.cat([p.detach().reshape(-1) for p in parts]))


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("barrier", [False, True])
def test_against_a_literal_transcription(workers: int, barrier: bool) -> None:
    """Algorithm 2 with its own copies, dictionary and loop, sharing no code with the package."""
    task, w0, log = Regression(), start(), gamma(workers, 200, barrier=barrier)
    server = Server(DCASGDa(lam0=1.5, decay=0.9, eps=1e-7), w0, workers)
    steps = list(simulate(task, server, log, lambda t: 0.05))

    w, bak, mean_square, used = w0.clone(), {}, torch.zeros(20, dtype=torch.float64), {}
    ratios = []
    for _, kind, m in log:
        if kind == "pull":
            bak[m] = w.clone()
            continue
        copy = bak[m].clone().requires_grad_()
        task.loss(task.parts(copy), task.batch(m, used.get(m, 0))).backward()
        used[m], g = used.get(m, 0) + 1, copy.grad
        mean_square.mul_(0.9).addcmul_(g, g, value=0.1)
        extra = 1.5 / (mean_square + 1e-7).sqrt() * g**2 * (w - bak[m])
        ratios.append((extra.norm() / g.norm()).item())
        w -= 0.05 * (g + extra)
    torch.testing.assert_close(server.w, w, rtol=1e-12, atol=1e-13)
    assert [s.dc_ratio.item() for s in steps] == pytest.approx(ratios, rel=1e-9)
    assert [s.delay for s in steps] == log.delays().tolist()
    assert max(ratios) > 1e-3  # the comparison is not one of zeros


def test_a_non_zero_gap_moves_w_by_the_hand_computed_amount() -> None:
    # f = w^2 / 2 from w_0 = 1, lr 0.5, lambda 2, two workers in turn.
    # push of 0 at w_0: w = 1 - 0.5 * 1 = 0.5
    # push of 1 at w_0: g = 1, drift = -0.5, g~ = 1 + 2 * 1 * -0.5 = 0: w stays at 0.5
    # push of 0 at 0.5: g = 0.5, drift = 0: w = 0.25
    # push of 1 at 0.5: g = 0.5, drift = -0.25, g~ = 0.5 - 2 * 0.25 * 0.25 = 0.375: w = 0.0625
    server = Server(DCASGDc(lam=2.0), torch.ones(1, dtype=torch.float64), 2)
    task = Quadratic(curvature=(1.0,)).on(CPU)
    log = ConstantDelay(delay=1, workers=2).messages(4)
    seen = []
    for step in simulate(task, server, log, lambda t: 0.5):
        seen.append((server.w.item(), step.dc_ratio.item(), step.gap_norm.item(), step.delay))
    assert seen == [
        (0.5, 0.0, 0.0, 0),
        (0.5, 1.0, 0.5, 1),
        (0.25, 0.0, 0.0, 1),
        (0.0625, 0.25, 0.25, 1),
    ]


def test_backups_are_out_of_reach() -> None:
    """Updates replace w, so a backup is a reference and still stays what it was."""
    server = Server(ASGD(), torch.ones(3), 2)
    server.receive_pull(0)
    before = server.w_bak[0].clone()
    server.receive_gradient(1, torch.ones(3), lr=0.5)
    assert torch.equal(server.w_bak[0], before)
    assert server.w.tolist() == [0.5] * 3
    assert server.w_bak[0] is server.sent[0]  # a reference, not a copy


@pytest.mark.parametrize("tau", [0, 1, 2, 3, 7])
def test_constant_delay_follows_its_recurrence(tau: int) -> None:
    h, lr, pushes = 0.7, 0.3, 60
    server = Server(ASGD(), torch.tensor([2.0], dtype=torch.float64), tau + 1)
    task = Quadratic(curvature=(h,)).on(CPU)
    log = ConstantDelay(delay=tau, workers=tau + 1).messages(pushes)
    found = [server.w.item() for _ in simulate(task, server, log, lambda t: lr)]

    w = [2.0] * (tau + 1)
    for _ in range(pushes):
        w.append(w[-1] - lr * h * w[-1 - tau])
    assert found == pytest.approx(w[tau + 1 :], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("tau", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("factor", "stable"), [(0.95, True), (1.05, False)])
def test_stability_bound_of_a_constant_delay(tau: int, factor: float, stable: bool) -> None:
    """w_{t+1} = w_t - lr h w_{t-tau} is stable iff lr h < 2 sin(pi / (2 (2 tau + 1)))."""
    lr = factor * 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    server = Server(ASGD(), torch.ones(1, dtype=torch.float64), tau + 1)
    task = Quadratic(curvature=(1.0,)).on(CPU)
    log = ConstantDelay(delay=tau, workers=tau + 1).messages(4000)
    size = abs(last(simulate(task, server, log, lambda t: lr), server).item())
    assert size < 1e-3 if stable else size > 1e3


def test_ssgd_is_one_big_batch() -> None:
    """M workers of 4 samples on a barrier = one worker whose batch is their union."""
    task, w0, workers = Regression(), start(), 4
    server = Server(SSGD(momentum=0.9), w0, workers)
    w = last(simulate(task, server, gamma(workers, 80, barrier=True), lambda t: 0.1), server)
    assert server.t == 20

    parts = [nn.Parameter(p.clone()) for p in task.parts(w0)]
    sgd = torch.optim.SGD(parts, lr=0.1, momentum=0.9)
    for k in range(20):
        x, y = zip(*(task.batch(m, k) for m in range(workers)), strict=True)
        sgd.zero_grad()
        task.loss(parts, (torch.cat(x), torch.cat(y))).backward()
        sgd.step()
    expected = torch.cat([p.detach().reshape(-1) for p in parts])
    torch.testing.assert_close(w, expected, rtol=1e-12, atol=1e-13)


def test_on_a_barrier_every_delay_in_updates_is_zero() -> None:
    server = Server(SSGD(), start(), 4)
    steps = list(simulate(Regression(), server, gamma(4, 40, barrier=True), lambda t: 0.1))
    assert {s.delay for s in steps} == {0}
    assert [s.update for s in steps] == [(k + 1) // 4 for k in range(40)]


def messages(text: str) -> list[Message]:
    """From "0 1 >1 >0": workers 0 and 1 pull, then 1 and 0 push, a second apart."""
    words = text.split()
    return [
        Message(float(k), "push" if w[0] == ">" else "pull", int(w.lstrip(">")))
        for k, w in enumerate(words)
    ]


def test_backup_after_own_push_drifts_further_than_backup_at_pull() -> None:
    # Worker 0 pushes, then worker 1 pushes, and only then does worker 0 pull again: the backup
    # taken after its own push misses worker 1's update, the one at its pull does not.
    log = messages("0 1 >0 >1 0 1 >0")
    task = Quadratic(curvature=(1.0,)).on(CPU)
    drift = {}
    for backup in ("pull", "push"):
        server = Server(DCASGDc(lam=1.0), torch.ones(1, dtype=torch.float64), 2, backup)
        *_, step = simulate(task, server, log, lambda t: 0.5)
        drift[backup] = (step.gap_norm.item(), step.loss.item(), server.w.item())
    # w: 1 -> 0.5 -> (g = 1, drift -0.5, g~ = 0.5) 0.25, which worker 0 pulls: its loss is 1/32
    # and g = 0.25 either way. Its push backup is 0.5: drift -0.25, g~ = 0.25 - 0.0625 * 0.25.
    assert drift == {
        "pull": (0.0, 0.03125, 0.125),
        "push": (0.25, 0.03125, 0.25 - 0.5 * (0.25 - 0.015625)),
    }


def test_backups_from_zero_follow_the_hand_computed_steps() -> None:
    # f = w^2 / 2 from w_0 = 1, lr 1/4, lambda 1; until its first push a worker's backup is 0.
    # push of 0: g = 1, drift 1 - 0, g~ = 2: w = 1/2, which is 0's backup from now on
    # push of 1: g = 1, drift 1/2 - 0, g~ = 3/2: w = 1/8, which worker 0 pulls
    # push of 0: g = 1/8, drift 1/8 - 1/2 = -3/8, g~ = 1/8 - 3/512: w = 1/8 - (1/8 - 3/512) / 4
    server = Server(DCASGDc(lam=1.0), torch.ones(1, dtype=torch.float64), 2, "push_from_zero")
    task = Quadratic(curvature=(1.0,)).on(CPU)
    seen = []
    for step in simulate(task, server, messages("0 1 >0 >1 0 1 >0"), lambda t: 0.25):
        seen.append((server.w.item(), step.dc_ratio.item(), step.gap_norm.item()))
    assert seen == [(0.5, 1.0, 1.0), (0.125, 0.5, 0.5), (0.125 - 61 / 2048, 3 / 64, 0.375)]


@pytest.mark.parametrize("rule", COMPENSATING, ids=repr)
def test_from_zero_only_first_pushes_differ_where_pulls_ride_on_pushes(rule: Rule) -> None:
    """One worker: the first gap is ||w_0||, and from then on it is sequential SGD."""
    task, w0, log = Regression(), start(), gamma(1, 20)
    server = Server(rule, w0, 1, "push_from_zero")
    steps = simulate(task, server, log, lambda t: 0.1)
    first = next(steps)
    assert first.gap_norm.item() == w0.norm().item()
    assert first.dc_ratio.item() > 0
    plain = Server(ASGD(), server.w, 1)
    plain.batches = [1]
    rest = [(s.gap_norm.item(), s.dc_ratio.item()) for s in steps]
    last(simulate(task, plain, log[2:], lambda t: 0.1), plain)
    assert rest == [(0.0, 0.0)] * 19
    assert torch.equal(server.w, plain.w)


def test_the_backup_of_a_looking_ahead_rule_is_what_was_sent() -> None:
    class Ahead(DCASGDc):
        def sends(self, w: torch.Tensor, state: object, worker: int) -> torch.Tensor:
            return w - 0.5

    task = Quadratic(curvature=(1.0,)).on(CPU)
    server = Server(Ahead(lam=1.0), torch.ones(1, dtype=torch.float64), 1)
    (step,) = simulate(task, server, messages("0 >0"), lambda t: 1.0)
    # g = 0.5 at the 0.5 sent; drift = 1 - 0.5; g~ = 0.5 + 0.25 * 0.5
    assert (step.gap_norm.item(), server.w.item()) == (0.5, 1 - 0.625)


def test_steps_and_arrivals_carry_what_the_log_says() -> None:
    seen = []

    class Noting(ASGD):
        def direction(self, arrival: object, state: object) -> Direction:
            seen.append((arrival.worker, arrival.delay, arrival.lr))
            return super().direction(arrival, state)

    log, task = gamma(3, 30), Regression()
    server = Server(Noting(), start(), 3)
    steps = list(simulate(task, server, log, lambda t: 0.1 / (t + 1)))
    pushes = [m for m in log if m.kind == "push"]
    assert [(s.clock_s, s.worker) for s in steps] == [(m.clock, m.worker) for m in pushes]
    assert [(s.worker, s.delay, s.lr) for s in steps] == seen
    assert [s.delay for s in steps] == log.delays().tolist()
    assert [s.update for s in steps] == list(range(1, 31))


def test_a_rule_may_send_another_vector_and_ignore_a_push() -> None:
    class LooksAheadAndSkips(ASGD):
        def sends(self, w: torch.Tensor, state: object, worker: int) -> torch.Tensor:
            return w + 1

        def direction(self, arrival: object, state: object) -> Direction:
            return Direction(None if arrival.worker else arrival.grad, state)

    task = Quadratic(curvature=(1.0,)).on(CPU)
    server = Server(LooksAheadAndSkips(), torch.ones(1, dtype=torch.float64), 2)
    steps = list(simulate(task, server, messages("0 1 >1 >0"), lambda t: 0.5))
    assert [s.update for s in steps] == [0, 1]
    assert server.w.item() == 0.0  # 1 - 0.5 * gradient at 2
    assert [s.loss.item() for s in steps] == [2.0, 2.0]


def test_lr_is_asked_for_the_gradients_received_so_far() -> None:
    server = Server(ASGD(), start(), 2)
    steps = list(simulate(Regression(), server, gamma(2, 5), lambda t: 0.1 * t))
    assert [s.lr for s in steps] == [0.1 * t for t in range(5)]
    assert [s.push for s in steps] == [1, 2, 3, 4, 5]


def test_dc_ratio_of_a_tiny_correction_is_not_zero() -> None:
    """In float32 a correction far under g's rounding is still measured: 1e-12 of g."""
    server = Server(DCASGDc(lam=1e-12), torch.ones(4), 2)
    task = Quadratic(curvature=(1.0,) * 4).on(CPU, torch.float32)
    log = ConstantDelay(delay=1, workers=2).messages(2)
    *_, step = simulate(task, server, log, lambda t: 0.5)
    assert step.dc_ratio.item() == pytest.approx(0.5e-12, rel=1e-6)
    assert step.dc_ratio.dtype == torch.float64


def test_unknown_backup_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^backup=never: "):
        Server(ASGD(), start(), 1, backup="never")


# Golden trajectories on the quadratic; `make golden` writes them anew.

GOLDEN = Path(__file__).parent / "golden" / "quadratic.json"


def trajectories() -> dict[str, list[float]]:
    out = {}
    for rule in (ASGD(), ASGD(0.9), SSGD(), *COMPENSATING):
        server = Server(rule, torch.ones(2, dtype=torch.float64), 4)
        task = Quadratic(curvature=(1.0, 0.1), noise=0.1, seed=7).on(CPU)
        log = Generated(
            workers=4,
            seed=7,
            compute=Gamma(mean_s=1.0, cv=0.3),
            communication=Constant(mean_s=0.5),
            barrier=isinstance(rule, SSGD),
        ).messages(40)
        steps = simulate(task, server, log, lambda t: 0.2)
        out[repr(rule)] = [x for _ in steps for x in server.w.tolist()]
    return out


def test_golden_trajectories() -> None:
    golden, found = json.loads(GOLDEN.read_text()), trajectories()
    assert found.keys() == golden.keys()
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-13, abs=1e-15), name


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(trajectories(), indent=1, allow_nan=False) + "\n")
