"""The paper's rules: golden vectors worked by hand, limits; and what every rule promises."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import yaml
from rules_under_test import RULES

from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import ASGD, SSGD, Arrival, DCASGDa, DCASGDc, Rule
from dcasgd_repro.run import battery
from dcasgd_repro.run.groups import CONF
from dcasgd_repro.schedule import Gamma, Generated
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Quadratic

COMPENSATED = [rule for rule in RULES if isinstance(rule, DCASGDc | DCASGDa)]
WORKERS = 4
LOGS = {
    "spread": Generated(workers=WORKERS, seed=3, compute=Gamma(mean_s=1.0, cv=0.8)),
    "barrier": Generated(workers=WORKERS, seed=3, compute=Gamma(mean_s=1.0, cv=0.3), barrier=True),
}


def test_every_rule_of_conf_is_under_test() -> None:
    """The one list feeds every battery, so a rule that is not in it is tested by none."""
    targets = {yaml.safe_load(f.read_text())["_target_"] for f in (CONF / "rule").glob("*.yaml")}
    assert targets == {f"dcasgd_repro.rules.{type(rule).__name__}" for rule in RULES}


def name_of(rule: object) -> str:
    fields = dataclasses.asdict(rule)
    default = dataclasses.asdict(type(rule)())
    return type(rule).__name__ + "".join(f"-{k}={v}" for k, v in fields.items() if v != default[k])


each_rule = pytest.mark.parametrize("rule", RULES, ids=name_of)
each_compensated = pytest.mark.parametrize("rule", COMPENSATED, ids=name_of)


def vectors(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source, dtype=dtype) for _ in range(3)]


def arrive(
    g: torch.Tensor, w: torch.Tensor, w_bak: torch.Tensor, worker: int = 0, delay: int = 1
) -> Arrival:
    return Arrival(g, w, w_bak, worker, delay, lr=0.1)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Golden vectors. g = (2, -3), w = (1, 1), w_bak = (0.5, 2), so drift = (0.5, -1), g g = (4, 9).
G, W, BAK = t(2, -3), t(1, 1), t(0.5, 2)


def test_dcasgd_c_by_hand() -> None:
    rule = DCASGDc(lam=0.5)
    step, _, correction = rule.direction(arrive(G, W, BAK), rule.init(W, 1))
    assert correction.tolist() == [1.0, -4.5]  # 0.5 * (4 * 0.5, 9 * -1)
    assert step.tolist() == [3.0, -7.5]


def test_dcasgd_c_on_the_batch_sum_by_hand() -> None:
    # G = 8 g = (16, -24): G + 0.5 G G drift = (16 + 64, -24 - 288) = (80, -312); over 8.
    rule = DCASGDc(lam=0.5, gradient="sum", batch=8)
    step, _, _ = rule.direction(arrive(G, W, BAK), rule.init(W, 1))
    assert step.tolist() == [10.0, -39.0]


def test_dcasgd_a_by_hand() -> None:
    # m = 0.75 from 0: MeanSquare = (1, 2.25), its root (1, 1.5) as eps is negligible here;
    # lambda = 2 / (1, 1.5); correction = lambda * (2, -9) = (4, -12).
    rule = DCASGDa(lam0=2.0, decay=0.75, eps=1e-30)
    step, state, correction = rule.direction(arrive(G, W, BAK), rule.init(W, 1))
    assert correction.tolist() == [4.0, -12.0]
    assert step.tolist() == [6.0, -15.0]
    assert state.mean_square[0].tolist() == [1.0, 2.25]
    # A second arrival: MeanSquare = 0.75 * (1, 2.25) + 0.25 * (4, 9) = (1.75, 3.9375).
    _, state, correction = rule.direction(arrive(G, W, BAK), state)
    assert state.mean_square[0].tolist() == [1.75, 3.9375]
    assert correction.tolist() == pytest.approx([4 / 1.75**0.5, -18 / 3.9375**0.5], rel=1e-15)


def test_the_authors_first_curvatures_by_hand() -> None:
    # |g| drift = (2 * 0.5, 3 * -1) = (1, -3), times 0.5; g = (2, -3).
    for curvature, expected in {"abs": [2.5, -4.5], "minus_abs": [1.5, -1.5]}.items():
        rule = DCASGDc(lam=0.5, curvature=curvature, gradient="sum", batch=8)  # B changes nothing
        assert rule.direction(arrive(G, W, BAK), None).step.tolist() == expected


def test_eps_is_inside_the_root() -> None:
    rule = DCASGDa(lam0=1.0, decay=0.0, eps=12.0)
    _, _, correction = rule.direction(arrive(t(2), t(1), t(0)), rule.init(t(1), 1))
    assert correction.tolist() == [1.0]  # 4 / sqrt(4 + 12)


def test_bias_correction_divides_by_what_was_seen() -> None:
    rule = DCASGDa(lam0=1.0, decay=0.75, eps=1e-30, bias_correction=True)
    state = rule.init(W, 1)
    for _ in range(3):  # a constant gradient: the corrected MeanSquare is g g from the first step
        _, state, correction = rule.direction(arrive(G, W, BAK), state)
        torch.testing.assert_close(correction, G.abs() * (W - BAK), rtol=1e-14, atol=0)


def test_mean_square_per_worker_or_shared() -> None:
    for kind, seen in (("worker", [t(1, 2.25), t(4, 4)]), ("shared", None)):
        rule = DCASGDa(decay=0.75, mean_square=kind)
        state = rule.init(W, 2)
        _, state, _ = rule.direction(arrive(G, W, BAK, worker=0), state)
        _, state, _ = rule.direction(arrive(t(4, 4), W, BAK, worker=1), state)
        if seen:
            assert [x.tolist() for x in state.mean_square] == [x.tolist() for x in seen]
        else:  # 0.75 * (1, 2.25) + 0.25 * 16
            assert [x.tolist() for x in state.mean_square] == [[4.75, 5.6875]]


def test_adaptive_lambda_tends_to_lambda0_over_g() -> None:
    rule = DCASGDa(lam0=2.0, decay=0.95, eps=1e-30)
    state = rule.init(W, 1)
    for _ in range(800):
        _, state, correction = rule.direction(arrive(G, W, BAK), state)
    lam = correction / (G * G * (W - BAK))
    torch.testing.assert_close(lam, 2.0 / G.abs(), rtol=1e-13, atol=0)


def test_the_batch_size_cancels_in_the_adaptive_rule_but_for_eps() -> None:
    g, w, bak = vectors(0, 50)
    mean, total = DCASGDa(eps=1e-12), DCASGDa(eps=64e-12, gradient="sum", batch=8)
    a = mean.direction(arrive(g, w, bak), mean.init(w, 1)).step
    b = total.direction(arrive(g, w, bak), total.init(w, 1)).step
    assert torch.equal(a, b)
    plain, scaled = DCASGDa(eps=1e-7), DCASGDa(eps=1e-7, gradient="sum", batch=8)
    # An independent form: the formula on the sum G = 8 g itself, divided by 8.
    literal = plain.direction(arrive(8 * g, w, bak), plain.init(w, 1)).step / 8
    step = scaled.direction(arrive(g, w, bak), scaled.init(w, 1)).step
    torch.testing.assert_close(step, literal, rtol=1e-13, atol=1e-13)


def test_momentum_by_hand() -> None:
    rule = ASGD(momentum=0.5)
    step, v, _ = rule.direction(arrive(t(2), t(0), t(0)), rule.init(t(0), 1))
    assert step.tolist() == [2.0]
    assert rule.direction(arrive(t(3), t(0), t(0)), v).step.tolist() == [4.0]  # 0.5 * 2 + 3


@pytest.mark.parametrize("rule", [DCASGDc(lam=0.5), DCASGDa(lam0=2.0, decay=0.0, eps=1e-30)])
def test_momentum_takes_the_compensated_gradient(rule: DCASGDc | DCASGDa) -> None:
    # DC-c: g~ = (3, -7.5) as above. DC-a, m = 0: lambda = 2/|g|, g~ = g + 2 |g| drift = (4, -9).
    compensated = {"DCASGDc": t(3, -7.5), "DCASGDa": t(4, -9)}[type(rule).__name__]
    rule = dataclasses.replace(rule, momentum=0.5)
    first = rule.direction(arrive(G, W, BAK), rule.init(W, 1))
    second = rule.direction(arrive(G, W, BAK), first.state)
    assert first.step.tolist() == compensated.tolist()
    assert second.step.tolist() == (1.5 * compensated).tolist()


def test_ssgd_steps_once_per_round() -> None:
    rule = SSGD()
    state = rule.init(t(0), 3)
    for g, expected in ((3, None), (6, None), (-3, [2.0]), (1, None), (1, None), (1, [1.0])):
        step, state, correction = rule.direction(arrive(t(g), t(0), t(0)), state)
        assert (step if step is None else step.tolist()) == expected
        assert correction is None
    total = SSGD(reduction="sum")
    state = total.init(t(0), 2)
    state = total.direction(arrive(t(3), t(0), t(0)), state).state
    assert total.direction(arrive(t(5), t(0), t(0)), state).step.tolist() == [8.0]


# Limits in which a rule must equal a simpler one bit for bit.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("zero", [DCASGDc(lam=0.0), DCASGDa(lam0=0.0)], ids=name_of)
def test_lambda_zero_is_asgd(zero: DCASGDc | DCASGDa, momentum: float) -> None:
    zero, plain = dataclasses.replace(zero, momentum=momentum), ASGD(momentum)
    start = torch.zeros(100)
    states = zero.init(start, 1), plain.init(start, 1)
    for seed in range(5):
        g, w, bak = vectors(seed, 100, dtype=torch.float32)
        a, b = (
            rule.direction(arrive(g, w, bak), s)
            for rule, s in zip((zero, plain), states, strict=True)
        )
        states = a.state, b.state
        assert torch.equal(a.step, b.step)


@each_compensated
def test_without_drift_nothing_is_added(rule: DCASGDc | DCASGDa) -> None:
    g, w, _ = vectors(0, 100, dtype=torch.float32)
    plain = ASGD(rule.momentum)
    found = rule.direction(arrive(g, w, w), rule.init(w, 1))
    assert torch.equal(found.step, plain.direction(arrive(g, w, w), plain.init(w, 1)).step)
    assert not found.correction.any()


@each_compensated
def test_a_gap_is_compensated_along_it(rule: DCASGDc | DCASGDa) -> None:
    g, w, bak = vectors(1, 100)
    correction = rule.direction(arrive(g, w, bak), rule.init(w, 1)).correction
    # + lambda g g drift, never minus; but for the authors' first release, which had it wrong.
    wrong = getattr(rule, "curvature", None) == "minus_abs"
    assert torch.equal(correction.sign() * (-1 if wrong else 1), (w - bak).sign())


def test_one_worker_ssgd_is_asgd() -> None:
    g, w, bak = vectors(2, 20)
    a, b = SSGD(0.9), ASGD(0.9)
    assert torch.equal(
        a.direction(arrive(g, w, bak), a.init(w, 1)).step,
        b.direction(arrive(g, w, bak), b.init(w, 1)).step,
    )


# What every rule promises.


@each_rule
@pytest.mark.parametrize("check", [battery.arguments, battery.answers])
def test_pure(rule: Rule, check: Callable[[Rule], battery.Finding]) -> None:
    """The same arguments give the same result, and none of them is written to."""
    assert check(rule).ok, check(rule).found


def tensors(state: object) -> Iterator[torch.Tensor]:
    """The tensors of a rule's state."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors(part)


