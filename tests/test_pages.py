"""What pages show a reader runs, and the front page stays one page."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import dcasgd_repro
from dcasgd_repro.run.read import summary_of
from dcasgd_repro.study.figures import registered

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "dcasgd_repro/README.md"]
LINKING = [*PAGES, "conf/README.md", "experiments/README.md", "results/README.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_front_page_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("README.md")
    exec(code, {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 400
    # Eight workers hold w_0 = (1, 1): f = (1 + 0.1) / 2, and delays 0, 1, 2, ...
    assert [line[:2] for line in lines[:3]] == [["1", "0"], ["2", "1"], ["3", "2"]]
    assert float(lines[0][2]) == pytest.approx(0.55)
    assert float(lines[-1][2]) < 0.02


def test_the_twenty_lines_make_a_run_that_goes_on() -> None:
    [code] = blocks("dcasgd_repro/README.md")
    assert code.count("\n") <= 20
    seen: dict[str, object] = {}
    exec(code, seen)
    folder = Path(str(seen["folder"]))
    assert {
        "config.yaml",
        "provenance.json",
        "schedule.csv.gz",
        "metrics.csv",
        "checkpoint.pt",
    } <= {path.name for path in folder.iterdir()}
    assert (summary_of(folder)["status"], summary_of(folder)["pushes"]) == ("stopped", 32)
    exec(
        code.replace("    stop_epoch=1,\n", "").replace("tempfile.mkdtemp()", repr(str(folder))), {}
    )
    assert (summary_of(folder)["status"], summary_of(folder)["pushes"]) == ("finished", 96)


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert (here / link).exists(), link


def test_the_page_of_studies_lists_every_figure() -> None:
    page = (ROOT / "experiments" / "README.md").read_text()
    listed = page.partition("\n| `figure:` |")[2].partition("\n\n")[0]
    names = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in listed.splitlines()[2:]))
    assert sorted(names) == list(registered())


MODULES = [m.name for m in pkgutil.walk_packages(dcasgd_repro.__path__, "dcasgd_repro.")]


def test_every_example_in_a_docstring_runs() -> None:
    tried = 0
    for name in ["dcasgd_repro", *(n for n in MODULES if not n.endswith("__main__"))]:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried >= 5


def test_exported_names_are_there() -> None:
    for name in dcasgd_repro.__all__:
        assert getattr(dcasgd_repro, name) is not None
    assert dcasgd_repro.simulate is importlib.import_module("dcasgd_repro.simulate").simulate
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = dcasgd_repro.Nonsense
