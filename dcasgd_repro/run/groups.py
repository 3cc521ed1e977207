"""What conf/ has to choose from: its groups, and the names in them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"
if not CONF.exists():  # an editable install: conf/ stands beside the package
    CONF = Path(__file__).parents[2] / "conf"


def groups() -> list[str]:
    """The groups of conf/."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name[0] != "_")


def choices(group: str, also: Sequence[Path] = ()) -> list[str]:
    """The names in a group of conf/, and in that of folders given with -cd."""
    files = [file for place in (CONF, *also) for file in (place / group).glob("*.yaml")]
    return sorted({file.stem for file in files})