@each_rule
def test_elementwise_if_it_says_so(rule: Rule) -> None:
    """A flat vector, its parts and a stack of them [K, P/K] give the same numbers, or say not."""
    assert battery.parted(rule) == (0 if rule.elementwise else 3)


def played(rule: Rule, log: str, pushes: int, task: object, lr: float = 0.05) -> Server:
    """The server after a replay; ``states`` has the rule's state after each push."""
    server = Server(rule, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), WORKERS)
    steps = simulate(task, server, LOGS[log].messages(pushes), lambda t: lr)
    server.states = [server.state for _ in steps]
    return server


BOWL = Quadratic(curvature=(1.0, 0.3, 0.1), noise=0.0).on(torch.device("cpu"))


class Flat:
    """A task whose gradients are all zero."""

    def batch(self, worker: int, k: int) -> None:
        return None

    def gradient(self, w: torch.Tensor, batch: None) -> tuple[torch.Tensor, torch.Tensor]:
        return w.new_zeros(()), torch.zeros_like(w)


@each_rule
def test_it_goes_down_on_a_quadratic(rule: Rule) -> None:
    assert battery.goes_down(rule).ok, battery.goes_down(rule).found


@each_rule
def test_zero_gradients_move_nothing_but_weight_decay_does(rule: Rule) -> None:
    w = played(rule, "spread", 9, Flat()).w.tolist()
    if getattr(rule, "weight_decay", 0.0):
        assert all(0 < x / y < 1 for x, y in zip(w, [1.0, -2.0, 0.5], strict=True))
    else:
        assert w == [1.0, -2.0, 0.5]


