"""Studies: what their grids say, what refuses to be one, and what makes two runs the same."""

import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.identity import identity
from dcasgd_repro.run.plan import length_of, plain_config
from dcasgd_repro.run.read import config_of
from dcasgd_repro.study import grid as studies
from dcasgd_repro.study.grid import names, study
from dcasgd_repro.study.reproduce import CELLS, jobs_of

ROOT = Path(__file__).parents[2]
TAX = ROOT / "experiments" / "staleness_tax"
KEPT = sorted((ROOT / "results").glob("*/*/runs/*"))


def grid(folder: Path, content: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "grid.yaml").write_text(
        content if isinstance(content, str) else yaml.dump(content, sort_keys=False)
    )
    return str(folder)


@pytest.mark.parametrize("name", names())
def test_every_cell_composes_and_is_a_run_of_its_own(name: str) -> None:
    chosen = study(name)
    scale = "laptop" if chosen.stop_epoch is None else chosen.paper_scale
    if chosen.tuned_by and scale not in study(chosen.tuned_by).tuned:
        with pytest.raises(BadInput, match=r"^tuned_by=.* first: dcasgd-repro tune"):
            jobs_of(chosen, scale, 1)
        return
    jobs = jobs_of(chosen, scale, 1)
    first = [job.cell for job in jobs if job.seed == chosen.first_seed]
    assert first == list(chosen.at(scale).cells)
    assert len({job.path for job in jobs}) == len(jobs)  # no cell twice under two names
    assert (chosen.folder / "claim.md").read_text().startswith("# ")
    known = {cell.name for cell in chosen.at(scale).cells}
    assert set(chosen.paper.index) <= known
    assert set(chosen.curves["cell"]) <= known


def test_a_grid_is_expanded_over_its_axes(tmp_path: Path) -> None:
    made = study(
        grid(
            tmp_path / "mine",
            {
                "title": "t",
                "for": {"M": [2, 4], "L": [0.5]},
                "cells": {"sgd": "+exp=cifar_sgd", "dc-{M}-{L}": "workers={M} rule.lam0={L}"},
                "claims": [
                    {"lower": "dc-{M}-{L}", "higher": "sgd", "paper": None},
                    {"lower": "sgd", "higher": "dc-2-0.5", "paper": 1},
                    {"cell": "sgd", "paper": 3, "within": 0.1},
                ],
            },
        )
    )
    assert [(c.name, c.overrides) for c in made.cells] == [
        ("sgd", ("+exp=cifar_sgd",)),
        ("dc-2-0.5", ("workers=2", "rule.lam0=0.5")),
        ("dc-4-0.5", ("workers=4", "rule.lam0=0.5")),
    ]
    message = ["dc-2-0.5 < sgd", "dc-4-0.5 < sgd", "sgd < dc-2-0.5", "sgd within 10% of 3"]
    assert [str(claim) for claim in made.claims] == message
    assert made.name == made.runs_of == "mine"


def test_a_cell_or_claim_stands_for_the_axes_that_it_names(tmp_path: Path) -> None:
    made = study(
        grid(
            tmp_path / "mine",
            {
                "title": "t",
                "for": {"M": [2, 4], "R": ["asgd", "ssgd"]},
                "cells": {"m-{M}": "workers={M}", "{R}-{M}": "rule={R} workers={M}"},
                "claims": [
                    {"lower": "m-{M}", "higher": "asgd-{M}"},
                    {"order": ["m-2", "{R}-2"]},
                    {"equal": ["m-{M}", "{R}-4"], "within": 1},
                ],
            },
        )
    )
    names = ["m-2", "m-4", "asgd-2", "ssgd-2", "asgd-4", "ssgd-4"]
    assert [cell.name for cell in made.cells] == names
    assert [claim.cells for claim in made.claims] == [
        ("m-2", "asgd-2"), ("m-4", "asgd-4"), ("m-2", "asgd-2"), ("m-2", "ssgd-2"),
        ("m-2", "asgd-4"), ("m-2", "ssgd-4"), ("m-4", "asgd-4"), ("m-4", "ssgd-4"),
    ]  # fmt: skip


def test_than_is_expanded_and_names_one_other_difference(tmp_path: Path) -> None:
    content = {"title": "t", "cells": {"a-{L}": "", "d-{L}": "", "b": ""}, "for": {"L": [1, 2]}}
    claims = [
        {"lower": "d-{L}", "higher": "b", "paper": 1},
        {"lower": "a-{L}", "higher": "b", "paper": 1, "than": "d-{L}"},
    ]
    made = study(grid(tmp_path / "mine", {**content, "claims": claims}))
    assert [claim.than for claim in made.claims] == [None, None, "d-1", "d-2"]
    claims[0] = {"cell": "d-{L}", "paper": 1, "within": 0.1}
    with pytest.raises(BadInput, match="a-1 < b: than=d-1 must be what one other claim says is lo"):
        study(grid(tmp_path / "within", {**content, "claims": claims}))


