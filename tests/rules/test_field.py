"""The field's rules: golden vectors worked by hand, and limits in which they equal simpler ones.

Most are also held to recordings of other people's code: test_oracle.py.
"""

import math

import pytest
import torch
import yaml

from dcasgd_repro.errors import BadInput
from dcasgd_repro.rules import (
    ASAP,
    ASGD,
    DANADC,
    DCSSGD,
    IAG,
    LWP,
    MSNAG,
    NAGASGD,
    SMEGA2,
    SSGD,
    AdaDelay,
    Arrival,
    Clipped,
    DANAZero,
    DCASGDc,
    DCASGDn,
    DelayAdaptive,
    DelayedNesterov,
    FedAsync,
    FedBuff,
    GapAware,
    HeLoCo,
    Malenia,
    MultiASGD,
    OrMo,
    Rennala,
    Ringleader,
    Ringmaster,
    Rule,
    ServerNAdam,
    ServerSGD,
    StalenessAware,
    Throttle,
)
from dcasgd_repro.run.groups import CONF
from dcasgd_repro.schedule import Gamma, Generated, Message
from dcasgd_repro.simulate import Server, simulate


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = t(0)


def arrive(
    g: torch.Tensor,
    w: torch.Tensor = ZERO,
    w_bak: torch.Tensor = ZERO,
    worker: int = 0,
    delay: int = 0,
    lr: float = 0.5,
) -> Arrival:
    return Arrival(g, w, w_bak, worker, delay, lr)


def steps(rule: Rule, workers: int, *arrivals: Arrival) -> list[list[float] | None]:
    """The steps that these arrivals make, one after another."""
    state, out = rule.init(arrivals[0].w, workers), []
    for arrival in arrivals:
        step, state, _ = rule.direction(arrival, state)
        out.append(step if step is None else step.tolist())
    return out


def sent(rule: Rule, workers: int, w: torch.Tensor, *arrivals: Arrival, worker: int = 0) -> float:
    """What a worker is sent after these arrivals, the server's vector being ``w`` [1]."""
    state = rule.init(w, workers)
    for arrival in arrivals:
        state = rule.direction(arrival, state).state
    return rule.sends(w, state, worker).item()


# --- golden vectors -----------------------------------------------------------------------------


def test_rates_that_fall_with_the_delay_by_hand() -> None:
    late = [arrive(t(6.0), delay=tau) for tau in (0, 1, 3)]
    assert steps(StalenessAware(), 2, *late) == [[6.0], [6.0], [2.0]]
    assert steps(DelayAdaptive(), 2, *late) == [[6.0], [6.0], [4.0]]  # 2 / 3
    assert steps(DelayAdaptive(late="dropped"), 2, *late) == [[6.0], [6.0], None]
    # t = 1, 2, 3: 1 + sqrt(1), 1 + sqrt(2 + 1), 1 + sqrt(3 + 3).
    roots = [1 + math.sqrt(x) for x in (1, 3, 6)]
    assert steps(AdaDelay(), 2, *late) == [[pytest.approx(6 / root)] for root in roots]
    # F = 1, 1, 1 for delays that only grow; then tau = 0 again: F = 2 of 4, a factor of 1.
    assert steps(ASAP(amplitude=0.5), 2, *late, late[0]) == [[3.0], [3.0], [3.0], [6.0]]
    assert steps(ASAP(bound=3), 2, late[2]) == [None]


def test_throttle_by_hand() -> None:
    # q = 1, 2 of worker 0, q = 1 of worker 1, which ends the round: q = 1 again.
    turns = [arrive(t(12.0), worker=m) for m in (0, 0, 1, 0)]
    assert steps(Throttle(), 2, *turns) == [[6.0], [3.0], [6.0], [6.0]]
    assert steps(Throttle(decay=2.0), 3, *turns) == [[4.0], [1.0], [4.0], [4 / 9]]


