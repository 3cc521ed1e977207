"""``optim.DCASGD`` against MXNet's own trajectories, and as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dcasgd_repro import optim
from dcasgd_repro.optim import DCASGD

ORACLE = Path(__file__).parent / "oracle" / "mxnet_dcasgd"
CASES = sorted(f"{path.parent.name}/{path.stem}" for path in ORACLE.glob("*/*.json"))
SEMANTICS = {"mxnet-2.0.0b1": "mxnet2", "mxnet-1.9.1": "mxnet1"}
TOLERANCE = {"atol": 3e-6, "rtol": 1e-6}


# --- the oracle -------------------------------------------------------------------------------


def replay(case: str) -> list[tuple[str, Tensor, Tensor]]:
    """Run a recorded configuration; pairs (what, ours, MXNet's) for all steps and final states.

    Multipliers are groups, the scheduler is torch's StepLR; ``lr_effective`` is only compared.
    """
    trajectory = json.loads((ORACLE / f"{case}.json").read_text())
    config, records = trajectory["config"], trajectory["params"]
    assert len(records) == 3
    assert trajectory["steps"] == 25

    def tensor(record: dict[str, Any], values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(record["shape"])

    params = [tensor(r, r["init"]).requires_grad_() for r in records]
    optimizer = DCASGD(
        [
            {
                "params": [p],
                "lr": config["learning_rate"] * config["lr_mult"].get(str(r["index"]), 1.0),
                "weight_decay": config["wd"] * config["wd_mult"].get(str(r["index"]), 1.0),
            }
            for p, r in zip(params, records, strict=True)
        ],
        momentum=config["momentum"],
        lamda=config["lamda"],
        clip_gradient=config["clip_gradient"],
        rescale_grad=config["rescale_grad"],
        semantics=SEMANTICS[Path(case).parts[0]],
    )
    scheduler = None
    if config["lr_scheduler"] is not None:
        assert config["lr_scheduler"]["type"] == "FactorScheduler"
        scheduler = torch.optim.lr_scheduler.StepLR(
            optimizer, config["lr_scheduler"]["step"], config["lr_scheduler"]["factor"]
        )
    pairs = []
    for k in range(trajectory["steps"]):
        for p, r, group in zip(params, records, optimizer.param_groups, strict=True):
            assert group["lr"] == pytest.approx(r["lr_effective"][k], rel=1e-12)
            assert group["weight_decay"] == pytest.approx(r["wd_effective"], rel=1e-12)
            p.grad = tensor(r, r["grads"][k])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        for n, (p, r) in enumerate(zip(params, records, strict=True)):
            pairs.append((f"weight {n} step {k}", p.detach().clone(), tensor(r, r["weights"][k])))
    for n, (p, r) in enumerate(zip(params, records, strict=True)):
        state = optimizer.state[p]
        final = tensor(r, r["final_previous_weight"])
        pairs.append((f"previous weight {n}", state["previous_weight"], final))
        assert ("momentum_buffer" in state) == (r["final_momentum"] is not None)
        if r["final_momentum"] is not None:
            pairs.append(
                (f"momentum {n}", state["momentum_buffer"], tensor(r, r["final_momentum"]))
            )
    return pairs


def agrees(case: str) -> bool:
    return all(torch.allclose(ours, theirs, **TOLERANCE) for _, ours, theirs in replay(case))


def test_the_oracle_is_complete() -> None:
    assert len(CASES) == 32
    assert [c for c in CASES if "x_sched" in c] == ["mxnet-1.9.1/x_sched", "mxnet-2.0.0b1/x_sched"]


@pytest.mark.parametrize("case", CASES)
def test_reproduces_mxnet(case: str) -> None:
    for what, ours, theirs in replay(case):
        torch.testing.assert_close(ours, theirs, **TOLERANCE, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_reproduces_mxnet_bit_for_bit(case: str) -> None:
    assert [what for what, ours, theirs in replay(case) if not torch.equal(ours, theirs)] == []


right = optim.mxnet_displacement


def flipped_sign(w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any) -> Tensor:
    return right(w, grad, previous, mom, **{**o, "lamda": -o["lamda"]})


def absolute_value(
    w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any
) -> Tensor:
    g = o["rescale_grad"] * grad
    if o["clip_gradient"] is not None:
        g = g.clamp(-o["clip_gradient"], o["clip_gradient"])
    h = g + o["weight_decay"] * w
    q = h if o["semantics"] == "mxnet2" else g
    d = h + o["lamda"] * q.abs() * (w - previous)
    return -o["lr"] * d if mom is None else o["momentum"] * mom - o["lr"] * d


def other_side_of_the_square(
    w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any
) -> Tensor:
    other = {"mxnet1": "mxnet2", "mxnet2": "mxnet1"}[o["semantics"]]
    return right(w, grad, previous, mom, **{**o, "semantics": other})


def aliased_previous_weight(
    w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any
) -> Tensor:
    return right(w, grad, w, mom, **o)


def learning_rate_outside() -> Callable[..., Tensor]:
    """mom <- momentum * mom + d; w <- w - lr * mom: the buffer rescaled when lr has changed."""
    last: dict[torch.Size, float] = {}

    def wrong(w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any) -> Tensor:
        before = last.get(w.shape, o["lr"])
        last[w.shape] = o["lr"]
        rescaled = None if mom is None else mom * (o["lr"] / before)
        return right(w, grad, previous, rescaled, **o)

    return wrong


def clip_before_rescale(
    w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any
) -> Tensor:
    if o["clip_gradient"] is not None:
        grad = grad.clamp(-o["clip_gradient"], o["clip_gradient"])
    return right(w, grad, previous, mom, **{**o, "clip_gradient": None})


def clip_after_decay(
    w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any
) -> Tensor:
    h = o["rescale_grad"] * grad + o["weight_decay"] * w
    return right(w, h, previous, mom, **{**o, "rescale_grad": 1.0, "weight_decay": 0.0})


def zeros_as_first_previous_weight() -> Callable[..., Tensor]:
    seen: set[torch.Size] = set()

    def wrong(w: Tensor, grad: Tensor, previous: Tensor, mom: Tensor | None, **o: Any) -> Tensor:
        if w.shape not in seen:
            seen.add(w.shape)
            previous = torch.zeros_like(w)
        return right(w, grad, previous, mom, **o)

    return wrong


@pytest.mark.parametrize("version", SEMANTICS)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: flipped_sign, "g_m0_l2_wd0_cnone_r1_lr0.5"),
        (lambda: absolute_value, "g_m0_l2_wd0_cnone_r1_lr0.5"),
        (lambda: other_side_of_the_square, "x_bigwd_clip"),
        (lambda: aliased_previous_weight, "g_m0_l2_wd0_cnone_r1_lr0.5"),
        (learning_rate_outside, "x_sched"),
        (lambda: clip_before_rescale, "x_bigwd_clip"),
        (lambda: clip_after_decay, "x_bigwd_clip"),
        (zeros_as_first_previous_weight, "g_m0_l2_wd0_cnone_r1_lr0.5"),
    ],
    ids=[
        "sign",
        "abs",
        "decay-side",
        "aliased",
        "lr-outside",
        "clip-then-rescale",
        "decay-then-clip",
        "zero-backup",
    ],
)
def test_the_oracle_rejects_a_wrong_formula(
    make: Callable[[], Callable[..., Tensor]],
    name: str,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert agrees(f"{version}/{name}")
    monkeypatch.setattr(optim, "mxnet_displacement", make())
    assert not agrees(f"{version}/{name}")


# --- the update, by hand ----------------------------------------------------------------------


def one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value], dtype=dtype, requires_grad=True)


def push(optimizer: torch.optim.Optimizer, p: Tensor, grad: float) -> float:
    p.grad = torch.full_like(p, grad)
    optimizer.step()
    return p.item()


@pytest.mark.parametrize(
    ("semantics", "second"),
    [
        # w0 = 1, g = 2, wd = 1, lr = 1/4: w1 = 1 - (2 + 1)/4 = 1/4, drift -3/4, h = 2 + 1/4.
        ("mxnet2", 0.25 - 0.25 * (2.25 + 0.5 * 2.25**2 * -0.75)),
        ("mxnet1", 0.25 - 0.25 * (2.25 + 0.5 * 2.00**2 * -0.75)),
    ],
)
def test_two_steps_by_hand(semantics: str, second: float) -> None:
    p = one(1.0)
    optimizer = DCASGD([p], lr=0.25, lamda=0.5, weight_decay=1.0, semantics=semantics)
    assert push(optimizer, p, 2.0) == 0.25
    assert push(optimizer, p, 2.0) == pytest.approx(second, rel=1e-15)


def test_one_previous_weight_compensates_one_step_only() -> None:
    p = one(1.0)
    optimizer = DCASGD([p], lr=0.25, lamda=0.5)
    weights = [1.0] + [push(optimizer, p, 1.0) for _ in range(4)]
    assert optimizer.state[p]["previous_weight"].item() == weights[-2]
    drift = weights[3] - weights[2]
    assert weights[4] == pytest.approx(weights[3] - 0.25 * (1.0 + 0.5 * drift), rel=1e-15)


def test_rate_is_inside_the_momentum() -> None:
    p = one(0.0)
    optimizer = DCASGD([p], lr=1.0, momentum=0.5, lamda=0.0)
    assert push(optimizer, p, 1.0) == -1.0
    optimizer.param_groups[0]["lr"] = 0.0
    assert push(optimizer, p, 1.0) == -1.5  # the old step still acts at the old rate


def test_momentum_switched_on_and_off_in_mid_run() -> None:
    p = one(0.0)
    optimizer = DCASGD([p], lr=1.0, lamda=0.0)
    push(optimizer, p, 1.0)
    assert "momentum_buffer" not in optimizer.state[p]
    for momentum, expected in [(0.5, -1.0), (0.5, -1.5), (0.0, -1.0), (0.5, -1.5)]:
        optimizer.param_groups[0]["momentum"] = momentum
        before = p.item()
        assert push(optimizer, p, 1.0) - before == expected


def test_clip_zero_is_on_and_none_is_off() -> None:
    for clip, expected in [(0, 1.0), (0.0, 1.0), (0.5, 0.5), (math.inf, -2.0), (None, -2.0)]:
        p = one(1.0)
        assert push(DCASGD([p], lr=1.0, clip_gradient=clip), p, 3.0) == expected


def test_nan_passes_the_clip() -> None:
    p = one(1.0)
    assert math.isnan(push(DCASGD([p], lr=1.0, clip_gradient=0.5), p, math.nan))


# --- against torch's SGD ----------------------------------------------------------------------


def runs(dtype: torch.dtype, ours: dict[str, Any], torchs: dict[str, Any]) -> list[Tensor]:
    """The same ten random gradients through both optimizers; the two final weights."""
    result = []
    for make, options in ((DCASGD, ours), (torch.optim.SGD, torchs)):
        generator = torch.Generator().manual_seed(3)
        p = torch.randn(5, 4, generator=generator, dtype=dtype).requires_grad_()
        optimizer = make([p], **options)
        for _ in range(10):
            p.grad = torch.randn(5, 4, generator=generator, dtype=dtype)
            optimizer.step()
        result.append(p.detach())
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_lamda_and_momentum_it_is_sgd(dtype: torch.dtype) -> None:
    # Powers of two make the products exact, so that fused and plain multiply-adds agree.
    exact = {"lr": 0.5, "weight_decay": 2.0**-10}
    assert torch.equal(*runs(dtype, {**exact, "lamda": 0.0}, exact))
    torch.testing.assert_close(*runs(dtype, {"lr": 0.3, "lamda": 0.0}, {"lr": 0.3}))
    assert not torch.allclose(*runs(dtype, {**exact, "lamda": 0.04}, exact))


def test_momentum_at_a_constant_rate_is_sgd_with_momentum() -> None:
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 5e-4}
    torch.testing.assert_close(*runs(torch.float64, {**options, "lamda": 0.0}, options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_floating_dtypes(dtype: torch.dtype) -> None:
    p = one(1.0, dtype)
    optimizer = DCASGD([p], lr=0.25, momentum=0.5, lamda=0.5)
    push(optimizer, p, 1.0)
    # mom = 0.5 * -0.25 - 0.25 * (1 - 0.5 * 0.25), exact in bfloat16's eight bits
    assert push(optimizer, p, 1.0) == 0.75 - 0.34375
    assert {p.dtype, *(s.dtype for s in optimizer.state[p].values())} == {dtype}


# --- the Optimizer's contract -----------------------------------------------------------------


def network_and_optimizer(seed: int = 0) -> tuple[torch.nn.Module, DCASGD]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    groups = [
        {"params": net[0].parameters(), "lr": 0.3},
        {"params": net[2].parameters(), "weight_decay": 0.01, "semantics": "mxnet1"},
    ]
    return net, DCASGD(groups, lr=0.1, momentum=0.9, lamda=2.0)


def train(net: torch.nn.Module, optimizer: DCASGD, first: int, last: int) -> None:
    for k in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(k))
        net(x).square().mean().backward()
        optimizer.step()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("through", ["state_dict", "torch.save", "pickle", "deepcopy"])
def test_stopped_and_restored_goes_on_to_the_same_bits(through: str, tmp_path: Path) -> None:
    whole, optimizer = network_and_optimizer()
    train(whole, optimizer, 0, 10)

    first, optimizer = network_and_optimizer()
    train(first, optimizer, 0, 4)
    if through == "deepcopy":
        second, restored = copy.deepcopy((first, optimizer))
    elif through == "pickle":
        second, restored = pickle.loads(pickle.dumps((first, optimizer)))
    else:
        second, restored = network_and_optimizer(seed=1)
        weights, state = first.state_dict(), optimizer.state_dict()
        if through == "torch.save":
            torch.save((weights, state), tmp_path / "state.pt")
            weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        second.load_state_dict(weights)
        restored.load_state_dict(state)
        train(first, optimizer, 20, 23)  # the donor goes on: nothing may be shared with it
    train(second, restored, 4, 10)
    assert same(whole, second)


def test_state_dict_is_a_snapshot() -> None:
    net, optimizer = network_and_optimizer()
    train(net, optimizer, 0, 3)
    taken = optimizer.state_dict()["state"]
    frozen = copy.deepcopy(taken)
    train(net, optimizer, 3, 5)
    assert taken.keys() == frozen.keys() == {0, 1, 2, 3}
    for n, state in taken.items():
        assert state.keys() == {"previous_weight", "momentum_buffer"}
        assert all(torch.equal(tensor, frozen[n][key]) for key, tensor in state.items())


def test_defaults_and_groups() -> None:
    p, q, r = one(1.0), one(1.0), one(1.0)
    optimizer = DCASGD([{"params": [p]}, {"params": [q], "lr": 0.5}])
    assert optimizer.defaults == {
        "lr": 0.1,
        "momentum": 0.0,
        "lamda": 0.04,
        "weight_decay": 0.0,
        "clip_gradient": None,
        "rescale_grad": 1.0,
        "semantics": "mxnet2",
    }
    optimizer.add_param_group({"params": r, "lr": 1.0, "rescale_grad": 0.5})
    p.grad, q.grad, r.grad = (torch.ones_like(p) for _ in range(3))
    optimizer.step()
    assert [p.item(), q.item(), r.item()] == pytest.approx([0.9, 0.5, 0.5], rel=1e-15)


def test_schedulers() -> None:
    p = one(0.0)
    optimizer = DCASGD([p], lr=1.0, lamda=0.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)
    for expected in (-1.0, -1.5, -1.75):
        assert push(optimizer, p, 1.0) == expected
        scheduler.step()
    optimizer = DCASGD([p], momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    momentum = optimizer.param_groups[0]["momentum"]
    push(optimizer, p, 1.0)
    cycle.step()
    assert optimizer.param_groups[0]["momentum"] != momentum


def test_closure() -> None:
    p = one(3.0)
    optimizer = DCASGD([p], lr=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert (loss.item(), p.item()) == (9.0, 1.5)
    assert optimizer.step() is None


def test_missing_gradient_is_skipped() -> None:
    p, q = one(1.0), one(1.0)
    optimizer = DCASGD([p, q], lr=0.5, weight_decay=1.0)
    push(optimizer, p, 1.0)
    assert q.item() == 1.0
    assert q not in optimizer.state
    with torch.no_grad():
        q.fill_(4.0)
    push(optimizer, q, 1.0)  # its first update: no drift, whatever happened before
    assert q.item() == 4.0 - 0.5 * 5.0


def test_gradient_is_untouched_and_the_parameter_moves_in_place() -> None:
    p = torch.ones(3, requires_grad=True)
    address = p.data_ptr()
    grad = p.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer = DCASGD(
        [p], momentum=0.9, lamda=2.0, weight_decay=0.1, clip_gradient=1.5, rescale_grad=0.5
    )
    for _ in range(2):
        optimizer.step()
    assert p.grad is grad
    assert torch.equal(grad, torch.tensor([1.0, -2.0, 3.0]))
    assert p.data_ptr() == address
    assert p.is_leaf
    storages = [p, *optimizer.state[p].values()]
    assert len({t.data_ptr() for t in storages}) == 3
    assert not any(t.requires_grad for t in optimizer.state[p].values())


def test_sparse_gradient_is_refused() -> None:
    p = torch.ones(3, 2, requires_grad=True)
    p.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="DCASGD does not support sparse gradients"):
        DCASGD([p]).step()
    assert torch.equal(p.detach(), torch.ones(3, 2))


def test_complex_parameter_is_refused() -> None:
    p, z = one(1.0), torch.ones(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match="complex"):
        DCASGD([z])
    optimizer = DCASGD([p])
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": [z]})
    assert len(optimizer.param_groups) == 1


BAD = [
    *((key, value) for key in ("lr", "momentum", "lamda", "weight_decay") for value in (-0.5,)),
    *(
        (key, value)
        for key in ("lr", "momentum", "lamda", "weight_decay", "rescale_grad")
        for value in (math.nan, math.inf, -math.inf, None, "0.1")
    ),
    ("clip_gradient", -0.5),
    ("clip_gradient", math.nan),
    ("clip_gradient", "0.1"),
    ("semantics", "mxnet3"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_hyper_parameters_are_refused(key: str, value: object) -> None:
    expected = f"^{key}={value}: give "
    with pytest.raises(ValueError, match=expected):
        DCASGD([one(1.0)], **{key: value})
    with pytest.raises(ValueError, match=expected):
        DCASGD([{"params": [one(1.0)], key: value}])
    optimizer = DCASGD([one(1.0)])
    with pytest.raises(ValueError, match=expected):
        optimizer.add_param_group({"params": [one(1.0)], key: value})
    assert len(optimizer.param_groups) == 1


def test_a_bad_default_is_refused_even_where_every_group_overrides_it() -> None:
    with pytest.raises(ValueError, match=r"^lr=-1: give "):
        DCASGD([{"params": [one(1.0)], "lr": 0.1}], lr=-1)


def test_the_edges_of_the_ranges_are_accepted() -> None:
    p = one(1.0)
    optimizer = DCASGD([p], lr=0, momentum=0, lamda=0, weight_decay=0, rescale_grad=-1)
    assert push(optimizer, p, 1.0) == 1.0


def test_no_parameters_are_refused_as_in_torch() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        DCASGD([])
