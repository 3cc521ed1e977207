"""RuleOptimizer: the paper's rules in a user's own loop, equal to simulate bit for bit."""

import copy

import pytest
import torch
from rules_under_test import RULES
from torch import nn
from torch.nn import functional as F

from dcasgd_repro.errors import BadInput
from dcasgd_repro.optim import RuleOptimizer
from dcasgd_repro.rules import ASGD, Clipped, DCASGDa, Rule
from dcasgd_repro.schedule import Gamma, Generated
from dcasgd_repro.simulate import Server, simulate

LOG = Generated(workers=3, seed=1, compute=Gamma(mean_s=1.0, cv=0.5)).messages(60)
each_rule = pytest.mark.parametrize("rule", [r for r in RULES if r.elementwise], ids=repr)


def batch(worker: int, k: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(100 * worker + k)
    return torch.randn(6, 4, generator=draws, dtype=torch.float64)


def loss_of(parts: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(torch.tanh(x @ parts[0]) @ parts[1], x[:, :1])


def model() -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    shapes = (4, 3), (3, 1)
    return [nn.Parameter(torch.randn(s, generator=draws, dtype=torch.float64)) for s in shapes]


class Flat:
    def batch(self, worker: int, k: int) -> torch.Tensor:
        return batch(worker, k)

    def gradient(self, w: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [w[:12].view(4, 3).requires_grad_(), w[12:].view(3, 1).requires_grad_()]
        loss = loss_of(parts, x)
        grads = torch.autograd.grad(loss, parts)
        return loss.detach(), torch.cat([g.reshape(-1) for g in grads])


def flat(parts: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parts])


def drive(
    server: RuleOptimizer, parts: list[nn.Parameter], log: object, at: dict, used: dict, delays
) -> None:
    """A user's loop; ``delays`` is what it says of each gradient, in turn."""
    for _, kind, m in log:
        if kind == "pull":
            at[m] = server.pull(m)
            continue
        copies = [p.clone().requires_grad_() for p in at[m]]
        grads = torch.autograd.grad(loss_of(copies, batch(m, used.get(m, 0))), copies)
        used[m] = used.get(m, 0) + 1
        for p, g in zip(parts, grads, strict=True):
            p.grad = g
        server.step(at[m], worker=m, delay=next(delays))
        for p in parts:
            p.grad.zero_()  # whatever of it a rule keeps must be its own


@each_rule
def test_equals_simulate_to_the_bit(rule: Rule) -> None:
    parts = model()
    server = Server(rule, flat(parts), 3)
    delays = [step.delay for step in simulate(Flat(), server, LOG, lambda t: 0.1)]
    drive(RuleOptimizer(parts, rule, lr=0.1, workers=3), parts, LOG, {}, {}, iter(delays))
    assert torch.equal(flat(parts), server.w)
    assert not torch.equal(flat(parts), flat(model()))


@each_rule
def test_state_dict_goes_on_to_the_same_bits(rule: Rule) -> None:
    whole, delays = model(), LOG.delays().tolist()
    drive(RuleOptimizer(whole, rule, lr=0.1, workers=3), whole, LOG, {}, {}, iter(delays))

    parts, at, used, delays = model(), {}, {}, iter(delays)
    first = RuleOptimizer(parts, rule, lr=0.1, workers=3)
    drive(first, parts, LOG[:50], at, used, delays)
    saved = copy.deepcopy(first.state_dict())
    second = RuleOptimizer(parts, rule, lr=0.3, workers=3)
    second.load_state_dict(saved)
    drive(second, parts, LOG[50:], at, used, delays)
    assert torch.equal(flat(parts), flat(whole))


def test_the_callers_gradient_and_backup_are_left_alone_and_a_missing_one_is_skipped() -> None:
    parts = model()
    server = RuleOptimizer(parts, DCASGDa(), lr=0.1)
    backup = server.pull()
    kept = [b.clone() for b in backup]
    parts[0].grad = torch.ones_like(parts[0])
    server.step(backup)
    assert torch.equal(parts[0].grad, torch.ones_like(parts[0]))
    assert all(torch.equal(a, b) for a, b in zip(backup, kept, strict=True))
    assert torch.equal(parts[1], kept[1])
    assert torch.equal(parts[0], kept[0] - 0.1)


def test_scheduler_and_closure() -> None:
    parts = model()
    server = RuleOptimizer(parts, ASGD(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(server, 1, gamma=0.5)
    start = parts[0].detach().clone()

    def closure() -> float:
        parts[0].grad = torch.ones_like(parts[0])
        return 7.0

    for _ in range(2):
        assert server.step(server.pull(), closure=closure) == 7.0
        scheduler.step()
    torch.testing.assert_close(parts[0].detach(), start - 1.5, rtol=0, atol=1e-15)


def test_a_deep_copy_is_a_whole_optimizer() -> None:
    parts = model()
    server = RuleOptimizer(parts, DCASGDa(), lr=0.1, workers=3)
    twin = copy.deepcopy(server)
    for optimizer in (server, twin):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step(optimizer.pull())
    theirs = [p for group in twin.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(parts, theirs, strict=True))


def test_groups_closure_gradients_and_arrivals() -> None:
    """Two groups with their own lr, a closure that calls backward, worker and delay handed on."""
    seen = []

    class Noting(ASGD):
        def direction(self, arrival, state):
            seen.append((arrival.worker, arrival.delay, arrival.lr))
            return super().direction(arrival, state)

    parts = model()
    groups = [{"params": parts[:1]}, {"params": parts[1:], "lr": 0.01}]
    server = RuleOptimizer(groups, Noting(), lr=0.1, workers=4)
    pulled = server.pull()
    assert all(torch.equal(a, b) for a, b in zip(pulled, parts, strict=True))

    def closure() -> torch.Tensor:
        loss = loss_of(parts, batch(0, 0))
        loss.backward()
        return loss

    loss = server.step(pulled, worker=3, delay=5, closure=closure)
    assert torch.equal(loss, loss_of(pulled, batch(0, 0)))
    assert seen == [(3, 5, 0.1), (3, 5, 0.01)]
    for part, before, lr in zip(parts, pulled, (0.1, 0.01), strict=True):
        assert torch.equal(part.detach(), torch.add(before, part.grad, alpha=-lr))


def test_a_state_dict_is_a_snapshot() -> None:
    parts = model()
    server = RuleOptimizer(parts, DCASGDa(), lr=0.1)
    for p in parts:
        p.grad = torch.ones_like(p)
    server.step(server.pull())
    saved = server.state_dict()
    before = copy.deepcopy(saved["state"])
    server.step(server.pull())
    for key, value in before.items():
        assert torch.equal(
            value["rule"]["mean_square"][0], saved["state"][key]["rule"]["mean_square"][0]
        )
        assert value["rule"]["updates"] == saved["state"][key]["rule"]["updates"] == (1,)


def test_pull_sends_what_the_rule_sends() -> None:
    class Ahead(ASGD):
        def sends(self, w, state, worker):
            return w + worker

    parts = model()
    server = RuleOptimizer(parts, Ahead(), workers=4)
    assert torch.equal(server.pull(3)[0], parts[0].detach() + 3)


def test_refusals() -> None:
    parts = model()
    with pytest.raises(BadInput, match=r"^workers=0: "):
        RuleOptimizer(parts, ASGD(), workers=0)
    with pytest.raises(BadInput, match=r"^lr=nan: "):
        RuleOptimizer(parts, ASGD(), lr=float("nan"))
    with pytest.raises(BadInput, match=r"^rule=dcasgd_c: "):
        RuleOptimizer(parts, "dcasgd_c")
    with pytest.raises(BadInput, match=r"^rule=clipped: its norms are of the whole vector"):
        RuleOptimizer(parts, Clipped())
    with pytest.raises(BadInput, match=r"^lr=-1: "):
        RuleOptimizer([{"params": parts, "lr": -1}], ASGD())
    with pytest.raises(BadInput, match=r"^params=complex: "):
        RuleOptimizer([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], ASGD())
    server = RuleOptimizer(parts, ASGD())
    with pytest.raises(BadInput, match=r"^backup=1 tensors: give 2"):
        server.step(server.pull()[:1])
    with pytest.raises(BadInput, match=r"^backup=2 tensors: give 2 of the parameters' shapes"):
        server.step([torch.zeros(1), torch.zeros(1)])
    with pytest.raises(BadInput, match=r"^backup=the parameters: give a copy"):
        server.step(parts)
    with pytest.raises(BadInput, match=r"^backup=function: "):
        server.step(lambda: 1.0)
    with pytest.raises(BadInput, match=r"^worker=1: "):
        server.step(server.pull(), worker=1)
    with pytest.raises(BadInput, match=r"^state_dict rule=ASGD\(momentum=0.0\), workers=1: "):
        RuleOptimizer(parts, ASGD(), workers=2).load_state_dict(server.state_dict())
    parts[0].grad = torch.ones_like(parts[0]).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        server.step(server.pull())