def test_a_mean_of_scaled_gradients_has_the_rate_of_each_arrival() -> None:
    # 0.5 * 6 / 3 and 0.25 * 8: in units of the last rate (2 + 1) / 0.5, halved.
    first, second = arrive(t(6.0), delay=3, lr=0.5), arrive(t(8.0), lr=0.25)
    assert steps(StalenessAware(collect=2), 2, first, second) == [None, [6.0]]
    rule = FedBuff(collect=2, law="constant", rate="arrival")
    assert steps(rule, 2, arrive(t(2.0), lr=0.5), second) == [None, [6.0]]  # (2 * 2 + 8) / 2
    rule = FedBuff(collect=2, law="constant")
    assert steps(rule, 2, arrive(t(2.0), lr=0.5), second) == [None, [5.0]]
    # A rate of 0 moves nothing, now or later.
    rule = FedBuff(collect=2, law="constant", rate="arrival")
    zero = arrive(t(100.0), lr=0.0)
    assert steps(rule, 2, arrive(t(2.0), lr=0.5), zero) == [None, [1.0]]


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({"law": "polynomial", "a": 0.5}, [1, 0.5, 1 / 3]),
        ({"law": "polynomial", "a": 0.5, "mean_delay": 3.0}, [2, 1, 2 / 3]),
        ({"law": "hinge", "a": 0.5, "b": 3}, [1, 1, 1 / 3.5]),
        ({"law": "threshold", "a": 0.25, "b": 3}, [1, 1, 0.25]),
        ({"law": "exponential", "a": 0.2}, [1, math.exp(-0.6), math.exp(-1.6)]),
        ({"law": "constant", "factor": 0.5}, [0.5, 0.5, 0.5]),
    ],
)
def test_weights_of_a_delay_by_hand(keys: dict[str, object], weights: list[float]) -> None:
    rule = FedAsync(pushes="gradient", **keys)
    found = steps(rule, 2, *[arrive(t(1.0), delay=tau) for tau in (0, 3, 8)])
    assert found == [[pytest.approx(weight)] for weight in weights]


def test_fedasync_mixes_models_by_hand() -> None:
    # x = w_bak - 0.1 g = 2 - 0.1 * 5 = 1.5; w += 0.5 * (1 + 3)^-0.5 (1.5 - 3): a step of 0.75.
    late = arrive(t(5.0), w=t(3.0), w_bak=t(2.0), delay=3)
    assert steps(FedAsync(local_lr=0.1), 2, late) == [[pytest.approx(0.75)]]
    # Momentum, s = 0.5, on 0.5 + 1 = 1.5: s in the velocity, after it, and both (mu' = 0.75).
    for weighs, second in {"gradient": 1.125, "step": 1.125, "both": 0.65625}.items():
        rule = FedAsync(local_lr=0.1, momentum=0.5, weighs=weighs)
        assert steps(rule, 2, late, late)[1] == [pytest.approx(second)]


def test_delays_may_count_from_the_last_push() -> None:
    # tau = 0 from the pull, that is, each worker had paused before it.
    rule = FedAsync(pushes="gradient", law="polynomial", a=1.0, count="push")
    pushes = [arrive(t(6.0), worker=m) for m in (0, 1, 0, 1)]
    assert steps(rule, 2, *pushes) == [[6.0], [3.0], [3.0], [3.0]]  # tau 0, 1, 1, 1


def test_clipping_by_hand() -> None:
    g = t(3.0, 4.0)
    assert steps(Clipped(clip=2.5), 1, arrive(g), arrive(g / 10), arrive(0 * g)) == [
        [1.5, 2.0],
        [0.3, 0.4],
        [0.0, 0.0],
    ]


def test_late_gradients_are_ignored_by_hand() -> None:
    fresh, late = arrive(t(4.0)), arrive(t(90.0), delay=4)
    assert steps(Ringmaster(), 2, fresh, late) == [[4.0], None]  # R = 2 M = 4
    assert steps(Ringmaster(threshold=5), 2, fresh, late) == [[4.0], [90.0]]
    other = arrive(t(8.0), worker=1)
    assert steps(Rennala(), 2, fresh, late, other) == [None, None, [6.0]]
    assert steps(Rennala(collect=3), 2, fresh, fresh, other)[-1] == [pytest.approx(16 / 3)]
    # Means of 4, 6 and of 8, whose mean is 6.5; a plain mean would be 6.
    again = arrive(t(6.0))
    assert steps(Malenia(), 2, fresh, again, late, other) == [None, None, None, [6.5]]
    # Counts 2 and 1: their harmonic mean 4/3 is under S / M = 3/2; counts 2 and 2 are enough.
    assert steps(Malenia(collect=3), 2, fresh, again, other, other) == [None, None, None, [6.5]]
    # Three counts of 5: their harmonic mean is S / M = 5, which a sum of rounded fifths misses.
    fives = [arrive(t(4.0), worker=m) for m in (0, 1, 2) for _ in range(5)]
    assert steps(Malenia(collect=15), 3, *fives) == [None] * 14 + [[4.0]]