def test_a_folder_of_ones_own_may_not_bear_the_name_of_a_study(tmp_path: Path) -> None:
    name = grid(tmp_path / "fig5_lambda", {"title": "t", "cells": {"a": "+exp=cifar_dc"}})
    with pytest.raises(BadInput, match="fig5_lambda: give the folder another name: results/fig5_"):
        study(name)
    assert study(str(ROOT / "experiments" / "fig5_lambda")).name == "fig5_lambda"


def test_the_beginning_of_a_name_is_enough() -> None:
    assert study("table1").name == "table1_cifar10"
    with pytest.raises(BadInput, match=r"^study=fig: no such study; choose fig2_epochs, fig3_"):
        study("fig")
    with pytest.raises(BadInput, match=r"^study=nope: no such study; choose .*table1_cifar10"):
        study("nope")


def test_a_word_that_means_two_studies_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("staleness", "fig"):
        grid(tmp_path / name, {"title": "t", "cells": {"a": "+exp=cifar_dc"}})
    two = "a folder here and the beginning of staleness_tax; write ./staleness or staleness_tax"
    with pytest.raises(BadInput, match=f"^study=staleness: {two}$"):
        study("staleness")
    assert study("./staleness").folder == tmp_path / "staleness"
    assert study("staleness_tax").folder == study("staleness_").folder == TAX
    assert study("fig").folder == tmp_path / "fig"  # the beginning of three names: of none
    monkeypatch.chdir(ROOT / "experiments")
    assert study("staleness_tax").folder == study("staleness").folder == TAX


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cells": {}}, "give a title and cells"),
        ({"title": "t", "cells": {}, "celsl": {}}, "give a title and cells"),
        ({"title": "t"}, "give cells, or runs_of"),
        ({"title": "t", "cells": {"a": "x=1"}, "runs_of": "table1"}, "give cells, or runs_of"),
        ({"title": "t", "cells": {"a-{M}": ""}, "for": {"M": [1, 1]}}, "two cells have one name"),
        (
            {
                "title": "t",
                "cells": {"a": ""},
                "claims": [{"lower": "a", "higher": "b", "paper": 1}],
            },
            "a claim names b, which is no cell",
        ),
        ({"title": "t", "cells": {"a": ""}, "claims": [{"lower": "a"}]}, "KeyError: 'higher'"),
        (
            {
                "title": "t",
                "cells": {"a": "", "b": ""},
                "claims": [{"lower": "a", "higher": "b", "paper": 1, "than": "b"}],
            },
            "a < b: than=b must be what one other claim says is lower",
        ),
        (
            {
                "title": "t",
                "cells": {"a": "", "b": ""},
                "claims": [{"lower": "a", "higher": "b", "paper": 1, "thn": "b"}],
            },
            "ValueError: a claim with thn",
        ),
        (
            {"title": "t", "cells": {"a-{K}": ""}, "for": {"M": [1]}},
            "cell a-{K} has {K}, which is no axis; give its values, as for: {K: [1, 2]}",
        ),
        (
            {"title": "t", "cells": {"a": "workers={L}"}},
            "cell a has {L}, which is no axis; give its values, as for: {L: [1, 2]}",
        ),
        (
            {"title": "t", "cells": {"a": ""}, "claims": [{"equal": ["a", "b-{L}"], "within": 1}]},
            "has {L}, which is no axis",
        ),
        (
            {"title": "t", "cells": {"a": "workers={M}"}, "for": {"M": [1, 2]}},
            "cell a runs with {M}; put it into its name too",
        ),
        ({"title": "t", "cells": ["a"]}, "cells: write each as NAME: WORDS, what one types after"),
        ({"title": "t", "cells": {"a": ""}, "figure": "pie"}, "figure=pie: choose epochs, lambda"),
        ({"title": "t", "cells": {"a": ""}, "measure": "best"}, "measure=best: choose last10, be"),
        ({"title": "t", "cells": {"../x": ""}}, "'../x' is no name for a cell"),
        ({"title": "t", "cells": {"a": "seed=3"}}, "cell a sets seed, which is for reproduce"),
        ({"title": "t", "cells": {"a": "seeds.data=3"}}, "cell a sets seeds.data, which is for re"),
        (
            {"title": "t", "cells": {"a": "scale=paper"}},
            "cell a sets scale, which is for reproduce",
        ),
        ({"title": "t", "cells": {"a-{M}": ""}, "for": {"M": "48"}}, "give each axis a list of va"),
        ({"title": "t", "cells": {"a": ""}, "for": ["M"]}, "give each axis a list of values"),
        ({"title": "t", "runs_of": "bad"}, "runs_of names another study"),
        ("title: [", "not readable"),
        ("", "give a title and cells"),
    ],
)
def test_a_grid_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        study(grid(tmp_path / "bad", content))
    assert message in str(refused.value)
    assert str(refused.value).startswith("study=")
    assert "\n" not in str(refused.value)


