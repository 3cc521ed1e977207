"""Replays recorded trajectories of public code through ``simulate``: a line a rule, exit code 1 if
one misses.

    python tests/replay_oracle.py DIR

DIR holds files of the format rule-trajectory/1 at any depth. A case passes if the server's w after
every push, every vector sent, every delay and every refusal to move agree with the recording.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dcasgd_repro import rules
from dcasgd_repro.rules import Rule
from dcasgd_repro.schedule import Message
from dcasgd_repro.simulate import Server, simulate

Config = dict[str, Any]  # a case's options, taken out one by one


class Result(NamedTuple):
    """How far a replayed case is from its recording, in units of max(1, max |w|)."""

    rule: str
    case: str
    error: float
    allowed: float
    fault: str  # what else differs; "" if nothing

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed and not self.fault


# --- a recorded configuration as a rule -------------------------------------------------------


def asap(c: Config, case: Config) -> Rule:
    return rules.ASAP(amplitude=c.pop("amplitude"), bound=c.pop("staleness_bound"))


def staleness_aware(c: Config, case: Config) -> Rule:
    c.pop("staleness_bound")  # c is made of it
    return rules.StalenessAware(collect=c.pop("c"))


def async_nesterov_toy(c: Config, case: Config) -> Rule:
    k, method, law = c.pop("K"), c.pop("method"), c.pop("sync_weight")
    same = {"momentum": c.pop("momentum"), "nesterov": c.pop("nesterov")}
    if method == "delayed_sgd":
        return rules.FedBuff(law="constant", collect=k, **same)
    return rules.FedAsync(law=law or "constant", factor=k**-0.5, pushes="gradient", **same)


def delay_adaptive(c: Config, case: Config) -> Rule:
    return rules.DelayAdaptive() if c.pop("delay_adaptive") else rules.ASGD()


def delay_adaptive_mishchenko(c: Config, case: Config) -> Rule:
    # The code's lr is in the file; the rule makes it of the base.
    case["lr"] = [c.pop("base_lr")] * len(case["lr"])
    most = None if c.pop("delay_adaptive") else 10**9
    return rules.DelayAdaptive(concurrency=most, dispatch="before")


def delayed_nesterov(c: Config, case: Config) -> Rule:
    c.pop("code")
    return rules.DelayedNesterov(c.pop("momentum"), c.pop("buffer_size"), c.pop("c"))


def appfl(c: Config) -> Config:
    """The options that APPFL's two aggregators share."""
    assert c.pop("client_weights_mode") == "equal"
    given = c.pop("staleness_fn_kwargs", {})
    return {
        "law": c.pop("staleness_fn"),
        **{key: given[key] for key in ("a", "b") if key in given},
        "factor": 1 / c.pop("num_clients"),
        "pushes": "gradient" if c.pop("gradient_based") else "model",
        "count": "push",
    }


def fedasync(c: Config, case: Config) -> Rule:
    return rules.FedAsync(**appfl(c))


def fedbuff(c: Config, case: Config) -> Rule:
    return rules.FedBuff(**appfl(c), collect=c.pop("K"), reduction="sum", rate="arrival")


def flsim(c: Config) -> Config:
    """The options that FLSim's aggregators share."""
    assert c.pop("optimizer") == "torch.optim.SGD"
    given = c.pop("staleness")
    law = given["fn"]
    options = {"law": law, "mean_delay": float(given["avg"]), "momentum": c.pop("momentum")}
    if law == "polynomial":
        options["a"] = given["a"]
    if law == "threshold":
        options |= {"a": given["after"], "b": given["cutoff"]}
    return options


def flsim_async(c: Config, case: Config) -> Rule:
    weighs = {"async": "step", "momentum": "both"}[c.pop("aggregator")]
    kind = c.pop("aggregation_type")
    pushes = {"fed_buff_aggregation": "gradient", "fed_async_aggregation": "model"}[kind]
    return rules.FedAsync(**flsim(c), weighs=weighs, pushes=pushes)


def flsim_fedbuff(c: Config, case: Config) -> Rule:
    kind = c.pop("reduction")
    reduction = {"WEIGHTED_SUM": "sum", "WEIGHTED_AVERAGE": "weighted", "AVERAGE": "mean"}[kind]
    options = flsim(c)
    if kind == "AVERAGE":
        options = {"law": "constant", "momentum": options["momentum"]}  # the weights go unused
    return rules.FedBuff(**options, collect=c.pop("buffer_size"), reduction=reduction)


def gap_aware(c: Config, case: Config) -> Rule:
    keys = ("momentum", "big_gamma", "epsilon", "weight_decay")
    return rules.GapAware(*(c.pop(key) for key in keys))