def test_ringleader_by_hand() -> None:
    a, b = (lambda g, m=m: arrive(t(g), worker=m) for m in (0, 1))
    found = steps(Ringleader(), 2, a(2.0), a(4.0), b(8.0), b(100.0), a(6.0), a(1.0), a(3.0), b(4.0))
    # Worker 0: 2, 4 -> 3. b completes: (3 + 8) / 2. b's 100 is for the next round. a's 6 joins its
    # mean, 4: (4 + 8) / 2. Next round: b has 100, a's 1 completes it and leads: (1 + 100) / 2;
    # a's 3 waits; b's 4 makes its mean 52: (1 + 52) / 2.
    assert found == [None, None, [5.5], None, [6.0], [50.5], None, [26.5]]


def test_tables_of_last_gradients_by_hand() -> None:
    pushes = [arrive(t(g), worker=m) for g, m in ((2.0, 0), (4.0, 0), (8.0, 1), (6.0, 0))]
    assert steps(IAG(), 2, *pushes) == [None, None, None, [7.0]]


def test_fedbuff_by_hand() -> None:
    pushes = [arrive(t(4.0)), arrive(t(8.0), delay=3), arrive(t(1.0)), arrive(t(1.0))]
    expected = {"mean": 4.0, "sum": 8.0, "weighted": 8 / 1.5}  # 4 + 8 / 2; weights 1 + 1/2
    for reduction, step in expected.items():
        rule = FedBuff(collect=2, reduction=reduction)
        assert steps(rule, 2, *pushes)[:2] == [None, [pytest.approx(step)]]
    rule = FedBuff(collect=2, momentum=0.5, nesterov=True)
    # v = 4, then 0.5 * 4 + 1 = 3; steps 4 + 0.5 * 4 and 1 + 0.5 * 3.
    assert steps(rule, 2, *pushes) == [None, [6.0], None, [2.5]]
    rule = FedBuff(collect=1, law="constant", pushes="model")
    assert steps(rule, 1, arrive(t(1.0), w=t(5.0), w_bak=t(3.0))) == [[3.0]]


def test_server_momentum_by_hand() -> None:
    pair = arrive(t(2.0)), arrive(t(4.0))
    # v = 2, then 0.5 * 2 + (1 - 0.25) * 4 = 4; Nesterov: 2 + 1, 4 + 2.
    rule = ServerSGD(momentum=0.5, dampening=0.25)
    assert steps(rule, 1, *pair) == [[3.0], [6.0]]
    decay = arrive(t(2.0), w=t(10.0))
    assert steps(ServerSGD(momentum=0.0, weight_decay=0.1), 1, decay) == [[3.0]]
    # N = 2, m = 0.5 * 0 + (2 + 4) / 2 = 3: 2 / 2, then 0.5 * 3 + 4 / 2.
    assert steps(DelayedNesterov(0.5, collect=2), 1, *pair) == [[1.0], [3.5]]
    # c = 0.5: (1 - 1 + 0.5) * 0.5 * 3 + 2, then 0.5 * 0.5 * 3 + 1.
    rule = DelayedNesterov(0.5, collect=2, spread=0.5)
    assert steps(rule, 1, *pair, pair[0]) == [[1.0], [2.75], [1.75]]


def test_nadam_by_hand() -> None:
    # psi = 0: mu = beta1 / 2 = 1/4, P = 1/4. g = 2: m = 1, v = 2, v^ = 4. (3/4) 2 / (3/4) + (1/4) 1
    # / (1 - 1/16) = 2 + 4/15, over 2.
    rule = ServerNAdam(beta1=0.5, beta2=0.5, eps=1e-30, momentum_decay=0.0)
    assert steps(rule, 1, arrive(t(2.0))) == [[pytest.approx(1 + 2 / 15)]]
    rule = ServerNAdam(0.5, 0.5, 1e-30, 0.0, weight_decay=0.1)
    assert steps(rule, 1, arrive(t(2.0), w=t(3.0))) == [[pytest.approx(1.3 + 2 / 15)]]