@each_rule
def test_it_keeps_the_vectors_it_says(rule: Rule) -> None:
    """Vectors of w's shape that are in no other place, as many as there ever are at once."""
    once, each = rule.keeps()
    found = 0
    for log in LOGS:
        for state in played(rule, log, 60, BOWL).states:
            vectors = {x.data_ptr() for x in tensors(state) if x.shape == (3,)}
            found = max(found, len(vectors))
    assert found == once + each * WORKERS


def test_who_declares_a_correction() -> None:
    """Those that dcasgd_repro/README.md names: the dc_ratio of any other rule is 0."""
    found = set()
    for rule in RULES:
        w = torch.ones(3)
        state = rule.init(w, 2)
        for k in range(6):
            given = Arrival(torch.tensor([1.0, 2.0, 3.0]), w, w / 2, k % 2, k // 3, 0.1)
            _, state, correction = rule.direction(given, state)
            found |= set() if correction is None else {type(rule).__name__}
    assert found == {"DCASGDc", "DCASGDa", "DCASGDn", "DCSSGD", "DANADC", "GapAware", "HeLoCo"}


@each_rule
def test_its_state_goes_through_a_checkpoint(rule: Rule) -> None:
    assert battery.resumed(rule, (1, 9, 19)) == (True, "0 of 3 resumed runs differ")


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        (DCASGDc, "lam", math.nan),
        (DCASGDc, "lam", -1.0),
        (DCASGDc, "lam", "big"),
        (DCASGDc, "lam", True),
        (DCASGDc, "lam", 10**24),
        (DCASGDc, "gradient", "median"),
        (DCASGDc, "batch", 0),
        (DCASGDc, "curvature", "square"),
        (DCASGDa, "lam0", math.inf),
        (DCASGDa, "decay", 1.0),
        (DCASGDa, "eps", 0.0),
        (DCASGDa, "mean_square", "both"),
        (DCASGDa, "bias_correction", 1),
        (ASGD, "momentum", 1.0),
        (SSGD, "momentum", None),
        (SSGD, "reduction", "max"),
    ],
)
def test_refusals_name_the_key_and_the_value(rule: type, key: str, value: object) -> None:
    with pytest.raises(BadInput, match=f"^{key}={value}: "):
        rule(**{key: value})