def heloco(c: Config, case: Config) -> Rule:
    sizes = [int(torch.tensor(shape).prod()) for shape in c.pop("blocks")]
    clamp = {"conf_inside": "inside", "conf_after": "outside"}[c.pop("clamp")]
    options = {key: c.pop(key) for key in list(c)}
    return rules.HeLoCo(**options, blocks=sizes, clamp=clamp)


def dana(c: Config) -> Config:
    return {"momentum": c.pop("momentum"), "weight_decay": c.pop("weight_decay")}


def dana_zero(c: Config, case: Config) -> Rule:
    assert c.pop("dc") == 0
    return rules.DANAZero(**dana(c))


def nag_asgd(c: Config, case: Config) -> Rule:
    assert c.pop("dc") == 0
    return rules.NAGASGD(**dana(c))


def smega2(c: Config, case: Config) -> Rule:
    keys = ("momentum", "weight_decay", "dampening")
    options = {key: c.pop(key) for key in keys}
    return rules.SMEGA2(**options, cycle=c.pop("momentum_cycle"), naive=not c.pop("advanced"))


def torch_sgd(c: Config, case: Config) -> Rule:
    return rules.ServerSGD(**{key: c.pop(key) for key in list(c)})


def torch_nadam(c: Config, case: Config) -> Rule:
    betas, decoupled = c.pop("betas"), c.pop("decoupled_weight_decay")
    options = {key: c.pop(key) for key in list(c)}
    return rules.ServerNAdam(*betas, **options, decoupled=decoupled)


# What each commit of the authors' updater computes: a rule, and for form a its eps.
RELEASES: dict[str, Callable[[float, float, float], Rule]] = {
    "d5d123f": lambda lam, decay, eps: rules.DCASGDc(lam=lam, curvature="minus_abs"),
    **dict.fromkeys(
        ("302ecb8", "ed73ad4", "ab8dab6"),
        lambda lam, decay, eps: rules.DCASGDc(lam=lam, curvature="abs"),
    ),
    "f7ae26f": lambda lam, decay, eps: rules.ASGD(),
    **dict.fromkeys(
        ("957021e", "7f02e18", "a92fa0d", "multiverso_dcasgd_c"),
        lambda lam, decay, eps: rules.DCASGDc(lam=lam),
    ),
    **dict.fromkeys(
        ("7c93b70", "f8ed05e", "13454c6", "multiverso_dcasgd_a"),
        lambda lam, decay, eps: rules.DCASGDa(lam0=lam, decay=decay, eps=eps, mean_square="worker"),
    ),
}


def multiverso(c: Config, case: Config) -> Rule:
    """The authors' updater. Its recordings are not here, so the options' names are our guess."""

    def one_of(*names: str, default: Any = None) -> Any:
        given = [c.pop(name) for name in names if name in c]
        return given[0] if given else default

    case["backup"] = one_of("backup", default="push_from_zero")
    lam = one_of("lam", "lambda", "lamda", "lambda0", "lam0", default=0.1)
    decay = one_of("m", "momentum", "decay", "mean_square_momentum", default=0.0)
    source = case.get("source", {}).get("commit") or ""
    commit = str(one_of("commit", default=source))[:7]
    eps = one_of("eps", "epsilon", default=1e-10 if commit in ("7c93b70", "f8ed05e") else 1e-7)
    release = case["rule"] if case["rule"] in RELEASES else commit
    one_of("one_minus_m", "1-m", "mean_square", "lr", "learning_rate", "form", "variant")
    return RELEASES[release](lam, decay, eps)


MAKERS: dict[str, Callable[[Config, Config], Rule]] = {
    "asap": asap,
    "async_nesterov_toy": async_nesterov_toy,
    "dana_dc": lambda c, case: rules.DANADC(lam=c.pop("dc"), **dana(c)),
    "dana_zero": dana_zero,
    "delay_adaptive": delay_adaptive,
    "delay_adaptive_mishchenko": delay_adaptive_mishchenko,
    "delayed_nesterov": delayed_nesterov,
    "fedasync": fedasync,
    "fedbuff": fedbuff,
    "flsim_async": flsim_async,
    "flsim_fedbuff": flsim_fedbuff,
    "gap_aware": gap_aware,
    "heloco": heloco,
    "iag_asgd": lambda c, case: rules.IAG(),
    "multiverso_dcasgd_a": multiverso,
    "multiverso_dcasgd_c": multiverso,
    "multiverso_dcasgd_history": multiverso,
    "nag_asgd": nag_asgd,
    "rennala": lambda c, case: rules.Rennala(collect=c.pop("batch_size")),
    "ringleader": lambda c, case: rules.Ringleader(),
    "ringmaster": lambda c, case: rules.Ringmaster(threshold=c.pop("max_delay")),
    "smega2": smega2,
    "staleness_aware": staleness_aware,
    "torch_nadam": torch_nadam,
    "torch_sgd": torch_sgd,
}