def test_gap_aware_by_hand() -> None:
    # Without momentum: EMA(g g) / (1 - gamma) = g g at the first push; a gap of 3 steps of 0.5 * 2.
    late = arrive(t(2.0), w=t(4.0), w_bak=t(1.0))
    rule = GapAware(momentum=0.0, eps=1e-30)
    assert steps(rule, 1, late) == [[0.5]]  # 2 / (1 + 3)
    correction = rule.direction(late, rule.init(t(0), 1)).correction
    assert correction.tolist() == [-1.5]
    # eta_max stays 0.5 when the rate falls. With momentum the EMA is of the v before: 0, then 2.
    rule = GapAware(momentum=0.5, eps=1e-30, gamma=0.0)
    fresh, slow = arrive(t(2.0)), late._replace(lr=0.1)
    assert steps(rule, 1, fresh, slow) == [[2.0], [1.5]]  # 0.5 * 2 + 2 / 4


def test_ormo_by_hand() -> None:
    # M = 2, mu = 0.5. Pushes 1, 2 are of bucket 1. The third was pulled after 1 update: bucket 2,
    # so w moves by mu u = 0.5 * (2 + 4), u = 3 + 8. The fourth is late, bucket 1 of 2: it gets
    # 1 + mu.
    delays = (0, 1, 1, 3)
    pushes = [arrive(t(g), delay=d) for g, d in zip((2.0, 4.0, 8.0, 6.0), delays, strict=True)]
    assert steps(OrMo(momentum=0.5), 2, *pushes) == [[2.0], [4.0], [11.0], [9.0]]


def test_velocities_of_each_worker_by_hand() -> None:
    pushes = [arrive(t(g), worker=m) for g, m in ((2.0, 0), (4.0, 1), (6.0, 0))]
    for rule in (MultiASGD(momentum=0.5), DANAZero(momentum=0.5)):
        assert steps(rule, 2, *pushes) == [[2.0], [4.0], [7.0]]
    # Sent: w - 0.5 * 0.5 * (7 + 4); one velocity for all would be 0.5 (0.5 * 2 + 4) + 6 = 8.5.
    assert sent(DANAZero(momentum=0.5), 2, t(10.0), *pushes) == 7.25
    assert sent(NAGASGD(momentum=0.5), 2, t(10.0), *pushes) == 10 - 0.25 * 8.5
    # 3 + 0.5 * 9 * (4 - 2) = 12, then weight decay 0.1 * 4.
    late = arrive(t(3.0), w=t(4.0), w_bak=t(2.0))
    assert steps(DANADC(lam=0.5, weight_decay=0.1), 2, late) == [[pytest.approx(12.4)]]


def test_smega2_by_hand() -> None:
    pushes = [arrive(t(g)) for g in (2.0, 4.0, 6.0)]
    rule = SMEGA2(momentum=0.5)
    # v = 0 in the first cycle of M = 2, then (2 + 4) / 2 = 3.
    assert steps(rule, 2, *pushes) == [[2.0], [4.0], [7.5]]
    # k = 1: 10 - 0.25 ((2 - 0.5) 3 + 0.5 * 6); naive: 10 - 0.25 * 2 * 3.
    assert sent(rule, 2, t(10.0), *pushes) == 8.125
    assert sent(SMEGA2(momentum=0.5, naive=True), 2, t(10.0), *pushes) == 8.5


def test_predictions_by_hand() -> None:
    # v = 2, 0.5 * 2 + 4 = 5; M = 3 looks 2 steps ahead: 10 - 2 * 0.5 * 5.
    pushes = arrive(t(2.0), w=t(12.5)), arrive(t(4.0), w=t(11.0), delay=1, worker=2)
    assert sent(LWP(momentum=0.5), 3, t(10.0), *pushes) == 5.0
    last = LWP(momentum=0.5, steps="last")
    assert sent(last, 3, t(10.0), *pushes, worker=2) == 7.5  # its delay was 1
    assert sent(last, 3, t(10.0), *pushes, worker=1) == 5.0  # it has not pushed
    # By the last update, 10 - 11.
    assert sent(LWP(momentum=0.5, form="weight"), 3, t(10.0), *pushes) == 8.0
    # 0.5 + 0.25 velocities of 0.5 * 5.
    assert sent(MSNAG(momentum=0.5), 3, t(10.0), *pushes) == 10 - 0.75 * 2.5


