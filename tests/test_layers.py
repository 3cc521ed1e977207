"""The floors of the house: imports go down only, and every module stands on one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dcasgd_repro"
# The wings of the house, lowest first; then the floors inside the two tall ones.
WINGS = [
    {"errors", "__init__"},
    {"models", "data", "lr"},
    {"schedule", "rules"},
    {"simulate", "tasks", "local", "optim"},
    {"fast", "cluster", "reactive"},
    {"run"},
    {"study", "bench"},
    {"cli"},
    {"__main__"},
]
INSIDE = {
    "cluster": [{"__init__", "protocol", "place"}, {"ray"}],
    "run": [
        {"__init__", "identity", "check", "sources", "faults", "device", "checkpoint", "taylor"},
        {"read", "compose", "battery", "groups"},
        {"plan", "write", "refusals"},
        {"probe", "fingerprint"},
        {"experiment", "replay"},
        {"verify"},
    ],
    "study": [
        {"__init__", "figures", "looks", "timeline", "measures", "verdicts", "launchers"},
        {"grid", "runs"},
        {"reproduce", "probed"},
        {"evidence", "display"},
        {"tune", "drawing"},
        {"claims", "curves", "against", "panels", "probes"},
        {"pages", "diagnose"},
        {"request"},
    ],
    "bench": [{"__init__", "timing"}, {"cluster"}, {"parts"}, {"page"}],
    "cli": [{"__init__", "help"}, {"hydra", "new"}, {"commands"}],
}
WING = {name: level for level, names in enumerate(WINGS) for name in names}
FLOOR = {
    (wing, name): level
    for wing, floors in INSIDE.items()
    for level, names in enumerate(floors)
    for name in names
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> tuple[str, str]:
    """The wing of a module, and its name there."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0], parts[-1]


def imported(path: Path) -> set[tuple[str, str]]:
    """The modules of ours that a module imports, as (wing, name); a whole wing as (wing, "")."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not getattr(node, "level", 0), f"{path}: a relative import hides its floor"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcasgd_repro"):
            inner = node.module.split(".")[1:]
            names = [alias.name for alias in node.names]
            if not inner:
                found |= {(name, "") for name in names}
            elif len(inner) == 1 and inner[0] in INSIDE:
                found |= {(inner[0], name) for name in names}
            else:
                name = inner[-1 if inner[0] in INSIDE else 1] if len(inner) > 1 else ""
                found.add((inner[0], name))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {(n[1], n[2] if len(n) > 2 else "") for n in names if n[0] == "dcasgd_repro"}
    return {(wing, name) for wing, name in found if wing != "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    wing, here = place(path)
    assert wing in WING, f"{wing} is on no floor"
    assert wing not in INSIDE or (wing, here) in FLOOR, f"{wing}/{here} is on no floor"
    for other, name in imported(path):
        if other != wing:
            assert WING[other] < WING[wing], f"{wing}/{here} imports {other}"
        elif wing in INSIDE:
            assert FLOOR[wing, name] < FLOOR[wing, here], f"{wing}/{here} imports {name}"


DOOR = {
    "cli",
    "run/compose.py",
    "run/plan.py",
    "run/verify.py",
    "study/reproduce.py",
    "study/tune.py",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_config_stops_at_the_door(path: Path) -> None:
    """Only these name a DictConfig or a ``cfg``; everything below has a Plan, or what it says."""
    where = path.relative_to(PACKAGE)
    if str(where) in DOOR or where.parts[0] in DOOR:
        return
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not names & {"cfg", "DictConfig"}


def test_the_page_names_the_door() -> None:
    page = (PACKAGE / "README.md").read_text()
    assert all(f"`{name}`" in page for name in {*DOOR} - {"cli"} | {"cli/"})


@pytest.mark.parametrize(
    "module",
    [
        "cli.commands",
        "schedule",
        "data.fetch",
        "data.decode",
        "run.identity",
        "run.read",
        "run.plan",
        "study.reproduce",
        "study.pages",
        "study.diagnose",
        "study.tune",
    ],
)
def test_answers_without_torch(module: str) -> None:
    code = f"import sys, dcasgd_repro.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dcasgd_repro.cli import commands; commands.dispatch('--help', []);"
        "sys.exit(bool({'torch', 'hydra', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_reading_a_study_imports_neither_torch_nor_matplotlib() -> None:
    """Its figure's name is looked up in the registry, which draws nothing."""
    code = (
        "import sys; from dcasgd_repro.study.grid import names, study; assert study(names()[0]);"
        "sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
