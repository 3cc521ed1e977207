"""The floors of the house: imports go down only, and every module stands on one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dcasgd_repro"
FLOORS = [
    {"errors", "__init__"},
    {"models", "data"},
    {"schedule", "rules", "lr", "faults", "device", "launchers"},
    {"simulate", "tasks", "optim", "config", "measures", "verdicts"},
    {"fast", "record", "checkpoint", "study", "taylor"},
    {"probe"},
    {"experiment", "report", "bench"},
    {"probed"},
    {"evidence", "reproduce"},
    {"tune"},
    {"figures", "display", "verify"},
    {"results"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not getattr(node, "level", 0), f"{path}: a relative import hides its floor"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcasgd_repro"):
            inner = node.module.split(".")[1:2]
            found |= set(inner) if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "dcasgd_repro" and len(name) > 1}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = module_of(path)
    assert here in FLOOR, f"{here} is on no floor"
    up = {name for name in imported(path) - {here} if FLOOR[name] >= FLOOR[here]}
    assert not up, f"{here} imports {up}"


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "schedule",
        "schedule.delays",
        "report",
        "config",
        "data.fetch",
        "data.decode",
        "results",
        "reproduce",
        "tune",
    ],
)
def test_answers_without_torch(module: str) -> None:
    code = f"import sys, dcasgd_repro.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dcasgd_repro import cli; cli.dispatch('--help', []);"
        "sys.exit(bool({'torch', 'hydra', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