def test_heloco_by_hand() -> None:
    # rho = 2: m = 0.5 * 2 g = (6, 8), the step G + 0.5 m; sent w - 0.25 m.
    g = t(6.0, 8.0)
    rule = HeLoCo(momentum=0.5, rho=2.0)
    state = rule.init(g, 1)
    step, state, correction = rule.direction(arrive(g, g, g), state)
    assert step.tolist() == [15.0, 20.0]
    assert correction.tolist() == [0.0, 0.0]
    assert rule.sends(g, state, 0).tolist() == [4.5, 6.0]
    # Against it: cos = -1, conf = 10 / (10 + 3 * 10), beta = min(0.5 / 4, 0.5) = 1/8, and
    # -g beta cos |g| m / |m| adds g / 8: the gradient shrinks to -7/8 g.
    turned = rule.turned(-g, state.velocity)
    assert turned.tolist() == pytest.approx([-5.25, -7.0])
    # Across it: cos = 0, l = min(1 / 4, 1); u = 3/4 of its own direction, 1/4 of m's.
    turned = rule.turned(t(8.0, -6.0), state.velocity)
    along, across = 0.25 / math.sqrt(0.625), 0.75 / math.sqrt(0.625)
    expected = [10 * (across * 0.8 + along * 0.6), 10 * (across * -0.6 + along * 0.8)]
    assert turned.tolist() == pytest.approx(expected)
    # By default rho is the paper's, 1 / sqrt(M), of 4 workers here.
    paper, half = HeLoCo(momentum=0.5), HeLoCo(momentum=0.5, rho=0.5)
    first, same = (each.direction(arrive(g), each.init(g, 4)) for each in (paper, half))
    assert first.step.tolist() == same.step.tolist() == [3.75, 5.0]
    # Along it, and in blocks of their own: each is turned by itself.
    assert torch.equal(rule.turned(g, state.velocity), g)
    both = HeLoCo(momentum=0.5, rho=2.0, blocks=[1, 1])
    mixed = t(1.0, -1.0)
    step = both.direction(arrive(mixed), state).correction / 2
    assert step.tolist() == [0.0, pytest.approx(both.turned(t(-1.0), t(8.0)).item() + 1)]


def test_lambda_by_norms_by_hand() -> None:
    # g = (3, 4), g g drift = (9, 16): 0.2 * 5 / sqrt(337) of it.
    late = arrive(t(3.0, 4.0), w=t(1.0, 1.0), w_bak=t(0.0, 0.0))
    [step] = steps(DCASGDn(), 1, late)
    scale = 0.2 * 5 / math.sqrt(337)
    assert step == pytest.approx([3 + 9 * scale, 4 + 16 * scale], rel=1e-8)
    [step] = steps(DCASGDn(blocks=[1, 1]), 1, late)
    assert step == pytest.approx([3.6, 4.8], rel=1e-8)  # each block by its own norm


def test_dcssgd_by_hand() -> None:
    # In order of size 2, then 4, halved: v / -eta is 1, then 1 + (4 - 0.5 * 0.5 * 16 * 1) / 2 = 1.
    pushes = arrive(t(4.0)), arrive(t(2.0), worker=1)
    assert steps(DCSSGD(lam=0.5), 2, *pushes) == [None, [1.0]]
    assert steps(DCSSGD(lam=0.0), 2, *pushes) == [None, [3.0]]


# --- limits -------------------------------------------------------------------------------------


class Given:
    """A task whose gradients are given, in order of the pushes, wherever w is."""

    def __init__(self, pushes: int) -> None:
        draws = torch.Generator().manual_seed(6)
        self.gradients = iter(torch.randn(pushes, 5, generator=draws, dtype=torch.float64))

    def batch(self, worker: int, k: int) -> None:
        return None

    def gradient(self, w: torch.Tensor, batch: None) -> tuple[torch.Tensor, torch.Tensor]:
        return w.new_zeros(()), next(self.gradients)


