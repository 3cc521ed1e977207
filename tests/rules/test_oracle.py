"""The rules against trajectories that other people's code computed, see tests/oracle/README.md."""

import json
from pathlib import Path

import pytest
import torch
from replay_oracle import MAKERS, RELEASES, main, replay, results, rule_of
from rules_under_test import RULES

from dcasgd_repro.rules import MultiASGD
from dcasgd_repro.schedule import Constant, Gamma, Generated

ORACLE = Path(__file__).parents[1] / "oracle" / "rules"
CASES = sorted(ORACLE.glob("*/*.json"))
PAGE = Path(__file__).parents[2] / "conf" / "README.md"


def test_every_recorded_case(capsys: pytest.CaptureFixture[str]) -> None:
    """w after every push, every vector sent, every delay, and which pushes move w."""
    found = list(results(ORACLE))
    assert len(found) == len(CASES) == 68
    assert {result.rule for result in found} == {path.parent.name for path in CASES}
    assert [result for result in found if not result.passes] == []
    assert max(r.error for r in found if r.allowed == 1e-9) < 1e-10


def test_the_page_says_how_many_rules_are_recorded() -> None:
    cases = [json.loads(path.read_text()) for path in CASES]
    made = {type(rule_of(case)[0]) for case in cases}
    assert f"\n{len(made)} of them are held to trajectories" in PAGE.read_text()


@pytest.mark.parametrize("made", dict.fromkeys(map(type, RULES)), ids=lambda made: made.__name__)
def test_a_rule_without_a_recording_has_a_vector_by_hand(made: type) -> None:
    if any(type(rule_of(json.loads(path.read_text()))[0]) is made for path in CASES):
        return
    files = (Path(__file__).parent / name for name in ("test_field.py", "test_rules.py"))
    assert any(f"{made.__name__}(" in path.read_text() for path in files)


def test_multi_asgd_moves_w_as_dana_zero_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients given as data it does not matter what is sent."""
    monkeypatch.setitem(MAKERS, "dana_zero", lambda c, case: MultiASGD(c.pop("momentum")))
    for path in ORACLE.glob("dana_zero/*.json"):
        case = json.loads(path.read_text()) | {"sent": None}
        config = {"momentum": case["config"]["momentum"]}
        assert replay(case | {"config": config}).passes


def test_the_copies_are_small() -> None:
    assert sum(path.stat().st_size for path in CASES) <= 1_000_000


def test_a_miss_is_a_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = json.loads((ORACLE / "smega2" / "naive_m8.json").read_text())
    for name, change in {
        "right": {},
        "weight": {"w": [[x + 1e-8 for x in row] for row in case["w"]]},
        "sent": {"sent": [[x + 1e-8 for x in row] for row in case["sent"]]},
        "delay": {"delays": [9, *case["delays"][1:]]},
        "status": {"status": ["buffered", *case["status"][1:]]},
        "option": {"config": {**case["config"], "warp": 9}},
        "value": {"config": {**case["config"], "momentum": 2}},
        "unknown": {"rule": "unheard_of"},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "case.json").write_text(json.dumps({**case, **change}))
        assert main(folder) == (name != "right"), name
        out = capsys.readouterr().out
        assert ("MISSED" in out) == (name != "right"), name
    assert main(tmp_path / "nothing") == 1


@pytest.mark.parametrize("release", [name for name in RELEASES if "multiverso" not in name])
def test_the_authors_updater_over_its_history(release: str) -> None:
    """Their recordings stay out for their licence: the formulas, transcribed, in their place.

    Backups from zero, written at the push; MeanSquare for each worker. Late pulls, so that the
    backup is not what the worker computed at.
    """
    lam, decay, workers = 0.5, 0.75, 3
    log = Generated(workers=workers, seed=4, compute=Gamma(1.0, cv=0.5),
                    communication=Constant(1.0), request_share=0.5).messages(30)  # fmt: skip
    draws = torch.Generator().manual_seed(1)
    gradients = torch.randn(30, 6, generator=draws, dtype=torch.float64)
    w = torch.ones(6, dtype=torch.float64)
    case = {
        "format": "rule-trajectory/1", "rule": "multiverso_dcasgd_history", "case": release,
        "dtype": "float64", "workers": workers, "w0": w.tolist(), "sent": None,
        "config": {"lam": lam, "momentum": decay, "commit": release},
        "messages": [[kind, m] for _, kind, m in log], "gradients": gradients.tolist(),
        "lr": [0.1] * 30, "status": ["applied"] * 30, "delays": log.delays().tolist(), "w": [],
    }  # fmt: skip
    backup, squares = torch.zeros(workers, 6).double(), torch.zeros(workers, 6).double()
    pushes = [m for _, kind, m in log if kind == "push"]
    for g, m in zip(gradients, pushes, strict=True):
        drift = w - backup[m]
        squares[m] = decay * squares[m] + (1 - decay) * g**2
        eps = 1e-7 if release == "13454c6" else 1e-10
        added = {
            "d5d123f": -lam * g.abs() * drift,
            **dict.fromkeys(["302ecb8", "ed73ad4", "ab8dab6"], lam * g.abs() * drift),
            "f7ae26f": 0 * g,
            **dict.fromkeys(["957021e", "7f02e18", "a92fa0d"], lam * g**2 * drift),
        }.get(release, lam / torch.sqrt(squares[m] + eps) * g**2 * drift)
        w = w - 0.1 * (g + added)
        backup[m] = w
        case["w"].append(w.tolist())
    result = replay(case)
    assert result.passes, result
    assert result.error < 1e-12


def test_each_commit_has_its_formula() -> None:
    assert len({repr(make(0.1, 0.0, 1e-7)) for make in RELEASES.values()}) == 5