def identity_of(*overrides: str) -> str:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return identity(plain_config(compose("config", overrides=["scale=laptop", *overrides])))


def test_a_run_is_the_same_whatever_computes_it_and_another_with_another_number() -> None:
    same = identity_of("+exp=cifar_dc")
    for means in (
        "engine=waves",
        "threads=7",
        "device=cuda",
        "fused=true",
        "run_dir=x",
        "log_every=9",
    ):
        assert identity_of("+exp=cifar_dc", means) == same
    assert identity_of("+exp=cifar_dc", "rule.lam0=2") == same  # written 2.0 in conf/
    assert identity_of("+exp=cifar_dc", "+task.later=null") == same  # a key to come
    others = [
        "seed=1",
        "rule.lam0=2.5",
        "backup=push",
        "eval_every=2",
        "workers=4",
        "augment=false",
    ]
    found = {identity_of("+exp=cifar_dc", other) for other in others}
    assert len(found | {same}) == len(others) + 1


def test_a_log_counts_by_its_content(tmp_path: Path) -> None:
    log, other = tmp_path / "a.csv", tmp_path / "b.csv"
    words = ["schedule=file", f"schedule.path={log}"]
    log.write_text("one")
    other.write_text("one")
    one = identity_of(*words)
    assert identity_of("schedule=file", f"schedule.path={other}") == one
    log.write_text("two")
    assert identity_of(*words) != one


def test_cells_of_two_studies_share_their_run() -> None:
    at = {job.name: job.path for job in jobs_of(study("table1"), "laptop", 1)}
    tax = {job.name: job.path for job in jobs_of(study("staleness"), "laptop", 1)}
    assert at["dcasgd_a-8-seed0"] == tax["dcasgd_a-8-seed0"]
    assert at["asgd-8-seed0"].parent == CELLS


@pytest.mark.parametrize(
    "word", ["epochs=2", "rule.lam0=3", "seed=4", "scale=paper", "engine.precision=tf32"]
)
def test_a_number_of_the_study_cannot_be_changed_in_passing(word: str) -> None:
    with pytest.raises(BadInput, match=r"would make it another study: copy its folder"):
        jobs_of(study("table1"), "laptop", 1, [word])


def test_means_can() -> None:
    jobs = jobs_of(study("table1"), "laptop", 1, ["threads=1", "engine=plain", "data.root=x"])
    assert [job.path for job in jobs] == [j.path for j in jobs_of(study("table1"), "laptop", 1)]
    assert jobs[0].overrides[-4:] == ("threads=1", "engine=plain", "data.root=x", "seed=0")
    assert jobs[0].pushes == 6400


def test_the_run_that_is_named_is_the_run_that_is_trained() -> None:
    job = jobs_of(study("table1"), "smoke", 1)[0]
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        cfg = compose("config", overrides=list(job.overrides))
    assert length_of(cfg).pushes == job.pushes == 128
    assert job.path.name == identity(plain_config(cfg))[:16]


@pytest.mark.parametrize("scale", sorted({path.parts[-3] for path in KEPT}))
def test_kept_runs_are_their_cells_own(scale: str) -> None:
    kept = [path for path in KEPT if path.parts[-3] == scale]
    jobs = {
        (name, job.name): job.path.name
        for name in {path.parts[-4] for path in kept}
        for job in jobs_of(
            study(name), scale, 1 + max(int(p.name.rpartition("seed")[2]) for p in kept)
        )
    }
    for path in kept:
        of_config = identity(config_of(path))[:16]
        assert of_config == jobs[path.parts[-4], path.name], path


def test_every_claim_was_written_before_its_runs() -> None:
    """For a run that studies share: before it was made, one of them had its claim."""
    asked: dict[str, set[str]] = {}
    made: dict[str, str] = {}
    for path in KEPT:
        origin = yaml.safe_load((path / "provenance.json").read_text())
        assert origin["git_dirty"] is False, path
        run = identity(config_of(path))
        asked.setdefault(run, set()).add(path.parts[-4])
        made[run] = origin["git_commit"]
    for run, commit in made.items():
        if git("cat-file", "-e", commit):
            pytest.skip("a shallow clone: its history is not there")
        claims = [f"{commit}:experiments/{name}/claim.md" for name in asked[run]]
        assert any(claimed(claim) for claim in claims), f"{asked[run]}: run before {claims}"


@cache
def claimed(claim: str) -> bool:
    return not git("cat-file", "-e", claim)


def git(*words: str) -> int:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, check=False).returncode


def test_a_study_folder_may_stand_anywhere(tmp_path: Path) -> None:
    name = grid(tmp_path / "mine", {"title": "t", "cells": {"a": "+exp=cifar_dc"}})
    assert study(name).folder == (tmp_path / "mine").resolve()
    assert studies.FOLDER == ROOT / "experiments"