# --- the replay -------------------------------------------------------------------------------


class Recorded:
    """A Task whose gradients are the recorded ones, in order of the pushes, wherever w is."""

    def __init__(self, case: Config, dtype: torch.dtype) -> None:
        self.gradients = torch.tensor(case["gradients"], dtype=dtype)
        self.push: dict[tuple[int, int], int] = {}  # (worker, its k-th batch): number of the push
        seen = [0] * case["workers"]
        pushes = (m for kind, m in case["messages"] if kind == "push")
        for number, m in enumerate(pushes):
            self.push[m, seen[m]] = number
            seen[m] += 1

    def batch(self, worker: int, k: int) -> int:
        return self.push[worker, k]

    def gradient(self, w: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return w.new_zeros(()), self.gradients[batch]


def rule_of(case: Config) -> tuple[Rule, list[str]]:
    """The rule of a case, and the options that it does not take."""
    options = dict(case["config"])
    options.pop("shape", None)  # the shape that the code had its six numbers in
    return MAKERS[case["rule"]](options, case), list(options)


def replay(case: Config) -> Result:
    """One recorded case through ``simulate``."""
    name = case["rule"]
    try:
        rule, unread = rule_of(case)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        fault = f"its options make no rule: {type(error).__name__} {error}"
        return Result(name, case["case"], float("inf"), 0.0, fault)
    lr, dtype = case["lr"], getattr(torch, case["dtype"])
    w = torch.tensor(case["w0"], dtype=dtype)
    server = Server(rule, w, case["workers"], case.get("backup", "pull"))
    sent: list[list[float]] = []

    def messages() -> Iterator[Message]:
        for number, (kind, m) in enumerate(case["messages"]):
            yield Message(float(number), kind, m)
            if kind == "pull":  # by now the server has sent the vector
                sent.append(server.sent[m].tolist())

    faults = [f"the option {key} is not understood" for key in unread]
    ws, updates = [], 0
    for step in simulate(Recorded(case, dtype), server, messages(), lambda pushes: lr[pushes]):
        at = step.push - 1
        ws.append(server.w.tolist())
        if (step.update > updates) != (case["status"][at] in ("applied", "flushed")):
            faults.append(f"push {step.push} is {case['status'][at]}")
        # That code sends w before it applies a push, so its own count is another one.
        if name != "delay_adaptive_mishchenko" and step.delay != case["delays"][at]:
            faults.append(f"push {step.push} has delay {case['delays'][at]}, here {step.delay}")
        updates = step.update
    error = distance(ws, case["w"])
    if case["sent"]:
        error = max(error, distance(sent, case["sent"]))
    return Result(name, case["case"], error, allowed(case), faults[0] if faults else "")


def distance(found: list[list[float]], recorded: list[list[float]]) -> float:
    """max |difference| / max(1, max |recorded|); infinite where one is longer, or not a number."""
    ours, theirs = (torch.tensor(x, dtype=torch.float64) for x in (found, recorded))
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def allowed(case: Config) -> float:
    """What the recording's precision allows: float32 where the code computes in it."""
    if case["dtype"] == "float32":
        return 3e-6
    # FLSim keeps the sum of the weights in float32.
    return 1e-7 if "AVERAGE" in case["config"].get("reduction", "") else 1e-9


def results(folder: Path) -> Iterator[Result]:
    """All cases below a folder, replayed."""
    for path in sorted(folder.rglob("*.json")):
        case = json.loads(path.read_text())
        if not isinstance(case, dict) or case.get("format") != "rule-trajectory/1":
            continue
        if case["rule"] in MAKERS:
            yield replay(case)
        else:
            yield Result(case["rule"], case["case"], float("inf"), 0.0, "no rule of that name here")


def main(folder: Path) -> int:
    by_rule: dict[str, list[Result]] = {}
    for result in results(folder):
        by_rule.setdefault(result.rule, []).append(result)
    for name, found in by_rule.items():
        worst = max(result.error for result in found)
        missed = [result for result in found if not result.passes]
        print(f"{name:26} {len(found):3} cases, worst error {worst:.1e}", end="")
        print(f", {len(missed)} MISSED" if missed else "")
        for result in missed:
            print(f"    {result.case}: {result.error:.1e} of {result.allowed:.0e} {result.fault}")
    if not by_rule:
        print(f"no case below {folder}")
    return int(not by_rule or any(not r.passes for found in by_rule.values() for r in found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/replay_oracle.py DIR")
    sys.exit(main(Path(sys.argv[1])))