def path(rule: Rule, log: list[Message], workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w after each push, and what the pull after it was sent."""
    server = Server(rule, torch.ones(5, dtype=torch.float64), workers)
    ws, received = [], []

    def watched() -> object:
        for message in log:
            yield message
            if message.kind == "pull":
                received.append(server.sent[message.worker])

    for _ in simulate(Given(60), server, watched(), lambda n: 0.1 / (1 + n // 20)):
        ws.append(server.w)
    return torch.stack(ws), torch.stack(received)


def log_of(workers: int, **keys: object) -> list[Message]:
    law = Gamma(mean_s=1.0, cv=0.5)
    return list(Generated(workers=workers, seed=2, compute=law, **keys).messages(60))


PLAIN = {"law": "constant", "pushes": "gradient"}


@pytest.mark.parametrize(
    ("rule", "simpler"),
    [
        (Ringmaster(threshold=10**6), ASGD()),
        (FedBuff(collect=1, law="constant"), ASGD()),
        (FedBuff(collect=1, law="constant", rate="arrival", momentum=0.9), ASGD(0.9)),
        (FedAsync(**PLAIN), ASGD()),
        (FedAsync(**PLAIN, momentum=0.9), ASGD(0.9)),
        (FedAsync(**PLAIN, momentum=0.9, nesterov=True), ServerSGD()),
        (FedAsync(**PLAIN, momentum=0.9, weighs="both"), FedAsync(**PLAIN, momentum=0.9)),
        (DelayAdaptive(concurrency=10**6), ASGD()),
        (DelayAdaptive(late="dropped"), Ringmaster(threshold=4)),
        (ASAP(amplitude=0.0), ASGD()),
        (Clipped(clip=1e9), ASGD()),
        (DCASGDn(lam0=0.0), ASGD()),
        (MultiASGD(momentum=0.0), ASGD()),
        (DANADC(momentum=0.0), DCASGDc(lam=2.0)),
        (DANADC(lam=0.0), DANAZero()),
        (SMEGA2(momentum=0.0), ASGD()),
        (ServerSGD(momentum=0.9, nesterov=False), ASGD(0.9)),
        (DelayedNesterov(collect=1), ServerSGD()),
        (HeLoCo(momentum=0.0, rho=1.0, c_ok=-2.0), ASGD()),
    ],
    ids=repr,
)
def test_a_limit_is_the_simpler_rule_to_the_bit(rule: Rule, simpler: Rule) -> None:
    log = log_of(3)
    for found, expected in zip(path(rule, log, 3), path(simpler, log, 3), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("rule", "simpler"),
    [
        (StalenessAware(), ASGD()),
        (DelayAdaptive(), ASGD()),
        (Rennala(), ASGD()),
        (Malenia(), ASGD()),
        (Ringleader(), ASGD()),
        (GapAware(), ASGD(0.9)),
        (OrMo(), ASGD(0.9)),
        (MultiASGD(), ASGD(0.9)),
        (LWP(), ASGD(0.9)),
    ],
    ids=repr,
)
def test_with_one_worker_it_is_the_simpler_rule_to_the_bit(rule: Rule, simpler: Rule) -> None:
    log = log_of(1)
    for found, expected in zip(path(rule, log, 1), path(simpler, log, 1), strict=True):
        assert torch.equal(found, expected)


def test_on_a_barrier() -> None:
    """Rounds of three: SSGD, to the bit where the sum is taken in the same order."""
    log = log_of(3, barrier=True)
    mean, _ = path(SSGD(), log, 3)
    for rule in (Rennala(), FedBuff(collect=3, law="constant")):
        assert torch.equal(path(rule, log, 3)[0], mean)
    for rule in (Malenia(), DCSSGD(lam=0.0)):
        torch.testing.assert_close(path(rule, log, 3)[0], mean, rtol=1e-13, atol=1e-13)
    log, rate = log[: 6 * 6], 3  # one learning rate: OrMo's step of a round is in three parts
    heavy, _ = path(SSGD(momentum=0.9, reduction="sum"), log, 3)
    ordered, _ = path(OrMo(), log, 3)
    torch.testing.assert_close(ordered[rate - 1 :: 3], heavy[rate - 1 :: 3], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rule", [DANAZero(), NAGASGD(), SMEGA2()], ids=repr)
def test_one_worker_is_sent_nesterovs_vector(rule: Rule) -> None:
    log = log_of(1)[:40]  # one learning rate
    nesterov, _ = path(ServerSGD(), log, 1)
    torch.testing.assert_close(path(rule, log, 1)[1][1:], nesterov[:19], rtol=1e-13, atol=1e-13)


def test_server_sgd_is_torchs_to_the_bit() -> None:
    for keys in ({}, {"nesterov": False, "dampening": 0.3}, {"weight_decay": 0.1}):
        rule = ServerSGD(momentum=0.9, **keys)
        p, task = torch.nn.Parameter(torch.ones(5, dtype=torch.float64)), Given(60)
        given = {"momentum": 0.9, "nesterov": rule.nesterov, "dampening": rule.dampening}
        theirs = torch.optim.SGD([p], lr=0.1, weight_decay=rule.weight_decay, **given)
        found, _ = path(rule, log_of(3), 3)
        for w, n in zip(found, range(60), strict=True):
            theirs.param_groups[0]["lr"] = 0.1 / (1 + n // 20)
            _, p.grad = task.gradient(p, None)
            theirs.step()
            assert torch.equal(w, p.detach())


# --- what they refuse ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        (StalenessAware, "collect", 0),
        (FedAsync, "law", "linear"),
        (FedAsync, "factor", 0.0),
        (FedAsync, "mean_delay", -1),
        (FedBuff, "mean_delay", 1e9),
        (FedAsync, "count", "both"),
        (FedAsync, "pushes", "weights"),
        (FedAsync, "local_lr", 0),
        (FedAsync, "weighs", "none"),
        (FedBuff, "collect", 1.5),
        (FedBuff, "reduction", "max"),
        (FedBuff, "rate", "pull"),
        (FedBuff, "nesterov", 1),
        (DelayAdaptive, "concurrency", 0),
        (DelayAdaptive, "late", "kept"),
        (DelayAdaptive, "dispatch", "never"),
        (AdaDelay, "beta", math.nan),
        (ASAP, "amplitude", 1.5),
        (ASAP, "bound", 0),
        (Clipped, "clip", 0.0),
        (Ringmaster, "threshold", 0),
        (Rennala, "collect", 0),
        (Malenia, "collect", -1),
        (ServerSGD, "dampening", 1.0),
        (ServerSGD, "nesterov", "yes"),
        (ServerNAdam, "beta2", 1.0),
        (ServerNAdam, "decoupled", None),
        (MultiASGD, "momentum", 1.0),
        (GapAware, "gamma", 1.0),
        (OrMo, "momentum", 1.0),
        (DelayedNesterov, "spread", 0.11),
        (NAGASGD, "weight_decay", -1.0),
        (DANADC, "lam", math.inf),
        (DANADC, "momentum", 1.0),
        (SMEGA2, "cycle", 0),
        (SMEGA2, "naive", 0),
        (LWP, "form", "gradient"),
        (MSNAG, "steps", "all"),
        (HeLoCo, "clamp", "both"),
        (HeLoCo, "c_ok", 3),
        (HeLoCo, "blocks", "all"),
        (DCASGDn, "lam0", -1),
        (DCSSGD, "lam", "big"),
    ],
)
def test_refusals_name_the_key_and_the_value(rule: type, key: str, value: object) -> None:
    keys = {"law": "exponential", "a": 1.0} if value == 1e9 else {}
    with pytest.raises(BadInput, match=f"^{key}={value}: "):
        rule(**{key: value}, **keys)


def test_a_buffer_of_weights_that_are_all_zero_moves_nothing() -> None:
    rule = FedBuff(collect=1, law="threshold", a=0.0, b=1.0, reduction="weighted")
    assert steps(rule, 2, arrive(t(3.0), delay=2)) == [[0.0]]


@pytest.mark.parametrize("rule", [HeLoCo(blocks=[2, 2]), DCASGDn(blocks=[2, 2])], ids=repr)
def test_blocks_must_fill_the_vector(rule: Rule) -> None:
    with pytest.raises(BadInput, match=r"^blocks=\[2, 2\]: make them add up to 5, w's size"):
        rule.init(torch.zeros(5), 1)


@pytest.mark.parametrize("path", sorted((CONF / "rule").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_yaml_is_its_rules_defaults(path: object) -> None:
    """And has every option, under the rule's own name."""
    import dcasgd_repro.rules

    given = yaml.safe_load(path.read_text())
    rule = getattr(dcasgd_repro.rules, given.pop("_target_").rsplit(".", 1)[-1])
    assert rule.name == path.stem
    own = {**vars(rule()), "batch": "${batch}"} if "batch" in given else vars(rule())
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()} == given
